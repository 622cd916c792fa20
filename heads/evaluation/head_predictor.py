"""Predict cached views with heads: the logits of every view, then one score per video.

Several heads can share one pass over the features (`predict_all`).
"""

import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor, nn

from heads.config.recipe import Recipe
from heads.data.feature_store import FeatureStore, ReadRequest, shared_pass
from heads.data.missing_fields import how_to_add
from heads.data.splits import SplitViews, fields_for
from heads.evaluation.metrics import aggregate, confusion, scores_of, summarise
from heads.interface.clips import MissingFields
from heads.interface.loss import LossNotFinite, loss_of
from heads.runs import run_files
from pipeline.networks.precision import autocast

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache


@dataclass
class Predictions:
    """What a head predicts for the R views of a split.

    Attributes:
        logits: [R,K] float32.
        rows: [R] row of each view in the cache's group.
        video: [R] number of each view's video, in 0..V-1.
        loss: mean loss over views; NaN without labels.
        seconds: the head's own computing and waiting for data.
        stored: name -> [R,...], what the head's output has under `stored`.
        beside: predictions of other forms of the head, by name (validation while training).
    """

    logits: np.ndarray
    rows: np.ndarray
    video: np.ndarray
    loss: float
    seconds: float
    stored: dict[str, np.ndarray] = field(default_factory=dict)
    beside: dict[str, "Predictions"] = field(default_factory=dict)


@dataclass(frozen=True)
class HeadPredictor:
    """A head that predicts the views of a split.

    Attributes:
        head: on its device.
        part: the split.
        recipe: the recipe, of one phase, that trained the head.
        precision: "fp32", "tf32", "bf16" or "fp16".
    """

    head: nn.Module
    part: SplitViews
    recipe: Recipe
    precision: str

    def request(self) -> ReadRequest:
        """Return what the head reads in a pass."""
        rows, video = self.part.all_rows()
        # The turns of the whole split: heads that keep fewer labels share the pass with others.
        column = np.nonzero(self.part.rows >= 0)[1]
        turns = self.part.place[video] * self.part.group.per_clip + column
        fields = fields_for(self.head, self.part.group)
        batch = self.recipe.evaluate.batch or self.recipe.train.batch
        return ReadRequest(rows, turns, fields, batch)


def predict(
    head: nn.Module, part: SplitViews, store: FeatureStore, recipe: Recipe, precision: str
) -> Predictions:
    """Predict every view of a split with one head, in eval mode.

    Args:
        head: on the store's device.
        part: the split.
        store: the features (see `open_store`).
        recipe: the recipe, of one phase, that trained the head.
        precision: "fp32", "tf32", "bf16" or "fp16".

    Raises:
        LossNotFinite: a logit is NaN or infinite.
    """
    outcome = predict_all([HeadPredictor(head, part, recipe, precision)], store)[0]
    if isinstance(outcome, Exception):
        raise outcome
    return outcome


def predict_all(
    predictors: Sequence[HeadPredictor], store: FeatureStore
) -> list[Predictions | Exception]:
    """Predict with several heads in one pass over the features.

    Args:
        predictors: heads with their splits, all of one group of views.
        store: the features that they read.

    Returns:
        For each predictor its predictions, or the exception that its head raised; the others are
        not affected.
    """
    count = len(predictors)
    # Tensors of this process. Those that a GPU computes arrive later.
    logits: list[list[Tensor]] = [[] for _ in range(count)]
    stored: list[dict[str, list[Tensor]]] = [{} for _ in range(count)]
    errors: list[Exception | None] = [None] * count
    seconds = [0.0] * count
    waiting, asked = 0.0, time.monotonic()
    for predictor in predictors:
        predictor.head.eval()

    views = shared_pass(store, [predictor.request() for predictor in predictors])
    with torch.inference_mode():
        for k, clips, _ in views:
            received = time.monotonic()
            # All heads wait for the same reading, so that it counts for each of them.
            waiting += received - asked
            # Whatever a head raises concerns that head alone.
            try:
                if errors[k] is None:
                    with autocast(store.device, predictors[k].precision):
                        out = predictors[k].head(clips)
                    # numpy has no bfloat16.
                    logits[k].append(store.lane.fetch(out.logits.float()))
                    for name, tensor in out.stored.items():
                        stored[k].setdefault(name, []).append(store.lane.fetch(tensor))
            except Exception as error:
                errors[k] = error
            asked = time.monotonic()
            seconds[k] += asked - received
        store.lane.wait()
        # What was left to compute counts for each of them.
        waiting += time.monotonic() - asked

    outcomes: list[Predictions | Exception] = []
    for k, predictor in enumerate(predictors):
        if errors[k] is None:
            outcomes.append(_join(predictor, logits[k], stored[k], seconds[k] + waiting))
        else:
            outcomes.append(errors[k])
    return outcomes


def _join(
    predictor: HeadPredictor,
    logits: list[Tensor],
    stored: dict[str, list[Tensor]],
    seconds: float,
) -> "Predictions | LossNotFinite":
    """Join the batches of one head and compute its loss."""
    table, part = _join_rows(logits), predictor.part
    rows, video = part.all_rows()
    if not np.isfinite(table).all():
        return LossNotFinite(
            f"the head's logits on split {part.split} are not finite: its weights diverged; lower "
            f"train.lr"
        )
    loss = loss_of_views(table, part, predictor.recipe)
    arrays = {name: _join_rows(batches) for name, batches in stored.items()}
    return Predictions(table, rows, video, loss, seconds, arrays)


def loss_of_views(logits: np.ndarray, part: SplitViews, recipe: Recipe) -> float:
    """Compute the mean loss over the views of a split.

    Args:
        logits: [R,K] of every view.
        part: the split.
        recipe: says what kind of label a video has.

    Returns:
        The loss; NaN without labels.
    """
    if part.targets is None:
        return math.nan
    targets = torch.from_numpy(part.targets[part.all_rows()[1]])
    return loss_of(recipe.data.target)(torch.from_numpy(logits), targets).item()


def _join_rows(batches: Sequence[Tensor]) -> np.ndarray:
    return np.concatenate([batch.numpy() for batch in batches])


def compute_figures(
    predictions: Predictions, part: SplitViews, recipe: Recipe
) -> tuple[dict[str, float], np.ndarray]:
    """Compute the figures of a split.

    Args:
        predictions: of every view of the split.
        part: the split, of V videos.
        recipe: says how logits become scores and how views are aggregated.

    Returns:
        figure -> value ({} without labels), and the scores [V,K] of the videos.
    """
    scores = scores_of(predictions.logits, recipe.scores)
    scores = aggregate(scores, predictions.video, len(part), recipe.evaluate.aggregate)
    if part.targets is None:
        return {}, scores
    return {**summarise(scores, part.targets), "loss": predictions.loss}, scores


def write_predictions(
    folder: Path,
    tag: str,
    predictions: Predictions,
    part: SplitViews,
    recipe: Recipe,
    classes: tuple[str, ...],
) -> dict[str, float]:
    """Write predictions_TAG.npz and, for one label per video, confusion_TAG.csv.

    Args:
        folder: the run folder.
        tag: what the files are named after, such as the split.
        predictions: of every view of the split.
        part: the split.
        recipe: says how logits become scores and how views are aggregated.
        classes: the K class names.

    Returns:
        The figures ({} without labels).
    """
    figures, scores = compute_figures(predictions, part, recipe)
    arrays = {
        "clip": np.array([part.group.clips[row] for row in predictions.rows]),
        "view": np.array([part.group.views[row] for row in predictions.rows]),
        "logits": predictions.logits,
        "video": predictions.video,
        "clips": np.array(part.clips),
        "classes": np.array(classes),
        **predictions.stored,
    }
    if part.targets is not None:
        arrays["targets"] = part.targets
    run_files.save_predictions(folder / f"predictions_{tag}.npz", arrays)
    if part.targets is not None and part.targets.ndim == 1:
        table = confusion(scores, part.targets)
        run_files.save_confusion(folder / f"confusion_{tag}.csv", table, classes)
    return figures


def fields_of(head: nn.Module, cache: "Cache", part: SplitViews, recipe: Recipe) -> tuple[str, ...]:
    """Return the fields to read for training or evaluating a head on a split.

    Args:
        head: its `needs` and `uses` name fields.
        cache: the features, for the message.
        part: the split.
        recipe: the recipe, of one phase, that trains the head.

    Raises:
        ValueError: the cache lacks a field; the message has the command that adds it.
    """
    try:
        fields = fields_for(head, part.group)
    except MissingFields as error:
        raise ValueError(how_to_add(cache, recipe.head.name, error.names)) from None
    # Mirrored views may show another class, such as "left" in place of "right".
    if part.split == "train" and recipe.data.swap_on_flip:
        fields = (*fields, "flip")
    return tuple(dict.fromkeys(fields))


def open_store(
    heads: Sequence[nn.Module],
    cache: "Cache",
    parts: Sequence[SplitViews],
    recipe: Recipe,
    resident: str,
    device: torch.device,
) -> FeatureStore:
    """Open the features that heads read of a split.

    Args:
        heads: the store has every field that one of them reads.
        cache: the features.
        parts: views of one split, e.g. for other labels; the store has the rows of all.
        recipe: the recipe, of one phase, that trains the heads.
        resident: where features are kept (see `heads.data.feature_store.FeatureStore`).
        device: where batches go.

    Raises:
        ValueError: the cache lacks a field, or a feature is not finite.
    """
    fields: list[str] = []
    for head in heads:
        fields += fields_of(head, cache, parts[0], recipe)
    rows = np.concatenate([part.all_rows()[0] for part in parts])
    names = tuple(dict.fromkeys(fields))
    return FeatureStore(parts[0].group, names, rows, resident, str(cache.path), device)
