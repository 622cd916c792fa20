"""Pillow's bilinear shrinking as matrix products: the same bits on any device.

Only pixels near a digit are computed; all others are black.
"""

import numpy as np
import torch
from torch import Tensor

# Of Pillow's fixed-point weights.
BITS = 22


class Shrink:
    """Shrinks square canvases as Pillow's `Image.resize` with BILINEAR does.

    A canvas is black except for n tiles. For each tile, a window of the frame is computed from a
    window of the canvas. Windows may overlap: they are cut from the finished canvas, so each
    output pixel is the same in all of them.

    Pillow filters rows, rounds, then filters columns, with weights in fixed point. Here both are
    products in float64, whose sums of such numbers are exact. So the order of summation, the
    number of threads, the device and autocast do not change a bit.

    Args:
        side: S, side of a canvas in pixels.
        size: s, side of a frame in pixels, at most S.
        tile: side of a tile in pixels.
        device: where the canvases are.
    """

    def __init__(self, side: int, size: int, tile: int, device: str | torch.device = "cpu"):
        self.side, self.size = side, size
        weights = weights_of(side, size)
        reaches = weights > 0

        # By the position of a tile on an axis: which output pixels it reaches.
        reached = []
        for corner in range(side - tile + 1):
            reached.append(np.flatnonzero(reaches[:, corner : corner + tile].any(1)))
        self._frame_window = max(rows[-1] + 1 - rows[0] for rows in reached)
        starts = np.array([min(rows[0], size - self._frame_window) for rows in reached])

        # Which canvas pixels these output pixels depend on.
        first, end = reaches.argmax(1), side - reaches[:, ::-1].argmax(1)
        last = starts + self._frame_window - 1
        self._canvas_window = (end[last] - first[starts]).max()
        origins = np.minimum(first[starts], side - self._canvas_window)

        parts = []
        for start, origin in zip(starts, origins, strict=True):
            rows = slice(start, start + self._frame_window)
            columns = slice(origin, origin + self._canvas_window)
            parts.append(weights[rows, columns])

        # By the position of a tile on an axis: where its windows start on the frame and on the
        # canvas, and the weights between the two.
        self._starts = torch.from_numpy(starts).to(device)
        self._origins = torch.from_numpy(origins).to(device)
        self._weights = torch.from_numpy(np.stack(parts)).to(device)  # [positions,out,in]
        self._in = torch.arange(self._canvas_window, device=device)
        self._out = torch.arange(self._frame_window, device=device)

    def __call__(self, canvases: Tensor, corners: Tensor) -> Tensor:
        """Shrink canvases.

        Args:
            canvases: uint8 [N,S,S].
            corners: int64 [N,n,2], (x,y) of the tiles.

        Returns:
            uint8 [N,s,s].
        """
        count = len(canvases)
        x, y = corners.unbind(-1)  # [N,n]
        picture = torch.arange(count, device=corners.device)[:, None]

        at = (picture * self.side + self._origins[y]) * self.side + self._origins[x]
        windows = canvases.flatten().gather(0, _square(at, self._in, self.side).flatten())
        windows = windows.double().view(-1, self._canvas_window, self._canvas_window)
        rows = _round_(windows @ self._weights[x.flatten()].mT)  # [N·n,in,out]
        shrunk = _round_(self._weights[y.flatten()] @ rows).to(torch.uint8)  # [N·n,out,out]

        at = (picture * self.size + self._starts[y]) * self.size + self._starts[x]
        frames = torch.zeros(count * self.size**2, dtype=torch.uint8, device=canvases.device)
        frames.scatter_(0, _square(at, self._out, self.size).flatten(), shrunk.flatten())
        return frames.view(count, self.size, self.size)


def _square(at: Tensor, side: Tensor, width: int) -> Tensor:
    """Return the positions of squares in flattened pictures.

    Args:
        at: [...], position of each square's corner.
        side: [s], 0, 1, ….
        width: width of a picture.

    Returns:
        [...,s,s].
    """
    return at[..., None, None] + (side[:, None] * width + side)


def _round_(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_()


def weights_of(side: int, size: int) -> np.ndarray:
    """Return Pillow's weight of every input pixel for every output pixel.

    Args:
        side: input pixels.
        size: output pixels, at most `side`.

    Returns:
        float64 [size,side]; multiples of 2^-22.
    """
    scale = side / size
    weights = np.zeros((size, side))
    for k in range(size):
        centre = (k + 0.5) * scale
        first, end = max(0, int(centre - scale + 0.5)), min(side, int(centre + scale + 0.5))
        tent = np.maximum(0, 1 - np.abs(np.arange(first, end) - centre + 0.5) / scale)
        weights[k, first:end] = np.floor(tent / tent.sum() * 2**BITS + 0.5) / 2**BITS
    return weights
