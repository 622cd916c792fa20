"""What a run's stored predictions say of every video and class: V videos, K classes, R views.

Scores of views become scores of videos as the run's recipe says (heads/evaluation/metrics.py).
"""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from heads.evaluation.metrics import (
    aggregate,
    confusion,
    mean_average_precision,
    scores_of,
    summarise,
)
from heads.runs.manifest_record import sha256_of_split

MOST_POINTS = 12  # numbers of views at which a figure is computed


@dataclass
class VideoPredictions:
    """clips [V] and classes [K] by name; targets [V] of class ids, or [V,K] of 0 and 1; figures by
    name.

    With one label per video: `right` [V] bool, `guess` [V] class ids, `sure` [V] the score of the
    label, `confusion` [K,K]. `per_class` [K]: recall, or average precision with several labels; NaN
    for a class without a video. `by_views`: number of views -> the main figure. `structures`
    [R,cells,E]: what a structured head chose for each view, with `view_targets` [R].
    """

    clips: tuple[str, ...]
    classes: tuple[str, ...]
    targets: np.ndarray
    figures: dict[str, float]
    per_class: np.ndarray
    by_views: dict[int, float]
    right: np.ndarray | None = None
    guess: np.ndarray | None = None
    sure: np.ndarray | None = None
    confusion: np.ndarray | None = None
    structures: np.ndarray | None = None
    view_targets: np.ndarray | None = None

    @cached_property
    def test_set(self) -> str:
        """The checksum of the clips and labels that were predicted, as `heads.runs.manifest_record`
        has it of a whole split.
        """
        several = self.targets.ndim == 2
        labels = [np.flatnonzero(target) if several else [target] for target in self.targets]
        return sha256_of_split(
            (clip, [self.classes[k] for k in own])
            for clip, own in zip(self.clips, labels, strict=True)
        )


def main_figure(figures: Mapping[str, float]) -> str:
    """The figure that a table is about: map, or top1; "" without either."""
    return next((name for name in ("map", "top1") if name in figures), "")


def predictions_by_video(
    arrays: Mapping[str, np.ndarray], recipe: Mapping
) -> VideoPredictions | None:
    """What the arrays of a predictions_SPLIT.npz say, scored as `recipe` (its tables) says; None
    without labels.
    """
    if "targets" not in arrays:
        return None
    targets, video, videos = arrays["targets"], arrays["video"], len(arrays["clips"])
    kind = (
        recipe["evaluate"]["scores"]
        or {"single": "softmax", "multi": "sigmoid"}[recipe["data"]["target"]]
    )
    how = recipe["evaluate"]["aggregate"]
    views = scores_of(arrays["logits"], kind)
    scores = aggregate(views, video, videos, how)
    table = confusion(scores, targets) if targets.ndim == 1 else None
    found = VideoPredictions(
        tuple(arrays["clips"].tolist()),
        tuple(arrays["classes"].tolist()),
        targets,
        summarise(scores, targets),
        _precisions(scores, targets) if table is None else _recalls(table),
        _by_views(views, video, arrays["view"], targets, how),
        confusion=table,
    )
    if targets.ndim == 1:
        found.guess = scores.argmax(1)
        found.right = found.guess == targets
        found.sure = scores[np.arange(videos), targets]
        if "structure" in arrays:
            found.structures, found.view_targets = arrays["structure"], targets[video]
    return found


def _recalls(table: np.ndarray) -> np.ndarray:
    """[K] in [0,1] from a confusion matrix; NaN for a class without a video."""
    count = table.sum(1)
    return np.where(count > 0, np.diag(table) / np.maximum(count, 1), np.nan)


def _precisions(scores: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """[K] average precisions in [0,1]; NaN for a class without a video."""
    from sklearn.metrics import average_precision_score

    found = np.full(targets.shape[1], np.nan)
    for k in np.flatnonzero(targets.sum(0)):
        found[k] = average_precision_score(targets[:, k].astype(int), scores[:, k])
    return found


def _by_views(
    views: np.ndarray, video: np.ndarray, number: np.ndarray, targets: np.ndarray, how: str
) -> dict[int, float]:
    """The main figure from the first k views of every video, for k from 1 to all; {} where each has
    one.
    """
    ordered, counts = np.lexsort((number, video)), np.bincount(video)
    starts, most = np.cumsum(counts) - counts, int(counts.max())
    if most < 2:
        return {}
    wanted = (
        {round(x) for x in np.geomspace(1, most, MOST_POINTS)}
        if most > MOST_POINTS
        else set(range(1, most + 1))
    )
    total, found = views[ordered[starts]], {}
    for k in range(1, most + 1):
        if k > 1:
            more = np.flatnonzero(counts >= k)
            new = views[ordered[starts[more] + k - 1]]
            total[more] = np.maximum(total[more], new) if how == "max" else total[more] + new
        if k in wanted:
            scores = total if how == "max" else total / np.minimum(counts, k)[:, None]
            several = targets.ndim == 2
            found[k] = (
                mean_average_precision(scores, targets)
                if several
                else float((scores.argmax(1) == targets).mean())
            )
    return found
