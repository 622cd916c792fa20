"""STRG, Videos as Space-Time Region Graphs (ECCV 2018): its graph convolutions.

`heads.zoo.strg` is the head.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "GraphBranch": "graph",
    "SimilarityGraph": "graph",
}

__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
