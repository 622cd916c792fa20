"""The upper part of a backbone inside a head: a map from the cache goes in at a cut, and what comes
after the cut is learned.

Whoever extracts the cache runs the lower part, frozen; a head that puts modules into the backbone
continues from there.
"""

from dataclasses import replace
from itertools import count

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from pipeline.backbones import Backbone, build_backbone


def points_of(at: str) -> tuple[str, ...]:
    """Points of a backbone from one string with commas between them."""
    return tuple(point.strip() for point in at.split(",") if point.strip())


def points_in(head: str, backbone: str, at: str) -> tuple[str, ...]:
    """The points `at` which modules stand in `backbone`; ValueError unless both are given or
    neither is ("").
    """
    points = points_of(at)
    if bool(backbone) != bool(points):
        raise ValueError(
            f"head {head}: backbone and at go together, got backbone={backbone!r} and at={at!r}"
        )
    return points


def network_above(
    head: str, dims: Dims, backbone: str, options: dict, weights: str, points: tuple[str, ...]
) -> tuple[str, Backbone]:
    """(cut, backbone): the whole backbone for modules at `points`, and the last cut that no module
    comes before.

    Insert the modules, then call `keep_above(cut)`. ValueError for a point without a cut before it,
    and for a cached map whose channels are not those of this backbone; MissingFields where the cut
    is not in `dims`.
    """
    network = build_backbone(backbone, weights, **options)
    cuts = [network.before(point) for point in points]
    if None in cuts:
        raise ValueError(
            f"head {head}: no cut of {backbone} lies before {points[cuts.index(None)]}: choose a "
            f"later point"
        )
    cut = min(cuts, key=network.cuts().index)
    dims.require(head, cut)
    if dims.maps[cut][0] != network.channels(cut):
        raise ValueError(
            f"head {head}: the cached {cut} has {dims.maps[cut][0]} channels, that of {backbone} "
            f"{network.channels(cut)}; pass "
            "the backbone and backbone_options of the extraction"
        )
    return cut, network


def frames_of(network: Backbone, cut: str, grid: tuple[int, int]) -> tuple[int, int]:
    """The smallest frames (H, W) whose map at `cut` has the size `grid`: what comes after the cut
    depends on no more.
    """
    h, w = (
        # a side longer by a pixel gives as many cells or one more, so that every number of cells
        # has a side
        grid
    )
    H = next(side for side in count(h) if network.grid(cut, (side, side))[0] == h)
    W = next(side for side in count(w) if network.grid(cut, (side, side))[1] == w)
    return H, W


def unpadded(head: str, fmap: Tensor, grid: Tensor | None) -> Tensor:
    """fmap [B,T,C,h,w] without its padding; grid [B,2] or None. ValueError where views of one batch
    have different grids: a convolution would see the padding."""
    if grid is None:
        return fmap
    sizes = torch.unique(grid, dim=0)
    if len(sizes) > 1:
        raise ValueError(
            f"head {head} runs a network on maps of one size, got {len(sizes)} sizes in a batch; "
            f"evaluate with batches of 1, "
            "or extract test views of one square size"
        )
    h, w = sizes[0].tolist()
    return fmap[..., :h, :w]


def norms_in_evaluation(network: nn.Module) -> None:
    """Every batch norm of `network` uses its running statistics from now on, until `train()` is
    called.
    """
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class HeadAboveCut(nn.Module):
    """A head that reads the last map of `network`, fed from the cached map at `cut`: what lies
    between them is learned too.
    """

    def __init__(self, name: str, cut: str, network: Backbone, head: nn.Module):
        super().__init__()
        self.name, self.cut, self.network, self.head = name, cut, network, head
        self.needs = (cut, *(field for field in head.needs if field != network.last))
        self.uses = ("grid",)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """The map at `cut`, and what else `needs` names -> what the head returns. ValueError for
        several grids in a batch.
        """
        x = unpadded(self.name, clips.get(self.cut), clips.grid).transpose(1, 2)  # [B,C,T,h,w]
        x = self.network(x, start=self.cut).transpose(1, 2)
        return self.head(replace(clips, maps={self.network.last: x}, grid=None), want_maps)


def head_above_cut(
    head: str, dims: Dims, backbone: str, options: dict, weights: str, cut: str
) -> tuple[Backbone, Dims]:
    """(network, dims) for `HeadAboveCut`: the part of the backbone above `cut`, and the sizes of what
    the head behind it reads.

    ValueError for a cut with nothing after it, and as `network_above`.
    """
    start, network = network_above(head, dims, backbone, options, weights, (cut,))
    if start in network.units()[-1][0]:
        raise ValueError(
            f"head {head}: nothing of {backbone} comes after {start}: choose an earlier cut, or "
            f"no backbone"
        )
    size = network.grid(network.last, frames_of(network, start, dims.maps[start][1:]))
    network.keep_above(start)
    return network, replace(dims, maps={network.last: (network.channels(), *size)})
