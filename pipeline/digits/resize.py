"""Pillow's bilinear shrinking as matrix products, on any device and to the bit, and only where
there is something to see.
"""

import numpy as np
import torch
from torch import Tensor

BITS = 22  # of Pillow's fixed-point weights


class Shrink:
    """Square canvases uint8 [N,S,S] -> uint8 [N,s,s], as `Image.resize` with BILINEAR makes them, s
    up to S.

    A canvas is black but for n tiles of `tile` × `tile` pixels. For each tile the output pixels
    that see it are computed, a window of `out` × `out` from one of `seen` × `seen` canvas pixels;
    the others are black. Windows may overlap: they are cut from the finished canvas, so that each
    output pixel is the same whichever of them it is in.

    Pillow filters rows, rounds, then filters columns, with weights in fixed point. Here both are
    products in float64, whose sums of such numbers are exact: no order of summation, thread, device
    or autocast changes a bit.
    """

    def __init__(self, side: int, size: int, tile: int, device: str | torch.device = "cpu"):
        self.side, self.size = side, size
        weights = weights_of(side, size)
        sees = weights > 0
        corners = range(side - tile + 1)
        touched = [np.flatnonzero(sees[:, c : c + tile].any(1)) for c in corners]
        self.out = max(rows[-1] + 1 - rows[0] for rows in touched)
        starts = np.array([min(rows[0], size - self.out) for rows in touched])
        first, end = sees.argmax(1), side - sees[:, ::-1].argmax(1)
        self.seen = max(end[s + self.out - 1] - first[s] for s in starts)
        origins = np.minimum(first[starts], side - self.seen)
        parts = [
            weights[s : s + self.out, o : o + self.seen]
            for s, o in zip(starts, origins, strict=True)
        ]
        # By the corner of a tile on an axis: where its windows start on the frame and on the
        # canvas, and the weights between.
        self._starts, self._origins = (
            torch.from_numpy(found).to(device) for found in (starts, origins)
        )
        self._weights = torch.from_numpy(np.stack(parts)).to(device)  # [corners,out,seen]
        self._across, self._within = (
            torch.arange(self.seen, device=device),
            torch.arange(self.out, device=device),
        )

    def __call__(self, canvases: Tensor, corners: Tensor) -> Tensor:
        """canvases [N,S,S]; corners int64 [N,n,2], the tiles' (x,y)."""
        count = len(canvases)
        x, y = corners.unbind(-1)  # [N,n]
        picture = torch.arange(count, device=corners.device)[:, None]
        at = (picture * self.side + self._origins[y]) * self.side + self._origins[x]
        seen = canvases.flatten().gather(0, _square(at, self._across, self.side).flatten()).double()
        rows = _rounded(
            seen.view(-1, self.seen, self.seen) @ self._weights[x.flatten()].mT
        )  # [N·n,seen,out]
        found = _rounded(self._weights[y.flatten()] @ rows).to(torch.uint8)  # [N·n,out,out]
        at = (picture * self.size + self._starts[y]) * self.size + self._starts[x]
        frames = torch.zeros(count * self.size**2, dtype=torch.uint8, device=canvases.device)
        frames.scatter_(0, _square(at, self._within, self.size).flatten(), found.flatten())
        return frames.view(count, self.size, self.size)


def _square(at: Tensor, side: Tensor, width: int) -> Tensor:
    """The places of squares in flat pictures that are `width` wide: at [...] their corners, side
    [s] 0, 1, … -> [...,s,s].
    """
    return at[..., None, None] + (side[:, None] * width + side)


def _rounded(x: Tensor) -> Tensor:
    return x.add_(0.5).floor_()


def weights_of(side: int, size: int) -> np.ndarray:
    """The weight of every input pixel for every output pixel, float64 [size,side]; whole multiples
    of 2^-22.
    """
    scale = side / size
    weights = np.zeros((size, side))
    for k in range(size):
        centre = (k + 0.5) * scale
        first, end = max(0, int(centre - scale + 0.5)), min(side, int(centre + scale + 0.5))
        tent = np.maximum(0, 1 - np.abs(np.arange(first, end) - centre + 0.5) / scale)
        weights[k, first:end] = np.floor(tent / tent.sum() * 2**BITS + 0.5) / 2**BITS
    return weights
