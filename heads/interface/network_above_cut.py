"""The upper part of a backbone inside a head.

A cached map goes in at a cut, and everything after the cut is learned with the head. What lies
before the cut stays frozen: it ran once, during the extraction.
"""

from dataclasses import replace

from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from pipeline.backbones import Backbone, build_backbone


def split_points(at: str) -> tuple[str, ...]:
    """Split a list of points of a backbone, such as "res3.2, res4.4", at its commas."""
    points = (point.strip() for point in at.split(","))
    return tuple(point for point in points if point)


def insertion_points(head: str, backbone: str, at: str) -> tuple[str, ...]:
    """Read the points of a backbone that get a module.

    Args:
        head: the head's name, for the message.
        backbone: its option `backbone`.
        at: its option `at`, points separated by commas.

    Returns:
        The points; none if both options are "".

    Raises:
        ValueError: only one of the two options is given.
    """
    points = split_points(at)
    if bool(backbone) != bool(points):
        raise ValueError(
            f"head {head}: backbone and at go together, got backbone={backbone!r} and at={at!r}; "
            "give both or neither"
        )
    return points


def network_above(
    head: str, dims: Dims, backbone: str, options: dict, weights: str, points: tuple[str, ...]
) -> tuple[str, Backbone]:
    """Build a backbone for modules at some points, and find the cut to start from.

    The caller inserts the modules and then calls `network.keep_above(cut)`.

    Args:
        head: the head's name, for messages.
        dims: the sizes of the cached views.
        backbone: the name of the backbone, as at the extraction.
        options: its options, as at the extraction.
        weights: its weights, as at the extraction.
        points: where modules will be inserted.

    Returns:
        (cut, network): the last cut that comes before every point, and the whole backbone.

    Raises:
        ValueError: a point has no cut before it, or the cached map has other channels.
        MissingFields: the cache does not hold the cut.
    """
    network = build_backbone(backbone, weights, **options)

    cuts = [network.before(point) for point in points]
    if None in cuts:
        point = points[cuts.index(None)]
        raise ValueError(
            f"head {head}: no cut of {backbone} lies before {point}: choose a later point"
        )
    # The earliest of these cuts comes before every point.
    cut = min(cuts, key=network.cuts().index)
    dims.require(head, cut)

    channels = dims.maps[cut][0]
    if channels != network.channels(cut):
        raise ValueError(
            f"head {head}: the cached {cut} has {channels} channels, that of {backbone} "
            f"{network.channels(cut)}; pass the backbone and backbone_options of the extraction"
        )
    return cut, network


def smallest_frames(network: Backbone, cut: str, grid: tuple[int, int]) -> tuple[int, int]:
    """Return the smallest frames (H, W), in pixels, whose map at `cut` has the size `grid`."""
    sides = []
    for axis, cells in enumerate(grid):
        # One more pixel gives as many cells or one more, so that every number of cells has a side.
        side = cells
        while network.grid(cut, (side, side))[axis] != cells:
            side += 1
        sides.append(side)
    H, W = sides
    return H, W


def without_padding(head: str, fmap: Tensor, clips: Clips) -> Tensor:
    """Cut the padding off a map: a convolution would see it.

    Args:
        head: the head's name, for the message.
        fmap: [B,T,C,h,w], a map of the batch.
        clips: the batch; without `grid` nothing is padding.

    Returns:
        [B,T,C,h',w'] of the true size.

    Raises:
        ValueError: the views of the batch have different grids.
    """
    sizes = clips.grid_sizes()
    if not sizes:
        return fmap
    if len(sizes) > 1:
        raise ValueError(
            f"head {head} runs a network on maps of one size, got {len(sizes)} sizes in a batch; "
            "evaluate with batches of 1, or extract test views of one square size"
        )
    h, w = sizes[0]
    return fmap[..., :h, :w]


def norms_in_evaluation(network: nn.Module) -> None:
    """Put the batch norms of a network in eval mode, until the next `train()`."""
    for module in network.modules():
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            module.eval()


class HeadAboveCut(nn.Module):
    """A head on the last map of a network that is fed from a cached map.

    Args:
        name: the head's name, for messages.
        cut: the cached map that goes in.
        network: the backbone above `cut`; it is learned too.
        head: a head that reads the network's last map.
    """

    def __init__(self, name: str, cut: str, network: Backbone, head: nn.Module):
        super().__init__()
        self.name, self.cut, self.network, self.head = name, cut, network, head
        # The network makes the head's map, the other fields come from the cache.
        self.needs = (cut, *(field for field in head.needs if field != network.last))
        self.uses = ("grid",)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Run the network from the cut, then the head.

        Args:
            clips: the map at the cut [B,T,C,h,w] and the other fields of `needs`.
            want_maps: whether the head fills `maps`.

        Returns:
            What the head returns.

        Raises:
            ValueError: the views of the batch have different grids.
        """
        x = without_padding(self.name, clips.get(self.cut), clips).transpose(1, 2)
        x = self.network(x, start=self.cut).transpose(1, 2)  # [B,T,C',h',w']
        # Nothing of the new map is padding, so that it has no grid.
        return self.head(replace(clips, maps={self.network.last: x}, grid=None), want_maps)


def head_above_cut(
    head: str, dims: Dims, backbone: str, options: dict, weights: str, cut: str
) -> tuple[Backbone, Dims]:
    """Build what `HeadAboveCut` needs beside its head.

    Args:
        head: the head's name, for messages.
        dims: the sizes of the cached views.
        backbone: the name of the backbone, as at the extraction.
        options: its options, as at the extraction.
        weights: its weights, as at the extraction.
        cut: the cached map to start from.

    Returns:
        (network, dims): the part of the backbone above `cut`, and the sizes of what the head
        behind it reads.

    Raises:
        ValueError: nothing comes after the cut; also for all that `network_above` refuses.
    """
    start, network = network_above(head, dims, backbone, options, weights, (cut,))
    if start in network.units()[-1][0]:
        raise ValueError(
            f"head {head}: nothing of {backbone} comes after {start}: choose an earlier cut, or "
            "no backbone"
        )
    grid = network.grid(network.last, smallest_frames(network, start, dims.maps[start][1:]))
    network.keep_above(start)
    return network, replace(dims, maps={network.last: (network.channels(), *grid)})
