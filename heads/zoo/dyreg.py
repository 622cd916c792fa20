"""DyReg-GNN: Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for
Spatio-Temporal Graph Neural Networks, NeurIPS 2021.

    X at `cut`                                                    [B,T,C,h,w]    cached
    what comes after the cut, learned here, with a module         [B,C',T,h',w']
      out = X + LN(remap(graph(nodes(X, regions(X))))) s + b      heads/papers/dyreg/module.py:
      equations, shapes, sizes at every point of `at`, e.g. right after a 3x3 convolution of a
      bottleneck, before its batch norm
    logits = mean over T of W drop(mean over the grid of X_t) + b [B,K]          fc N(0, 0.001)

What is before the first point is frozen: `cut` is the last cut before it. On Something-Something
(TSM-R50) the paper has `backbone="tsm_r50"`, at = res3.2.conv2, res4.4.conv2, res5.1.conv2
(r3-4-5), or res4.4.conv2 alone (r4). Exact from the cache for a frozen lower part only:
res5.1.conv2 alone needs the cut res5.0 (2048 x 16 x 7 x 7, 3.2 MB per view in float16),
res4.4.conv2 the cut res4.3 (1024 x 16 x 14 x 14, 6.4 MB), all three res3.1 (512 x 16 x 28 x 28,
12.8 MB). MultiSyncMNIST: `backbone="resnet18"`, 3 stages, grey, at = res3, width=32,
offset_width=32.

Differs from the paper: the network below the first module is frozen; see also
heads/papers/dyreg/regions.py and heads/papers/dyreg/graph.py. Without a `backbone`, the default,
there is one module on the map at `cut` and only the mean and the classifier follow: no placement of
the paper's, but it needs nothing besides the cache. The release's placement in networks without
bottlenecks, where the module replaces the block, is not reproduced.
"""

from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.network_above_cut import (
    smallest_frames,
    network_above,
    insertion_points,
    without_padding,
)
from heads.interface.variants import at_least
from heads.papers.dyreg.kernels import Pair
from heads.papers.dyreg.module import DyReg, recorded
from pipeline.backbones import Backbone

NO_OPTIONS: dict = {}


class DyRegHead(nn.Module):
    """The upper part of a network with its modules, and the classifier; see the top of this file.

    modules: DyReg by point, or none. network: the backbone that they were inserted into, whose part
    above `cut` is run; None: the one module is all. channels: those of the last map.
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
        self.alone = next(iter(modules.values())) if network is None else None
        self.network = network
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)
        self.detector = any(module.reads_boxes for module in modules.values())
        self.needs = (cut, "boxes", "valid") if self.detector else (cut,)
        self.uses = ("grid",)

    @property
    def dyregs(self) -> tuple[DyReg, ...]:
        """The modules in the order of `points`; `recorded(head.dyregs)` gives their regions with
        gradients (distillation).
        """
        return (
            (self.alone,)
            if self.network is None
            else tuple(self.network.inserted[point] for point in self.points)
        )

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: for every point "kernels.POINT" [B,T,9,h,w],
        where they have a box "centres.POINT" and "radii.POINT" [B,T,9,2] (y, x) in cells, and where
        regions are predicted "offsets.POINT" [B,T,9,4] (T is 1 where all frames share them)."""
        x = without_padding("dyreg", clips.get(self.cut), clips.grid).transpose(1, 2)  # [B,C,T,h,w]
        for module in self.dyregs if self.detector else ():
            module.boxes, module.valid = clips.get("boxes"), clips.get("valid")
        with recorded(self.dyregs if want_maps else ()) as records:
            x = self.alone(x) if self.network is None else self.network(x, start=self.cut)
        for module in self.dyregs:
            module.boxes = module.valid = None
        logits = self.fc(self.drop(x.mean((-1, -2)).transpose(1, 2))).mean(1)
        maps: dict[str, Tensor] = {}
        for point, (regions,) in zip(self.points, records, strict=False):
            for name in ("kernels", "offsets", "centres", "radii"):
                if (tensor := getattr(regions, name)) is not None:
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
    offset_width: int = 128,
    anchors: str = "centre",
    normalise: bool = True,
    iterations: int = 3,
    start: float = 0.0,
    dropout: float = 0.5,
) -> DyRegHead:
    """`variant`: the graph, "paper" or "released" (heads/papers/dyreg/graph.py).

    `backbone`: the network that continues the cached map, with `backbone_options` and `weights` as
    at the extraction; the modules are put `at` these points of it, separated by commas. "" for
    both: one module on the map at `cut`, and nothing after it. `regions`: "dynamic", a variant of
    heads/papers/dyreg/regions.py, or "none": the network without its modules, Table 6's ResNet-18;
    `width`: C of a module, where its map has more channels; `offset_width`: d_o; `anchors`:
    "centre" or "grid"; `normalise`: kernels of sum 1 (the paper: no; see there); `iterations`: K;
    `start`: the scale s of a module at first (0 in the paper: the plain network); `dropout` before
    the classifier.
    """
    at_least("dyreg", 1, width=width, offset_width=offset_width, iterations=iterations)
    points = insertion_points("dyreg", backbone, at)
    if regions == "none" and not backbone:
        raise ValueError(
            "head dyreg, option regions: 'none' leaves nothing to learn without a backbone: give "
            "backbone and at"
        )

    def module(channels: int, grid: Pair) -> DyReg:
        return DyReg(
            channels,
            grid,
            width,
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
        return DyRegHead(cut, {cut: module(channels, (h, w))}, None, channels, num_classes, dropout)
    cut, network = network_above("dyreg", dims, backbone, backbone_options, weights, points)
    frames = smallest_frames(network, cut, dims.maps[cut][1:])
    inserted_at = () if regions == "none" else points
    modules = {
        point: module(network.channels(point), network.grid(point, frames)) for point in inserted_at
    }
    for point, inserted in modules.items():
        network.insert(point, inserted)
    network.keep_above(cut)
    return DyRegHead(cut, modules, network, network.channels(), num_classes, dropout)
