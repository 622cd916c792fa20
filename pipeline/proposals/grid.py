"""Fixed regions: every frame has the same boxes, the cells of an s × s grid for each scale s (the
regions of RSTG).
"""

import numpy as np


class Grid:
    """The cells of each scale in turn, row by row; scores are all 1. Boxes are in [0,1] of the
    view, so no crop moves them.
    """

    frame_size = None
    in_view = True
    weights_sha256 = ""

    def __init__(self, scales: tuple[int, ...]):
        edges = [np.arange(scale + 1) / scale for scale in scales]
        cells = [
            (e[j], e[i], e[j + 1], e[i + 1])
            for e in edges
            for i in range(len(e) - 1)
            for j in range(len(e) - 1)
        ]
        self.boxes = np.array(cells, dtype=np.float32)
        self.num_boxes = len(self.boxes)

    def to(self, device, precision: str = "fp32") -> "Grid":
        """Nothing to move: the boxes are a constant."""
        return self

    def propose(self, frames, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """boxes [K,N,4] in [0,1] of the view's crop, scores [K,N] of ones; `frames`, `clip` and
        `info` are not looked at.
        """
        boxes = np.repeat(self.boxes[None], len(numbers), axis=0)
        return boxes, np.ones(boxes.shape[:2], dtype=np.float32)


def build(scales: tuple[int, ...] = (3, 2, 1)) -> Grid:
    """Scales 3, 2, 1 in this order give RSTG's 14 regions: nine, four, and the whole view.
    ValueError unless all are >= 1.
    """
    if isinstance(scales, int):
        scales = (scales,)
    if not scales or any(isinstance(s, bool) or not isinstance(s, int) or s < 1 for s in scales):
        raise ValueError(
            f"proposals 'grid': scales={scales!r}; expected whole numbers from 1, such as (3, 2, 1)"
        )
    return Grid(tuple(scales))
