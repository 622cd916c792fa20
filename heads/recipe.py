"""Recipes: a TOML file -> small frozen dataclasses; an unknown key or a wrong type is refused with the nearest names.

A recipe says which head is trained how; the cache, the seed, the device and the precision are the run's.
"""

import json
import math
import sys
from collections.abc import Mapping
from dataclasses import MISSING, asdict, dataclass, field, fields, is_dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, get_type_hints

from pydantic import Field, TypeAdapter, ValidationError

from heads.zoo import check_options, nearest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

FOLDER = Path(__file__).parent / "recipes"

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Real = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class HeadChoice:
    """Which head: its name in heads/zoo, and its options by name."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.name, self.options)


@dataclass(frozen=True)
class Data:
    """What is learned from the cached views.

    `target`: "single" (softmax, cross-entropy; one label per clip) or "multi" (a sigmoid per class; any number of labels).
    `num_classes`: 0 takes the manifest's classes; more leaves room for classes it does not have. `class_list`: a text file
    with one class name per line, in the order of their ids ("": whole numbers keep theirs, names count up alphabetically);
    relative to the recipe. `train_views`: how many of the cached training views of a clip an epoch draws from (0: all).
    `swap_on_flip`: pairs of classes that a mirrored view exchanges.
    """

    target: Literal["single", "multi"] = "single"
    num_classes: Count = 0
    class_list: str = ""
    train_views: Count = 0
    swap_on_flip: tuple[tuple[str, str], ...] = ()


@dataclass(frozen=True)
class Training:
    """How the weights move. Exactly one of `epochs` and `iterations` (mini-batches) is the length, and the unit of `drop_at`.

    `schedule`: "constant"; "steps", `lr` times `factor` from each point of `drop_at` on; "cosine" to 0 at the end; "plateau",
    times `factor` when the validation loss has not declined for `patience` epochs. `momentum` and `nesterov` are SGD's.
    `clip_norm`: limit of the gradient's norm (0: none).
    """

    epochs: Count = 0
    iterations: Count = 0
    batch: Positive = 64
    optimiser: Literal["sgd", "adam", "adamw"] = "sgd"
    lr: Annotated[float, Field(gt=0, allow_inf_nan=False)] = 0.01
    momentum: Annotated[float, Field(ge=0, lt=1)] = 0.9
    nesterov: bool = False
    weight_decay: Real = 1e-4
    schedule: Literal["constant", "steps", "cosine", "plateau"] = "constant"
    drop_at: tuple[Positive, ...] = ()
    factor: Share = 0.1
    patience: Positive = 5
    clip_norm: Real = 0.0

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.iterations > 0):
            raise ValueError(
                f"expected either epochs or iterations, got epochs = {self.epochs}, iterations = {self.iterations}; "
                "set the other to 0 (--set train.iterations=0)"
            )
        if (self.schedule == "steps") != bool(self.drop_at):
            raise ValueError(
                f"drop_at belongs to schedule 'steps', got schedule {self.schedule!r} with drop_at = {list(self.drop_at)}"
            )
        if self.nesterov and (self.optimiser != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimiser 'sgd' and a momentum above 0")

    @property
    def length(self) -> int:
        """Epochs or iterations, whichever was given."""
        return self.epochs or self.iterations

    def total_steps(self, steps_per_epoch: int) -> int:
        """Mini-batches in the whole training."""
        return self.iterations or self.epochs * steps_per_epoch

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Epochs, the last one possibly cut short by `iterations`."""
        return math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of mini-batch `step`, from 0; "plateau" multiplies this constant by what the validation loss did so
        far."""
        if self.schedule == "cosine":
            return self.lr * 0.5 * (1 + math.cos(math.pi * step / self.total_steps(steps_per_epoch)))
        unit = 1 if self.iterations else steps_per_epoch
        return self.lr * self.factor ** sum(step >= point * unit for point in self.drop_at)


@dataclass(frozen=True)
class Evaluation:
    """How a video's test views become one score: `aggregate` ("mean", "max") over the views of `scores` ("softmax",
    "sigmoid", "logits"; "": the softmax, or the sigmoid where `data.target` is "multi"). `checkpoint`: "best" on the
    validation split by top-1 or mAP, or the "last". `batch`: views per batch (0: the training's)."""

    aggregate: Literal["mean", "max"] = "mean"
    scores: Literal["", "softmax", "sigmoid", "logits"] = ""
    checkpoint: Literal["best", "last"] = "best"
    batch: Count = 0


@dataclass(frozen=True)
class Recipe:
    """One training run. `source`: the paper, section and table that it follows; `ours`: what of it is this project's choice."""

    name: str
    source: str
    head: HeadChoice
    train: Training
    ours: str = ""
    data: Data = Data()
    evaluate: Evaluation = Evaluation()

    def __post_init__(self) -> None:
        if not self.name or not all(c.isalnum() or c in "_-." for c in self.name):
            raise ValueError(f"name: expected letters, digits, '_', '-' or '.', since it names a folder; got {self.name!r}")

    @property
    def scores(self) -> str:
        """What is aggregated over views."""
        return self.evaluate.scores or {"single": "softmax", "multi": "sigmoid"}[self.data.target]

    def as_dict(self) -> dict[str, Any]:
        """Plain tables, lists, strings and numbers; `recipe_from` reads them back."""
        return json.loads(json.dumps(asdict(self)))


def recipe_names() -> tuple[str, ...]:
    """The recipes that come with the package."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_recipe(name: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """A recipe from a TOML file, or by its name among the package's own; `settings` are overrides by dotted key.

    {"train.lr": 0.1} replaces `lr` in the table `train`. ValueError names the file, the key and what was expected.
    """
    path = Path(name)
    if not path.is_file():
        path = FOLDER / f"{Path(name).name}.toml"
        if len(Path(name).parts) > 1 or Path(name).suffix == ".toml" or not path.is_file():
            raise ValueError(
                f"recipe {str(name)!r}: no such file, nor a recipe of the package: {nearest(str(name), recipe_names())}"
            )
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not TOML: {error}") from None
    for key, value in (settings or {}).items():
        _put(table, key, value)
    listed = table.get("data", {}).get("class_list") if isinstance(table.get("data"), dict) else None
    if isinstance(listed, str) and listed:
        table["data"]["class_list"] = str(path.parent / listed)
    table.setdefault("name", path.stem)
    return recipe_from(table, str(path))


def recipe_from(table: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """A validated Recipe from plain tables; ValueError with the first thing that is wrong and `where` it is."""
    table = dict(table)
    head = table.get("head")
    if isinstance(head, Mapping) and "options" not in head:  # in a file the options stand beside the name
        table["head"] = {"name": head.get("name"), "options": {key: value for key, value in head.items() if key != "name"}}
    _refuse_unknown(Recipe, table, where, "")
    try:
        return TypeAdapter(Recipe).validate_json(json.dumps(table, default=str), strict=True)
    except ValidationError as error:
        first = error.errors()[0]
        key = ".".join(str(part) for part in first["loc"])
        message = first["msg"].removeprefix("Value error, ")
        shown = "" if first["type"] in ("missing", "value_error") else f", got {first['input']!r}"
        raise ValueError(f"{where}{', ' + key if key else ''}: {message[:1].lower() + message[1:]}{shown}") from None


def to_toml(recipe: Recipe) -> str:
    """The recipe as TOML, every key written out, defaults included."""
    table = recipe.as_dict()
    head = table.pop("head")
    table["head"] = {"name": head["name"], **head["options"]}
    tables = {key: value for key, value in table.items() if isinstance(value, dict)}
    lines = [f"{key} = {_toml(value)}" for key, value in table.items() if key not in tables]
    for name, rows in tables.items():
        lines += ["", f"[{name}]", *(f"{key} = {_toml(value)}" for key, value in rows.items())]
    return "\n".join(lines) + "\n"


def _toml(value: Any) -> str:
    if isinstance(value, list):
        return "[" + ", ".join(map(_toml, value)) + "]"
    return json.dumps(value)  # TOML's strings, numbers and booleans are written as JSON's


def _put(table: dict[str, Any], key: str, value: Any) -> None:
    *parents, last = key.split(".")
    for parent in parents:
        table = table.setdefault(parent, {})
        if not isinstance(table, dict):
            raise ValueError(f"--set {key}: {parent} is a value, expected a table")
    table[last] = value


def _refuse_unknown(cls: type, table: Mapping[str, Any], where: str, prefix: str) -> None:
    """ValueError for a key that is no field of `cls`, or of the dataclass that a field holds."""
    hints = get_type_hints(cls)
    for key, value in table.items():
        if key not in hints:
            raise ValueError(f"{where}: no key {prefix}{key}; {nearest(key, hints)}")
        if is_dataclass(hints[key]):
            if not isinstance(value, Mapping):
                raise ValueError(f"{where}: {prefix}{key} is a table, got {value!r}")
            _refuse_unknown(hints[key], value, where, f"{prefix}{key}.")
    for f in fields(cls):
        if f.name not in table and f.default is MISSING and f.default_factory is MISSING:
            raise ValueError(f"{where}: {prefix}{f.name} is missing")
