"""DyReg-GNN.

Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for Spatio-Temporal Graph
Neural Networks, NeurIPS 2021.

    X at `cut`                                                       [B,T,C,h,w]     cached
    what comes after the cut, learned here                           [B,T,C',h',w']
      with out = X + LN(remap(graph(nodes(X, regions(X))))) s + b    at every point of `at`
    logits = mean over T of W drop(mean over the grid of X_t) + b    [B,K]

The module is in heads/papers/dyreg/module.py: equations, shapes, sizes. A point is e.g. right after
a 3x3 convolution of a bottleneck, before its batch norm. W starts at N(0, 0.001).

What is before the first point is frozen: `cut` is the last cut before it. On Something-Something
the paper has `backbone="tsm_r50"`, at = res3.2.conv2,res4.4.conv2,res5.1.conv2 (r3-4-5), or
res4.4.conv2 alone (r4). The cache is exact for a frozen lower part only:

    at                 cut      map of a view         float16
    res5.1.conv2       res5.0   2048 x 16 x 7 x 7      3.2 MB
    res4.4.conv2       res4.3   1024 x 16 x 14 x 14    6.4 MB
    all three points   res3.1    512 x 16 x 28 x 28   12.8 MB

MultiSyncMNIST: `backbone="resnet18"`, 3 stages, grey, at = res3, width=32, offset_width=32.

Differs from the paper: the network below the first module is frozen; see also
heads/papers/dyreg/regions.py and heads/papers/dyreg/graph.py. Without a `backbone`, the default,
there is one module on the map at `cut`, and only the mean and the classifier follow. The paper has
no such placement, but it needs nothing besides the cache. The release's placement in networks
without bottlenecks, where the module replaces the block, is not reproduced.
"""

from torch import Tensor, nn

from heads.interface.changes import Change
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.network_above_cut import (
    insertion_points,
    network_above,
    smallest_frames,
    without_padding,
)
from heads.interface.variants import at_least
from heads.papers.dyreg.kernels import Pair
from heads.papers.dyreg.module import DyReg, recorded
from pipeline.backbones import Backbone

NO_OPTIONS: dict = {}

CHANGES = (
    Change(
        2,
        "regions='lite' had position waves of frequencies above 1 and a layer norm, and has the "
        "release's frequencies, below 1, and no norm",
        lambda options: options["regions"] == "lite",
    ),
    Change(
        2,
        "regions='semantic' up-sampled without padding, and pads now and adds the features that "
        "enter, as in the release",
        lambda options: options["regions"] == "semantic",
    ),
)


class DyRegHead(nn.Module):
    """The upper part of a network with its modules, and the classifier.

    Args:
        cut: the cached map.
        modules: by point; none with regions="none".
        network: the backbone that they were inserted into, run from `cut`; None if the one module
            is all there is.
        channels: of the last map.
        num_classes: K.
        dropout: before the classifier.
    """

    def __init__(
        self,
        cut: str,
        modules: dict[str, DyReg],
        network: Backbone | None,
        channels: int,
        num_classes: int,
        dropout: float,
    ):
        super().__init__()
        self.cut, self.points = cut, tuple(modules)
        # A module in the network is registered there; here it would be saved twice.
        self.alone = None
        if network is None:
            (self.alone,) = modules.values()
        self.network = network
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)
        self.detector = any(module.reads_boxes for module in modules.values())
        # Whether the maps of this head hold regions.
        self.has_regions = bool(modules)
        self.needs = (cut, "boxes", "valid") if self.detector else (cut,)
        self.uses = ("grid",)

    @property
    def dyregs(self) -> tuple[DyReg, ...]:
        """The modules in the order of `points`.

        `recorded(head.dyregs)` gives their regions with gradients, for distillation.
        """
        if self.network is None:
            return (self.alone,)
        return tuple(self.network.inserted[point] for point in self.points)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`.
            want_maps: whether to return the maps of every point: "kernels.POINT" [B,T,9,h,w];
                "centres.POINT" and "radii.POINT" [B,T,9,2], (y, x) in cells, if regions have a
                box; "offsets.POINT" [B,T,9,4] if regions are predicted. T is 1 if all steps share
                them.

        Returns:
            logits [B,K].

        Raises:
            ValueError: the views of the batch have different grids.
        """
        fmap = without_padding("dyreg", clips.get(self.cut), clips)
        x = fmap.transpose(1, 2)  # [B,C,T,h,w]
        if self.detector:
            for module in self.dyregs:
                module.boxes, module.valid = clips.get("boxes"), clips.get("valid")

        with recorded(self.dyregs if want_maps else ()) as records:
            x = self.alone(x) if self.network is None else self.network(x, start=self.cut)
        # A module must not keep a batch alive.
        for module in self.dyregs:
            module.boxes = module.valid = None
        # [B,C,T,h,w] -> [B,T,C] -> [B,T,K] -> [B,K]; dropout hits every step on its own.
        logits = self.fc(self.drop(x.mean((-1, -2)).transpose(1, 2))).mean(1)

        maps: dict[str, Tensor] = {}
        # Without maps `records` is empty, and so is the loop.
        for point, (regions,) in zip(self.points, records, strict=False):
            for name in ("kernels", "offsets", "centres", "radii"):
                tensor = getattr(regions, name)
                if tensor is not None:
                    maps[f"{name}.{point}"] = tensor.detach()
        return HeadOutput(logits, maps=maps)


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    backbone: str = "",
    backbone_options: dict = NO_OPTIONS,
    weights: str = "none",
    at: str = "",
    cut: str = "res5",
    regions: str = "dynamic",
    width: int = 256,
    width_divisor: int = 1,
    offset_width: int = 128,
    anchors: str = "centre",
    normalise: bool = True,
    iterations: int = 3,
    start: float = 0.0,
    dropout: float = 0.5,
) -> DyRegHead:
    """Build DyReg-GNN: Duta et al., NeurIPS 2021, sec. 3.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: of the graph, "paper" or "released" (heads/papers/dyreg/graph.py).
        backbone: the network that continues the cached map; "" puts one module on the map at
            `cut`, and nothing after it.
        backbone_options: its options, as at the extraction.
        weights: its weights, as at the extraction.
        at: the points of it that get a module, separated by commas; "" without a backbone.
        cut: the map [B,T,C,h,w], without a backbone.
        regions: a row of the table in heads/papers/dyreg/regions.py, or "none": the network
            without its modules (Table 6, ResNet-18).
        width: C of a module, if its map has more channels.
        width_divisor: C is also at most the map's channels divided by this: 4 for ResNet-18 in the
            release.
        offset_width: d_o.
        anchors: "centre" (the paper) or "grid".
        normalise: whether kernels sum to 1 (the release; the paper's equations do not say so).
        iterations: K of the graph.
        start: the scale s of a module at first; 0 (the paper) is the plain network.
        dropout: before the classifier.

    Returns:
        The head with fresh weights; those of the backbone are loaded.

    Raises:
        ValueError: a value that an option cannot have, a point that has no cut before it, or a map
            that the regions cannot take.
        MissingFields: the cache lacks the map.
    """
    at_least(
        "dyreg",
        1,
        width=width,
        width_divisor=width_divisor,
        offset_width=offset_width,
        iterations=iterations,
    )
    points = insertion_points("dyreg", backbone, at)
    if regions == "none" and not backbone:
        raise ValueError(
            "head dyreg, option regions: 'none' leaves nothing to learn without a backbone; give "
            "backbone and at"
        )

    def new_module(channels: int, grid: Pair) -> DyReg:
        return DyReg(
            channels,
            grid,
            min(width, max(1, channels // width_divisor)),
            variant=variant,
            regions=regions,
            offset_width=offset_width,
            anchors=anchors,
            normalise=normalise,
            iterations=iterations,
            start=start,
        )

    if not backbone:
        dims.require("dyreg", cut)
        channels, h, w = dims.maps[cut]
        modules = {cut: new_module(channels, (h, w))}
        return DyRegHead(cut, modules, None, channels, num_classes, dropout)

    cut, network = network_above("dyreg", dims, backbone, backbone_options, weights, points)
    # Any frames whose map at the cut has the cached grid give the grids at the points.
    frames = smallest_frames(network, cut, dims.maps[cut][1:])
    modules = {}
    if regions != "none":
        for point in points:
            modules[point] = new_module(network.channels(point), network.grid(point, frames))
            network.insert(point, modules[point])
    network.keep_above(cut)
    return DyRegHead(cut, modules, network, network.channels(), num_classes, dropout)
