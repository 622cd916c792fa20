"""What goes into the runs of a study and what comes out: members, what they have in common, results
and failures.
"""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heads.config.recipe import Recipe
from heads.data.splits import SplitViews, find_classes, split_views
from heads.evaluation.evaluate import splits_of
from heads.interface.clips import Dims
from heads.runs.manifest_record import manifest_record

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest

SPLITS = ("train", "val", "test")


@dataclass
class Result:
    """A finished run. `metrics`: split -> figure -> value, fractions in [0,1] but for `loss`;
    `excluded`: split -> how many clips were left out because their extraction `failed`, the cache
    does not have them (`absent`), their label is an `other` one than those that are kept or, of a
    run from frames, they could not be decoded now (`undecoded`). seconds: of this run's own
    computing and of waiting for data, `waiting` of them for data, over all calls that it took.
    """

    folder: Path
    metrics: dict[str, dict[str, float]]
    epochs: int
    best_epoch: int
    parameters: int
    seconds: float
    waiting: float
    excluded: dict[str, dict[str, int]] = field(default_factory=dict)
    phase: str = "train"

    @property
    def undecoded(self) -> int:
        """How many clips could not be decoded while it was trained and evaluated."""
        return sum(counts.get("undecoded", 0) for counts in self.excluded.values())

    @property
    def split(self) -> str:
        """The split that a table reports: test where it has labels, else val ("" without
        either).
        """
        return next((name for name in ("test", "val") if self.metrics.get(name)), "")


@dataclass
class Failure:
    """A run that ended with an error, after so many whole epochs; its folder holds its last
    checkpoint, if it had one.
    """

    folder: Path
    error: Exception
    epochs: int


@dataclass
class Study:
    """What the runs of a study have in common; `known` remembers classes and splits by what of a
    recipe decides them.
    """

    cache: "Cache"
    manifest: "Manifest"
    dims: Dims
    device: torch.device
    precision: str
    order_seed: int | None
    known: dict[tuple[str, str], Any] = field(default_factory=dict)

    @cached_property
    def manifest_record(self) -> dict[str, Any]:
        """What every run records of the labels and splits."""
        return manifest_record(self.manifest)

    def classes(self, recipe: Recipe) -> tuple[str, ...]:
        """The names of the classes, in the order of their ids."""
        key = ("classes", repr(recipe.data))
        if key not in self.known:
            self.known[key] = find_classes(self.manifest, recipe.data)
        return self.known[key]

    def split(self, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, SplitViews]:
        """The splits of the manifest with their views: train from the training views, val and test
        from the test views.
        """
        key = ("splits", repr(recipe.data))
        if key not in self.known:
            self.known[key] = self._split(recipe, classes)
        return self.known[key]

    def _split(self, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, SplitViews]:
        path = self.manifest.path
        groups = {"train": "train", "val": "test", "test": "test"}
        found = {
            name: split_views(self.cache, groups[name], name, self.manifest, classes, recipe.data)
            for name in SPLITS
        }
        parts = {name: part for name, part in found.items() if part is not None}
        for name, why in (("train", "train on"), ("val or test", "evaluate on")):
            if not any(choice in parts for choice in name.split(" or ")):
                there = ", ".join(splits_of(self.manifest))
                raise ValueError(f"{path}: no clip in split {name} to {why}; its splits: {there}")
        if parts["train"].targets is None:
            raise ValueError(
                f"{path}: the clips of split train have no labels; write them in the column `label`"
            )
        return parts
