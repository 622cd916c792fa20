"""Pictures and videos of cached views, with what a trained head made of them (`vidgraph show`).

It reads caches, videos and runs. Only `cli` imports it. `draw` chooses what is drawn, `sections`,
`edges`, `nodes`, `maps` and `queries` draw strips of frames, `panels` and `block_panels` what
stands beside them, `layout` arranges them. `head_output` runs a head, `backbone_output` a backbone.
"""

from pipeline.lazy_names import load_lazily

_HOMES = {
    "WHAT": "draw",
    "Drawing": "layout",
    "Style": "layout",
    "draw_view": "draw",
}
__all__ = list(_HOMES)
__getattr__ = load_lazily(__name__, _HOMES)
