"""Recipes: a TOML file -> small frozen dataclasses; an unknown key or a wrong type is refused with
the nearest names.

A recipe says which head is trained how; the cache, the seed, the device and the precision are the
run's. One with a table [train] is trained in one go; one with tables [[phases]] in several, each
with its own [phases.train]:

    [[phases]]
    name = "search"             [phases.train] ...
    [[phases]]
    name = "discrete"
    start = "previous"          # its weights are those that "search" ended with
    [phases.head]
    mode = "discrete"           # options of the head that differ from the table [head]
    [phases.train] ...
    [[phases]]
    name = "joint"
    reads = "frames"            # run by `vidgraph finetune`; the others by `vidgraph train`
    start = "previous"
    [phases.frames]
    train_from = "stem"
    [phases.train] ...

Everything that trains or evaluates works on a recipe of one phase: `recipe.of(phase)`.
"""

import json
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

from pydantic import TypeAdapter, ValidationError

from heads.config.recipe_tables import DataOptions, EvaluationOptions, HeadChoice, Phase, check_name
from heads.config.training_options import Training
from heads.zoo import check_options
from pipeline.files.regular_files import MOST_TEXT, read_small
from pipeline.plugins import given_name
from pipeline.text import text_files as texts
from pipeline.text.suggestions import nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parents[1] / "recipes"
PLAIN = "train"  # the name of the one phase of a recipe without [[phases]]


@dataclass(frozen=True)
class Recipe:
    """One training run. `source`: the paper, section and table that it follows; `ours`: what of it
    is this project's choice. Either `train` or `phases`."""

    name: str
    source: str
    head: HeadChoice
    train: Training | None = None
    ours: str = ""
    data: DataOptions = field(default_factory=DataOptions)
    evaluate: EvaluationOptions = field(default_factory=EvaluationOptions)
    phases: tuple[Phase, ...] = ()

    def __post_init__(self) -> None:
        check_name(self.name)
        if (self.train is None) == (not self.phases):
            both = "both" if self.phases else "neither"
            raise ValueError(f"expected a table [train] or tables [[phases]], got {both}")
        names = [phase.name for phase in self.phases]
        if twice := [name for name in names if names.count(name) > 1]:
            raise ValueError(f"two phases are called {twice[0]!r}")
        if taken := {"best", "last"}.intersection(names):
            raise ValueError(
                f"phase {min(taken)}: best.pt and last.pt are checkpoints of any run; choose "
                f"another name"
            )
        if self.phases and self.phases[0].start == "previous":
            raise ValueError(
                f"phase {names[0]}: it is the first, start = 'previous' has nothing to start from"
            )
        for k, phase in enumerate(self.phases):
            check_options(*_head_of(self.head, phase))
            if self.of(phase).train.distil.teachers and (
                late := set(phase.train.distil.teachers) & set(names[k:])
            ):
                raise ValueError(
                    f"phase {phase.name}: its teacher {min(late)!r} is not an earlier phase"
                )

    @property
    def scores(self) -> str:
        """What is aggregated over views."""
        return self.evaluate.scores or {"single": "softmax", "multi": "sigmoid"}[self.data.target]

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """The phases, of which a recipe with a table [train] has one."""
        return self.phases or (Phase(PLAIN, self.train),)

    def phase(self, name: str) -> Phase:
        """A phase by its name; ValueError with the nearest ones."""
        for phase in self.all_phases:
            if phase.name == name:
                return phase
        raise ValueError(
            f"recipe {self.name} has no phase {name!r}: "
            f"{nearest(name, [p.name for p in self.all_phases])}"
        )

    def of(self, phase: Phase | str) -> "Recipe":
        """The recipe of one phase: its head and options, its [train], and no phases."""
        phase = self.phase(phase) if isinstance(phase, str) else phase
        return replace(
            self, head=HeadChoice(*_head_of(self.head, phase)), train=phase.train, phases=()
        )

    def cached(self, name: str = "") -> tuple[Phase, ...]:
        """What `vidgraph train` runs: the phase `name`, or the first consecutive ones that read the
        cache.

        ValueError for a phase that reads frames, and where no phase reads the cache: with the
        command that runs them.
        """
        if name:
            found: list[Phase] = [self.phase(name)]
        else:
            found = []
            for phase in self.all_phases:
                if phase.reads == "cache":
                    found.append(phase)
                elif found:
                    break
        if not found or found[0].reads == "frames":
            phase = (found or list(self.all_phases))[0]
            raise ValueError(
                f"phase {phase.name} of recipe {self.name} reads frames: run "
                f"`{command_of(self, phase)}`"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Plain tables, lists, strings and numbers, without a `train`, `phases` or `data.no_label`
        that is not there; `recipe_from` reads them back."""
        table = json.loads(json.dumps(asdict(self)))
        if not table["data"]["no_label"]:  # so that runs of versions without it are continued
            del table["data"]["no_label"]
        return {
            key: value for key, value in table.items() if key not in ("train", "phases") or value
        }


def command_of(recipe: Recipe, phase: Phase | None = None) -> str:
    """The command that runs a phase, or the first ones that read the cache. A recipe that is none
    of the package's is RECIPE in it: its file may lie anywhere."""
    verb = "finetune" if phase is not None and phase.reads == "frames" else "train"
    name = recipe.name if recipe.name in recipe_names() else "RECIPE"
    return f"vidgraph {verb} {name}" + (f" --phase {phase.name}" if phase is not None else "")


def _head_of(head: HeadChoice, phase: Phase) -> tuple[str, dict[str, Any]]:
    """The name and options of a phase's head."""
    own = {key: value for key, value in phase.head.items() if key != "name"}
    if "name" not in phase.head:
        return head.name, {**head.options, **own}
    if not isinstance(phase.head["name"], str):
        raise ValueError(
            f"phase {phase.name}: head.name is the name of a head, got {phase.head['name']!r}"
        )
    return phase.head["name"], own


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_recipe(name: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a TOML file, or by its name among the package's own; `settings` are overrides
    by dotted key.

    {"train.lr": 0.1} replaces `lr` in the table `train`. ValueError names the file, the key and
    what was expected.
    """
    path = recipe_path(name)
    return recipe_with(read_toml(path), settings or {}, path)


def recipe_path(name: str | Path, beside: Path = Path()) -> Path:
    """A recipe's file: `name`, relative to the folder `beside`, or the package's own of this name;
    ValueError without one.
    """
    path = beside / name
    if path.is_file():
        return path
    path = FOLDER / f"{Path(name).name}.toml"
    if len(Path(name).parts) > 1 or Path(name).suffix == ".toml" or not path.is_file():
        raise ValueError(
            f"recipe {str(name)!r}: no such file, nor a recipe of the package: "
            f"{nearest(str(name), recipe_names())}"
        )
    return path


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of a TOML file; ValueError if it is none."""
    try:
        return tomllib.loads(texts.decoded(read_small(path, MOST_TEXT), path, "a TOML file"))
    except tomllib.TOMLDecodeError as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    except RecursionError:
        raise ValueError(
            f"{path}: expected tables of values and lists, got lists without end in one another"
        ) from None


def recipe_with(
    table: dict[str, Any],
    settings: Mapping[str, Any],
    path: Path,
    where: str = "",
    beside: Path | None = None,
) -> Recipe:
    """The tables of the file `path` with overrides by dotted key, in their order, as a Recipe;
    `table` is changed. A file of classes is looked up beside the recipe or, where `settings` name
    it, in the folder `beside`, by default the working directory. ValueError names `where`, by
    default the file.
    """
    give_plugins(table, path.parent, where or str(path))
    for key, value in settings.items():
        _put(table, key, value)
    give_plugins(table, beside or Path.cwd(), where or str(path))  # paths that `settings` name
    listed = (
        table.get("data", {}).get("class_list") if isinstance(table.get("data"), dict) else None
    )
    if isinstance(listed, str) and listed:
        given = not {"data", "data.class_list"}.isdisjoint(settings)
        table["data"]["class_list"] = str(
            ((beside or Path.cwd()) if given else path.parent) / listed
        )
    table.setdefault("name", path.stem)
    return recipe_from(table, where or str(path))


def give_plugins(table: Mapping[str, Any], folder: Path, where: str) -> None:
    """Replace the paths of plug-in files in a recipe's tables of heads, in place, by the names of
    `pipeline.plugins.give_file`: a recipe that a person names may execute what it names.

    Args:
        table: the tables of a recipe, as TOML has them.
        folder: what relative paths start from.
        where: the recipe, for messages.

    Raises:
        ValueError: there is no such file.
    """
    phases = table.get("phases")
    tables = [table, *(phases if isinstance(phases, list) else ())]
    for one in tables:
        head = one.get("head") if isinstance(one, Mapping) else None
        if not isinstance(head, dict):
            continue
        for key in ("name", "backbone"):  # some heads continue a backbone
            if isinstance(head.get(key), str):
                try:
                    head[key] = given_name(head[key], folder)
                except ValueError as error:
                    raise ValueError(f"{where}, head.{key}: {error}") from None


def recipe_from(table: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A validated Recipe from plain tables; ValueError with the first thing that is wrong and
    `where` it is.
    """
    table = dict(table)
    head = table.get("head")
    if (
        isinstance(head, Mapping) and "options" not in head
    ):  # in a file the options stand beside the name
        table["head"] = {
            "name": head.get("name"),
            "options": {key: value for key, value in head.items() if key != "name"},
        }
    return validated(Recipe, table, where)


Checked = TypeVar("Checked")


def validated(cls: type[Checked], table: Mapping[str, Any], where: str) -> Checked:
    """The dataclass `cls` from plain tables; ValueError with the first thing that is wrong and
    `where` it is.
    """
    _refuse_unknown(cls, table, where, "")
    try:
        return TypeAdapter(cls).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise ValueError(
            f"{where}{', ' + key if key else ''}: {message[:1].lower() + message[1:]}{shown}"
        ) from None


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every key written out, defaults included."""
    table = recipe.as_dict()
    head, phases = table.pop("head"), table.pop("phases", [])
    table["head"] = {"name": head["name"], **head["options"]}
    lines = _rows(table, "")
    for phase in phases:
        lines += ["", "[[phases]]", *_rows(phase, "phases.")]
    return "\n".join(lines) + "\n"


def _rows(table: Mapping[str, Any], prefix: str) -> list[str]:
    """The lines of a table: its values, then its tables. Options of a head are values, whatever
    they hold.
    """
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if key not in tables]
    for name, rows in tables.items():
        lines += ["", f"[{prefix}{name}]"]
        lines += [f"{key} = {_toml(value)}" for key, value in rows.items()]
    return lines


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    if isinstance(value, dict):
        return (
            "{" + ", ".join(f"{json.dumps(key)} = {_toml(one)}" for key, one in value.items()) + "}"
        )
    return json.dumps(value)  # TOML's strings, numbers and booleans are written as JSON's


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    if parents[:1] == ["train"] and "phases" in table:
        raise ValueError(
            f"--set {key}: the recipe has phases, each with its own train: phases.NAME.{key}"
        )
    for parent in parents:
        if isinstance(table, list):
            names = [str(row.get("name")) for row in table if isinstance(row, dict)]
            if parent not in names:
                raise ValueError(f"--set {key}: no phase {parent!r}; {nearest(parent, names)}")
            table = table[names.index(parent)]
        else:
            table = table.setdefault(parent, {})
        if not isinstance(table, (dict, list)):
            raise ValueError(f"--set {key}: {parent} is a value, expected a table")
    if isinstance(table, list):
        raise ValueError(
            f"--set {key}: expected phases.NAME.KEY, e.g. phases.{table[0].get('name')}.train.lr"
        )
    table[last] = value


def _refuse_unknown(cls: type, table: Mapping[str, Any], where: str, prefix: str) -> None:
    """ValueError for a key that is no field of `cls`, or of the dataclasses that its fields
    hold.
    """
    hints = get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"{where}: no key {prefix}{key}; {nearest(key, hints)}")
        held = _held(hints[key])
        if held is None:
            continue
        inner, container = held
        if container is tuple:
            if not isinstance(value, list) or not all(isinstance(row, Mapping) for row in value):
                raise ValueError(f"{where}: {prefix}{key} are tables [[{key}]], got {value!r}")
            rows = {str(row.get("name", k)): row for k, row in enumerate(value)}
        elif not isinstance(value, Mapping):
            raise ValueError(f"{where}: {prefix}{key} is a table, got {value!r}")
        else:
            rows = {"": value} if container is None else dict(value)
        for name, row in rows.items():
            if not isinstance(row, Mapping):
                raise ValueError(f"{where}: {prefix}{key}.{name} is a table, got {row!r}")
            _refuse_unknown(
                inner, row, where, f"{prefix}{key}.{name}." if name else f"{prefix}{key}."
            )
    for f in fields(cls):
        if f.name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where}: {prefix}{f.name} is missing")


def _held(hint: Any) -> tuple[type, type | None] | None:
    """The dataclass that a field of this type holds, and whether in a tuple or a dict; None for
    plain values.
    """
    for one in (hint, *(arg for arg in get_args(hint) if get_origin(hint) not in (tuple, dict))):
        if is_dataclass(one):
            return one, None
    if get_origin(hint) in (tuple, dict):
        return next(((arg, get_origin(hint)) for arg in get_args(hint) if is_dataclass(arg)), None)
    return None
