"""Scores of a set of videos: views -> one score per video, then top-k, mean average precision and
the confusion matrix.

Letters: R views, V videos, K classes. Everything is numpy, in float64, and every figure is a
fraction in [0,1].
"""

import warnings

import numpy as np

AGGREGATES = ("mean", "max")
SCORES = ("softmax", "sigmoid", "logits")


def scores_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """logits [R,K] -> "softmax", "sigmoid" or the "logits" themselves, [R,K] float64."""
    x = np.asarray(logits, dtype=np.float64)
    if kind == "logits":
        return x
    if kind == "sigmoid":
        return 0.5 * (1 + np.tanh(0.5 * x))  # no overflow at either end
    if kind == "softmax":
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    raise ValueError(f"scores {kind!r}: expected one of {', '.join(SCORES)}")


def aggregate(scores: np.ndarray, video: np.ndarray, videos: int, how: str) -> np.ndarray:
    """Scores of views [R,K] -> of videos [V,K]; video [R] says whose view each is; "mean" or "max"
    over the views of a video.

    ValueError for a video without any view, which has no score.
    """
    counts = np.bincount(video, minlength=videos)
    if (counts == 0).any():
        raise ValueError(f"video {int(np.argmin(counts))} of {videos} has no view to aggregate")
    if how == "mean":
        total = np.zeros((videos, scores.shape[1]))
        np.add.at(total, video, scores)
        return total / counts[:, None]
    if how == "max":
        best = np.full((videos, scores.shape[1]), -np.inf)
        np.maximum.at(best, video, scores)
        return best
    raise ValueError(f"aggregate {how!r}: expected one of {', '.join(AGGREGATES)}")


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Share of videos whose label is among the k highest scores; of equal scores the lower class
    comes first.
    """
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((ranked == labels[:, None]).any(1).mean())


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Mean over classes of the average precision of scores [V,K] for targets [V,K] of 0 and 1; NaN
    without any positive.

    A class without a positive among these videos has no average precision and is left out of the
    mean.
    """
    from sklearn.metrics import average_precision_score

    there = targets.sum(0) > 0
    if not there.any():
        return float("nan")
    with warnings.catch_warnings():
        warnings.simplefilter(
            "ignore", UserWarning
        )  # scikit-learn's about classes without negatives: their AP is 1
        return float(
            average_precision_score(
                targets[:, there].astype(int), scores[:, there], average="macro"
            )
        )


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """[K,K] counts: row = label, column = the class with the highest score."""
    from sklearn.metrics import confusion_matrix

    return confusion_matrix(labels, scores.argmax(1), labels=np.arange(scores.shape[1]))


def summarise(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """The figures of a set of videos by name. targets [V] of class ids gives top1 (and top5 from 6
    classes on), [V,K] gives map.

    For one label per video, `class_mean` is the mean over classes of the recall, which class
    balance does not move.
    """
    if targets.ndim == 2:
        return {"map": mean_average_precision(scores, targets)} if targets.any() else {}
    figures = {"top1": top_k(scores, targets, 1)}
    if scores.shape[1] > 5:
        figures["top5"] = top_k(scores, targets, 5)
    table = confusion(scores, targets)
    rows = table.sum(1)
    figures["class_mean"] = float((np.diag(table)[rows > 0] / rows[rows > 0]).mean())
    return figures
