"""DyReg-GNN as a module from maps to maps.

Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for Spatio-Temporal Graph
Neural Networks, NeurIPS 2021, sec. 3.

    X' = LN_(C,h,w)(conv_1x1 X), C_b -> C, if C_b > `width`;        [B,T,C,h,w]
         else X' = X and C = C_b
    K = regions of X'                                               [B,T,N,h,w]
    v_i = sum_p K_i(p) x'_p + E vec(K_i) + e                        [B,T,N,C]       eq. (7)
    v = graph(v)                                                    [B,T,N,C]
    y_p = sum_i K_i(p) v_i,                                         [B,T,C_b,h,w]   eq. (10)
         then conv_1x1 C -> C_b if X was projected
    out = X + LN_(C_b,h,w)(y) s + b                                 [B,C_b,T,h,w]

The regions are in heads/papers/dyreg/regions.py, N = 9, the graph in heads/papers/dyreg/graph.py.
E is the embedding of the place, h w -> C. At first s = `start` = 0 and b = 0: the identity.

Every step is treated alone but for the GRUs, so that the output at t depends on no later step. The
regions "constant_time" are the exception: they average over time. On a map of another grid than the
built one, K is averaged to that one before E. Two biases never learn: b right before a batch norm
over batch statistics, and b_k of the graph, which adds the same to a whole row of its softmax.

Differs from the paper: see heads/papers/dyreg/regions.py and heads/papers/dyreg/graph.py. Not
stated in the paper, and taken from the release: the projections' LN and the LN before s.
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
    """Maps [B,C_b,T,h,w] to the same shape: a module for `Backbone.insert`.

    With regions="detector" the caller sets `boxes` [B,T,n,4], xyxy in [0,1], and `valid` [B,T,n]
    before the forward pass.

    Args:
        channels: C_b.
        grid: (h, w) of the training maps.
        width: C, if C_b is larger (256 in the paper, 32 on MultiSyncMNIST).
        variant: of the graph, "paper" or "released".
        regions, offset_width, anchors, normalise: see `build_regions`.
        iterations: K of the graph.
        start: s at first, the same for all channels; 0 is the identity.

    Raises:
        ValueError: unknown variant, regions or anchors, or a grid that the regions cannot take.
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
            norm = JointNorm(inner, axes=3, channel=-3)
            self.enter = nn.Sequential(nn.Conv2d(channels, inner, 1), norm)
            self.leave = nn.Conv2d(inner, channels, 1)
        self.regions = build_regions(regions, inner, self.grid, offset_width, anchors, normalise)
        self.place = nn.Linear(grid[0] * grid[1], inner)
        graph = PaperGraph if variant == "paper" else ReleasedGraph
        self.graph = graph(inner, iterations)
        self.norm = JointNorm(channels, axes=3, channel=-3, start=start)  # s and b

        # A backbone calls an inserted module with the map alone, so the caller sets the boxes here.
        self.reads_boxes = regions == "detector"
        self.boxes: Tensor | None = None
        self.valid: Tensor | None = None
        self.record: list[Regions] | None = None

    def nodes(self, x: Tensor, kernels: Tensor) -> Tensor:
        """Compute the nodes, eq. (7) with the embedding of the place.

        Args:
            x: [B,T,C,h,w].
            kernels: [B,T or 1,N,h,w].

        Returns:
            v [B,T,N,C].
        """
        # Kernels that all steps share have T = 1.
        per_step = kernels.expand(x.shape[0], x.shape[1], -1, -1, -1)
        # sum_p K_i(p) x'_p: [B,T,N,P] x [B,T,C,P] -> [B,T,N,C]
        pooled = torch.einsum("btnp,btcp->btnc", per_step.flatten(3), x.flatten(3))
        if tuple(kernels.shape[-2:]) != self.grid:
            # E has one weight per cell of the built grid.
            averaged = F.adaptive_avg_pool2d(kernels.flatten(0, 1), self.grid)
            kernels = averaged.unflatten(0, kernels.shape[:2])
        return pooled + self.place(kernels.flatten(3))

    def forward(self, x: Tensor) -> Tensor:
        """Run the module.

        Args:
            x: [B,C_b,T,h,w].

        Returns:
            The same shape, in the dtype of x.

        Raises:
            ValueError: x has other channels.
        """
        if x.dim() != 5 or x.shape[1] != self.channels:
            raise ValueError(
                f"DyReg: expected a map [B,{self.channels},T,h,w], got {list(x.shape)}"
            )
        B, _, T, h, w = x.shape
        frames = x.transpose(1, 2)  # [B,T,C_b,h,w]
        inner = frames
        if self.enter is not None:
            inner = self.enter(frames.flatten(0, 1)).unflatten(0, (B, T))
        regions = self.regions(inner, self.boxes, self.valid)
        if self.record is not None:
            self.record.append(regions)

        # Regions are computed in float32 at least, the nodes in the dtype of the map.
        kernels = regions.kernels.to(inner.dtype)
        v = self.graph(self.nodes(inner, kernels))
        flat = kernels.expand(B, T, -1, -1, -1).flatten(3).to(v.dtype)
        y = torch.einsum("btnp,btnc->btcp", flat, v)  # eq. (10)
        y = y.unflatten(3, (h, w)).flatten(0, 1)
        if self.leave is not None:
            y = self.leave(y)
        out = frames + self.norm(y).unflatten(0, (B, T))
        return out.transpose(1, 2).to(x.dtype)


@contextmanager
def recorded(modules: Iterable[DyReg]) -> Iterator[list[list[Regions]]]:
    """Record the regions of modules inside a `with` block, with gradients.

    Args:
        modules: the modules to watch.

    Yields:
        A list per module, which gets one `Regions` per forward pass.
    """
    modules = tuple(modules)
    # A block inside another block gives the outer one its lists back.
    before = [module.record for module in modules]
    records: list[list[Regions]] = [[] for _ in modules]
    for module, record in zip(modules, records, strict=True):
        module.record = record
    try:
        yield records
    finally:
        for module, record in zip(modules, before, strict=True):
            module.record = record
