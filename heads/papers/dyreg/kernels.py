"""The geometry of DyReg-GNN's regions. Nothing here learns.

Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for Spatio-Temporal Graph
Neural Networks, NeurIPS 2021, eq. (4) to (6). Lengths are in grid cells, N = 9 nodes.

    o = (o_h, o_w, o_y, o_x)                                                [..,N,4]
    r_h = e^(o_h) (h / 6 + 1) + 1,  r_w alike                               [..,N,2]   eq. (4)
    c_y = clamp(h/2 tanh(o_y + atanh(2 p_y / h - 1)) + h/2, 0, h - 1),      [..,N,2]   eq. (4)
          c_x alike
    K_i(y,x) = relu(r_h - |y - c_y|) relu(r_w - |x - c_x|),                 [..,N,h,w] eq. (5), (6)
          divided by its sum

r is half the height and half the width, c the centre. p is the node's anchor: o = 0 gives c = p.
The order of o is the release's; the paper writes (dx, dy, w, h).

Differs from the paper: kernels are divided by their sum, as in the release. Without that the module
is not scale-free; `normalise=False` is the paper's eq. (5) and (6).
"""

import torch
from torch import Tensor

NODES = 9
SIDE = 3  # nodes per side of the grid of anchors
ANCHORS = ("centre", "grid")

Pair = tuple[int, int]


def size_of(grid: Pair, like: Tensor) -> Tensor:
    """Return (h, w) as a tensor [2] of another one's dtype, filled where that one is.

    A copy from the host would be waited for.
    """
    size = like.new_empty(2)
    size[:1], size[1:] = grid
    return size


def anchor_points(anchors: str, grid: Pair, device: torch.device | str = "cpu") -> Tensor:
    """Return the anchors p.

    Args:
        anchors: "centre" puts all at (h/2, w/2); "grid" at (h/6, w/6) times {1,3,5}, row by row.
        grid: (h, w).
        device: where they are computed.

    Returns:
        float64 [N,2], (y, x) in cells.
    """
    h, w = grid
    if anchors == "centre":
        centre = torch.full((NODES, 2), h / 2, dtype=torch.float64, device=device)
        centre[:, 1] = w / 2
        return centre
    odd = torch.arange(1, 2 * SIDE, 2, dtype=torch.float64, device=device)
    return torch.cartesian_prod(odd * h / (2 * SIDE), odd * w / (2 * SIDE))


def geometry(offsets: Tensor, anchors: Tensor, grid: Pair) -> tuple[Tensor, Tensor]:
    """Compute where regions are, alpha(.) of eq. (4).

    Args:
        offsets: o [..,N,4].
        anchors: p [N,2], (y, x) in cells.
        grid: (h, w).

    Returns:
        Centres (y, x) and radii (half height, half width), both [..,N,2] in cells.
    """
    size = size_of(grid, offsets)  # (h, w)
    sizes, moves = offsets.split(2, -1)
    # Beyond o_h = 20 a kernel is flat anyway, and infinite radii would have no sum.
    radii = sizes.clamp_max(20).exp() * (size / (2 * SIDE) + 1) + 1

    # In float64, because close to 1 float32 has only a few numbers for atanh to tell apart.
    relative = 2 * anchors.double() / size.double() - 1
    start = torch.atanh(relative.clamp(-1 + 1e-7, 1 - 1e-7)).to(offsets.dtype)
    # tanh leaves c in (0, h), but the last cell of an axis is at h - 1: eq. (4) clamps c.
    centres = size / 2 * torch.tanh(moves + start) + size / 2
    return centres.clamp_min(0).minimum(size - 1), radii


def kernels_of(centres: Tensor, radii: Tensor, grid: Pair, normalise: bool = True) -> Tensor:
    """Compute the pyramids of eq. (5) and (6).

    Args:
        centres: [..,2], (y, x) in cells.
        radii: [..,2], half height and half width in cells.
        grid: (h, w).
        normalise: whether each kernel sums to 1.

    Returns:
        [..,h,w].
    """
    # A kernel is a row times a column, so that each axis is normalised alone. A radius above 1/2
    # leaves at least one cell, so that no sum is 0.
    axes = []
    for axis, length in enumerate(grid):
        cells = torch.arange(length, device=centres.device, dtype=centres.dtype)
        profile = (radii[..., axis, None] - (cells - centres[..., axis, None]).abs()).relu()
        if normalise:
            profile = profile / profile.sum(-1, keepdim=True)
        axes.append(profile)
    return axes[0][..., :, None] * axes[1][..., None, :]


def area_grid(grid: Pair) -> Tensor:
    """Return the averages over the cells of a 3 x 3 grid.

    Args:
        grid: (h, w) of the map.

    Returns:
        float64 [N,h,w]; a cell of the map that a border cuts counts in parts.
    """

    def rows(length: int) -> Tensor:
        edges = torch.arange(SIDE + 1, dtype=torch.float64) * length / SIDE
        cells = torch.arange(length, dtype=torch.float64)
        # [3,length]: how much of each cell lies in each third of the axis.
        inside = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
        return inside.clamp_min(0) * SIDE / length

    return torch.einsum("ay,bx->abyx", rows(grid[0]), rows(grid[1])).flatten(0, 1)
