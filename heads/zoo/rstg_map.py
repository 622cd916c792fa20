"""RSTG inside the backbone.

Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural Networks, NeurIPS 2019.

    the cached map at a cut                                    [B,T,C,h,w]
    what comes after the cut, learned here                     [B,C',T,h',w']
      with x + (LN(remap(graph(nodes(x)))) + beta) s           after every block of `at`
    logits = W drop(mean over time and grid) + b               [B,K]

The equations of the module are in heads/papers/rstg/module.py. It is the identity at first.

The paper's places on `backbone="i3d_r50"` (Table 3) are

    at               cut      map of a view         float16
    res4.4           res4.4   1024 x 16 x 14 x 14    6.4 MB   the best single one
    res3.2           res3.2    512 x 16 x 28 x 28   12.8 MB
    res3.2,res4.4    res3.2    512 x 16 x 28 x 28   12.8 MB   the best result
    res2.1           res2.1                                   practically end to end

What comes before the first point is frozen, and the cut is that block itself. Batch norms keep the
statistics of the weights that were loaded.

Differs from the paper: the network up to the first module is frozen; otherwise see
heads/papers/rstg/graph.py. Without a `backbone`, the default, there is one module on the map at
`cut`, and only the mean and the classifier follow. The paper has no such placement, but it needs
nothing besides the cache.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from heads.interface.changes import Change
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.network_above_cut import (
    insertion_points,
    network_above,
    norms_in_evaluation,
    without_padding,
)
from heads.interface.variants import at_least, resolve
from heads.papers.rstg.graph import (
    EPSILON_CHANGE,
    FURTHER,
    HOMOGENEOUS_CHANGE,
    VARIANTS,
    GraphChoices,
    is_homogeneous,
)
from heads.papers.rstg.module import RSTG
from pipeline.backbones import Backbone

NO_OPTIONS: dict = {}


def _always(options: Mapping[str, Any]) -> bool:
    return True


CHANGES = (
    Change(2, HOMOGENEOUS_CHANGE, is_homogeneous),
    Change(
        3,
        EPSILON_CHANGE,
        _always,
    ),
)


class RSTGMap(nn.Module):
    """The head; see the top of this file.

    Args:
        cut: the cached map.
        network: the backbone with its modules, run from `cut`, or a single module.
        channels: of the last map.
        num_classes: K.
        dropout: before the classifier.
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
        """Set the mode; the backbone's batch norms always stay in eval mode."""
        super().train(mode)
        if isinstance(self.network, Backbone):
            # Unit by unit: the batch norm of a graph with norm="batch" is no unit and does train.
            for unit in self.network.units():
                norms_in_evaluation(unit[1])
        return self

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the map at the cut [B,T,C,h,w].
            want_maps: whether to return the map "attention.POINT" [B,T,14,14] of every module, rows
                receive; "time_only" has none.

        Returns:
            logits [B,K].

        Raises:
            ValueError: the views of the batch have different grids.
        """
        fmap = without_padding("rstg_map", clips.get(self.cut), clips)
        x = fmap.transpose(1, 2)  # [B,C,T,h,w]
        modules = self._modules_by_point() if want_maps else {}
        for module in modules.values():
            module.record = []

        if isinstance(self.network, Backbone):
            x = self.network(x, start=self.cut)
        else:
            x = self.network(x)

        maps = {}
        for point, module in modules.items():
            # Recording ends here: a list left in place would grow with every batch.
            (weights,), module.record = module.record, None
            if weights is not None:
                maps[f"attention.{point}"] = weights.detach()
        return HeadOutput(self.fc(self.drop(x.mean((2, 3, 4)))), maps=maps)

    def _modules_by_point(self) -> dict[str, RSTG]:
        if isinstance(self.network, Backbone):
            inserted = self.network.inserted
            return {point: inserted[point] for point in inserted}
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
    """Build RSTG inside a backbone: Nicolicioiu et al., NeurIPS 2019, sec. 2 and Table 3.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released"; it decides every option that is "".
        backbone: the network that continues the cached map; "" puts one module on the map at
            `cut`, and nothing after it.
        backbone_options: its options, as at the extraction.
        weights: its weights, as at the extraction.
        at: the points of it that get a module, separated by commas; "" without a backbone.
        cut: the map [B,T,C,h,w], without a backbone.
        width: C of the graph; maps of other channels are projected.
        scheduler, iterations, neighbourhood, attention, positions, position_map, update, norm,
            inner_norm: those of the head rstg.
        dropout: before the classifier.

    Returns:
        The head with fresh weights; those of the backbone are loaded.

    Raises:
        ValueError: a value that an option cannot have, or a point that has no cut before it.
        MissingFields: the cache lacks the map.
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
