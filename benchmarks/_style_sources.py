"""The files that `style.py` measures: their lines, syntax trees and comments."""

import ast
import io
import tokenize
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePosixPath
from typing import NamedTuple

FUNCTIONS = (ast.FunctionDef, ast.AsyncFunctionDef)


class Place(NamedTuple):
    """A line worth a look; `size` orders the places of one measure, the largest first."""

    path: str
    line: int
    size: float
    text: str


class Comment(NamedTuple):
    """A comment without its `#`; `own_line` is False where code stands before it."""

    line: int
    column: int
    text: str
    own_line: bool


@dataclass(frozen=True)
class Source:
    """One Python file.

    Args:
        path: relative to the checkout, with forward slashes, such as "heads/zoo/gos.py".
        text: what the file holds.
    """

    path: str
    text: str

    @cached_property
    def lines(self) -> list[str]:
        """The lines without their ends."""
        return self.text.splitlines()

    @cached_property
    def nodes(self) -> list[ast.AST]:
        """All nodes of the syntax tree, the module first."""
        return list(ast.walk(self.tree))

    @cached_property
    def tree(self) -> ast.Module:
        """The syntax tree."""
        return ast.parse(self.text, self.path)

    @cached_property
    def comments(self) -> list[Comment]:
        """All comments, from top to bottom."""
        found = []
        for token in tokenize.generate_tokens(io.StringIO(self.text).readline):
            if token.type == tokenize.COMMENT:
                line, column = token.start
                own_line = not token.line[:column].strip()
                found.append(Comment(line, column, token.string.lstrip("#:").strip(), own_line))
        return found

    @cached_property
    def widths(self) -> list[int]:
        """The widths of the lines that are not blank, in characters."""
        widths = []
        for line in self.lines:
            if line.strip():
                widths.append(len(line))
        return widths

    def count(self, kind: type | tuple[type, ...]) -> int:
        """Count the nodes of one type, or of several.

        Args:
            kind: what `isinstance` takes.
        """
        return sum(isinstance(node, kind) for node in self.nodes)

    @property
    def module(self) -> str:
        """The dotted name by which Python imports the file."""
        parts = PurePosixPath(self.path).with_suffix("").parts
        if parts[-1] == "__init__":
            parts = parts[:-1]
        return ".".join(parts)

    @property
    def is_room(self) -> bool:
        """Whether this is the `__init__` of a package."""
        return PurePosixPath(self.path).name == "__init__.py"

    @property
    def is_private(self) -> bool:
        """Whether a name on the way to this module begins with an underscore."""
        return any(part.startswith("_") for part in self.module.split("."))

    def place(self, line: int, size: float, text: str = "") -> Place:
        """A place in this file; its text is the line itself unless another one is given."""
        return Place(self.path, line, size, text or self.lines[line - 1].strip())


def read_sources(root: Path, packages: Iterable[str]) -> list[Source]:
    """Read the Python files of some packages, in the order of their paths.

    Args:
        root: the checkout.
        packages: folders in it; those that do not exist are left out.

    Raises:
        ValueError: none of the packages has a Python file.
    """
    sources = []
    for package in packages:
        for path in sorted((root / package).rglob("*.py")):
            name = path.relative_to(root).as_posix()
            sources.append(Source(name, path.read_text(encoding="utf-8")))
    if not sources:
        raise ValueError(f"{root}: no Python files in {', '.join(packages)}")
    return sources


def is_inside(path: str, places: Iterable[str]) -> bool:
    """Whether a file is in one of the folders, or is the module of that name.

    Args:
        path: a file relative to the checkout.
        places: folders, or modules without `.py`: "pipeline/cache" may be either.
    """
    module = path.removesuffix(".py")
    return any(f"{module}/".startswith(f"{place}/") for place in places)
