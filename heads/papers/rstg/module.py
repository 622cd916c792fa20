"""RSTG between maps: nodes from a map, the graph, and back, added to the map (NeurIPS 2019, sec. 3;
heads/papers/rstg/graph.py).

    v_i = mean of x over cell i of the 3x3, 2x2 and 1x1 grids       [B,T,14,C_b]   area resize:
    shares of cut cells count
    v = W_in v where C_b is not `width`                             [B,T,14,C]
    v = graph(v)
    z = W_out v where C_b is not `width`                            [B,T,14,C_b]
    y = each scale's nodes on their grid, area resized to h x w, summed over scales
    [B,T,C_b,h,w]
    out = x + (LN(y) + beta) s, LN over T, C, h, w jointly          [B,C_b,T,h,w]  s = beta = 0 at
    first: the identity

Differs from the paper: nothing. Not stated in the paper: the projections and the last line (the
release's).
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.papers.rstg.graph import GraphChoices, SpaceTimeGraph, linear
from heads.papers.rstg.grid import pool_weights, remap_weights


@lru_cache(maxsize=32)
def _constants(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """(pooling [h*w,N], remapping [N,h*w]) of maps without padding, on the CPU."""
    with torch.inference_mode(False):  # made during an evaluation, they must still serve training
        return pool_weights(torch.tensor(size, device="cpu"), size).mT.contiguous(), remap_weights(
            size
        ).mT.contiguous()


def pool_nodes(fmap: Tensor, grid: Tensor | None = None) -> Tensor:
    """fmap [B,T,C,h,w], grid [B,2] true (h, w) where maps are padded -> v [B,T,N,C]; the last node
    is the mean of the map.
    """
    size = (fmap.shape[-2], fmap.shape[-1])
    pool = (
        _constants(size)[0].to(fmap.device)
        if grid is None
        else pool_weights(grid, size).mT[:, None]
    )
    return (fmap.flatten(3) @ pool.to(fmap.dtype)).mT


def remap(v: Tensor, size: tuple[int, int]) -> Tensor:
    """v [B,T,N,C] -> the sum over scales of maps of `size` = (h, w) [B,T,C,h,w]."""
    return (v.mT @ _constants(size)[1].to(v.device, v.dtype)).unflatten(-1, size)


class NormedResidual(nn.Module):
    """x + (LN(y) + beta) s; LN over the last `axes` axes of y, beta and s [C] along the axis
    `channel`, both 0 at first.
    """

    def __init__(self, channels: int, axes: int, channel: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.zeros(channels))
        self.axes, self.broadcast = axes, (channels,) + (1,) * (-channel - 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        # The graph of a new network gives numbers below 0.01, whose variance would drown in the
        # usual eps of 1e-5.
        y = F.layer_norm(y, y.shape[-self.axes :], eps=1e-9)
        return x + ((y + self.shift.view(self.broadcast)) * self.scale.view(self.broadcast)).to(
            x.dtype
        )


class ProjectedGraph(nn.Module):
    """The graph with `width` channels on nodes [B,T,N,channels], projected where the two differ;
    `leave` projects back.
    """

    def __init__(self, channels: int, width: int, choices: GraphChoices):
        super().__init__()
        self.enter = linear(channels, width) if channels != width else nn.Identity()
        self.graph = SpaceTimeGraph(width, choices)
        self.leave = linear(width, channels) if channels != width else nn.Identity()

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """v [B,T,N,channels] -> [B,T,N,width], before `leave`, and the weights as `SpaceTimeGraph` gives
        them.
        """
        return self.graph(self.enter(v))


class RSTG(nn.Module):
    """Maps [B,C_b,T,h,w] to the same shape, as the top of this file says: a module for
    `Backbone.insert`.

    While `record` is a list, every forward pass appends the graph's weights [B,T,14,14] to it (None
    without messages).
    """

    def __init__(self, channels: int, width: int, choices: GraphChoices):
        super().__init__()
        self.record: list[Tensor | None] | None = None
        self.nodes = ProjectedGraph(channels, width, choices)
        self.residual = NormedResidual(channels, axes=4, channel=-3)

    def forward(self, x: Tensor) -> Tensor:
        frames = x.transpose(1, 2)  # [B,T,C_b,h,w]
        v, weights = self.nodes(pool_nodes(frames))
        if self.record is not None:
            self.record.append(weights)
        y = remap(self.nodes.leave(v), (x.shape[3], x.shape[4]))
        return self.residual(frames, y).transpose(1, 2)
