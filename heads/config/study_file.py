"""A study: many trainings that are compared, from a TOML file.

    name = "regions"                          # of its folder; default: the file's name
    recipes = ["demo_roi_pool", "mine.toml"]  # recipes of the package, or files beside this one
    seeds = [0, 1, 2]                         # of initialisation and dropout
    order_seed = 0                            # of the order of the views, for all members

    [set]                                     # keys of all recipes
    "train.epochs" = 10

    [grid]                                    # all combinations, each with every seed
    head = ["roi_pool", "strg"]
    "train.lr" = [0.1, 0.01]
    "data.train_views" = [1, 8]
    "strg.form" = ["similarity", "joint"]     # only for members whose head is strg

    [subsets]                                 # of the labels: another axis of the grid
    all = {}
    ten = { first_labels = 10 }
    animals = { labels = ["cat", "dog"] }

In place of `recipes`, one recipe may be written out in tables [head], [train], [data] and
[evaluate]. If the grid has heads, a recipe's own head keeps its options, and another head has its
defaults. A key such as "strg.train.lr" sets the learning rate of members whose head is strg.
"""

import hashlib
import json
import re
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
# The tables of a recipe that is written out in the study.
TABLES = ("head", "train", "data", "evaluate")
# The first parts of a recipe's keys.
KEYS = (*TABLES, "phases")
# Characters of a row's name. File systems allow 255 for a folder.
LONGEST = 120


@dataclass(frozen=True)
class LabelSubset:
    """The labels that a member is trained on; all of them if neither is given.

    Attributes:
        labels: these labels, by name.
        first_labels: the labels of the lowest ids, so many.
    """

    labels: tuple[str, ...] = ()
    first_labels: Count = 0


@dataclass(frozen=True)
class StudyFile:
    """A study as it is written; the top of this module explains the keys.

    Attributes:
        source, ours: as in a recipe, for one that is written out.
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
        if self.recipes:
            for table in TABLES:
                if getattr(self, table):
                    raise ValueError(
                        f"expected recipes or a table [{table}], got both; keys of all recipes "
                        f"belong to [set]"
                    )
        elif not self.head:
            raise ValueError("expected recipes = [...], or tables [head] and [train]; got neither")
        if not self.seeds:
            raise ValueError("seeds: expected at least one")
        _refuse_repeats("recipes", self.recipes)
        _refuse_repeats("seeds", self.seeds)


@dataclass(frozen=True)
class StudyRow:
    """Members that differ in their seed alone.

    Attributes:
        name: what their folders are named after.
        cells: column -> what distinguishes them from other rows.
        recipe: what they train.
    """

    name: str
    cells: dict[str, Any]
    recipe: Recipe


@dataclass(frozen=True)
class StudyPlan:
    """All that a study trains.

    Attributes:
        name: the study's name.
        source: where its recipe comes from, if it is written out in the study.
        columns: the cells of the rows that are shown.
        rows: the combinations of the grid, each trained with every seed.
        seeds: of initialisation and dropout.
        order_seed: of the order of the views.
        settings: keys that were given beside the file.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    seeds: tuple[int, ...]
    order_seed: int
    settings: dict[str, Any]

    def members(self, folder: Path) -> list[Member]:
        """Return all runs, row by row and seed by seed.

        Args:
            folder: the study's folder; each member gets a folder in it.
        """
        members = []
        for row in self.rows:
            for seed in self.seeds:
                members.append(Member(row.recipe, folder / f"{row.name}-seed{seed}", seed))
        return members


def study_names() -> tuple[str, ...]:
    """Return the names of the studies that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_study(name: str | Path, settings: Mapping[str, Any] | None = None) -> StudyPlan:
    """Read a study.

    Args:
        name: the path of a TOML file, or the name of a study of the package.
        settings: further keys of [set].

    Raises:
        ValueError: the message names the file, the key, and what was expected.
    """
    path = Path(name)
    if not path.is_file():
        path = FOLDER / f"{name}.toml"
        if str(name) not in study_names():
            hint = nearest(str(name), study_names())
            raise ValueError(
                f"study {str(name)!r}: no such file, nor a study of the package: {hint}"
            )

    table = read_toml(path)
    for key in ("set", "grid"):
        # Otherwise the check below reports what it is.
        if isinstance(table.get(key), Mapping):
            table[key] = dict(_flat(table[key]))
    file = validated(StudyFile, {"name": path.stem, **table}, str(path))
    try:
        return _expand(file, path.resolve(), dict(settings or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value): `"train.lr" = 1` and `train.lr = 1` are the same in TOML.

    `head.name` becomes `head`.
    """
    for key, value in table.items():
        dotted = prefix + key
        if isinstance(value, Mapping) and value:
            yield from _flat(value, f"{dotted}.")
        else:
            yield "head" if dotted == "head.name" else dotted, value


def _expand(file: StudyFile, path: Path, given: dict[str, Any]) -> StudyPlan:
    """Return all rows of a study; errors of its recipes name the row."""
    file = _with_given_heads(file, path.parent)
    fixed = {**file.set, **dict(_flat(given))}
    if "head" in fixed:
        fixed["head"] = _given_head(fixed["head"], Path.cwd())
    _check_keys(fixed, file.grid)

    # A list of classes that is given on the command line lies relative to the working directory.
    class_list_given = any(key.endswith("data.class_list") for key in given)
    beside = Path.cwd() if class_list_given else path.parent

    rows: list[StudyRow] = []
    heads = set()
    for base, recipe_file in _bases(file, path):
        base_head = base["head"].get("name") if isinstance(base.get("head"), dict) else None
        for choice in file.grid.get("head", [fixed.get("head", base_head)]):
            head_name = choice["name"] if isinstance(choice, dict) else choice
            head = display_name(head_name) if isinstance(head_name, str) else head_name
            heads.add(head)

            keys: dict[str, Any] = {}
            # A recipe's own head keeps its options.
            if choice != base_head:
                keys["head"] = choice if isinstance(choice, dict) else {"name": choice}
            for key, value in fixed.items():
                target = _recipe_key(key, head)
                if key != "head" and target:
                    keys[target] = value

            for cells, varied in _combinations(file, head):
                cells = {"recipe": recipe_file.stem, "head": _shown(choice), **cells}
                name = _row_name(cells, bool(file.recipes), "head" in file.grid)
                # A copy of `base`, because recipe_with changes its tables.
                recipe = recipe_with(
                    deepcopy(base), {**keys, **varied}, recipe_file, f"member {name}", beside
                )
                rows.append(StudyRow(name, cells, recipe))

    for key in (*file.grid, *fixed):
        first = key.partition(".")[0]
        if first not in KEYS and first not in heads:
            raise ValueError(f"{key}: no member has head {first}; {nearest(first, heads)}")
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two rows would be called {name}: rename the files of their recipes or heads"
            )

    columns = ["head", *(key for key in file.grid if key != "head")]
    if len(file.recipes) > 1:
        columns.insert(0, "recipe")
    if file.subsets:
        columns.append("subset")
    return StudyPlan(
        file.name, file.source, tuple(columns), tuple(rows), file.seeds, file.order_seed, given
    )


def _combinations(file: StudyFile, head: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every combination of the grid for a head: (column -> value, recipe key -> value).

    Columns of other heads are "".
    """
    axes = [key for key in file.grid if key != "head"]
    targets = {key: _recipe_key(key, head) for key in axes}
    used_axes = [key for key in axes if targets[key]]
    subsets = file.subsets or {"": LabelSubset()}
    for values in product(*(file.grid[key] for key in used_axes)):
        varied = dict(zip(used_axes, values, strict=True))
        for name, subset in subsets.items():
            cells = {key: varied.get(key, "") for key in axes}
            cells["subset"] = name
            keys = {targets[key]: value for key, value in varied.items()}
            for key, value in asdict(subset).items():
                if value:
                    keys[f"data.{key}"] = value
            yield cells, keys


def _bases(file: StudyFile, path: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield the tables of each recipe, and its file."""
    for name in file.recipes:
        found = recipe_path(name, path.parent)
        table = read_toml(found)
        give_plugins(table, found.parent, str(found))
        yield table, found.resolve()
    if not file.recipes:
        table = {key: getattr(file, key) for key in TABLES}
        yield {"source": file.source or f"study {file.name}", "ours": file.ours, **table}, path


def _check_keys(fixed: Mapping[str, Any], grid: Mapping[str, Any]) -> None:
    """Raise ValueError for a key that no recipe can have, or a grid's values that are no list."""
    choices = list(grid["head"]) if isinstance(grid.get("head"), list) else []
    if "head" in fixed:
        choices.append(fixed["head"])
    plugins = []
    for choice in choices:
        name = choice.get("name") if isinstance(choice, dict) else choice
        if isinstance(name, str) and is_recorded(name):
            plugins.append(display_name(name))

    firsts = (*KEYS, *head_names(), *plugins)
    for key in (*fixed, *grid):
        first = key.partition(".")[0]
        if first not in firsts:
            raise ValueError(f"no key {key}; {nearest(first, firsts)}")
        # A whole table, such as "train"; only `head` may stand alone.
        if key == first and key != "head":
            raise ValueError(f"no key {key}; {nearest(first, [f'{first}.KEY'])}")

    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key}: expected a list of values, got {values!r}")
        _refuse_repeats(f"grid.{key}", values)
        if key in fixed:
            raise ValueError(f"{key}: expected it in [grid], or in [set] or --set; got both")

    for choice in choices:
        name = choice.get("name") if isinstance(choice, dict) else choice
        if not isinstance(name, str):
            raise ValueError(
                f"head: expected the name of a head, or a table with a name and options, got "
                f"{choice!r}"
            )
        if not is_known(HEAD, name):
            raise ValueError(f"no head {name!r}: {nearest(name, head_names())}")


def _refuse_repeats(key: str, values: "list | tuple") -> None:
    """Raise ValueError if a value occurs twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{key}: duplicate {value!r}")


def _recipe_key(key: str, head: str) -> str:
    """Return the recipe's key that a study's key sets for a head; "" if it is of another head."""
    first, _, rest = key.partition(".")
    if first in KEYS:
        return key
    if first != head:
        return ""
    return rest if rest.partition(".")[0] in KEYS else f"head.{rest}"


def _shown(choice: str | dict[str, Any]) -> str:
    """Return a head for a person: its name, and the options that were given with it."""
    if isinstance(choice, str):
        return display_name(choice)
    if not isinstance(choice, dict):
        return choice
    options = [f"{key}={value}" for key, value in choice.items() if key != "name"]
    return " ".join([display_name(choice["name"]), *options])


def _given_head(choice: Any, folder: Path) -> Any:
    """Return a choice of a head; a plug-in's path becomes the name of a given file."""
    if isinstance(choice, str):
        return given_name(choice, folder)
    if isinstance(choice, dict) and isinstance(choice.get("name"), str):
        return {**choice, "name": given_name(choice["name"], folder)}
    return choice


def _with_given_heads(file: StudyFile, folder: Path) -> StudyFile:
    """Return the study with its heads as `_given_head`; paths are relative to its folder."""
    chosen, grid = dict(file.set), dict(file.grid)
    if "head" in chosen:
        chosen["head"] = _given_head(chosen["head"], folder)
    if isinstance(grid.get("head"), list):
        grid["head"] = [_given_head(choice, folder) for choice in grid["head"]]
    return replace(file, set=chosen, grid=grid, head=_given_head(file.head, folder))


def _row_name(cells: Mapping[str, Any], recipes: bool, heads: bool) -> str:
    """Return the name of a row, which its folders have.

    It depends neither on other rows nor on their order. `recipes`, `heads`: whether the study has
    several of them to choose from.
    """
    parts = []
    if recipes:
        parts.append(cells["recipe"])
    if heads or not recipes:
        parts.append(cells["head"])
    for key in sorted(set(cells) - {"recipe", "head", "subset"}):
        if cells[key] != "":
            value = cells[key] if isinstance(cells[key], str) else json.dumps(cells[key])
            parts.append(f"{key}={value}")
    if cells["subset"]:
        parts.append(cells["subset"])

    exact = ",".join(parts)
    # Characters that every file system allows in a name.
    name = re.sub(r"[^\w.,=+-]", "_", exact)
    if name == exact and len(name) <= LONGEST:
        return name
    # Two names may become equal when characters are replaced: the checksum tells them apart.
    return f"{name[:LONGEST]}-{hashlib.sha256(exact.encode()).hexdigest()[:8]}"
