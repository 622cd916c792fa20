"""Strips of an attentive probe: what its learned queries read, over frames and over boxes.

Letters: Q queries, T steps, N boxes per step, h w grid. The weights of a query over all cells,
boxes and class tokens of all steps add up to 1.
"""

import numpy as np

from heads.drawing import maps as draw_maps
from heads.drawing import nodes as draw_nodes
from heads.drawing.sections import Strip
from heads.drawing.source import ViewContent

# Where there are more queries, their mean is drawn.
MAX_QUERIES = 4


def queries(view: ViewContent, maps: dict[str, np.ndarray]) -> list[Strip]:
    """Draw what each query reads.

    Args:
        view: the view.
        maps: "attention" [Q,T,h,w] over cells, "node_attention" [Q,T,N] over boxes, or both.

    Returns:
        For each query a strip over cells and a strip over boxes, as far as it reads them.
    """
    cells, nodes = maps.get("attention"), maps.get("node_attention")
    if cells is not None:
        cells = _without_padding(cells)
    tokens = 0
    if cells is not None:
        tokens += cells[0].size
    if nodes is not None:
        tokens += int(view.valid.sum())

    strips = []
    of_cells, of_nodes = _by_query(cells), _by_query(nodes)
    for name in of_cells or of_nodes:
        if cells is not None:
            weights = of_cells[name]
            note = _share("cells", weights)
            strips.append(draw_maps.heat(weights, f"what {name} reads", note, even=1 / tokens))
        if nodes is not None and view.valid.any():
            weights = of_nodes[name]
            note = _share("boxes", weights)
            title = f"which boxes {name} reads"
            strips.append(draw_nodes.node_attention(view, weights, title, note, digits=".2g"))
    return strips


def _by_query(weights: np.ndarray | None) -> dict[str, np.ndarray]:
    """What strips show, by the name of the query."""
    if weights is None:
        return {}
    if len(weights) == 1:
        return {"the query": weights[0]}
    if len(weights) > MAX_QUERIES:
        return {f"the mean of {len(weights)} queries": weights.mean(0)}
    return {f"query {number}": one for number, one in enumerate(weights)}


def _without_padding(cells: np.ndarray) -> np.ndarray:
    """[Q,T,h,w] without the last rows and columns that no query reads: the map's padding."""
    rows = np.flatnonzero(cells.any((0, 1, 3)))
    columns = np.flatnonzero(cells.any((0, 1, 2)))
    if not len(rows):
        return cells
    return cells[:, :, : rows[-1] + 1, : columns[-1] + 1]


def _share(what: str, weights: np.ndarray) -> str:
    """The note of a strip: the part of the weight, where a query reads other tokens too."""
    total = float(weights.sum())
    if total > 0.995:
        return f"all {what} of all steps add up to 1"
    return f"{what} have {100 * total:.0f} % of the weight"
