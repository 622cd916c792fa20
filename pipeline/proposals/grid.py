"""Fixed regions: every frame has the same boxes, the cells of an s × s grid for each scale s (the
regions of RSTG).
"""

import numpy as np


class Grid:
    """The cells of each scale in turn, row by row, all with score 1.

    Boxes are in [0,1] of the view, so no crop moves them.

    Args:
        scales: cells per side, for each grid.
    """

    frame_size = None
    in_view = True
    weights_sha256 = ""

    def __init__(self, scales: tuple[int, ...]):
        cells = []
        for scale in scales:
            edges = np.arange(scale + 1) / scale
            for i in range(scale):
                for j in range(scale):
                    cells.append((edges[j], edges[i], edges[j + 1], edges[i + 1]))
        self.boxes = np.array(cells, dtype=np.float32)
        self.num_boxes = len(self.boxes)

    def to(self, device, precision: str = "fp32") -> "Grid":
        """Return itself: the boxes are a constant, there is nothing to move."""
        return self

    def propose(self, frames, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """Return boxes [K,N,4] in [0,1] of the view's crop, and scores [K,N] of ones.

        Only the number of frames matters: `frames`, `clip` and `info` are not looked at.
        """
        boxes = np.repeat(self.boxes[None], len(numbers), axis=0)
        return boxes, np.ones(boxes.shape[:2], dtype=np.float32)


def build(scales: tuple[int, ...] = (3, 2, 1)) -> Grid:
    """Build the source "grid".

    Args:
        scales: cells per side of each grid, from 1. 3, 2, 1 in this order give RSTG's 14 regions:
            nine, four, and the whole view.

    Raises:
        ValueError: a scale is not a whole number from 1.
    """
    if isinstance(scales, int):
        scales = (scales,)
    whole = all(isinstance(s, int) and not isinstance(s, bool) and s >= 1 for s in scales)
    if not scales or not whole:
        raise ValueError(
            f"proposals 'grid': scales={scales!r}; expected whole numbers from 1, such as (3, 2, 1)"
        )
    return Grid(tuple(scales))
