"""How the code reads, in figures: density, line widths, comments, docstrings, longest parts.

Only `ast` and `tokenize` look at the files: nothing of the measured code is imported. The script
therefore also measures another checkout (`--root`), such as an older commit in a git worktree;
with two roots it prints one column for each. `--worst 20` lists where to begin when rewriting.
"""

import argparse
import ast
import json
import math
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath

from _style_names import (
    Definition,
    definitions,
    has_parameters,
    is_public,
    lists_parameters,
    named_public,
)
from _style_sentences import long_sentences
from _style_sources import FUNCTIONS, Place, Source, is_inside, read_sources

PACKAGES = ("pipeline", "heads", "cli", "vidgraph")
ZOOS = ("heads/zoo", "heads/recipes", "pipeline/backbones")
INTERFACES = ("heads/interface", "pipeline/cache", "pipeline/backbones")

PERCENTILE = 0.9
# Below this many statements, one comprehension makes a file look dense.
SMALL_FILE = 20

COMPREHENSIONS = (ast.ListComp, ast.SetComp, ast.DictComp, ast.GeneratorExp)

# What the figures should become; rows without an aim are for comparison only.
AIMS = {
    "files in the fullest folder": "about 20",
    "line width, 90th percentile": "<= 92",
    "longest line": "<= 100",
    "comprehensions / 100 statements": "<= 4",
    "conditional expressions / 100": "<= 2.5",
    "own-line comments, %": ">= 3",
    "named public things with a list, %": ">= 90",
    "sentences above 30 words": "0",
    "dense comprehensions": "0",
    "conditionals in comprehensions": "0",
    "nested conditionals": "0",
    "walrus in compound conditions": "0",
}


# ---- Density


def dense_comprehensions(source: Source) -> Iterator[Place]:
    """Yield comprehensions with two `for`s of their own, or with a call in a condition."""
    for node in source.nodes:
        if isinstance(node, COMPREHENSIONS):
            calls = 0
            for generator in node.generators:
                calls += sum(_count(test, ast.Call) for test in generator.ifs)
            if len(node.generators) > 1 or calls:
                yield source.place(node.lineno, len(node.generators) + calls)


def conditionals_in_comprehensions(source: Source) -> Iterator[Place]:
    """Yield the conditional expressions anywhere within a comprehension."""
    for node in _within(source, COMPREHENSIONS, ast.IfExp):
        yield source.place(node.lineno, _width(node))


def nested_conditionals(source: Source) -> Iterator[Place]:
    """Yield the conditional expressions that have another one within them."""
    for node in source.nodes:
        if isinstance(node, ast.IfExp):
            inner = _count(node, ast.IfExp) - 1
            if inner:
                yield source.place(node.lineno, inner)


def compound_walruses(source: Source) -> Iterator[Place]:
    """Yield assignment expressions that are part of an `and` or an `or`."""
    for node in _within(source, (ast.BoolOp,), ast.NamedExpr):
        yield source.place(node.lineno, _width(node))


def _within(source: Source, outer: tuple[type, ...], inner: type) -> Iterator[ast.expr]:
    """Yield the nodes of one type that are below nodes of another, each once."""
    seen = set()
    for node in source.nodes:
        if isinstance(node, outer):
            for child in ast.walk(node):
                if isinstance(child, inner) and child not in seen:
                    seen.add(child)
                    yield child


def _count(node: ast.AST, kind: type | tuple[type, ...]) -> int:
    return sum(isinstance(child, kind) for child in ast.walk(node))


def _width(node: ast.expr) -> int:
    return len(ast.unparse(node))


# ---- The table


@dataclass(frozen=True)
class Checkout:
    """What is measured of one checkout.

    Args:
        sources: all files that were read; names are followed through all of them.
        only: measure files below these folders or with these names; empty means all.
        zoos: folders that do not count as the fullest one.
        interfaces: folders or modules of which every public class counts as named.
    """

    sources: list[Source]
    only: tuple[str, ...] = ()
    zoos: tuple[str, ...] = ZOOS
    interfaces: tuple[str, ...] = INTERFACES

    @cached_property
    def measured(self) -> list[Source]:
        """The files that `only` leaves."""
        if not self.only:
            return self.sources
        return _below(self.sources, self.only)

    @cached_property
    def named(self) -> list[Definition]:
        """The named public things of all files (see `named_public`)."""
        return named_public(self.sources, self.interfaces)

    def select(self, package: str) -> list[Source]:
        """The measured files of a package; "all" stands for all packages."""
        if package == "all":
            return self.measured
        return _below(self.measured, (f"{package}/",))

    def measure(self, package: str) -> dict[str, float]:
        """Compute the table's figures.

        Args:
            package: a package's folder, or "all".

        Returns:
            The figures by their names. Shares are in percent, and 0 where there is nothing
            to take a share of.
        """
        sources = self.select(package)
        widths: list[int] = []
        comments = 0
        for source in sources:
            widths += source.widths
            comments += sum(comment.own_line for comment in source.comments)

        statements = _nodes(sources, ast.stmt)
        functions = public_functions(sources)
        documented = sum(bool(ast.get_docstring(item.node)) for item in functions)
        # Names lead through the whole checkout, but only what `sources` define is measured.
        paths = {source.path for source in sources}
        named = [item for item in self.named if item.path in paths]
        worst = self.offenders(package)
        return {
            "files": len(sources),
            "lines": sum(len(source.lines) for source in sources),
            "statements": statements,
            "files in the fullest folder": _largest(worst["fullest folders"]),
            "line width, 90th percentile": percentile(widths),
            "longest line": max(widths, default=0),
            "comprehensions / 100 statements": share(_nodes(sources, COMPREHENSIONS), statements),
            "conditional expressions / 100": share(_nodes(sources, ast.IfExp), statements),
            "own-line comments, %": share(comments, len(widths)),
            "public functions with parameters": len(functions),
            "... with a docstring, %": share(documented, len(functions)),
            "... with a list of parameters, %": _listed_share(functions),
            "named public things": len(named),
            "named public things with a list, %": _listed_share(named),
            "longest function": _largest(worst["longest functions"]),
            "longest file": _largest(worst["longest files"]),
            "sentences above 30 words": len(worst["long sentences"]),
            "dense comprehensions": len(worst["dense comprehensions"]),
            "conditionals in comprehensions": len(worst["conditionals in comprehensions"]),
            "nested conditionals": len(worst["nested conditionals"]),
            "walrus in compound conditions": len(worst["walrus in compound conditions"]),
        }

    def offenders(self, package: str) -> dict[str, list[Place]]:
        """Find the places behind the figures.

        Args:
            package: a package's folder, or "all".

        Returns:
            The places by the name of the measure, the worst first.
        """
        sources = self.select(package)
        found: dict[str, list[Place]] = {"fullest folders": fullest_folders(sources, self.zoos)}
        found |= {name: [] for name in PLACES}
        for source in sources:
            for name, find in PLACES.items():
                found[name].extend(find(source))

        by_path = {source.path: source for source in sources}
        lacking = []
        for definition in self.named:
            if definition.path in by_path and not lists_parameters(definition):
                source = by_path[definition.path]
                lacking.append(source.place(definition.node.lineno, 1, definition.name))
        found["named public things without a list"] = lacking
        return {name: sorted(places, key=_worst_first) for name, places in found.items()}


def public_functions(sources: Iterable[Source]) -> list[Definition]:
    """List the public functions and methods with parameters, but for those of private modules."""
    found = []
    for source in sources:
        if not source.is_private:
            for definition in definitions(source):
                is_function = isinstance(definition.node, FUNCTIONS)
                if is_function and is_public(definition) and has_parameters(definition):
                    found.append(definition)
    return found


def fullest_folders(sources: Iterable[Source], zoos: Iterable[str]) -> list[Place]:
    """Count the Python files of each folder.

    Args:
        sources: the files.
        zoos: folders to leave out, with all below them.
    """
    counts = Counter(str(PurePosixPath(source.path).parent) for source in sources)
    places = []
    for folder, count in counts.items():
        if not is_inside(folder, zoos):
            places.append(Place(folder, 1, count, "files"))
    return places


def long_lines(source: Source) -> Iterator[Place]:
    """Yield every line of more than 100 characters."""
    for number, line in enumerate(source.lines, start=1):
        if len(line) > 100:
            yield source.place(number, len(line))


def long_functions(source: Source) -> Iterator[Place]:
    """Yield every function with its length in lines, decorators left out."""
    for node in source.nodes:
        if isinstance(node, FUNCTIONS):
            yield source.place(node.lineno, node.end_lineno - node.lineno + 1)


def long_files(source: Source) -> Iterator[Place]:
    """Yield the file with its length in lines."""
    yield Place(source.path, 1, len(source.lines), "lines")


def dense_files(source: Source) -> Iterator[Place]:
    """Yield the file with its comprehensions and conditional expressions per 100 statements."""
    statements = source.count(ast.stmt)
    if statements >= SMALL_FILE:
        count = source.count((*COMPREHENSIONS, ast.IfExp))
        text = "comprehensions and conditional expressions / 100 statements"
        yield Place(source.path, 1, share(count, statements), text)


PLACES = {
    "lines above 100 characters": long_lines,
    "densest files": dense_files,
    "longest functions": long_functions,
    "longest files": long_files,
    "long sentences": long_sentences,
    "dense comprehensions": dense_comprehensions,
    "conditionals in comprehensions": conditionals_in_comprehensions,
    "nested conditionals": nested_conditionals,
    "walrus in compound conditions": compound_walruses,
}


def percentile(values: list[int], part: float = PERCENTILE) -> int:
    """The smallest value that at least `part` of all values do not exceed; 0 of none.

    Args:
        values: in any order.
        part: between 0 and 1, 0.9 by default.
    """
    if not values:
        return 0
    return sorted(values)[math.ceil(part * len(values)) - 1]


def share(count: int, total: int) -> float:
    """A count in percent of a total; 0 of nothing.

    Args:
        count: how many.
        total: of how many.
    """
    return 100 * count / total if total else 0.0


def _listed_share(found: list[Definition]) -> float:
    return share(sum(lists_parameters(definition) for definition in found), len(found))


def _nodes(sources: Iterable[Source], kind: type | tuple[type, ...]) -> int:
    return sum(source.count(kind) for source in sources)


def _below(sources: Iterable[Source], prefixes: tuple[str, ...]) -> list[Source]:
    found = []
    for source in sources:
        if source.path.startswith(prefixes):
            found.append(source)
    return found


def _largest(places: list[Place]) -> float:
    return places[0].size if places else 0


def _worst_first(place: Place) -> tuple[float, str, int]:
    return -place.size, place.path, place.line


# ---- Output


def print_table(columns: dict[str, dict[str, float]]) -> None:
    """Print figures, one column for each package or checkout, and the aims.

    Args:
        columns: the figures of `Checkout.measure` by the heading of their column.
    """
    figures = [*columns.values()]
    rows = [["", *columns, "aim"]]
    for name in figures[0]:
        cells = [_shown(column[name]) for column in figures]
        rows.append([name, *cells, AIMS.get(name, "")])

    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for name, *cells in rows:
        line = name.ljust(widths[0])
        for cell, width in zip(cells, widths[1:], strict=True):
            line += "  " + cell.rjust(width)
        print(line.rstrip())


def _shown(value: float) -> str:
    return f"{value:.2f}" if isinstance(value, float) else f"{value:,}"


def print_places(found: dict[str, list[Place]], limit: int) -> None:
    """Print the worst places of every measure.

    Args:
        found: the places by measure, the worst first.
        limit: how many to print of each.
    """
    for name, places in found.items():
        print(f"\n{name}: {min(limit, len(places))} of {len(places)}")
        for place in places[:limit]:
            text = place.text if len(place.text) <= 70 else f"{place.text[:67]}..."
            print(f"  {place.path}:{place.line}  {_shown(place.size)}  {text}")


def records_of(found: dict[str, list[Place]], limit: int) -> dict[str, list[dict]]:
    """Turn the worst places of every measure into what JSON can hold.

    Args:
        found: the places by measure, the worst first.
        limit: how many to keep of each.
    """
    records = {}
    for name, places in found.items():
        records[name] = [place._asdict() for place in places[:limit]]
    return records


def command_line() -> argparse.ArgumentParser:
    """The options of this script."""
    parser = argparse.ArgumentParser(
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("packages", nargs="*", default=PACKAGES, help=f"folders (default: {' '.join(PACKAGES)})")
    add("--root", action="append", type=Path, help="a checkout; give it twice to compare two")
    add("--only", action="append", default=[], metavar="PREFIX", help="measure paths that begin so")
    add("--worst", type=int, default=0, metavar="N", help="list the N worst places per measure")
    add("--json", type=Path, help="also write the figures, and the places listed, to this file")
    add("--zoos", default=",".join(ZOOS), help="folders never counted as the fullest (%(default)s)")
    add(
        "--interfaces",
        default=",".join(INTERFACES),
        help="folders or modules of which every public class counts as named (%(default)s)",
    )
    return parser


def main() -> None:
    """Measure the checkouts that the command line names."""
    parser = command_line()
    given = parser.parse_args()
    packages = [name.rstrip("/") for name in given.packages]
    zoos, interfaces = tuple(given.zoos.split(",")), tuple(given.interfaces.split(","))
    here = Path(__file__).resolve().parent.parent
    roots = {"this checkout": here}
    if given.root:
        roots = {str(root): root for root in given.root}

    records = []
    for name, root in roots.items():
        try:
            sources = read_sources(root, packages)
        except ValueError as error:
            parser.error(str(error))
        checkout = Checkout(sources, tuple(given.only), zoos, interfaces)
        if not checkout.measured:
            parser.error(f"--only: no file of {name} begins with {' or '.join(given.only)}")
        columns = {}
        for package in [*packages, "all"]:
            # An older commit may lack a package, such as `vidgraph`.
            if checkout.select(package):
                columns[package] = checkout.measure(package)
        places = checkout.offenders("all")
        records.append({"root": name, "figures": columns, "worst": records_of(places, given.worst)})

        if len(roots) == 1:
            print_table(columns)
        if given.worst:
            print_places(places, given.worst)
    if len(roots) > 1:
        print_table({record["root"]: record["figures"]["all"] for record in records})
    if given.json:
        given.json.write_text(json.dumps(records, indent=1) + "\n")


if __name__ == "__main__":
    main()
