"""RSTG, Recurrent Space-time Graph Neural Networks (NeurIPS 2019).

    grid      which cells belong to a node, which nodes are neighbours
    graph     messages in space, LSTMs in time
    module    the graph between maps

`heads.zoo.rstg` and `heads.zoo.rstg_map` are the heads.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "GraphChoices": "graph",
    "NormedResidual": "module",
    "ProjectedGraph": "module",
    "RSTG": "module",
    "SpaceTimeGraph": "graph",
    "pool_nodes": "module",
}

__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
