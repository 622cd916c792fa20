"""The geometry of DyReg-GNN's regions: Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient
Regions for Spatio-Temporal Graph Neural Networks, NeurIPS 2021, eq. (4) to (6). Nothing here
learns. Lengths are in grid cells, N = 9 nodes.

    o = (o_h, o_w, o_y, o_x) [..,N,4]                                      order of the release; the
    paper writes (dx, dy, w, h)
    r_h = e^(o_h) (h / 6 + 1) + 1, r_w alike                               [..,N,2]      half height
    and half width
    c_y = clamp(h/2 tanh(o_y + atanh(2 p_y / h - 1)) + h/2, 0, h - 1), c_x alike         p: the
    node's anchor; o = 0: c = p
    K_i(y,x) = relu(r_h - |y - c_y|) relu(r_w - |x - c_x|), divided by its sum           eq. (5),
    (6)    [..,N,h,w]

Differs from the paper: kernels are divided by their sum, as in the release (without it the module
is not scale-free); `normalise=False` is the paper's eq. (5).
"""

import torch
from torch import Tensor

NODES = 9
SIDE = 3  # nodes per side of the grid of anchors
ANCHORS = ("centre", "grid")

Pair = tuple[int, int]


def anchor_points(anchors: str, grid: Pair) -> Tensor:
    """p [N,2] (y, x) in cells: all (h/2, w/2) for "centre"; (h/6, w/6) times {1,3,5} row by row for
    "grid".
    """
    h, w = grid
    if anchors == "centre":
        return torch.tensor([[h / 2, w / 2]], dtype=torch.float64).expand(NODES, 2)
    odd = torch.arange(1, 2 * SIDE, 2, dtype=torch.float64)
    return torch.cartesian_prod(odd * h / (2 * SIDE), odd * w / (2 * SIDE))


def geometry(offsets: Tensor, anchors: Tensor, grid: Pair) -> tuple[Tensor, Tensor]:
    """Offsets [..,N,4] and anchors [N,2] -> centres and radii [..,N,2]; alpha(.) of eq. (4). Beyond
    o_h = 20, where a kernel is flat anyway, radii no longer grow: infinite ones would have no
    sum.
    """
    size = offsets.new_tensor(grid)  # (h, w)
    sizes, moves = offsets.split(2, -1)
    radii = sizes.clamp_max(20).exp() * (size / (2 * SIDE) + 1) + 1
    # In float64, because close to 1 float32 has only a few numbers for atanh to tell apart.
    at = torch.atanh((2 * anchors.double() / size.double() - 1).clamp(-1 + 1e-7, 1 - 1e-7)).to(
        offsets.dtype
    )
    centres = size / 2 * torch.tanh(moves + at) + size / 2
    return centres.clamp_min(0).minimum(size - 1), radii


def kernels_of(centres: Tensor, radii: Tensor, grid: Pair, normalise: bool = True) -> Tensor:
    """Pyramids of eq. (5) over the cells: centres, radii [..,2] in cells -> [..,h,w], each of sum 1
    if `normalise`.

    A kernel is a row times a column, so that each axis is normalised alone. A radius above 1/2
    leaves at least one cell, which makes an epsilon unnecessary.
    """
    axes = []
    for axis, length in enumerate(grid):
        cells = torch.arange(length, device=centres.device, dtype=centres.dtype)
        profile = (radii[..., axis, None] - (cells - centres[..., axis, None]).abs()).relu()
        axes.append(profile / profile.sum(-1, keepdim=True) if normalise else profile)
    return axes[0][..., :, None] * axes[1][..., None, :]


def area_grid(grid: Pair) -> Tensor:
    """[N,h,w]: the mean over the i-th cell of a 3 x 3 grid; cells that it cuts count with the part
    that lies inside.
    """

    def rows(length: int) -> Tensor:
        edges = torch.arange(SIDE + 1, dtype=torch.float64) * length / SIDE
        cells = torch.arange(length, dtype=torch.float64)
        inside = torch.minimum(edges[1:, None], cells + 1) - torch.maximum(edges[:-1, None], cells)
        return inside.clamp_min(0) * SIDE / length

    return torch.einsum("ay,bx->abyx", rows(grid[0]), rows(grid[1])).flatten(0, 1)
