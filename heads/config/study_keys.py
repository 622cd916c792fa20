"""The keys of a study: which there are, and what each of them sets.

    head.form, train.lr, ...      of the recipe; with phases, phases.NAME.train.lr
    strg.form, strg.train.lr      of the recipes whose head is strg
    frames.train_from, ...        the table [phases.frames] of the phases that read frames
    extract.backbone, extract.sampling.frames, extract.backbone_options.eab, ...
                                  what `vidgraph extract --set` takes, and what a cache fixes

Every key may be in one of [set], [grid] and [rows].
"""

from collections.abc import Iterator, Mapping
from typing import Any

from heads.config.recipe import PLAIN, Recipe, recipe_from
from heads.config.recipe_tables import PLAIN_BACKBONE_LR
from heads.zoo import head_names
from pipeline.plugins import HEAD, display_name, is_known, is_recorded
from pipeline.text.suggestions import nearest

# The tables of a recipe that is written out in the study.
TABLES = ("head", "train", "data", "evaluate")
# The first parts of a recipe's keys.
KEYS = (*TABLES, "phases")
# The first parts of keys that are in no table of a recipe.
EXTRACT, FRAMES = "extract", "frames"
# The first parts of keys that any member may have, whatever its head.
ANY_HEAD = (*KEYS, FRAMES, EXTRACT)


def flat(table: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yield (dotted key, value): `"train.lr" = 1` and `train.lr = 1` are the same in TOML.

    `head.name` becomes `head`.
    """
    for key, value in table.items():
        dotted = prefix + key
        if isinstance(value, Mapping) and value:
            yield from flat(value, f"{dotted}.")
        else:
            yield "head" if dotted == "head.name" else dotted, value


def check_keys(
    fixed: Mapping[str, Any], grid: Mapping[str, Any], rows: Mapping[str, Mapping[str, Any]]
) -> None:
    """Check the keys of a study before its recipes are read.

    Args:
        fixed: keys of [set] and --set.
        grid: keys of [grid] with their values.
        rows: row -> its keys.

    Raises:
        ValueError: a key that no recipe can have, a grid's values that are no list, or a key in
            two places.
    """
    choices = list(grid["head"]) if isinstance(grid.get("head"), list) else []
    for keys in (fixed, *rows.values()):
        if "head" in keys:
            choices.append(keys["head"])
    _check_names([*fixed, *grid], choices)

    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ValueError(f"grid.{key}: expected a list of values, got {values!r}")
        refuse_repeats(f"grid.{key}", values)
        if key in fixed:
            raise ValueError(f"{key}: expected it in [grid], or in [set] or --set; got both")
    for label, keys in rows.items():
        recipe = keys.get("recipe", "")
        if not isinstance(recipe, str):
            raise ValueError(f"rows.{label}: recipe is the name of one, got {recipe!r}")
        own = [key for key in keys if key != "recipe"]
        _check_names(own, choices)
        for key in own:
            if key in fixed or key in grid:
                raise ValueError(
                    f"{key}: expected it in [rows], or in [set], --set or [grid]; got both"
                )

    for choice in choices:
        name = choice.get("name") if isinstance(choice, dict) else choice
        if not isinstance(name, str):
            raise ValueError(
                f"head: expected the name of a head, or a table with a name and options, got "
                f"{choice!r}"
            )
        if not is_known(HEAD, name):
            raise ValueError(f"no head {name!r}: {nearest(name, head_names())}")


def _check_names(keys: list[str], choices: list[Any]) -> None:
    """Raise ValueError for a key that no recipe can have; `choices` are heads of the study."""
    plugins = []
    for choice in choices:
        name = choice.get("name") if isinstance(choice, dict) else choice
        if isinstance(name, str) and is_recorded(name):
            plugins.append(display_name(name))

    firsts = (*ANY_HEAD, *head_names(), *plugins)
    for key in keys:
        first = key.partition(".")[0]
        if first not in firsts:
            raise ValueError(f"no key {key}; {nearest(first, firsts)}")
        # A whole table, such as "train"; only `head` may stand alone.
        if key == first and key != "head":
            raise ValueError(f"no key {key}; {nearest(first, [f'{first}.KEY'])}")


def refuse_repeats(key: str, values: "list | tuple") -> None:
    """Raise ValueError if a value occurs twice."""
    for value in values:
        if values.count(value) > 1:
            raise ValueError(f"{key}: duplicate {value!r}")


def recipe_key(key: str, head: str) -> str:
    """Return the key that a study's key sets for a head; "" if it is of another head."""
    first, _, rest = key.partition(".")
    if first in ANY_HEAD:
        return key
    if first != head:
        return ""
    return rest if rest.partition(".")[0] in ANY_HEAD else f"head.{rest}"


def take_prefix(settings: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Move the keys PREFIX.KEY out of `settings`.

    Returns:
        Their values by KEY.
    """
    taken = {}
    for key in list(settings):
        first, _, rest = key.partition(".")
        if first == prefix:
            taken[rest] = settings.pop(key)
    return taken


def with_frames(recipe: Recipe, frames: Mapping[str, Any], where: str) -> Recipe:
    """Return a recipe whose phases that read frames have these options.

    A recipe without phases becomes one of a single phase that reads frames.

    Args:
        recipe: the recipe.
        frames: keys of the table [phases.frames]; none: the recipe as it is.
        where: what messages call it.

    Raises:
        ValueError: there is no such key, or no phase that reads frames.
    """
    if not frames:
        return recipe
    table = recipe.as_dict()
    if recipe.train is not None:
        own = {"backbone_lr": PLAIN_BACKBONE_LR}
        table["phases"] = [
            {"name": PLAIN, "reads": "frames", "train": table.pop("train"), "frames": own}
        ]
    reading = [phase for phase in table["phases"] if phase["reads"] == "frames"]
    if not reading:
        raise ValueError(
            f"{where}: no key {FRAMES}.{min(frames)}: all phases of recipe {recipe.name} read the "
            f"cache"
        )
    for phase in reading:
        phase["frames"] = {**phase.get("frames", {}), **frames}
    return recipe_from(table, where)
