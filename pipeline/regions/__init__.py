"""Geometry of boxes, their features on a map, and graphs between them. Nothing here is learned.

Imports no other room. The feature of a box on a map is `pipeline.regions.roi_align.roi_align`.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "GRAPHS": "graphs",
    "GraphOptions": "graphs",
    "area": "boxes",
    "from_view": "boxes",
    "graphs_of": "graphs",
    "inner_products": "graphs",
    "iou": "boxes",
    "iou_graph": "graphs",
    "nearest_nodes": "graphs",
    "pack": "boxes",
    "similar_nodes": "graphs",
    "to_view": "boxes",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
