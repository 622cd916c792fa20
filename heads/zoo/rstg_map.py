"""RSTG inside the backbone: Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural
Networks, NeurIPS 2019.

    the map at a cut                                               [B,T,C,h,w]     cached
    what comes after the cut, learned here, with a module          [B,C',T,h',w']
    heads/papers/rstg/module.py: equations, shapes
      x + (LN(remap(graph(nodes(x)))) + beta) s                                    the identity at
      first after every block of `at`
    logits = W drop(mean over time and grid) + b                   [B,K]

The paper's places on `backbone="i3d_r50"` (Table 3): at = res2.1, res3.2, res4.4 (default of the
best single one), or res3.2,res4.4 for its best result. What comes before the first is frozen, and
the cut is that block itself: res4.4 is 1024 x 16 x 14 x 14 (6.4 MB a view in float16), res3.2 512 x
16 x 28 x 28 (12.8 MB), res2.1 practically end to end. Batch norms keep the statistics of the
weights that were loaded.

Differs from the paper: the network up to the first module is frozen; otherwise see
heads/papers/rstg/graph.py. Without a `backbone`, the default, there is one module on the map at
`cut` and only the mean and the classifier follow: no placement of the paper's, but it needs nothing
besides the cache.
"""

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.network_above_cut import (
    network_above,
    norms_in_evaluation,
    insertion_points,
    without_padding,
)
from heads.interface.variants import at_least, resolve
from heads.papers.rstg.graph import FURTHER, VARIANTS, GraphChoices
from heads.papers.rstg.module import RSTG
from pipeline.backbones import Backbone

NO_OPTIONS: dict = {}


class RSTGMap(nn.Module):
    """See the top of this file. network: the backbone with its modules, run from `cut`, or a module
    of its own alone.
    """

    def __init__(
        self, cut: str, network: nn.Module, channels: int, num_classes: int, dropout: float
    ):
        super().__init__()
        self.cut, self.network = cut, network
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        self.needs = (cut,)
        self.uses = ("grid",)

    def train(self, mode: bool = True) -> "RSTGMap":
        super().train(mode)
        if isinstance(self.network, Backbone):
            for unit in self.network.units():  # not those of a graph with norm="batch"
                norms_in_evaluation(unit[1])
        return self

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """The map at `cut` -> logits [B,K]; maps: "attention.POINT" [B,T,14,14] of every module,
        rows receive (none with "time_only"). ValueError for views of different grids in a batch."""
        x = without_padding("rstg_map", clips.get(self.cut), clips.grid).transpose(
            1, 2
        )  # [B,C,T,h,w]
        modules = self._modules_by_point() if want_maps else {}
        for module in modules.values():
            module.record = []
        x = (
            self.network(x, start=self.cut)
            if isinstance(self.network, Backbone)
            else self.network(x)
        )
        maps = {}
        for point, module in modules.items():
            (weights,), module.record = module.record, None
            if weights is not None:
                maps[f"attention.{point}"] = weights.detach()
        return HeadOutput(self.fc(self.drop(x.mean((2, 3, 4)))), maps=maps)

    def _modules_by_point(self) -> dict[str, RSTG]:
        if isinstance(self.network, Backbone):
            return {point: self.network.inserted[point] for point in self.network.inserted}
        return {self.cut: self.network}


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
    width: int = 512,
    scheduler: str = "all_temporal",
    iterations: int = 3,
    neighbourhood: str = "",
    attention: str = "",
    positions: str = "",
    position_map: str = "",
    update: str = "",
    norm: str = "layer",
    inner_norm: bool = False,
    dropout: float = 0.3,
) -> RSTGMap:
    """`backbone`: the network that continues the cached map, with `backbone_options` and `weights`
    as at the extraction; a module is put `at` each of these points of it, separated by commas. ""
    for both: one module on the map at `cut`.

    The others are those of the head rstg: `variant`, `width` (the paper: 512, and 256 channels of
    res2 are projected), `scheduler`, `iterations`, `neighbourhood`, `attention`, `positions`,
    `position_map`, `update`, `norm`, `inner_norm`, `dropout`. ValueError for a point that has no
    cut before it.
    """
    at_least("rstg_map", 1, width=width, iterations=iterations)
    points = insertion_points("rstg_map", backbone, at)
    given = {
        "neighbourhood": neighbourhood,
        "attention": attention,
        "positions": positions,
        "position_map": position_map,
        "update": update,
    }
    values = resolve("rstg_map", VARIANTS, variant, given, FURTHER)
    choices = GraphChoices(
        **values, scheduler=scheduler, norm=norm, inner_norm=inner_norm, iterations=iterations
    )
    if not backbone:
        dims.require("rstg_map", cut)
        channels = dims.maps[cut][0]
        return RSTGMap(cut, RSTG(channels, width, choices), channels, num_classes, dropout)
    cut, network = network_above("rstg_map", dims, backbone, backbone_options, weights, points)
    for point in points:
        network.insert(point, RSTG(network.channels(point), width, choices))
    network.keep_above(cut)
    return RSTGMap(cut, network, network.channels(), num_classes, dropout)
