"""The figures of single classes: how many of its videos are found, and what they are taken for."""

import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heads.evaluation.metrics import confusion


@dataclass(frozen=True)
class ClassFigures:
    """The figures of one class. Fractions are in [0,1]; NaN where there is nothing to count.

    Attributes:
        name: of the class.
        videos: how many videos have it.
        recall: the fraction of them for which it has the highest score: its top-1. NaN where a
            video may have several classes.
        predicted: how many videos it has the highest score for. 0 where a video may have several
            classes.
        precision: the fraction of these that have the class. NaN as for `recall`.
        average_precision: where a video may have several classes; else NaN.
        taken_for: the class that its other videos get most often; "" if there is none.
        taken: how many of its videos get that class.
    """

    name: str
    videos: int
    recall: float = math.nan
    predicted: int = 0
    precision: float = math.nan
    average_precision: float = math.nan
    taken_for: str = ""
    taken: int = 0


def class_figures(
    scores: np.ndarray, targets: np.ndarray, classes: Sequence[str]
) -> list[ClassFigures]:
    """Compute the figures of every class.

    Args:
        scores: [V,K].
        targets: [V] class ids, or [V,K] of 0 and 1.
        classes: the K names.

    Returns:
        One entry per class, in the order of `classes`.
    """
    if targets.ndim == 2:
        return [
            ClassFigures(
                name, int(targets[:, k].sum()), average_precision=_precision(scores, targets, k)
            )
            for k, name in enumerate(classes)
        ]

    table = confusion(scores, targets)
    found = []
    for k, name in enumerate(classes):
        videos, predicted, right = int(table[k].sum()), int(table[:, k].sum()), int(table[k, k])
        others = table[k].copy()
        others[k] = 0
        other = int(others.argmax())
        found.append(
            ClassFigures(
                name,
                videos,
                recall=right / videos if videos else math.nan,
                predicted=predicted,
                precision=right / predicted if predicted else math.nan,
                taken_for=classes[other] if others[other] else "",
                taken=int(others[other]),
            )
        )
    return found


def _precision(scores: np.ndarray, targets: np.ndarray, k: int) -> float:
    """The average precision of class k; NaN if no video has it."""
    from sklearn.metrics import average_precision_score

    if not targets[:, k].any():
        return math.nan
    with warnings.catch_warnings():
        # scikit-learn warns of classes without negatives; their average precision is 1.
        warnings.simplefilter("ignore", UserWarning)
        return float(average_precision_score(targets[:, k].astype(int), scores[:, k]))


def as_rows(figures: Sequence[ClassFigures]) -> list[list[object]]:
    """Return a header and a row per class; an empty cell where there is nothing to count.

    Args:
        figures: of every class.
    """
    if any(not math.isnan(one.average_precision) for one in figures):
        rows: list[list[object]] = [["class", "videos", "average precision"]]
        rows += [[one.name, one.videos, _cell(one.average_precision)] for one in figures]
        return rows

    rows = [["class", "videos", "top1", "predicted", "precision", "taken for", "taken"]]
    for one in figures:
        rows.append(
            [
                one.name,
                one.videos,
                _cell(one.recall),
                one.predicted,
                _cell(one.precision),
                one.taken_for,
                one.taken,
            ]
        )
    return rows


def _cell(value: float) -> object:
    return "" if math.isnan(value) else value
