"""Refuse a run whose head computes something else since the run began.

A run records the version of each of its heads (`heads.interface.changes`); its phases may have
several. A head without a recorded version, as in runs of earlier versions, counts as version 1.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heads.config.recipe import Recipe, recipe_from
from heads.interface.changes import FIRST
from heads.zoo import head_changes, head_version
from pipeline.plugins import display_name


def versions_of(recipe: Recipe) -> dict[str, int]:
    """Return what a run with a recipe records: head -> its version, for the heads of all phases."""
    names = {recipe.of(phase).head.name for phase in recipe.all_phases}
    return {name: head_version(name) for name in sorted(names)}


def refuse_changed_head(where: Path | str, record: Mapping[str, Any], advice: str) -> None:
    """Check that a run's head still computes what it computed when the run began.

    Args:
        where: the run folder or checkpoint, for the message.
        record: run.json, or "about" of a checkpoint.
        advice: what to do, the end of the message.

    Raises:
        ValueError: its options now mean something else; the message says what.
    """
    recipe, versions = recipe_from(record["recipe"], str(where)), record.get("head_versions", {})
    for phase in recipe.all_phases:
        head = recipe.of(phase).head
        recorded = versions.get(head.name, FIRST)
        changes = head_changes(head.name, recorded, head.options)
        if changes:
            what = "; ".join(change.what for change in changes)
            raise ValueError(
                f"{where}: head {display_name(head.name)} of this run is of version {recorded}, "
                f"this is version {head_version(head.name)}: {what}. {advice}"
            )
