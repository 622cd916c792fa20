"""A small DyReg module, its input, and its recurrent and normalising parts by hand."""

import torch
from torch import nn

from heads.interface.joint_norm import JointNorm
from heads.papers.dyreg.kernels import NODES
from heads.papers.dyreg.module import DyReg, recorded

B, T, C = 2, 3, 8
GRID = (8, 7)
VARIANTS = ("paper", "released")
PREDICTED = ("dynamic", "lite", "constant_time", "position_only", "static")


def maps(grid=GRID, channels=C, steps=T, seed=0, batch=B) -> torch.Tensor:
    g = torch.Generator().manual_seed(seed)
    return torch.randn(batch, channels, steps, *grid, generator=g, dtype=torch.float64)


def boxes(n=NODES) -> dict[str, torch.Tensor]:
    g = torch.Generator().manual_seed(4)
    corner = torch.rand(B, T, n, 2, generator=g, dtype=torch.float64) * 0.5
    return {
        "boxes": torch.cat([corner, corner + 0.4], -1),
        "valid": torch.ones(B, T, n, dtype=torch.bool),
    }


def dyreg(seed=0, random=True, width=6, **options) -> DyReg:
    """Build a module in float64; `random` draws every weight, as a scale of 0 hides the rest."""
    torch.manual_seed(seed)
    module = DyReg(C, GRID, width, **{"offset_width": 5, **options}).double()
    if module.reads_boxes:
        module.boxes, module.valid = boxes().values()
    if random:
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.copy_(torch.randn_like(parameter) * 0.4)
    return module


def regions_of(module: DyReg, x: torch.Tensor):
    with recorded([module]) as records:
        module(x)
    return records[0][0]


def gru_by_hand(gru: nn.GRU, x: torch.Tensor) -> torch.Tensor:
    """Run a GRU over x [T,C] of one node."""
    h, out = torch.zeros(x.shape[1], dtype=x.dtype), []
    for step in x:
        a, b = gru.weight_ih_l0 @ step + gru.bias_ih_l0, gru.weight_hh_l0 @ h + gru.bias_hh_l0
        (r, u, n), (hr, hu, hn) = a.chunk(3), b.chunk(3)
        u = (u + hu).sigmoid()
        h = (1 - u) * (n + (r + hr).sigmoid() * hn).tanh() + u * h
        out.append(h)
    return torch.stack(out)


def over_time(gru: nn.GRU, v: torch.Tensor) -> torch.Tensor:
    videos = []
    for video in v:
        nodes = [gru_by_hand(gru, video[:, i]) for i in range(NODES)]
        videos.append(torch.stack(nodes, 1))
    return torch.stack(videos)


def norm_by_hand(norm: JointNorm, x: torch.Tensor) -> torch.Tensor:
    return (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt() * norm.weight + norm.bias


def norm_map(norm: JointNorm, x: torch.Tensor) -> torch.Tensor:
    """LN over (C,h,w) of one map, scale and shift per channel."""
    y = (x - x.mean()) / (x.var(unbiased=False) + 1e-5).sqrt()
    return y * norm.weight[:, None, None] + norm.bias[:, None, None]
