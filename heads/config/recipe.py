"""Recipes: a TOML file becomes small frozen dataclasses. Unknown keys and wrong types are refused,
with the nearest names.

A recipe says which head is trained and how. The cache, the seed, the device and the precision
belong to the run. A recipe with a table [train] has one phase; one with tables [[phases]] has
several, each with a [phases.train] of its own:

    [[phases]]
    name = "search"             [phases.train] ...
    [[phases]]
    name = "discrete"
    start = "previous"          # starts from the weights that "search" ended with
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

What trains or evaluates works on a recipe of one phase: `recipe.of(phase)`.
"""

import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from heads.config.recipe_tables import DataOptions, EvaluationOptions, HeadChoice, Phase, check_name
from heads.config.toml_tables import as_list, read_toml, set_key, toml_lines, validated
from heads.config.training_options import Training
from heads.zoo import check_options
from pipeline.plugins import given_name
from pipeline.text.suggestions import nearest

FOLDER = Path(__file__).parents[1] / "recipes"
# The recipes that fit any cache which has the fields. The others are those of papers' tables.
OWN_VIDEOS = (
    "pool",
    "roi_pool",
    "mean_lstm",
    "strg",
    "gos",
    "dyreg",
    "rstg",
    "ean",
    "stin",
    "stlt",
)
PLAIN = "train"  # the name of the one phase of a recipe without [[phases]]
CHECKPOINTS = {"best", "last"}  # of every run: no phase may be called so


@dataclass(frozen=True)
class Recipe:
    """One training run. It has either `train` or `phases`.

    Attributes:
        name: of the run's folder; the file's name unless given.
        source: the paper, section and table that it follows.
        head: the head and its options.
        train: how weights move, in a recipe of one phase.
        ours: what of it is this project's choice.
        data: what is learned from the cached views.
        evaluate: how a video's views become one score.
        phases: of a recipe of several.
    """

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
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"two phases are called {name!r}")
        taken = CHECKPOINTS.intersection(names)
        if taken:
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
            # Other teachers are the folders of other runs, or no phase of this recipe.
            late = set(phase.train.distil.teachers).intersection(names[k:])
            if late:
                raise ValueError(
                    f"phase {phase.name}: its teacher {min(late)!r} is not an earlier phase"
                )

    @property
    def scores(self) -> str:
        """What is aggregated over views: "softmax", "sigmoid" or "logits"."""
        return self.evaluate.scores or {"single": "softmax", "multi": "sigmoid"}[self.data.target]

    @property
    def all_phases(self) -> tuple[Phase, ...]:
        """The phases; a recipe with a table [train] has one."""
        return self.phases or (Phase(PLAIN, self.train),)

    def phase(self, name: str) -> Phase:
        """Return a phase by its name; ValueError with the nearest names if there is none."""
        for phase in self.all_phases:
            if phase.name == name:
                return phase
        names = [phase.name for phase in self.all_phases]
        raise ValueError(f"recipe {self.name} has no phase {name!r}: {nearest(name, names)}")

    def of(self, phase: Phase | str) -> "Recipe":
        """Return the recipe of one phase: its head and options, its `train`, and no phases."""
        if isinstance(phase, str):
            phase = self.phase(phase)
        head = HeadChoice(*_head_of(self.head, phase))
        return replace(self, head=head, train=phase.train, phases=())

    def cached(self, name: str = "") -> tuple[Phase, ...]:
        """Return the phases that `vidgraph train` runs.

        Args:
            name: one phase; "" for the first consecutive ones that read the cache.

        Raises:
            ValueError: the phase reads frames, or no phase reads the cache. The message has the
                command that runs it.
        """
        found: list[Phase] = []
        if name:
            found.append(self.phase(name))
        else:
            for phase in self.all_phases:
                if phase.reads == "cache":
                    found.append(phase)
                elif found:
                    # A phase that reads frames comes between: a later call trains what follows it.
                    break

        first = found[0] if found else self.all_phases[0]
        if first.reads == "frames":
            raise ValueError(
                f"phase {first.name} of recipe {self.name} reads frames: run "
                f"`{command_of(self, first)}`"
            )
        return tuple(found)

    def as_dict(self) -> dict[str, Any]:
        """Return plain tables, lists, strings and numbers, which `recipe_from` reads back.

        `train`, `phases` and `data.no_label` are left out where they are empty, and
        `norm_bias_lr` where it is None.
        """
        # Through JSON, so that tuples become lists, as run.json gives them back.
        table = json.loads(json.dumps(asdict(self)))
        # Runs of versions without these keys are continued.
        if not table["data"]["no_label"]:
            del table["data"]["no_label"]
        for owner in (table, *table["phases"]):
            if owner["train"] and owner["train"]["groups"]["norm_bias_lr"] is None:
                del owner["train"]["groups"]["norm_bias_lr"]
        for key in ("train", "phases"):
            if not table[key]:
                del table[key]
        return table


def command_of(recipe: Recipe, phase: Phase | None = None) -> str:
    """Return the command that runs a phase, or the first ones that read the cache.

    A recipe that is none of the package's is called RECIPE: its file may lie anywhere.
    """
    verb = "train"
    if phase is not None and phase.reads == "frames":
        verb = "finetune"
    name = recipe.name if recipe.name in recipe_names() else "RECIPE"
    only = f" --phase {phase.name}" if phase is not None else ""
    return f"vidgraph {verb} {name}{only}"


def _head_of(head: HeadChoice, phase: Phase) -> tuple[str, dict[str, Any]]:
    """The name and options of a phase's head."""
    options = {key: value for key, value in phase.head.items() if key != "name"}
    if "name" not in phase.head:
        return head.name, {**head.options, **options}
    name = phase.head["name"]
    if not isinstance(name, str):
        raise ValueError(f"phase {phase.name}: head.name is the name of a head, got {name!r}")
    # Another head: the options of the table [head] are none of its own.
    return name, options


def recipe_names() -> tuple[str, ...]:
    """Return the names of the recipes that come with the package, in alphabetical order."""
    return tuple(sorted(path.stem for path in FOLDER.glob("*.toml")))


def read_recipe(name: str | Path, settings: Mapping[str, Any] | None = None) -> Recipe:
    """Read a recipe. It may name the file of a plug-in, which this process may execute from now on.

    Args:
        name: the path of a TOML file, or a name of `recipe_names`.
        settings: values by dotted key that replace those of the file: {"train.lr": 0.1}.

    Returns:
        The recipe, validated.

    Raises:
        ValueError: names the file, the key and what was expected.
    """
    path = recipe_path(name)
    return recipe_with(read_toml(path), settings or {}, path)


def recipe_path(name: str | Path, beside: Path = Path()) -> Path:
    """Return the file of a recipe.

    Args:
        name: a path relative to `beside`, or the name of one of the package's recipes.
        beside: a folder; by default the working directory.

    Raises:
        ValueError: there is neither; the message has the nearest names.
    """
    path = beside / name
    if path.is_file():
        return path
    ours = FOLDER / f"{Path(name).name}.toml"
    # "folder/NAME" and "NAME.toml" can only mean a file.
    is_path = len(Path(name).parts) > 1 or Path(name).suffix == ".toml"
    if is_path or not ours.is_file():
        raise ValueError(
            f"recipe {str(name)!r}: no such file, nor a recipe of the package: "
            f"{nearest(str(name), recipe_names())} Those for any videos: {', '.join(OWN_VIDEOS)}"
        )
    return ours


def recipe_with(
    table: dict[str, Any],
    settings: Mapping[str, Any],
    path: Path,
    where: str = "",
    beside: Path | None = None,
) -> Recipe:
    """Make a recipe from the tables of a file and settings.

    Paths in it (`data.class_list`, the files of plug-ins) are relative to the recipe, or to
    `beside` where `settings` name them.

    Args:
        table: the file's tables; they are changed.
        settings: values by dotted key, which replace the file's in their order.
        path: the file.
        where: what messages call the recipe; "" is the file.
        beside: a folder; None is the working directory.

    Raises:
        ValueError: names `where`, the key and what was expected.
    """
    beside, member = beside or Path.cwd(), bool(where)
    where = where or str(path)
    give_plugins(table, path.parent, where)
    for key, value in settings.items():
        # The values of a study are TOML, where a list is written as one.
        set_key(table, key, value if member else as_list(Recipe, key, value))
    give_plugins(table, beside, where)  # the paths that are left came with `settings`

    data = table.get("data")
    class_list = data.get("class_list") if isinstance(data, dict) else None
    if isinstance(class_list, str) and class_list:
        from_settings = not {"data", "data.class_list"}.isdisjoint(settings)
        folder = beside if from_settings else path.parent
        data["class_list"] = str(folder / class_list)

    table.setdefault("name", path.stem)
    try:
        return recipe_from(table, where)
    except ValueError as error:
        # Names of folders hold digits, too: only what stands behind `where` is about a setting.
        key = "" if member else _key_in(str(error).removeprefix(where), settings)
        if not key:
            raise
        raise ValueError(f"--set {key}: {error}") from None


def _key_in(message: str, settings: Mapping[str, Any]) -> str:
    """Return the setting that an error is about; "" if it is about none."""
    for key in settings:
        parts = key.split(".")
        # The table itself may be unknown.
        tables = [".".join(parts[: k + 1]) for k in range(len(parts))]
        if any(f"no key {table};" in message for table in tables):
            return key
    # Errors of a phase have its number in place of its name, those of a head its option. An error
    # without the last part of the key may still show its value, as several settings may do.
    for shown in (_last_part, _value):
        for key, value in settings.items():
            if f", {key.split('.')[0]}" in message and shown(key, value, message):
                return key
    return ""


def _last_part(key: str, value: Any, message: str) -> bool:
    return re.search(rf"\b{re.escape(key.split('.')[-1])}\b", message) is not None


def _value(key: str, value: Any, message: str) -> bool:
    return re.search(rf"(?<![\w.]){re.escape(repr(value))}(?![\w.])", message) is not None


def give_plugins(table: Mapping[str, Any], folder: Path, where: str) -> None:
    """Replace the paths of plug-in files in a recipe's tables of heads, in place, by the names of
    `pipeline.plugins.give_file`. A recipe that a person names may execute what it names.

    Args:
        table: the tables of a recipe, as TOML has them.
        folder: what relative paths start from.
        where: the recipe, for messages.

    Raises:
        ValueError: there is no such file.
    """
    phases = table.get("phases")
    tables = [table, *phases] if isinstance(phases, list) else [table]
    for one in tables:
        head = one.get("head") if isinstance(one, Mapping) else None
        if not isinstance(head, dict):
            continue
        for key in ("name", "backbone"):  # some heads continue a backbone
            name = head.get(key)
            if isinstance(name, str):
                try:
                    head[key] = given_name(name, folder)
                except ValueError as error:
                    raise ValueError(f"{where}, head.{key}: {error}") from None


def recipe_from(table: Mapping[str, Any], where: str = "recipe") -> Recipe:
    """Make a recipe from plain tables, such as those of `Recipe.as_dict`.

    A path in them is not executed: see `pipeline.plugins`.

    Args:
        table: its tables.
        where: what messages call it.

    Raises:
        ValueError: the first thing that is wrong, and `where` it is.
    """
    table = dict(table)
    head = table.get("head")
    # In a file, the options stand beside the name.
    if isinstance(head, Mapping) and "options" not in head:
        options = {key: value for key, value in head.items() if key != "name"}
        table["head"] = {"name": head.get("name"), "options": options}
    return validated(Recipe, table, where)


def to_toml(recipe: Recipe) -> str:
    """Write a recipe as TOML: every key of `Recipe.as_dict`, defaults included."""
    table = recipe.as_dict()
    head, phases = table.pop("head"), table.pop("phases", [])
    table["head"] = {"name": head["name"], **head["options"]}
    lines = toml_lines(table, "")
    for phase in phases:
        lines += ["", "[[phases]]", *toml_lines(phase, "phases.")]
    return "\n".join(lines) + "\n"
