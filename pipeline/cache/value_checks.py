"""Check the values of a view's tensors: NaN, range, order, and zeros where there is no box."""

from collections.abc import Iterator, Mapping

import numpy as np

from pipeline.cache.fields import LABELS
from pipeline.cache.shard_writer import all_finite


def wrong_values(tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield what is wrong with a view's tensors, judging by their values alone.

    Args:
        tensors: field -> array without the axis R; fields may be missing.

    Yields:
        One text per fault, such as "boxes has values outside 0 to 1".
    """
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not all_finite(values):
            yield f"{name} has NaN or infinite values"

    for name, largest in _limits(tensors).items():
        values = tensors[name]
        if values.size and not (values.min() >= 0 and values.max() <= largest):
            yield f"{name} has values outside 0 to {largest:.0f}"

    if "boxes" in tensors:
        boxes = tensors["boxes"]
        if (boxes[..., :2] > boxes[..., 2:]).any():
            yield "boxes has x1 > x2 or y1 > y2"
    if "crop" in tensors and not (tensors["crop"][2:] > 0).all():
        yield "crop has a width or height that is not positive"

    if "valid" in tensors:
        valid = tensors["valid"]
        # Objects with tracks may keep their slots: an absent one leaves a gap.
        if "track" not in tensors and (valid[..., 1:] & ~valid[..., :-1]).any():
            yield "valid has a box after a row that is none"
        for name in ("boxes", "scores", "nodes"):
            if name in tensors and tensors[name][~valid].any():
                yield f"{name} is not 0 where there is no box"
        for name in LABELS:
            if name in tensors and (tensors[name][~valid] != -1).any():
                yield f"{name} is not -1 where there is no box"
    for name in LABELS:
        if name in tensors and (tensors[name] < -1).any():
            yield f"{name} has values below -1"


def _limits(tensors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest allowed value of each field that has one; the smallest is 0."""
    limits: dict[str, float] = {
        "boxes": 1,
        # Rounding may lift the IoU of a box with itself above 1.
        "iou": 1 + 1e-6,
        "scores": np.inf,
        "frames": np.inf,
        "grid": np.inf,
    }
    # Indices count the nodes of a frame in `nearest`, those of the whole view in `similar`.
    if "nearest" in tensors:
        limits["nearest"] = tensors["nearest"].shape[1] - 1
    if "similar" in tensors:
        limits["similar"] = tensors["similar"].shape[0] * tensors["similar"].shape[1] - 1
    return {name: largest for name, largest in limits.items() if name in tensors}
