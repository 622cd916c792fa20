"""DyReg-GNN as a map-to-map module: Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient
Regions for Spatio-Temporal Graph Neural Networks, NeurIPS 2021, sec. 3.

    X' = LN_(C,h,w)(conv_1x1 X), C_b -> C, where C_b > `width`; else X' = X, C = C_b     [B,T,C,h,w]
    K = regions of X'                                          [B,T,N,h,w]
    heads/papers/dyreg/regions.py, N = 9
    v_i = sum_p K_i(p) x'_p + E vec(K_i) + e                   [B,T,N,C]     eq. (7) and the
    embedding of the place, h w -> C
    v = graph(v)                                               [B,T,N,C]
    heads/papers/dyreg/graph.py, `variant`
    y_p = sum_i K_i(p) v_i, then conv_1x1 C -> C_b             [B,T,C_b,h,w] eq. (10); the
    convolution where X was projected
    out = X + LN_(C_b,h,w)(y) s + b                            [B,C_b,T,h,w] s = `start` = 0 and b =
    0 at first: the identity

Every frame is treated alone but for the GRUs, so that the output at t depends on no later frame
(constant_time regions excepted: they average over time). On a map of another grid than the built
one, K is averaged to that one before E. Two biases never learn: b right before a batch norm over
batch statistics, and b_k of the graph, which adds the same to a whole row of its softmax.

Differs from the paper: see heads/papers/dyreg/regions.py and heads/papers/dyreg/graph.py.
Not stated in the paper: the projections' LN and the LN before s (both from the release).
"""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.joint_norm import JointNorm
from heads.papers.dyreg.graph import ITERATIONS, VARIANTS, PaperGraph, ReleasedGraph
from heads.papers.dyreg.kernels import Pair
from heads.papers.dyreg.regions import Regions, build_regions


class DyReg(nn.Module):
    """Maps [B,C_b,T,h,w] -> the same shape; see the top of this file.

    channels: C_b. grid: (h, w) of the training maps. width: C, where C_b is larger (256 in the
    paper, 32 on MultiSyncMNIST). variant: the graph, "paper" or "released". regions, offset_width
    (d_o), anchors, normalise: see `build_regions`. iterations: K of the graph. start: s at first,
    the same for all channels. ValueError for unknown names and for a grid that the regions cannot
    take.

    `boxes` [B,T,n,4] xyxy in [0,1] and `valid` [B,T,n] are read with regions="detector" and set
    before the forward pass.
    """

    def __init__(
        self,
        channels: int,
        grid: Pair,
        width: int = 256,
        *,
        variant: str = "paper",
        regions: str = "dynamic",
        offset_width: int = 128,
        anchors: str = "centre",
        normalise: bool = True,
        iterations: int = ITERATIONS,
        start: float = 0.0,
    ):
        super().__init__()
        if variant not in VARIANTS:
            raise ValueError(
                f"option variant: expected one of {', '.join(VARIANTS)}, got {variant!r}"
            )
        inner = min(channels, width)
        self.channels, self.grid = channels, tuple(grid)
        self.enter = self.leave = None
        if inner < channels:
            self.enter = nn.Sequential(
                nn.Conv2d(channels, inner, 1), JointNorm(inner, axes=3, channel=-3)
            )
            self.leave = nn.Conv2d(inner, channels, 1)
        self.regions = build_regions(regions, inner, self.grid, offset_width, anchors, normalise)
        self.place = nn.Linear(grid[0] * grid[1], inner)
        self.graph = (PaperGraph if variant == "paper" else ReleasedGraph)(inner, iterations)
        self.norm = JointNorm(channels, axes=3, channel=-3, start=start)  # s and b
        self.reads_boxes = regions == "detector"
        self.boxes: Tensor | None = None
        self.valid: Tensor | None = None
        self.record: list[Regions] | None = None

    def nodes(self, x: Tensor, kernels: Tensor) -> Tensor:
        """x [B,T,C,h,w], kernels [B,T or 1,N,h,w] -> v [B,T,N,C], eq. (7) with the embedding."""
        pooled = torch.einsum(
            "btnp,btcp->btnc",
            kernels.expand(x.shape[0], x.shape[1], -1, -1, -1).flatten(3),
            x.flatten(3),
        )
        if tuple(kernels.shape[-2:]) != self.grid:
            kernels = F.adaptive_avg_pool2d(kernels.flatten(0, 1), self.grid).unflatten(
                0, kernels.shape[:2]
            )
        return pooled + self.place(kernels.flatten(3))

    def forward(self, x: Tensor) -> Tensor:
        """x [B,C_b,T,h,w] -> [B,C_b,T,h,w] in the dtype of x. ValueError for other channels."""
        if x.dim() != 5 or x.shape[1] != self.channels:
            raise ValueError(
                f"DyReg: expected a map [B,{self.channels},T,h,w], got {list(x.shape)}"
            )
        B, _, T, h, w = x.shape
        frames = x.transpose(1, 2)  # [B,T,C_b,h,w]
        inner = (
            frames if self.enter is None else self.enter(frames.flatten(0, 1)).unflatten(0, (B, T))
        )
        regions = self.regions(inner, self.boxes, self.valid)
        if self.record is not None:
            self.record.append(regions)
        kernels = regions.kernels.to(inner.dtype)
        v = self.graph(self.nodes(inner, kernels))
        y = torch.einsum(
            "btnp,btnc->btcp", kernels.expand(B, T, -1, -1, -1).flatten(3).to(v.dtype), v
        )  # eq. (10)
        y = y.unflatten(3, (h, w)).flatten(0, 1)
        y = y if self.leave is None else self.leave(y)
        return (frames + self.norm(y).unflatten(0, (B, T))).transpose(1, 2).to(x.dtype)


@contextmanager
def recorded(modules: Iterable[DyReg]) -> Iterator[list[list[Regions]]]:
    """What each module chooses inside the block, with gradients: a list per module, one `Regions`
    per forward pass.
    """
    modules = tuple(modules)
    before = [module.record for module in modules]
    records: list[list[Regions]] = [[] for _ in modules]
    for module, record in zip(modules, records, strict=True):
        module.record = record
    try:
        yield records
    finally:
        for module, record in zip(modules, before, strict=True):
            module.record = record
