"""Strips about one node, or about how much every node counts: neighbours, whom a graph makes listen
to whom, attention.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of
step t, its index t N + i.
"""

import numpy as np
import torch

from heads.drawing.canvas import CHOSEN, GREY, Canvas, Colour, Place, colour_of, heat_colours
from heads.drawing.sections import LABELLED, Node, Strip, box_tag, compact
from heads.drawing.source import ViewContent
from pipeline.regions.graphs import inner_products, nearest_nodes, similar_nodes


def nearest(shown: ViewContent, node: Node) -> Strip:
    """The node of each step that is nearest to the chosen one, by inner product, joined by a line
    (GOS eq. 4).
    """
    table = shown.fields.get("nearest")
    if table is None:
        table = nearest_nodes(*_products(shown))[0].numpy()
    return _sequence(
        shown,
        node,
        table,
        f"nearest nodes of node {_name(node)}",
        "largest inner product in each step",
    )


def nearest_of_head(shown: ViewContent, node: Node, table: np.ndarray) -> Strip:
    """The same as GOS's temp_conv chose them: [T,N,T] numbers of boxes."""
    return _sequence(
        shown,
        node,
        table.astype(int),
        f"temp_conv: sequence of node {_name(node)}",
        "as the head chose it",
    )


def _sequence(shown: ViewContent, node: Node, table: np.ndarray, title: str, note: str) -> Strip:
    chosen, there = table[node], shown.valid.any(1)
    colour = colour_of(node[1])

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        _dim(canvas, place, shown, t)
        if there[t]:
            _mark(canvas, place, shown.boxes[t, chosen[t]], colour, str(chosen[t]))
        _chosen(canvas, place, shown, node, t)

    def join(canvas: Canvas, here: Place, there_: Place, t: int, labels: bool) -> None:
        if there[t] and there[t + 1]:
            ends = (
                here.centre(shown.boxes[t, chosen[t]]),
                there_.centre(shown.boxes[t + 1, chosen[t + 1]]),
            )
            canvas.line(ends, (0, 0, 0), 4)
            canvas.line(ends, colour, 2.5)

    return Strip(title, note, gap=12, paint=paint, join=join)


def similar(shown: ViewContent, node: Node, most: int) -> Strip:
    """The `most` nodes that are most similar to the chosen one (STRG Figure 3, GOS Figure 7),
    ranked.
    """
    if shown.fields.get("similar") is not None and shown.fields["similar"].shape[-1] >= most:
        index, value = shown.fields["similar"][node], shown.fields["similarity"][node]
    else:
        products, valid = _products(shown)
        found = similar_nodes(products, valid, min(most, products.shape[1] - 1))
        index, value = (tensor[0].numpy()[node] for tensor in found)
    real = min(most, int(shown.valid.sum()) - 1)
    note = "rank and inner product of their features"
    return _ranked(
        shown,
        node,
        index[:real],
        value[:real],
        f"{real} nodes most similar to node {_name(node)}",
        note,
    )


def listening(shown: ViewContent, node: Node, weights: np.ndarray, most: int, title: str) -> Strip:
    """The nodes that the chosen one hears most by a head's graph: weights [n',n'] over the first
    boxes of each step.
    """
    steps, there = shown.valid.shape
    kept = len(weights) // steps  # a head may look at fewer boxes than the cache has
    if node[1] >= kept:
        return Strip(
            title,
            f"the head looks at the first {kept} boxes of a step, node {_name(node)} is none of "
            f"them",
        )
    row = weights[node[0] * kept + node[1]]
    order = np.argsort(-row, kind="stable")[:most]
    order = order[row[order] >= 0.005]
    flat = order // kept * there + order % kept
    note = f"rank and weight; the {len(order)} largest of {len(row)} have {row[order].sum():.2f} of {row.sum():.2f}"
    return _ranked(shown, node, flat, row[order], f"{title} of node {_name(node)}", note)


def _ranked(
    shown: ViewContent, node: Node, flat: np.ndarray, values: np.ndarray, title: str, note: str
) -> Strip:
    """Nodes by their flat indices, best first, brighter the better."""
    count = shown.valid.shape[1]
    shades = heat_colours(np.linspace(0.95, 0.42, max(len(flat), 1)))
    by_step: dict[int, list[int]] = {}
    for rank, index in enumerate(flat.tolist()):
        by_step.setdefault(index // count, []).append(rank)

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        _dim(canvas, place, shown, t)
        taken: list = []
        for rank in reversed(by_step.get(t, [])):
            colour = tuple(shades[rank].tolist())
            canvas.rectangle(place.rectangle(shown.boxes[t, flat[rank] % count]), colour, 2.2)
        for rank in by_step.get(t, []):
            box, colour = shown.boxes[t, flat[rank] % count], tuple(shades[rank].tolist())
            box_tag(canvas, place, box, f"#{rank + 1}: {compact(values[rank])}", colour, taken)
        _chosen(canvas, place, shown, node, t, taken)

    return Strip(title, note, paint=paint)


def node_attention(shown: ViewContent, weights: np.ndarray, title: str, note: str) -> Strip:
    """How much a head makes of every node: weights [T,N] in [0,1], boxes brighter and thicker the
    more.
    """
    valid = shown.valid
    low, high = (float(f(weights[valid])) if valid.any() else 0.0 for f in (np.min, np.max))
    level = (weights - low) / (high - low if high > low else 1)

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        order = sorted(np.flatnonzero(valid[t]).tolist(), key=lambda i: weights[t, i])
        taken: list = []
        for i in order:
            colour = tuple(heat_colours(np.array(0.3 + 0.7 * level[t, i])).tolist())
            canvas.rectangle(
                place.rectangle(shown.boxes[t, i]), colour, 1 + 2.5 * float(level[t, i])
            )
        for i in order[::-1][:LABELLED]:
            colour = tuple(heat_colours(np.array(0.3 + 0.7 * level[t, i])).tolist())
            box_tag(canvas, place, shown.boxes[t, i], f"{i}: {weights[t, i]:.2f}", colour, taken)

    return Strip(title, f"{note}; slot and weight, from {low:.2f} to {high:.2f}", paint=paint)


def _products(shown: ViewContent) -> tuple[torch.Tensor, torch.Tensor]:
    valid = torch.from_numpy(shown.valid)[None]
    return inner_products(
        torch.from_numpy(shown.fields["nodes"].astype(np.float32))[None], valid
    ), valid


def _name(node: Node) -> str:
    return f"({node[0]},{node[1]})"


def _dim(canvas: Canvas, place: Place, shown: ViewContent, t: int) -> None:
    for i in np.flatnonzero(shown.valid[t]).tolist():
        canvas.rectangle(place.rectangle(shown.boxes[t, i]), GREY, 0.6)


def _mark(canvas: Canvas, place: Place, box: np.ndarray, colour: Colour, text: str) -> None:
    canvas.rectangle(place.rectangle(box), colour, 2.2)
    box_tag(canvas, place, box, text, colour, [])


def _chosen(
    canvas: Canvas, place: Place, shown: ViewContent, node: Node, t: int, taken: list | None = None
) -> None:
    """The chosen node, in white."""
    if t == node[0]:
        canvas.rectangle(place.rectangle(shown.boxes[node]), CHOSEN, 2.6)
        box_tag(
            canvas,
            place,
            shown.boxes[node],
            f"chosen {_name(node)}",
            CHOSEN,
            [] if taken is None else taken,
        )
