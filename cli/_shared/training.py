"""Options of a training that are short for `--set`: `--epochs`, `--lr` and `--batch`."""

from collections.abc import Mapping
from typing import Any

import click

from cli._shared.options import together
from cli._shared.real_numbers import RealNumber

_SHORT = ("epochs", "lr", "batch")

short_options = together(
    [
        click.option(
            "--epochs",
            type=click.IntRange(min=1),
            help="Length of the training; short for --set train.epochs.  [default: the recipe's]",
        ),
        click.option(
            "--lr",
            type=RealNumber(min=0, min_open=True),
            help="Learning rate; short for --set train.lr.  [default: the recipe's]",
        ),
        click.option(
            "--batch",
            type=click.IntRange(min=1),
            help="Views per mini-batch; short for --set train.batch.  [default: the recipe's]",
        ),
    ]
)


def with_short_options(
    recipe: str, settings: Mapping[str, Any], given: Mapping[str, Any], reads: str
) -> dict[str, Any]:
    """Return the settings of `--set`, and with them those that the short options mean.

    Of a recipe with phases they hold for those that the command trains.

    Args:
        recipe: the name or the path of a recipe.
        settings: values by dotted key, as `--set` gives them.
        given: `epochs`, `lr` and `batch`, None where they were not given; `phase`, "" where none
            was chosen.
        reads: what phases the command trains: those that read the "cache", or "frames".

    Raises:
        click.UsageError: a value was given twice.
        ValueError: there is no such recipe or phase.
    """
    asked = {name: given[name] for name in _SHORT if given[name] is not None}
    if not asked:
        return dict(settings)
    prefixes = _prefixes(recipe, given["phase"], reads)

    merged = dict(settings)
    for name, value in asked.items():
        for prefix, table in prefixes.items():
            key = f"{prefix}train.{name}"
            if key in settings:
                raise click.UsageError(f"--{name} and --set {key}: expected one of them, got both")
            merged[key] = value
            # A length is in epochs or in mini-batches.
            if name == "epochs" and table.get("iterations"):
                merged.setdefault(f"{prefix}train.iterations", 0)
    return merged


def _prefixes(recipe: str, phase: str, reads: str) -> dict[str, Mapping[str, Any]]:
    """Return what the keys of the trained phases begin with, and their tables [train]."""
    from heads.config.recipe import read_toml, recipe_path

    table = read_toml(recipe_path(recipe))
    phases = table.get("phases")
    # A table of another type is reported when the recipe is read.
    if not isinstance(phases, list) or not all(isinstance(one, dict) for one in phases):
        train = table.get("train")
        return {"": train if isinstance(train, dict) else {}}

    chosen = []
    for one in phases:
        if phase:
            if one.get("name") == phase:
                chosen.append(one)
        elif one.get("reads", "cache") == reads:
            chosen.append(one)
        elif chosen:
            # What comes after a phase of the other kind is trained by a later command.
            break
    if reads == "frames":
        chosen = chosen[:1]
    prefixes = {}
    for one in chosen:
        train = one.get("train")
        prefixes[f"phases.{one.get('name')}."] = train if isinstance(train, dict) else {}
    return prefixes
