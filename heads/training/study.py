"""What the runs of a study share, and what comes out of a run: a result or a failure."""

from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heads.config.recipe import Recipe
from heads.data.classes import find_classes
from heads.data.splits import SplitViews, split_views, splits_of
from heads.interface.clips import Dims
from heads.runs.manifest_record import manifest_record

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest

SPLITS = ("train", "val", "test")
# Training uses random views, evaluation the fixed test views.
GROUPS = {"train": "train", "val": "test", "test": "test"}


@dataclass
class Result:
    """A finished run.

    Attributes:
        folder: the run folder.
        metrics: split -> figure -> value; fractions in [0,1], except for `loss`.
        epochs: whole epochs that were trained, over all phases.
        best_epoch: the epoch whose weights were evaluated, counted from 1.
        parameters: parameters of the head.
        seconds: the run's own computing and its waiting for data, over all calls.
        waiting: the part of `seconds` that was waiting for data.
        excluded: split -> reason -> how many clips were left out. Reasons: `failed` (at
            extraction), `absent` (not in the cache), `other` (a label that is not trained), and
            `undecoded` (a run from frames could not decode them).
        phase: the last phase that was trained.
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
        """How many clips could not be decoded while the run was trained and evaluated."""
        return sum(counts.get("undecoded", 0) for counts in self.excluded.values())

    @property
    def split(self) -> str:
        """The split that a table reports: test if it has labels, else val, else ""."""
        for name in ("test", "val"):
            if self.metrics.get(name):
                return name
        return ""


@dataclass
class Failure:
    """A run that ended with an error.

    Attributes:
        folder: the run folder, with the last checkpoint if there was one.
        error: what ended the run.
        epochs: whole epochs that were trained before.
    """

    folder: Path
    error: Exception
    epochs: int


def one_line(error: Exception) -> str:
    """Return an error as one line: its class and its message."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


@dataclass
class Study:
    """What the runs of a study share.

    Attributes:
        cache: the features.
        manifest: labels and splits.
        dims: the sizes of a cached view.
        device: where all heads compute.
        precision: "fp32", "tf32", "bf16" or "fp16".
        order_seed: fixes the order of the views; None: each run's own seed.
        known: classes and splits that were computed before, by the recipe tables that decide them.
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
        """Return the names of the classes, in the order of their ids."""
        key = ("classes", repr(recipe.data))
        if key not in self.known:
            self.known[key] = find_classes(self.manifest, recipe.data)
        return self.known[key]

    def split(self, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, SplitViews]:
        """Return the manifest's splits with their views, by the split's name.

        Raises:
            ValueError: no clip to train on or to evaluate on, or no labels to train with.
        """
        key = ("splits", repr(recipe.data))
        if key not in self.known:
            self.known[key] = self._split(recipe, classes)
        return self.known[key]

    def _split(self, recipe: Recipe, classes: tuple[str, ...]) -> dict[str, SplitViews]:
        parts = {}
        for name in SPLITS:
            part = split_views(self.cache, GROUPS[name], name, self.manifest, classes, recipe.data)
            if part is not None:
                parts[name] = part

        path, splits = self.manifest.path, ", ".join(splits_of(self.manifest))
        if "train" not in parts:
            raise ValueError(f"{path}: no clip in split train to train on; its splits: {splits}")
        if "val" not in parts and "test" not in parts:
            raise ValueError(
                f"{path}: no clip in split val or test to evaluate on; its splits: {splits}"
            )
        if parts["train"].targets is None:
            raise ValueError(
                f"{path}: the clips of split train have no labels; write them in the column `label`"
            )
        return parts
