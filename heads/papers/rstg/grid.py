"""The fixed geometry of RSTG: which cells belong to a node, which nodes are neighbours.

Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural Networks, NeurIPS 2019, sec. 2.

The nodes are the cells of a 3x3, a 2x2 and a 1x1 grid over the frame, in this order and row by
row: N = 14. Everything here is a constant. A side of the frame is 6 units long, so that every
border of every grid is a whole number.

Differs from the paper: nothing. Not stated in the paper, and taken from the release: touching sides
make neighbours, touching corners do not; how a map is cut into cells that do not divide it. The
width of the position maps' filter is not stated either (see `positions`).
"""

import math

import torch
from torch import Tensor

SCALES = (3, 2, 1)
NODES = sum(scale * scale for scale in SCALES)  # N

# A position is a map of SIDE x SIDE units.
SIDE = 6
PLACES = SIDE * SIDE

# Constants are made on the CPU whatever the default device is, because a head is counted on the
# meta device.
CPU = torch.device("cpu")


def spans(length: Tensor, cells: int, parts: int) -> Tensor:
    """Cut the first `length` of a row of cells into equal parts.

    Args:
        length: [...], whole numbers up to `cells`.
        cells: how many cells the row has.
        parts: how many equal parts to make.

    Returns:
        [...,parts,cells], the fraction of each part that each cell fills. Rows sum to 1; cells
        from `length` on get 0.
    """
    step = length.double()[..., None, None] / parts
    part = torch.arange(parts, device=length.device, dtype=torch.float64)[:, None]
    cell = torch.arange(cells, device=length.device, dtype=torch.float64)
    # The length that a part and a cell share; below 0 where they lie apart.
    overlap = torch.minimum((part + 1) * step, cell + 1) - torch.maximum(part * step, cell)
    return overlap.clamp_min(0) / step


def pool_weights(grid: Tensor, size: tuple[int, int]) -> Tensor:
    """Write the area resize of a map to all three scales as one matrix.

    Args:
        grid: [...,2], true (h, w) in cells.
        size: (h, w) of the map, padding included.

    Returns:
        float32 [...,N,h*w]; each row sums to 1 and averages the map over the cell of a node.
    """
    weights = []
    for scale in SCALES:
        rows = spans(grid[..., 0], size[0], scale)  # [...,scale,h]
        columns = spans(grid[..., 1], size[1], scale)  # [...,scale,w]
        # [...,scale,1,h,1] * [...,1,scale,1,w] -> [...,scale,scale,h,w]
        cells = rows[..., :, None, :, None] * columns[..., None, :, None, :]
        weights.append(cells.flatten(-4, -3).flatten(-2))  # [...,scale*scale,h*w]
    return torch.cat(weights, -2).float()


def remap_weights(size: tuple[int, int]) -> Tensor:
    """Write the area resize of the nodes back to a map, summed over the scales, as one matrix.

    It is the transposed pooling times h w / scale^2. Rows sum to 1 in every scale and to 3 in all,
    so that constant nodes v give 3 v.

    Args:
        size: (h, w) of the map.

    Returns:
        float32 [h*w,N].
    """
    h, w = size
    pool = pool_weights(torch.tensor(size, device=CPU), size)
    counts = torch.tensor([scale * scale for scale in SCALES], device=CPU)
    cells = counts.repeat_interleave(counts)  # [N]: how many cells the grid of each node has
    return (pool * (h * w / cells)[:, None]).mT.contiguous()


def _cells() -> list[tuple[int, int, int, int]]:
    """Return (top, left, bottom, right) of every node in units."""
    cells = []
    for scale in SCALES:
        side = SIDE // scale
        for top in range(0, SIDE, side):
            for left in range(0, SIDE, side):
                cells.append((top, left, top + side, left + side))
    return cells


def adjacency() -> Tensor:
    """Return A [N,N] of 0 and 1: symmetric, with a zero diagonal.

    Neighbours are cells that overlap or share a part of a side, not only a corner.
    """
    boxes = torch.tensor(_cells(), device=CPU)
    low = torch.maximum(boxes[:, None, :2], boxes[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], boxes[None, :, 2:])
    sides = high - low  # [N,N,2]: 0 where the cells touch, below 0 where they are apart
    near = (sides >= 0).all(-1) & (sides > 0).any(-1)
    return (near & ~torch.eye(NODES, dtype=torch.bool, device=CPU)).float()


def positions(kind: str) -> Tensor:
    """Return p, a 6x6 map of where each node is.

    Args:
        kind: "filtered" (the paper) is ones in the cell, then a Gaussian filter. Its standard
            deviation is not stated in the paper; here it is the 2 units of the release's window.
            "window" (the release) is exp(-d^2 / (2 2^2)) inside the cell and 0 outside, d the
            distance to the cell's centre.

    Returns:
        [N,36].
    """
    centres = torch.arange(SIDE, device=CPU) + 0.5
    squares = (centres[:, None] - centres) ** 2
    gaussian = torch.exp(-squares / 8) / math.sqrt(8 * math.pi)  # [6,6], std 2

    maps = []
    for top, left, bottom, right in _cells():
        y = (centres > top) & (centres < bottom)
        x = (centres > left) & (centres < right)
        inside = (y[:, None] & x).float()
        if kind == "window":
            dy, dx = centres[:, None] - (top + bottom) / 2, centres - (left + right) / 2
            maps.append(inside * torch.exp(-(dy**2 + dx**2) / 8))
        else:
            # A Gaussian filter is separable: one product per axis.
            maps.append(gaussian @ inside @ gaussian)
    return torch.stack(maps).flatten(1)
