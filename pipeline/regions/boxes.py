"""Box geometry, numpy only. A box is x1 y1 x2 y2 with continuous coordinates: its width is x2 - x1,
never x2 - x1 + 1.

Boxes are in [0,1] of a frame of reference, x by its width and y by its height: the whole upright
frame, or a view's crop.
"""

import numpy as np

MIN_INSIDE = 0.01  # a box that the crop cuts down to less than this part of its own area is dropped


def area(boxes: np.ndarray) -> np.ndarray:
    """boxes [...,4] -> [...] area, 0 where a box is empty or turned inside out."""
    return (boxes[..., 2] - boxes[..., 0]).clip(min=0) * (boxes[..., 3] - boxes[..., 1]).clip(min=0)


def to_view(
    boxes: np.ndarray, crop: tuple[float, float, float, float], source: tuple[int, int], flip: bool
) -> tuple[np.ndarray, np.ndarray]:
    """Boxes of the whole frame as a view sees them: cropped, clipped, and mirrored left to right if
    `flip`.

    boxes [...,4] in [0,1] of the whole upright frame; crop (x, y, width, height) in source pixels;
    source (width, height) of that frame in pixels. Returns boxes [...,4] in [0,1] of the crop, and
    keep [...] bool: whether at least 1 % of the box's area is inside (a box without area is never
    kept). Only x is mirrored, as the image is; the released GOS code mirrors y too, which is a
    fault (spec 1.8). ValueError for a crop or a frame without area.
    """
    boxes = np.asarray(boxes)
    scale, shift = _affine(crop, source)
    seen = boxes * scale - shift
    clipped = seen.clip(0, 1)
    whole, inside = area(seen), area(clipped)
    keep = (whole > 0) & (inside >= MIN_INSIDE * whole)
    if flip:
        clipped = _mirrored(clipped)
    return clipped.astype(_float_of(boxes), copy=False), keep


def from_view(
    boxes: np.ndarray, crop: tuple[float, float, float, float], source: tuple[int, int], flip: bool
) -> np.ndarray:
    """The inverse of `to_view` for what it did not clip: boxes [...,4] in [0,1] of the crop -> in
    [0,1] of the whole frame.
    """
    boxes = np.asarray(boxes)
    scale, shift = _affine(crop, source)
    seen = _mirrored(boxes) if flip else boxes
    return ((seen + shift) / scale).astype(_float_of(boxes), copy=False)


def iou(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Intersection over union of every pair: a [...,N,4], b [...,M,4] -> [...,N,M] in [0,1].

    Leading axes broadcast. A pair whose union has no area gives 0, never NaN.
    """
    a, b = np.asarray(a), np.asarray(b)
    # One coordinate at a time: numpy is ten times slower where the innermost axis has length 2 or
    # 4.
    both = _shared(a, b, 0) * _shared(a, b, 1)
    either = area(a)[..., :, None] + area(b)[..., None, :] - both
    return np.divide(both, either, out=np.zeros_like(both), where=either > 0)


def _shared(a: np.ndarray, b: np.ndarray, axis: int) -> np.ndarray:
    """Length that each pair of boxes shares along x (axis 0) or y (1): [...,N,M]."""
    low_a, high_a = a[..., :, None, axis], a[..., :, None, axis + 2]
    low_b, high_b = (np.ascontiguousarray(b[..., k])[..., None, :] for k in (axis, axis + 2))
    length = np.minimum(high_a, high_b)
    length -= np.maximum(low_a, low_b)
    return np.maximum(length, 0, out=length)


def pack(
    boxes: np.ndarray, scores: np.ndarray, keep: np.ndarray, num_boxes: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The best `num_boxes` kept boxes of each frame, in the form that a cache stores.

    boxes [...,M,4]; scores [...,M], negative on padded rows, which are never boxes; keep [...,M]
    bool. Returns float32 boxes [...,N,4] and scores [...,N], and valid [...,N] bool: valid rows
    first, by falling score, equal scores in their order; the rest zeros.
    """
    boxes, scores = np.asarray(boxes, dtype=np.float32), np.asarray(scores, dtype=np.float32)
    keep = np.asarray(keep, dtype=bool) & (scores >= 0)
    order = np.argsort(np.where(keep, -scores, np.inf), axis=-1, kind="stable")[..., :num_boxes]
    valid = np.take_along_axis(keep, order, axis=-1)
    scores = np.where(valid, np.take_along_axis(scores, order, axis=-1), 0)
    boxes = np.where(valid[..., None], np.take_along_axis(boxes, order[..., None], axis=-2), 0)
    rows = [(0, 0)] * (valid.ndim - 1) + [(0, num_boxes - valid.shape[-1])]
    return np.pad(boxes, [*rows, (0, 0)]), np.pad(scores, rows), np.pad(valid, rows)


def _affine(crop, source) -> tuple[np.ndarray, np.ndarray]:
    """scale [4], shift [4] in float64, so that box * scale - shift is the box in [0,1] of the
    crop.
    """
    (x, y, width, height), (source_width, source_height) = crop, source
    if not (width > 0 and height > 0 and source_width > 0 and source_height > 0):
        raise ValueError(
            f"crop {tuple(crop)} of a frame {tuple(source)}: expected widths and heights above 0"
        )
    scale = np.array([source_width / width, source_height / height] * 2, dtype=np.float64)
    return scale, np.array([x / width, y / height] * 2, dtype=np.float64)


def _mirrored(boxes: np.ndarray) -> np.ndarray:
    """x -> 1 - x; the left edge of the mirror image is what was the right edge."""
    return np.stack([1 - boxes[..., 2], boxes[..., 1], 1 - boxes[..., 0], boxes[..., 3]], axis=-1)


def _float_of(boxes: np.ndarray) -> np.dtype:
    return boxes.dtype if np.issubdtype(boxes.dtype, np.floating) else np.dtype(np.float64)
