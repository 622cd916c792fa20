"""RSTG to a vector: Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural Networks,
NeurIPS 2019.

    x = mean of the map over time and grid                            [B,C_b]
    v = graph(W_in nodes)                                             [B,T,14,C]
    heads/papers/rstg/graph.py, heads/papers/rstg/grid.py
    z = sum of v over the nodes at the last step (the release: of its mean over time)     [B,C]
    u = x + (LN(W_out z) + beta) s,  s = beta = 0 at first            [B,C_b]      `residual`;
                                     without it u = z (SyncMNIST)
    logits = W drop(u) + b                                            [B,K]

Nodes are means of the map over the cells of three grids, exact from a cached map at `cut`: 3.2 MB a
view of 16 x 2048 x 7 x 7 in float16. regions="nodes" reads the nodes of `--proposals grid
--roi-pool area` instead, 0.9 MB, which are the same means (with another --roi-pool they are
RoIAlign's samples: approximate). The graph as modules inside the backbone, to maps, is the head
rstg_map.

SyncMNIST's network (backbone digit_cnn): cut="conv3", residual=False, norm="batch", dropout=0, and
for the released one variant="released", attention="simple", update="shared": 10 565 168 parameters
with those of the backbone.

Differs from the paper: the backbone below is frozen (the paper trains end to end), otherwise see
heads/papers/rstg/graph.py. `variant="released"` has the released code's choices. Not stated in the
paper: the projections, LN and s (the release's).
"""

from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.rstg.graph import FURTHER, VARIANTS, GraphChoices
from heads.papers.rstg.grid import NODES
from heads.papers.rstg.module import NormedResidual, ProjectedGraph, pool_nodes

TABLE = {
    "paper": {**VARIANTS["paper"], "readout": "last"},
    "released": {**VARIANTS["released"], "readout": "mean"},
}


class RSTGVector(nn.Module):
    """See the top of this file. cut: the map to pool nodes from, "" to read nodes and pooled as
    they were cached.
    """

    def __init__(
        self,
        cut: str,
        channels: int,
        num_classes: int,
        width: int,
        choices: GraphChoices,
        readout: str,
        residual: bool,
        dropout: float,
    ):
        super().__init__()
        self.cut, self.readout = cut, readout
        self.nodes = ProjectedGraph(channels, width, choices)
        if not residual:
            self.nodes.leave = nn.Identity()
        self.residual = NormedResidual(channels, axes=1, channel=-1) if residual else None
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels if residual else width, num_classes)
        self.needs = (cut,) if cut else ("pooled", "nodes")
        self.uses = ("grid",) if cut else ()

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: "attention" [B,T,14,14], rows receive (none
        with "time_only").
        """
        v, x = self._nodes(clips)
        v, weights = self.nodes(v)
        z = (v[:, -1] if self.readout == "last" else v.mean(1)).sum(1)  # [B,C]
        u = z if self.residual is None else self.residual(x, self.nodes.leave(z))
        logits = self.fc(self.drop(u))
        return HeadOutput(
            logits,
            maps={"attention": weights.detach()} if want_maps and weights is not None else {},
        )

    def _nodes(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Nodes [B,T,14,C_b] and the mean of the map [B,C_b], which the last node is."""
        if self.cut:
            v = pool_nodes(clips.get(self.cut), clips.grid)
            return v, v[:, :, -1].mean(1)
        v = clips.get("nodes")
        if v.shape[2] != NODES:
            raise ValueError(
                f"head rstg reads the {NODES} nodes of proposals grid, got {v.shape[2]} nodes in "
                f"a step"
            )
        return v, clips.get("pooled").mean(1)


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    regions: str = "map",
    cut: str = "res5",
    width: int = 512,
    scheduler: str = "all_temporal",
    iterations: int = 3,
    neighbourhood: str = "",
    attention: str = "",
    positions: str = "",
    position_map: str = "",
    update: str = "",
    readout: str = "",
    norm: str = "layer",
    inner_norm: bool = False,
    residual: bool = True,
    dropout: float = 0.3,
) -> RSTGVector:
    """RSTG for views of `dims`. `variant`: "paper" or "released" decides every option whose default
    is "".

    `regions`: "map" pools the nodes from the map at `cut`, "nodes" reads those of the last cut as
    they were cached. `width`: C of the graph. `scheduler` (Table 1): "all_temporal",
    "one_temporal", "homogeneous", "space_only", "time_only"; `iterations`: K. `neighbourhood`:
    "edges" or "all" nodes send; `attention`: "raw", "dot" (softmax) or "simple"; `positions`:
    "none", those of the "sender", or "both"; `position_map`: "filtered" or "window"; `update`:
    "shared" or one per "scale"; `readout`: the "last" step or the "mean"; `residual`, `dropout`: as
    above. Not stated in the paper: `norm` before the graph ("layer", "batch", "none") and
    `inner_norm` after messages and updates.
    """
    at_least("rstg", 1, width=width, iterations=iterations)
    one_of("rstg", "regions", regions, ("map", "nodes"))
    given = {
        "neighbourhood": neighbourhood,
        "attention": attention,
        "positions": positions,
        "position_map": position_map,
        "update": update,
        "readout": readout,
    }
    values = resolve("rstg", TABLE, variant, given, FURTHER)
    readout = values.pop("readout")
    choices = GraphChoices(
        **values, scheduler=scheduler, norm=norm, inner_norm=inner_norm, iterations=iterations
    )
    dims.require("rstg", *((cut,) if regions == "map" else ("pooled", "nodes")))
    if regions == "nodes" and dims.N != NODES:
        raise ValueError(
            f"head rstg, regions nodes: expected {NODES} boxes per step, got {dims.N}; extract "
            f"with --proposals grid "
            "--roi-pool area"
        )
    cut, channels = (cut, dims.maps[cut][0]) if regions == "map" else ("", dims.C)
    return RSTGVector(cut, channels, num_classes, width, choices, readout, residual, dropout)
