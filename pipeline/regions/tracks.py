"""Tracks: which boxes of a view are the same object, by linking them from step to step.

Boxes of a step are matched to the tracks so far one to one, so that the sum of affinities is
largest (the Hungarian algorithm). The affinity of a track and a box is

    a = (1 - w) IoU + w max(0, cos)

of the track's last box and the box. cos compares their features without the view's mean, because
features of frozen networks all point the same way. Without features w is 0. Pairs below
`least` are not linked, nor are boxes of different classes. A track that has no box for more than
`lost` steps ends.
"""

from dataclasses import dataclass

import numpy as np
from scipy.optimize import linear_sum_assignment

from pipeline.regions.boxes import iou

# w, where boxes have features.
APPEARANCE = 0.5


@dataclass(frozen=True)
class TrackOptions:
    """When boxes are linked.

    Attributes:
        least: the smallest affinity of a pair that is linked.
        lost: steps for which a track may have no box.
        appearance: w, the weight of features; the rest is that of the overlap.
    """

    least: float = 0.2
    lost: int = 2
    appearance: float = APPEARANCE


def link_tracks(
    boxes: np.ndarray,
    valid: np.ndarray,
    nodes: np.ndarray | None = None,
    classes: np.ndarray | None = None,
    options: TrackOptions | None = None,
) -> np.ndarray:
    """Number the objects of a view.

    Args:
        boxes: [T,N,4] xyxy in [0,1].
        valid: [T,N] bool.
        nodes: [T,N,C], features of the boxes; None compares their places alone.
        classes: [T,N], -1 for none; None if classes are not known.
        options: None for the defaults.

    Returns:
        int32 [T,N]: objects in the order in which they appear, -1 where no box is.
    """
    options = options or TrackOptions()
    features = None if nodes is None else _centred(nodes, valid)
    tracks = np.full(valid.shape, -1, np.int32)
    # The last box of each track, as (step, row); a track's number is its place.
    ends: list[tuple[int, int]] = []
    for t in range(len(boxes)):
        rows = np.flatnonzero(valid[t])
        alive = [k for k, (step, _) in enumerate(ends) if t - step <= options.lost + 1]
        at = tuple(np.array([ends[k] for k in alive], int).reshape(-1, 2).T)  # steps, rows
        cosine = None if features is None else features[at] @ features[t, rows].T
        affinity = _affinity(boxes[at], boxes[t, rows], options, cosine)
        allowed = affinity >= options.least
        if classes is not None:
            before, now = classes[at][:, None], classes[t, rows][None]
            # A box without a class may be anything.
            allowed &= (before == now) | (before < 0) | (now < 0)
        for k, i in zip(*linear_sum_assignment(np.where(allowed, -affinity, 0)), strict=True):
            if allowed[k, i]:
                tracks[t, rows[i]] = alive[k]
                ends[alive[k]] = t, rows[i]
        for i in rows[tracks[t, rows] < 0]:
            tracks[t, i] = len(ends)
            ends.append((t, i))
    return tracks


def _affinity(
    before: np.ndarray, now: np.ndarray, options: TrackOptions, cosine: np.ndarray | None
) -> np.ndarray:
    """a [K,M] of K tracks and M boxes."""
    overlap = iou(before.astype(np.float64), now.astype(np.float64))
    if cosine is None:
        return overlap
    weight = options.appearance
    return (1 - weight) * overlap + weight * np.maximum(cosine, 0)


def _centred(nodes: np.ndarray, valid: np.ndarray) -> np.ndarray:
    """Features [T,N,C] without the mean of the valid ones, of length 1 or 0."""
    nodes = nodes.astype(np.float64)
    if valid.any():
        nodes = nodes - nodes[valid].mean(0)
    length = np.linalg.norm(nodes, axis=-1, keepdims=True)
    return np.divide(nodes, length, out=np.zeros_like(nodes), where=length > 0)
