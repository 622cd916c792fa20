"""RSTG between maps: from a map to nodes, through the graph, and back onto the map.

Nicolicioiu, Duta and Leordeanu, NeurIPS 2019, sec. 2; the graph is in heads/papers/rstg/graph.py.

    v_i = mean of x over cell i of the 3x3, 2x2 and 1x1 grids    [B,T,14,C_b]
    v = W_in v     where C_b is not `width`                      [B,T,14,C]
    v = graph(v)                                                 [B,T,14,C]
    z = W_out v    where C_b is not `width`                      [B,T,14,C_b]
    y = nodes of each scale on their grid, resized to h x w      [B,T,C_b,h,w]
        and summed over the scales
    out = x + (LN(y) + beta) s,  s = beta = 0 at first           [B,C_b,T,h,w]

Both resizes are by area: a cell that a border cuts counts in parts. LN is over T, C, h, w jointly.
With s = beta = 0 the module is the identity.

Differs from the paper: nothing. Not stated in the paper, and taken from the release: the
projections and the last line.
"""

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.papers.rstg.graph import LAYER_NORM_EPS, GraphChoices, SpaceTimeGraph, linear
from heads.papers.rstg.grid import CPU, pool_weights, remap_weights


@lru_cache(maxsize=32)
def _constants(size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """Return (pooling [h*w,N], remapping [N,h*w]) of maps without padding, on the CPU."""
    # An evaluation may be the first to ask: its tensors must still serve training.
    with torch.inference_mode(False):
        pool = pool_weights(torch.tensor(size, device=CPU), size)
        return pool.mT.contiguous(), remap_weights(size).mT.contiguous()


@lru_cache(maxsize=32)
def _constants_on(size: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return `_constants` on a device, which is waited for the first time only."""
    with torch.inference_mode(False):
        pool, back = _constants(size)
        return pool.to(device), back.to(device)


def pool_nodes(fmap: Tensor, grid: Tensor | None = None) -> Tensor:
    """Average a map over the cell of every node.

    Args:
        fmap: [B,T,C,h,w].
        grid: [B,2], true (h, w) in cells; None if nothing is padding.

    Returns:
        v [B,T,N,C]; the last node is the mean of the map.
    """
    size = (fmap.shape[-2], fmap.shape[-1])
    if grid is None:
        pool = _constants_on(size, fmap.device)[0]
    else:
        pool = pool_weights(grid, size).mT[:, None]
    # [B,T,C,P] @ [P,N] -> [B,T,C,N] -> [B,T,N,C]
    return (fmap.flatten(3) @ pool.to(fmap.dtype)).mT


def remap(v: Tensor, size: tuple[int, int]) -> Tensor:
    """Put nodes back onto a map, summed over the scales.

    Args:
        v: [B,T,N,C].
        size: (h, w) of the map.

    Returns:
        [B,T,C,h,w].
    """
    # [B,T,C,N] @ [N,P] -> [B,T,C,P] -> [B,T,C,h,w]
    back = _constants_on(size, v.device)[1]
    return (v.mT @ back.to(v.dtype)).unflatten(-1, size)


class NormedResidual(nn.Module):
    """x + (LN(y) + beta) s, with beta and s both 0 at first.

    Args:
        channels: C, the length of beta and s.
        axes: how many of the last axes of y LN normalises together.
        channel: which axis holds the channels, counted from the end.
    """

    def __init__(self, channels: int, axes: int, channel: int):
        super().__init__()
        self.shift = nn.Parameter(torch.zeros(channels))
        self.scale = nn.Parameter(torch.zeros(channels))
        self.axes, self.broadcast = axes, (channels,) + (1,) * (-channel - 1)

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        """Add y to x.

        Args:
            x: any shape that has the channels at `channel`.
            y: the same shape.

        Returns:
            The same shape, in the dtype of x.
        """
        # The graph of a new network gives numbers below 0.01. Their variance would drown in the
        # usual eps of 1e-5.
        y = F.layer_norm(y, y.shape[-self.axes :], eps=LAYER_NORM_EPS)
        shift, scale = self.shift.view(self.broadcast), self.scale.view(self.broadcast)
        return x + ((y + shift) * scale).to(x.dtype)


class ProjectedGraph(nn.Module):
    """The graph between two projections, which are there only if the channels differ.

    Args:
        channels: of the nodes that come in.
        width: of the nodes in the graph.
        choices: how the graph is computed.

    `leave`, which projects back, is for the caller to apply.
    """

    def __init__(self, channels: int, width: int, choices: GraphChoices):
        super().__init__()
        projected = channels != width
        self.enter = linear(channels, width) if projected else nn.Identity()
        self.graph = SpaceTimeGraph(width, choices)
        self.leave = linear(width, channels) if projected else nn.Identity()

    def forward(self, v: Tensor) -> tuple[Tensor, Tensor | None]:
        """Run the graph.

        Args:
            v: [B,T,N,channels].

        Returns:
            Nodes [B,T,N,width], before `leave`, and the weights as `SpaceTimeGraph` returns them.
        """
        return self.graph(self.enter(v))


class RSTG(nn.Module):
    """A module for `Backbone.insert`: maps [B,C_b,T,h,w] to the same shape.

    While `record` is a list, every forward pass appends the graph's weights [B,T,14,14] to it, or
    None without messages.

    Args:
        channels: C_b of the map.
        width: C of the graph.
        choices: how the graph is computed.
    """

    def __init__(self, channels: int, width: int, choices: GraphChoices):
        super().__init__()
        self.record: list[Tensor | None] | None = None
        self.nodes = ProjectedGraph(channels, width, choices)
        self.residual = NormedResidual(channels, axes=4, channel=-3)

    def forward(self, x: Tensor) -> Tensor:
        """Run the module.

        Args:
            x: [B,C_b,T,h,w].

        Returns:
            The same shape.
        """
        frames = x.transpose(1, 2)  # [B,T,C_b,h,w]
        v, weights = self.nodes(pool_nodes(frames))
        if self.record is not None:
            self.record.append(weights)
        y = remap(self.nodes.leave(v), (x.shape[3], x.shape[4]))
        return self.residual(frames, y).transpose(1, 2)
