"""Box geometry in numpy.

A box is (x1, y1, x2, y2) in continuous coordinates: its width is x2 - x1, not x2 - x1 + 1. Boxes
are in [0,1] of a frame of reference: x by its width, y by its height. The frame of reference is
the whole upright frame, or the crop of a view.
"""

from collections.abc import Mapping

import numpy as np

# A box of which less than this part lies inside the crop is dropped.
MIN_INSIDE = 0.01


def area(boxes: np.ndarray) -> np.ndarray:
    """Return the area of each box.

    Args:
        boxes: [...,4].

    Returns:
        [...], 0 where a box is empty or turned inside out.
    """
    return (boxes[..., 2] - boxes[..., 0]).clip(min=0) * (boxes[..., 3] - boxes[..., 1]).clip(min=0)


def to_view(
    boxes: np.ndarray, crop: tuple[float, float, float, float], source: tuple[int, int], flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Move boxes from the whole frame into a view: crop, clip, mirror.

    Only x is mirrored, as the image is. The released code of GOS mirrors y too, which is an
    error.

    Args:
        boxes: [...,4] in [0,1] of the whole upright frame.
        crop: (x, y, width, height) in pixels of the frame.
        source: (width, height) of the frame in pixels.
        flip: mirror left to right.

    Returns:
        Boxes [...,4] in [0,1] of the crop, and keep [...] bool: whether at least 1 % of the
        box's area is inside. A box without area is never kept.

    Raises:
        ValueError: the crop or the frame has no area.
    """
    boxes = np.asarray(boxes)
    scale, shift = _affine(crop, source)
    moved = boxes * scale - shift
    clipped = moved.clip(0, 1)
    whole, inside = area(moved), area(clipped)
    keep = (whole > 0) & (inside >= MIN_INSIDE * whole)
    if flip:
        clipped = _mirror(clipped)
    return clipped.astype(_float_type(boxes), copy=False), keep


def from_view(
    boxes: np.ndarray, crop: tuple[float, float, float, float], source: tuple[int, int], flip: bool
) -> np.ndarray:
    """Move boxes from a view into the whole frame: the inverse of `to_view`, except for clipping.

    Args:
        boxes: [...,4] in [0,1] of the crop.
        crop: (x, y, width, height) in pixels of the frame.
        source: (width, height) of the frame in pixels.
        flip: the view is mirrored left to right.

    Returns:
        [...,4] in [0,1] of the whole upright frame.
    """
    boxes = np.asarray(boxes)
    scale, shift = _affine(crop, source)
    moved = _mirror(boxes) if flip else boxes
    return ((moved + shift) / scale).astype(_float_type(boxes), copy=False)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Return the intersection over union of every pair of boxes.

    Args:
        a: [...,N,4].
        b: [...,M,4]; leading axes broadcast with those of `a`.

    Returns:
        [...,N,M] in [0,1]. A pair whose union has no area gives 0, never NaN.
    """
    a, b = np.asarray(a), np.asarray(b)
    # One coordinate at a time: numpy is ten times slower where the last axis has length 2 or 4.
    intersection = _overlap(a, b, 0) * _overlap(a, b, 1)
    union = area(a)[..., :, None] + area(b)[..., None, :] - intersection
    return np.divide(intersection, union, out=np.zeros_like(intersection), where=union > 0)


def _overlap(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Return the length that each pair of boxes shares along x (0) or y (1): [...,N,M]."""
    low_a, high_a = a[..., :, None, axis], a[..., :, None, axis + 2]
    low_b = np.ascontiguousarray(b[..., axis])[..., None, :]
    high_b = np.ascontiguousarray(b[..., axis + 2])[..., None, :]
    length = np.minimum(high_a, high_b)
    length -= np.maximum(low_a, low_b)
    return np.maximum(length, 0, out=length)


def pack(
    boxes: np.ndarray, scores: np.ndarray, keep: np.ndarray, num_boxes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Select the best boxes of each frame, in the form that a cache stores.

    Args:
        boxes: [...,M,4].
        scores: [...,M]; negative on padded rows, which are never selected.
        keep: [...,M] bool, the boxes that may be selected.
        num_boxes: N, boxes per frame.

    Returns:
        float32 boxes [...,N,4], float32 scores [...,N], valid [...,N] bool. Valid rows come
        first, by descending score; equal scores keep their order. The other rows are zeros.
    """
    found = pack_labelled(boxes, scores, {}, keep, num_boxes)
    return found["boxes"], found["scores"], found["valid"]


def pack_labelled(
    boxes: np.ndarray,
    scores: np.ndarray,
    labels: Mapping[str, np.ndarray],
    keep: np.ndarray,
    num_boxes: int,
    slots: bool = False,
) -> dict[str, np.ndarray]:
    """Select the best boxes of each frame, with what is said of each.

    Args:
        boxes, scores, keep, num_boxes: as for `pack`.
        labels: name -> [...,M] whole numbers, -1 for none.
        slots: every box stays in its row, and the first N rows are selected. A row without a box
            is then a gap.

    Returns:
        "boxes", "scores" and "valid" of `pack`, and the labels [...,N]: -1 where no box is.
    """
    boxes, scores = np.asarray(boxes, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    keep = np.asarray(keep, dtype=bool) & (scores >= 0)
    if slots:
        order = np.broadcast_to(np.arange(keep.shape[-1]), keep.shape)
    else:
        order = np.argsort(np.where(keep, -scores, np.inf), axis=-1, kind="stable")
    order = order[..., :num_boxes]
    valid = np.take_along_axis(keep, order, axis=-1)
    padding = [(0, 0)] * (valid.ndim - 1) + [(0, num_boxes - valid.shape[-1])]
    best = np.take_along_axis(boxes, order[..., None], axis=-2)
    found = {
        "boxes": np.pad(np.where(valid[..., None], best, 0), [*padding, (0, 0)]),
        "scores": np.pad(np.where(valid, np.take_along_axis(scores, order, axis=-1), 0), padding),
        "valid": np.pad(valid, padding),
    }
    for name, values in labels.items():
        known = np.where(valid, np.take_along_axis(values, order, axis=-1), -1)
        found[name] = np.pad(known, padding, constant_values=-1)
    return found


def _affine(crop, source) -> tuple[np.ndarray, np.ndarray]:
    """Return scale [4] and shift [4], so that box * scale - shift is in [0,1] of the crop."""
    (x, y, width, height), (source_width, source_height) = crop, source
    if not (width > 0 and height > 0 and source_width > 0 and source_height > 0):
        raise ValueError(
            f"crop {tuple(crop)} of a frame {tuple(source)}: expected widths and heights above 0"
        )
    scale = np.array([source_width / width, source_height / height] * 2, dtype=np.float64)
    return scale, np.array([x / width, y / height] * 2, dtype=np.float64)


def _mirror(boxes: np.ndarray) -> np.ndarray:
    """Replace x by 1 - x. The right edge becomes the left edge."""
    return np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)


def _float_type(boxes: np.ndarray) -> np.dtype:
    return boxes.dtype if np.issubdtype(boxes.dtype, np.floating) else np.dtype(np.float64)
