"""Scores and figures of a set of videos: top-k, mean average precision, the confusion matrix.

R views, V videos, K classes. Everything is numpy in float64, and every figure is a fraction in
[0,1].
"""

import warnings

import numpy as np

AGGREGATES = ("mean", "max")
SCORES = ("softmax", "sigmoid", "logits")


def scores_of(logits: np.ndarray, kind: str) -> np.ndarray:
    """Turn logits into scores.

    Args:
        logits: [R,K].
        kind: "softmax", "sigmoid", or "logits" for the logits themselves.

    Returns:
        [R,K] float64.

    Raises:
        ValueError: unknown `kind`.
    """
    x = np.asarray(logits, dtype=np.float64)
    if kind == "logits":
        return x
    if kind == "sigmoid":
        # 1 / (1 + exp(-x)) would overflow for very negative x; this form overflows nowhere.
        return 0.5 * (1 + np.tanh(0.5 * x))
    if kind == "softmax":
        # The maximum cancels out, and exp of a large logit would overflow.
        e = np.exp(x - x.max(1, keepdims=True))
        return e / e.sum(1, keepdims=True)
    raise ValueError(f"scores {kind!r}: expected one of {', '.join(SCORES)}")


def aggregate(scores: np.ndarray, video: np.ndarray, videos: int, kind: str) -> np.ndarray:
    """Aggregate the scores of views to scores of videos.

    Args:
        scores: [R,K].
        video: [R] number of each view's video, in 0..V-1.
        videos: the number of videos V.
        kind: "mean" or "max" over the views of a video.

    Returns:
        [V,K].

    Raises:
        ValueError: a video has no view, or unknown `kind`.
    """
    counts = np.bincount(video, minlength=videos)
    if (counts == 0).any():
        raise ValueError(f"video {int(np.argmin(counts))} of {videos} has no view to aggregate")
    if kind == "mean":
        total = np.zeros((videos, scores.shape[1]))
        # total[video] += scores would add a single view of each video.
        np.add.at(total, video, scores)
        return total / counts[:, None]
    if kind == "max":
        best = np.full((videos, scores.shape[1]), -np.inf)
        np.maximum.at(best, video, scores)
        return best
    raise ValueError(f"aggregate {kind!r}: expected one of {', '.join(AGGREGATES)}")


def top_k(scores: np.ndarray, labels: np.ndarray, k: int) -> float:
    """Return the fraction of videos whose label is among the k highest scores.

    Args:
        scores: [V,K]; of equal scores the lower class id comes first.
        labels: [V] class ids.
        k: how many scores count.
    """
    ranked = np.argsort(-scores, axis=1, kind="stable")[:, :k]
    return float((ranked == labels[:, None]).any(1).mean())


def mean_average_precision(scores: np.ndarray, targets: np.ndarray) -> float:
    """Return the mean over classes of the average precision.

    Classes without a positive video have no average precision and are left out.

    Args:
        scores: [V,K].
        targets: [V,K] of 0 and 1.

    Returns:
        The mean; NaN if no class has a positive video.
    """
    from sklearn.metrics import average_precision_score

    positive = targets.sum(0) > 0
    if not positive.any():
        return float("nan")
    with warnings.catch_warnings():
        # scikit-learn warns of classes without negatives; their average precision is 1.
        warnings.simplefilter("ignore", UserWarning)
        mean = average_precision_score(
            targets[:, positive].astype(int), scores[:, positive], average="macro"
        )
    return float(mean)


def confusion(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Return the confusion matrix.

    Args:
        scores: [V,K].
        labels: [V] class ids.

    Returns:
        [K,K] counts; row = label, column = the class with the highest score.
    """
    from sklearn.metrics import confusion_matrix

    # `labels` keeps a row and a column for classes without a video.
    return confusion_matrix(labels, scores.argmax(1), labels=np.arange(scores.shape[1]))


def summarise(scores: np.ndarray, targets: np.ndarray) -> dict[str, float]:
    """Compute all figures of a set of videos.

    Args:
        scores: [V,K].
        targets: [V] class ids, or [V,K] of 0 and 1.

    Returns:
        For class ids `top1`, `top5` if K > 5, and `class_mean`, the mean over classes of the
        recall, which does not depend on how frequent classes are. For [V,K] targets `map`; {} if
        they are all 0.
    """
    if targets.ndim == 2:
        return {"map": mean_average_precision(scores, targets)} if targets.any() else {}

    figures = {"top1": top_k(scores, targets, 1)}
    if scores.shape[1] > 5:
        figures["top5"] = top_k(scores, targets, 5)
    table = confusion(scores, targets)
    videos = table.sum(1)
    recall = np.diag(table)[videos > 0] / videos[videos > 0]
    figures["class_mean"] = float(recall.mean())
    return figures
