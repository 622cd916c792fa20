"""The fixed geometry of RSTG: Nicolicioiu, Duta, Leordeanu, Recurrent Space-time Graph Neural
Networks, NeurIPS 2019, sec. 3.

The nodes are the cells of a 3x3, a 2x2 and a 1x1 grid over the frame, in this order, row by row: N
= 14. Everything here is a constant: which cells of a map belong to a node and how much, which nodes
are neighbours, where they are. A side of the frame is 6 units long, so that every border of every
grid is a whole number.

Differs from the paper: nothing. Not stated in the paper: touching sides make neighbours and
touching corners do not, and how a map is cut into cells that do not divide it (both the release's);
the width of the position maps' filter (see `positions`).
"""

import math

import torch
from torch import Tensor

SCALES = (3, 2, 1)
NODES = sum(scale * scale for scale in SCALES)  # N
# Constants are made on the CPU whatever the default device, so that a head can be built on the meta
# device to be counted.
SIDE = 6  # units along a side of the frame; positions are SIDE x SIDE maps
PLACES = SIDE * SIDE  # numbers of a position


def spans(length: Tensor, cells: int, parts: int) -> Tensor:
    """The share of each of `cells` cells in each of `parts` equal parts of the first `length`
    cells.

    length [...] whole numbers up to `cells` -> [...,parts,cells]; rows sum to 1, cells from
    `length` on get 0.
    """
    step = length.double()[..., None, None] / parts
    part = torch.arange(parts, device=length.device, dtype=torch.float64)[:, None]
    cell = torch.arange(cells, device=length.device, dtype=torch.float64)
    overlap = torch.minimum((part + 1) * step, cell + 1) - torch.maximum(part * step, cell)
    return overlap.clamp_min(0) / step


def pool_weights(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Area resize of a map to every scale, as one matrix: rows are nodes, each the mean of the map
    over its cell.

    grid [...,2]: true (h, w); size: (h, w) of the map, padding included -> float32 [...,N,h*w],
    rows sum to 1.
    """
    weights = []
    for scale in SCALES:
        rows, columns = (
            spans(grid[..., k], size[k], scale) for k in (0, 1)
        )  # [...,scale,h], [...,scale,w]
        cells = (
            rows[..., :, None, :, None] * columns[..., None, :, None, :]
        )  # [...,scale,scale,h,w]
        weights.append(cells.flatten(-4, -3).flatten(-2))
    return torch.cat(weights, -2).float()


def remap_weights(size: tuple[int, int]) -> Tensor:
    """Area resize of each scale's nodes to a map of `size` = (h, w), summed over the scales:
    float32 [h*w,N].

    It is the transposed pooling times h w / scale^2: rows have 1 in every scale, 3 in all, and so
    constant nodes v give 3 v.
    """
    h, w = size
    pool = pool_weights(torch.tensor(size, device="cpu"), size)
    cells = torch.tensor(
        [scale * scale for scale in SCALES for _ in range(scale * scale)], device="cpu"
    )
    return (pool * (h * w / cells)[:, None]).mT.contiguous()


def _cells() -> list[tuple[int, int, int, int]]:
    """(top, left, bottom, right) of every node in units."""
    sides = [(scale, SIDE // scale) for scale in SCALES]
    return [
        (i * s, j * s, i * s + s, j * s + s)
        for scale, s in sides
        for i in range(scale)
        for j in range(scale)
    ]


def adjacency() -> Tensor:
    """A [N,N] of 0 and 1, symmetric, zero diagonal: cells that overlap or share a part of a side,
    not only a corner.
    """
    boxes = torch.tensor(_cells(), device="cpu")
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = high - low  # [N,N,2]: 0 where the cells touch, below 0 where they are apart
    near = (sides >= 0).all(-1) & (sides > 0).any(-1)
    return (near & ~torch.eye(NODES, dtype=torch.bool, device="cpu")).float()


def positions(kind: str) -> Tensor:
    """p [N,36], a 6x6 map of where each node is.

    "filtered" (the paper): ones in the cell, then a Gaussian filter; its standard deviation is not
    stated in the paper, here it is the 2 units of the release's window. "window" (the release):
    exp(-d^2 / (2 2^2)) of the distance d to the cell's centre inside the cell, zeros outside.
    """
    centres = torch.arange(SIDE, device="cpu") + 0.5
    maps = []
    for top, left, bottom, right in _cells():
        y, x = (centres > top) & (centres < bottom), (centres > left) & (centres < right)
        inside = (y[:, None] & x).float()
        if kind == "window":
            d2 = (centres[:, None] - (top + bottom) / 2) ** 2 + (centres - (left + right) / 2) ** 2
            maps.append(inside * torch.exp(-d2 / 8))
        else:
            kernel = torch.exp(-((centres[:, None] - centres) ** 2) / 8) / math.sqrt(
                8 * math.pi
            )  # [6,6], std 2
            maps.append(kernel @ inside @ kernel)
    return torch.stack(maps).flatten(1)
