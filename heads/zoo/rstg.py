"""RSTG to a vector.

Nicolicioiu, Duta and Leordeanu, Recurrent Space-time Graph Neural Networks, NeurIPS 2019.

    x = mean of the map over time and grid                        [B,C_b]
    v = graph(W_in nodes)                                         [B,T,14,C]
    z = sum of v over the nodes at the last step                  [B,C]
    u = x + (LN(W_out z) + beta) s,  s = beta = 0 at first        [B,C_b]
    logits = W drop(u) + b                                        [B,K]

The graph is in heads/papers/rstg/graph.py, its nodes in heads/papers/rstg/grid.py. The release sums
the mean of v over time: readout="mean". So does the row Space-Only of Table 1 (sec. 3.1.1), where
no recurrence tells the last step of those before. Without `residual`, u = z (SyncMNIST).

Nodes are means of the map over the cells of three grids, exact from a cached map at `cut`. A view
of 16 x 2048 x 7 x 7 has 3.2 MB in float16. regions="nodes" reads the nodes of `--proposals grid
--roi-pool area` instead, 0.9 MB, which are the same means. With another --roi-pool they are
RoIAlign's samples: approximate. The graph as modules inside the backbone, to maps, is the head
rstg_map.

SyncMNIST's network (backbone digit_cnn): cut="conv3", residual=False, norm="batch", dropout=0. The
released one also has variant="released", attention="simple", update="shared": 10 565 168 parameters
with those of the backbone. Something-Something's released one has variant="released",
positions="none" and inner_norm=True.

Differs from the paper: the backbone below is frozen (the paper trains end to end); otherwise see
heads/papers/rstg/graph.py. `variant="released"` has the released code's choices. Not stated in the
paper, and taken from the release: the projections, LN and s.
"""

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from heads.interface.changes import Change
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.variants import at_least, one_of, resolve
from heads.papers.rstg.graph import (
    EPSILON_CHANGE,
    FURTHER,
    HOMOGENEOUS_CHANGE,
    VARIANTS,
    WITHOUT_RECURRENCE,
    GraphChoices,
    is_homogeneous,
)
from heads.papers.rstg.grid import NODES
from heads.papers.rstg.module import NormedResidual, ProjectedGraph, pool_nodes

TABLE = {
    "paper": {**VARIANTS["paper"], "readout": "last"},
    "released": {**VARIANTS["released"], "readout": "mean"},
}


def _left_readout_to_space_only(options: Mapping[str, Any]) -> bool:
    chosen = options["readout"] or options["variant"] == "released"
    return options["scheduler"] in WITHOUT_RECURRENCE and not chosen


def _has_norms(options: Mapping[str, Any]) -> bool:
    return options["norm"] != "none" or options["inner_norm"] or options["residual"]


CHANGES = (
    Change(
        2,
        "space_only read the last step alone; it reads the mean of each node over time",
        _left_readout_to_space_only,
    ),
    Change(3, HOMOGENEOUS_CHANGE, is_homogeneous),
    Change(
        4,
        EPSILON_CHANGE,
        _has_norms,
    ),
)


class RSTGVector(nn.Module):
    """The head; see the top of this file.

    Args:
        cut: the map to pool nodes from; "" reads nodes and pooled features as they were cached.
        channels: C_b of the map or nodes.
        num_classes: K.
        width: C of the graph.
        choices: how the graph is computed.
        readout: the "last" step or the "mean" over time.
        residual: whether the mean of the map is added.
        dropout: before the classifier.
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
        self.residual = None
        if residual:
            self.residual = NormedResidual(channels, axes=1, channel=-1)
        else:
            # Nothing to add it to, so nothing to project back for.
            self.nodes.leave = nn.Identity()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels if residual else width, num_classes)
        self.needs = (cut,) if cut else ("pooled", "nodes")
        self.uses = ("grid",) if cut else ()

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`.
            want_maps: whether to return the map "attention" [B,T,14,14], rows receive; "time_only"
                has none.

        Returns:
            logits [B,K].

        Raises:
            ValueError: the cached nodes are not the 14 of the grid.
        """
        v, x = self._nodes(clips)
        v, weights = self.nodes(v)
        v = v[:, -1] if self.readout == "last" else v.mean(1)
        u = v.sum(1)  # [B,C]
        if self.residual is not None:
            u = self.residual(x, self.nodes.leave(u))
        logits = self.fc(self.drop(u))

        maps = {}
        if want_maps and weights is not None:
            maps["attention"] = weights.detach()
        return HeadOutput(logits, maps=maps)

    def _nodes(self, clips: Clips) -> tuple[Tensor, Tensor]:
        """Return nodes [B,T,14,C_b] and the mean of the map [B,C_b]."""
        if self.cut:
            v = pool_nodes(clips.get(self.cut), clips.grid)
            # The last node is the cell of the 1x1 grid: the mean of the map.
            return v, v[:, :, -1].mean(1)
        v = clips.get("nodes")
        if v.shape[2] != NODES:
            raise ValueError(
                f"head rstg reads the {NODES} nodes of proposals grid, got {v.shape[2]} nodes in "
                "a step"
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
    """Build RSTG to a vector: Nicolicioiu et al., NeurIPS 2019, sec. 2.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released"; it decides every option that is "".
        regions: "map" pools the nodes from the map at `cut`; "nodes" reads those of the last cut as
            they were cached.
        cut: the map [B,T,C_b,h,w].
        width: C of the graph.
        scheduler: "all_temporal", "one_temporal", "homogeneous", "space_only" or "time_only"
            (Table 1).
        iterations: K of the graph.
        neighbourhood: whether the nodes on "edges" (paper) or "all" nodes (release) send.
        attention: "raw" (paper), "dot" (release, a softmax) or "simple" (release, SyncMNIST).
        positions: whose positions a message sees: "sender" (paper), "both" (release) or "none".
        position_map: "filtered" (paper) or "window" (release).
        update: one MLP for all nodes, "shared" (paper), or one per "scale" (release).
        readout: the "last" step (paper) or the "mean" over time (release). space_only, which has no
            recurrence, reads the mean unless it is told otherwise.
        norm: before the graph: "layer", "batch" or "none". Not stated in the paper.
        inner_norm: normalise after messages and updates. Not stated in the paper.
        residual: add to the mean of the map; False on SyncMNIST.
        dropout: before the classifier.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: a value that an option cannot have, or another number of cached nodes than 14.
        MissingFields: the cache lacks what the head needs.
    """
    at_least("rstg", 1, width=width, iterations=iterations)
    one_of("rstg", "regions", regions, ("map", "nodes"))
    if scheduler in WITHOUT_RECURRENCE:
        readout = readout or "mean"
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

    if regions == "map":
        dims.require("rstg", cut)
        channels = dims.maps[cut][0]
    else:
        dims.require("rstg", "pooled", "nodes")
        if dims.N != NODES:
            raise ValueError(
                f"head rstg, regions nodes: expected {NODES} boxes per step, got {dims.N}; extract "
                "with --proposals grid --roi-pool area"
            )
        cut, channels = "", dims.C
    return RSTGVector(cut, channels, num_classes, width, choices, readout, residual, dropout)
