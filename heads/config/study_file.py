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

    [rows."both graphs"]                      # rows that differ in several keys: another axis
    "strg.form" = "joint"
    "train.epochs" = 20
    [rows.boxes]
    recipe = "demo_roi_pool"                  # in place of `recipes`

    [subsets]                                 # of the labels: another axis of the grid
    all = {}
    ten = { first_labels = 10 }
    animals = { labels = ["cat", "dog"] }

In place of `recipes`, one recipe may be written out in tables [head], [train], [data] and
[evaluate]. If the grid has heads, a recipe's own head keeps its options, and another head has its
defaults. A key such as "strg.train.lr" sets the learning rate of members whose head is strg.

heads/config/study_keys.py says which keys there are. Those of the extraction (extract.KEY) and of
training from frames (frames.KEY) are for `vidgraph finetune --study`.
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
from heads.config.study_keys import (
    ANY_HEAD,
    EXTRACT,
    FRAMES,
    TABLES,
    check_keys,
    flat,
    recipe_key,
    refuse_repeats,
    take_prefix,
    with_frames,
)
from heads.config.training_options import Count
from pipeline.plugins import display_name, given_name
from pipeline.text.suggestions import nearest

FOLDER = Path(__file__).parents[1] / "studies"
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
        rows: name -> keys of one row; `recipe` is its own recipe.
        source, ours: as in a recipe: the table that the study makes, and what of it is our choice.
    """

    name: str
    recipes: tuple[str, ...] = ()
    seeds: tuple[Count, ...] = (0,)
    order_seed: Count = 0
    set: dict[str, Any] = field(default_factory=dict)
    grid: dict[str, Any] = field(default_factory=dict)
    rows: dict[str, dict[str, Any]] = field(default_factory=dict)
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
        elif not self.head and not self._rows_have_recipes():
            raise ValueError("expected recipes = [...], or tables [head] and [train]; got neither")
        if not self.seeds:
            raise ValueError("seeds: expected at least one")
        refuse_repeats("recipes", self.recipes)
        refuse_repeats("seeds", self.seeds)

    def _rows_have_recipes(self) -> bool:
        """Whether every row names its own recipe."""
        return bool(self.rows) and all("recipe" in keys for keys in self.rows.values())


@dataclass(frozen=True)
class StudyRow:
    """Members that differ in their seed alone.

    Attributes:
        name: what their folders are named after.
        cells: column -> what distinguishes them from other rows.
        recipe: what they train.
        extract: options of the extraction, by dotted key without "extract.".
    """

    name: str
    cells: dict[str, Any]
    recipe: Recipe
    extract: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class StudyPlan:
    """All that a study trains.

    Attributes:
        name: the study's name.
        source: the table that it makes, as its file says.
        columns: the cells of the rows that are shown.
        rows: the combinations of the grid, each trained with every seed.
        seeds: of initialisation and dropout.
        order_seed: of the order of the views.
        settings: keys that were given beside the file.
        ours: what of it is this project's choice.
    """

    name: str
    source: str
    columns: tuple[str, ...]
    rows: tuple[StudyRow, ...]
    seeds: tuple[int, ...]
    order_seed: int
    settings: dict[str, Any]
    ours: str = ""

    def members(self, folder: Path) -> list[Member]:
        """Return all runs, row by row and seed by seed.

        Args:
            folder: the study's folder; each member gets a folder in it.
        """
        members = []
        for row in self.rows:
            for seed in self.seeds:
                members.append(Member(row.recipe, self.folder_of(row, seed, folder), seed))
        return members

    def folder_of(self, row: StudyRow, seed: int, folder: Path) -> Path:
        """Return the run folder of a member of the study in `folder`."""
        return folder / f"{row.name}-seed{seed}"

    def varied_extraction(self) -> tuple[str, ...]:
        """Return the options of the extraction that are not the same in all rows."""
        values: dict[str, list[Any]] = {}
        for row in self.rows:
            for key, value in row.extract.items():
                values.setdefault(key, []).append(value)
        varied = []
        for key, found in values.items():
            if len(found) < len(self.rows) or any(value != found[0] for value in found):
                varied.append(key)
        return tuple(varied)

    def command(self, verb: str) -> str:
        """Return a command that trains this study; one that is none of the package's is STUDY.

        Args:
            verb: "ablate", or "finetune --study".
        """
        name = self.name if self.name in study_names() else "STUDY"
        return f"vidgraph {verb} {name}"


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
    # A table of another type is left as it is: the check below reports it.
    for key in ("set", "grid"):
        if isinstance(table.get(key), Mapping):
            table[key] = dict(flat(table[key]))
    if isinstance(table.get("rows"), Mapping):
        for name, row in table["rows"].items():
            if isinstance(row, Mapping):
                table["rows"][name] = dict(flat(row))
    file = validated(StudyFile, {"name": path.stem, **table}, str(path))
    try:
        return _expand(file, path.resolve(), dict(settings or {}))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None


def _expand(file: StudyFile, path: Path, given: dict[str, Any]) -> StudyPlan:
    """Return all rows of a study; errors of its recipes name the row."""
    file = _with_given_heads(file, path.parent)
    fixed = {**file.set, **dict(flat(given))}
    if "head" in fixed:
        fixed["head"] = _given_head(fixed["head"], Path.cwd())
    check_keys(fixed, file.grid, file.rows)

    # A list of classes that is given on the command line lies relative to the working directory.
    class_list_given = any(key.endswith("data.class_list") for key in given)
    beside = Path.cwd() if class_list_given else path.parent

    rows: list[StudyRow] = []
    for label, keys_of_row in (file.rows or {"": {}}).items():
        for base, recipe_file in _bases(file, path, keys_of_row.get("recipe")):
            wanted = {**fixed, **keys_of_row}
            wanted.pop("recipe", None)
            rows += _rows_of(file, label, base, recipe_file, wanted, beside)

    heads = {display_name(row.recipe.head.name) for row in rows}
    varied: list[str] = []
    for keys in file.rows.values():
        varied += [key for key in keys if key != "recipe"]
    for key in (*file.grid, *fixed, *varied):
        first = key.partition(".")[0]
        if first not in ANY_HEAD and first not in heads:
            raise ValueError(f"{key}: no member has head {first}; {nearest(first, heads)}")
    names = [row.name for row in rows]
    for name in names:
        if names.count(name) > 1:
            raise ValueError(
                f"two rows would be called {name}: rename the rows, or the files of their recipes "
                f"or heads"
            )

    columns = ["head", *(key for key in file.grid if key != "head")]
    if len(file.recipes) > 1:
        columns.insert(0, "recipe")
    if file.rows:
        columns.insert(0, "row")
    if file.subsets:
        columns.append("subset")
    return StudyPlan(
        file.name,
        file.source,
        tuple(columns),
        tuple(rows),
        file.seeds,
        file.order_seed,
        given,
        file.ours,
    )


def _rows_of(
    file: StudyFile,
    label: str,
    base: dict[str, Any],
    recipe_file: Path,
    wanted: Mapping[str, Any],
    beside: Path,
) -> Iterator[StudyRow]:
    """Yield the rows of one recipe: every combination of the grid.

    Args:
        file: the study.
        label: the name of a row of [rows]; "" without any.
        base: the recipe's tables.
        recipe_file: the recipe's file.
        wanted: keys of [set] and of the row.
        beside: the folder that a list of classes in `wanted` is relative to.
    """
    base_head = base["head"].get("name") if isinstance(base.get("head"), dict) else None
    for choice in file.grid.get("head", [wanted.get("head", base_head)]):
        head_name = choice["name"] if isinstance(choice, dict) else choice
        head = display_name(head_name) if isinstance(head_name, str) else head_name

        keys: dict[str, Any] = {}
        # A recipe's own head keeps its options.
        if choice != base_head:
            keys["head"] = choice if isinstance(choice, dict) else {"name": choice}
        for key, value in wanted.items():
            target = recipe_key(key, head)
            if key != "head" and target:
                keys[target] = value

        for cells, varied in _combinations(file, head):
            cells = {"recipe": recipe_file.stem, "head": _shown(choice), **cells}
            if label:
                cells["row"] = label
            name = _row_name(cells, bool(file.recipes), "head" in file.grid)

            settings = {**keys, **varied}
            extract, frames = take_prefix(settings, EXTRACT), take_prefix(settings, FRAMES)
            # A copy of `base`, because recipe_with changes its tables.
            where = f"member {name}"
            recipe = recipe_with(deepcopy(base), settings, recipe_file, where, beside)
            yield StudyRow(name, cells, with_frames(recipe, frames, where), extract)


def _combinations(file: StudyFile, head: str) -> Iterator[tuple[dict[str, Any], dict[str, Any]]]:
    """Yield every combination of the grid for a head: (column -> value, recipe key -> value).

    Columns of other heads are "".
    """
    axes = [key for key in file.grid if key != "head"]
    targets = {key: recipe_key(key, head) for key in axes}
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


def _bases(file: StudyFile, path: Path, own: str | None) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield the tables of each recipe, and its file; `own` is that of a row which names one."""
    for name in [own] if own is not None else file.recipes:
        found = recipe_path(name, path.parent)
        table = read_toml(found)
        give_plugins(table, found.parent, str(found))
        yield table, found.resolve()
    if own is None and not file.recipes:
        table = {key: getattr(file, key) for key in TABLES}
        yield {"source": file.source or f"study {file.name}", "ours": file.ours, **table}, path


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
    rows = {}
    for name, keys in file.rows.items():
        rows[name] = dict(keys)
        if "head" in keys:
            rows[name]["head"] = _given_head(keys["head"], folder)
    return replace(file, set=chosen, grid=grid, rows=rows, head=_given_head(file.head, folder))


def _row_name(cells: Mapping[str, Any], recipes: bool, heads: bool) -> str:
    """Return the name of a row, which its folders have.

    It depends neither on other rows nor on their order. `recipes`, `heads`: whether the study has
    several of them to choose from.
    """
    parts = []
    if recipes:
        parts.append(cells["recipe"])
    if "row" in cells:
        # Without a checksum: two rows whose names become equal are refused.
        parts.append(re.sub(r"[^\w.+-]", "_", cells["row"]))
    if heads or not (recipes or "row" in cells):
        parts.append(cells["head"])
    for key in sorted(set(cells) - {"recipe", "row", "head", "subset"}):
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
