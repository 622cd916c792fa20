"""A study: many trainings that are compared, from a TOML file.

name = "regions"                              # of its folder; the file's name unless given
recipes = ["demo_roi_pool", "mine.toml"]      # files beside this one, or recipes of the package;
                                              # or one recipe written out, in tables [head],
                                              [train], [data], [evaluate]
seeds = [0, 1, 2]                             # of initialisation and dropout
order_seed = 0                                # of the order of the views: the same for all members

[set]                                         # keys of all recipes
"train.epochs" = 10

[grid]                                        # every combination of these is trained, with every
seed
head = ["roi_pool", "strg"]                   # a recipe's own head keeps its options, another has
its defaults "train.lr" = [0.1, 0.01]
"data.train_views" = [1, 8]
"strg.form" = ["similarity", "joint"]         # of members whose head is strg; "strg.train.lr" would
be their rate

[subsets]                                     # of the labels: another axis of the grid
all = {}
ten = { first_labels = 10 }
animals = { labels = ["cat", "dog"] }
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

from heads.config.member import Member
from heads.config.recipe import Recipe, give_plugins, read_toml, recipe_path, recipe_with, validated
from heads.config.recipe_tables import check_name
from heads.config.training_options import Count
from heads.zoo import head_names
from pipeline.plugins import HEAD, display_name, given_name, is_known, is_recorded
from pipeline.text.suggestions import nearest

FOLDER = Path(__file__).parents[1] / "studies"
TABLES = ("head", "train", "data", "evaluate")  # of a recipe that is written out in the study
KEYS = (*TABLES, "phases")
LONGEST = 120  # characters of a row's name; file systems allow 255


@dataclass(frozen=True)
class LabelSubset:
    """The labels that a member is trained on: as in `heads.config.recipe.Data`; neither for all."""

    labels: tuple[str, ...] = ()
    first_labels: Count = 0


@dataclass(frozen=True)
class StudyFile:
    """A study as it is written; see the top of this file. `source` and `ours` are those of a recipe
    that is written out.
    """

    name: str
    recipes: tuple[str, ...] = ()
    seeds: tuple[Count, ...] = (0,)
    order_seed: Count = 0
    set: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    subsets: dict[str, LabelSubset] = field(default_factory=dict)
    source: str = ""
    ours: str = ""
    head: dict[str, Any] = field(default_factory=dict)
    train: dict[str, Any] = field(default_factory=dict)
    data: dict[str, Any] = field(default_factory=dict)
    evaluate: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_name(self.name)
        written = [name for name in TABLES if getattr(self, name)]
        if self.recipes and written:
            raise ValueError(
                f"expected recipes or a table [{written[0]}], got both; keys of all recipes "
                f"belong to [set]"
            )
        if not self.recipes and not self.head:
            raise ValueError("expected recipes = [...], or tables [head] and [train]; got neither")
        if not self.seeds:
            raise ValueError("seeds: expected at least one")
        for name, values in (("recipes", self.recipes), ("seeds", self.seeds)):
            if twice := [value for value in values if values.count(value) > 1]:
                raise ValueError(f"{name}: {twice[0]!r} is there twice")


@dataclass(frozen=True)
class StudyRow:
    """Members that differ in their seed alone. `cells`: column -> what distinguishes them from
    other rows.
    """

    name: str
    cells: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class StudyPlan:
    """All that a study trains: `rows`, each with every seed; `columns` of their cells; `settings`
    that were given beside the file."""

    name: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    seeds: tuple[int, ...]
    order_seed: int
    settings: dict[str, Any]

    def members(self, folder: Path) -> list[Member]:
        """Row by row, and in it seed by seed; each in a folder of its own in `folder`."""
        return [
            Member(row.recipe, folder / f"{row.name}-seed{seed}", seed)
            for row in self.rows
            for seed in self.seeds
        ]


def study_names() -> tuple[str, ...]:
    """The studies that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_study(name: str | Path, settings: Mapping[str, Any] | None = None) -> StudyPlan:
    """A study from a TOML file, or by its name among the package's own; `settings` are more keys of
    [set].

    ValueError names the file, the key and what was expected.
    """
    path = Path(name)
    if not path.is_file():
        path = FOLDER / f"{name}.toml"
        if str(name) not in study_names():
            there = nearest(str(name), study_names())
            raise ValueError(
                f"study {str(name)!r}: no such file, nor a study of the package: {there}"
            )
    table = read_toml(path)
    for key in ("set", "grid"):
        if isinstance(table.get(key), Mapping):
            table[key] = dict(_flat(table[key]))
    file = validated(StudyFile, {"name": path.stem, **table}, str(path))
    try:
        plan = _expand(file, path.resolve(), dict(settings or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
    return plan


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Dotted key, value: `"train.lr" = 1` and `train.lr = 1` are the same. `head.name` is
    `head`.
    """
    for key, value in table.items():
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield "head" if prefix + key == "head.name" else prefix + key, value


def _expand(file: StudyFile, path: Path, given: dict[str, Any]) -> StudyPlan:
    """All rows of a study; errors of its recipes name the row."""
    file = _with_given_heads(file, path.parent)
    fixed = {**file.set, **dict(_flat(given))}
    if "head" in fixed:
        fixed["head"] = _given_head(fixed["head"], Path.cwd())
    _check_keys(fixed, file.grid)
    rows, heads = [], set()
    for base, where in _bases(file, path):
        own = base["head"].get("name") if isinstance(base.get("head"), dict) else None
        for choice in file.grid.get("head", [fixed.get("head", own)]):
            name = choice["name"] if isinstance(choice, dict) else choice
            head = display_name(name) if isinstance(name, str) else name
            heads.add(head)
            wanted = (
                {}
                if choice == own
                else {"head": choice if isinstance(choice, dict) else {"name": choice}}
            )
            wanted |= {
                target: value
                for key, value in fixed.items()
                if key != "head" and (target := _target(key, head))
            }
            for cells, varied in _cells(file, head):
                cells = {"recipe": where.stem, "head": _shown(choice), **cells}
                name = _name(cells, bool(file.recipes), "head" in file.grid)
                beside = (
                    Path.cwd()
                    if any(key.endswith("data.class_list") for key in given)
                    else path.parent
                )
                recipe = recipe_with(
                    deepcopy(base), {**wanted, **varied}, where, f"member {name}", beside
                )
                rows.append(StudyRow(name, cells, recipe))
    for key in (*file.grid, *fixed):
        if (first := key.partition(".")[0]) not in KEYS and first not in heads:
            raise ValueError(f"{key}: no member has head {first}; {nearest(first, heads)}")
    names = [row.name for row in rows]
    if twice := [name for name in names if names.count(name) > 1]:
        raise ValueError(
            f"two rows would be called {twice[0]}: give their recipes files of other names"
        )
    axes = [key for key in file.grid if key != "head"]
    shown = (
        ("recipe",) * (len(file.recipes) > 1) + ("head", *axes) + ("subset",) * bool(file.subsets)
    )
    return StudyPlan(file.name, file.source, shown, tuple(rows), file.seeds, file.order_seed, given)


def _cells(file: StudyFile, head: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """(column -> value, key of the recipe -> value) of every combination for a head, "" in columns
    of other heads.
    """
    axes = [key for key in file.grid if key != "head"]
    mine = [key for key in axes if _target(key, head)]
    for values in product(*(file.grid[key] for key in mine)):
        varied = dict(zip(mine, values, strict=True))
        for name, subset in (file.subsets or {"": LabelSubset()}).items():
            labels = {f"data.{key}": value for key, value in asdict(subset).items() if value}
            cells = {**{key: varied.get(key, "") for key in axes}, "subset": name}
            yield cells, {**{_target(key, head): value for key, value in varied.items()}, **labels}


def _bases(file: StudyFile, path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """The tables of each recipe, and its file."""
    for name in file.recipes:
        found = recipe_path(name, path.parent)
        table = read_toml(found)
        give_plugins(table, found.parent, str(found))
        yield table, found.resolve()
    if not file.recipes:
        table = {key: getattr(file, key) for key in TABLES}
        yield {"source": file.source or f"study {file.name}", "ours": file.ours, **table}, path


def _check_keys(fixed: Mapping[str, Any], grid: Mapping[str, Any]) -> None:
    """ValueError for a key of [set] or [grid] that can be none of a recipe, and for values that are
    no list without repeats.
    """
    choices = [*grid.get("head", ()), fixed.get("head")]
    names = [choice.get("name") if isinstance(choice, dict) else choice for choice in choices]
    plugins = [display_name(name) for name in names if isinstance(name, str) and is_recorded(name)]
    firsts = (*KEYS, *head_names(), *plugins)
    for key in (*fixed, *grid):
        first = key.partition(".")[0]
        if first not in firsts:
            raise ValueError(f"no key {key}; {nearest(first, firsts)}")
        if key == first != "head":
            raise ValueError(f"no key {key}; {nearest(first, [f'{first}.KEY'])}")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key}: expected a list of values, got {values!r}")
        if twice := [value for value in values if values.count(value) > 1]:
            raise ValueError(f"grid.{key}: {twice[0]!r} is there twice")
        if key in fixed:
            raise ValueError(f"{key}: expected it in [grid], or in [set] or --set; got both")
    for choice in (*grid.get("head", ()), *([fixed["head"]] if "head" in fixed else ())):
        name = choice.get("name") if isinstance(choice, dict) else choice
        if not isinstance(name, str):
            raise ValueError(
                f"head: expected the name of a head, or a table with a name and options, got "
                f"{choice!r}"
            )
        if not is_known(HEAD, name):
            raise ValueError(f"no head {name!r}: {nearest(name, head_names())}")


def _target(key: str, head: str) -> str:
    """The key of the recipe that `key` of a study sets for a member with this head; "" if it is for
    another head.
    """
    first, _, rest = key.partition(".")
    if first in KEYS:
        return key
    if first != head:
        return ""
    return rest if rest.partition(".")[0] in KEYS else f"head.{rest}"


def _shown(choice: str | dict[str, Any]) -> str:
    """A head for a person: its name, and the options that were given with it."""
    if not isinstance(choice, dict):
        return display_name(choice) if isinstance(choice, str) else choice
    options = [f"{key}={value}" for key, value in choice.items() if key != "name"]
    return " ".join([display_name(choice["name"]), *options])


def _given_head(choice: Any, folder: Path) -> Any:
    """A choice of a head; the path of a plug-in's file is replaced by the name of a given file."""
    if isinstance(choice, str):
        return given_name(choice, folder)
    if isinstance(choice, dict) and isinstance(choice.get("name"), str):
        return {**choice, "name": given_name(choice["name"], folder)}
    return choice


def _with_given_heads(file: StudyFile, folder: Path) -> StudyFile:
    """The study with its heads as `_given_head`; relative paths start from the study's folder."""
    chosen, grid = dict(file.set), dict(file.grid)
    if "head" in chosen:
        chosen["head"] = _given_head(chosen["head"], folder)
    if isinstance(grid.get("head"), list):
        grid["head"] = [_given_head(choice, folder) for choice in grid["head"]]
    return replace(file, set=chosen, grid=grid, head=_given_head(file.head, folder))


def _name(cells: Mapping[str, Any], recipes: bool, heads: bool) -> str:
    """The name of a row, which its folders have: the same whatever other rows there are, and in
    whatever order.
    """
    parts = [cells["recipe"]] if recipes else []
    parts += [cells["head"]] if heads or not recipes else []
    parts += [
        f"{key}={_text(cells[key])}"
        for key in sorted(set(cells) - {"recipe", "head", "subset"})
        if cells[key] != ""
    ]
    parts += [cells["subset"]] if cells["subset"] else []
    exact = ",".join(parts)
    name = "".join(c if c.isalnum() or c in "_-.,=+" else "_" for c in exact)
    if name == exact and len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"


def _text(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
