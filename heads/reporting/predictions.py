"""What a run's stored predictions say of every video and class.

Letters: V videos, K classes, R views. Scores of views become scores of videos as the run's recipe
says (heads/evaluation/metrics.py).
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

# How many numbers of views a figure is computed at.
MOST_POINTS = 12


@dataclass
class VideoPredictions:
    """The predictions of a split, by video.

    Attributes:
        clips: V ids.
        classes: K names.
        targets: [V] class ids, or [V,K] of 0 and 1.
        figures: of the split, by name.
        per_class: [K] recalls, or average precisions with several labels per video. NaN for a
            class without a video.
        by_views: number of views -> the main figure.
        right: [V] bool. This and the next four need one label per video.
        guess: [V] class ids.
        sure: [V] the score of the label.
        best: [V] the score of the guess.
        confusion: [K,K], rows labels.
        structures: [R,cells,E], what a structured head chose for each view.
        view_targets: [R] class ids, with `structures`.
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
    best: np.ndarray | None = None
    confusion: np.ndarray | None = None
    structures: np.ndarray | None = None
    view_targets: np.ndarray | None = None

    @cached_property
    def test_set(self) -> str:
        """The checksum of the predicted clips and labels (see `heads.runs.manifest_record`)."""
        labelled = []
        for clip, target in zip(self.clips, self.targets, strict=True):
            labels = np.flatnonzero(target) if self.targets.ndim == 2 else [target]
            labelled.append((clip, [self.classes[k] for k in labels]))
        return sha256_of_split(labelled)


def main_figure(figures: Mapping[str, float]) -> str:
    """Return the figure that a table ranks by: "map", else "top1"; "" without either."""
    return next((name for name in ("map", "top1") if name in figures), "")


def predictions_by_video(
    arrays: Mapping[str, np.ndarray], recipe: Mapping
) -> VideoPredictions | None:
    """Score stored predictions by video.

    Args:
        arrays: of a predictions_SPLIT.npz.
        recipe: its tables, which name the scores and how views are aggregated.

    Returns:
        The predictions; None without labels.
    """
    if "targets" not in arrays:
        return None
    targets, video, videos = arrays["targets"], arrays["video"], len(arrays["clips"])
    kind = recipe["evaluate"]["scores"]
    if not kind:
        kind = {"single": "softmax", "multi": "sigmoid"}[recipe["data"]["target"]]
    aggregation = recipe["evaluate"]["aggregate"]
    view_scores = scores_of(arrays["logits"], kind)
    scores = aggregate(view_scores, video, videos, aggregation)

    several = targets.ndim == 2
    table = None if several else confusion(scores, targets)
    found = VideoPredictions(
        tuple(arrays["clips"].tolist()),
        tuple(arrays["classes"].tolist()),
        targets,
        summarise(scores, targets),
        _precisions(scores, targets) if several else _recalls(table),
        _by_views(view_scores, video, arrays["view"], targets, aggregation),
        confusion=table,
    )
    if not several:
        found.guess = scores.argmax(1)
        found.right = found.guess == targets
        found.sure = scores[np.arange(videos), targets]
        found.best = scores.max(1)
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
    views: np.ndarray, video: np.ndarray, number: np.ndarray, targets: np.ndarray, aggregation: str
) -> dict[int, float]:
    """The main figure from the first k views of every video, for k from 1 to all.

    `views` [R,K] are scores, `video` [R] and `number` [R] say which view they are. {} where each
    video has one view.
    """
    counts = np.bincount(video)
    most = int(counts.max())
    if most < 2:
        return {}
    wanted = set(range(1, most + 1))
    if most > MOST_POINTS:
        # Denser at few views, where each further one changes the figure most.
        wanted = {round(x) for x in np.geomspace(1, most, MOST_POINTS)}

    # Rows video by video, views in the order of their numbers; a video's first row is at `starts`.
    ordered = np.lexsort((number, video))
    starts = np.cumsum(counts) - counts
    total, found = views[ordered[starts]], {}
    for k in range(1, most + 1):
        if k > 1:
            # Videos with fewer views keep what they have.
            more = np.flatnonzero(counts >= k)
            new = views[ordered[starts[more] + k - 1]]
            if aggregation == "max":
                total[more] = np.maximum(total[more], new)
            else:
                total[more] = total[more] + new
        if k not in wanted:
            continue
        scores = total
        if aggregation != "max":
            # A video with fewer views is divided by its own number.
            scores = total / np.minimum(counts, k)[:, None]
        if targets.ndim == 2:
            found[k] = mean_average_precision(scores, targets)
        else:
            found[k] = float((scores.argmax(1) == targets).mean())
    return found
