"""Strips about nodes: neighbours of the chosen node, the nodes it listens to, node attention.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of
step t, its index t N + i.
"""

import numpy as np
import torch

from heads.drawing.canvas import CHOSEN, GREY, Canvas, Colour, FrameRect, colour_of, heat_colours
from heads.drawing.sections import LABELLED, Node, Strip, box_tag, compact
from heads.drawing.source import ViewContent
from pipeline.regions.graphs import inner_products, nearest_nodes, similar_nodes
from pipeline.text.counted import counted


def nearest(view: ViewContent, node: Node) -> Strip:
    """Draw each step's nearest node to the chosen one, by inner product (GOS eq. 4).

    In its own step a node is its own nearest one, whatever a cache says.
    """
    table = view.fields.get("nearest")
    if table is None:
        table = nearest_nodes(*_products(view))[0].numpy()
    table = table.copy()
    table[(*node, node[0])] = node[1]
    title = f"nearest nodes of node {_name(node)}"
    features = Likeness(view, node)
    note = f"box: {features.words}; chosen by inner product. {features.about}"
    return _sequence(view, node, table, title, note, features)


def nearest_of_head(view: ViewContent, node: Node, table: np.ndarray) -> Strip:
    """Draw the nearest nodes as GOS's temp_conv chose them: box numbers [T,N,T]."""
    title = f"temp_conv: sequence of node {_name(node)}"
    return _sequence(view, node, table.astype(int), title, "as the head chose it")


class Likeness:
    """Inner product and cosine of the features of nodes with those of the chosen one.

    Args:
        view: the view.
        node: the chosen node.

    Attributes:
        known: whether the cache holds the features.
        words: what stands beside a node.
        about: a sentence on the two numbers.
    """

    def __init__(self, view: ViewContent, node: Node):
        self.known = "nodes" in view.fields
        self.words = "inner product"
        self.about = "The cache holds no nodes, so their cosines are not known."
        if not self.known:
            return
        nodes = view.fields["nodes"].astype(np.float64)
        self.products = nodes @ nodes[node]
        lengths = np.linalg.norm(nodes, axis=-1) * np.linalg.norm(nodes[node])
        self.cosines = self.products / np.maximum(lengths, 1e-12)
        self.words = "inner product, then cosine"
        self.about = "The inner product, by which heads compare, grows with the features' length."

    def text(self, t: int, i: int, product: float | None = None) -> str:
        """Return the numbers of node (t,i); `product` is a stored inner product."""
        if not self.known:
            return "" if product is None else compact(product)
        value = float(self.products[t, i]) if product is None else product
        return f"{compact(value)}, {compact(float(self.cosines[t, i]))}"


def _sequence(
    view: ViewContent,
    node: Node,
    table: np.ndarray,
    title: str,
    note: str,
    features: Likeness | None = None,
) -> Strip:
    """A box of each step, joined by a line."""
    chosen, has_boxes = table[node], view.valid.any(1)
    colour = colour_of(node[1])

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        _draw_thin_boxes(canvas, rect, view, t)
        # In its own step the nearest node is the chosen one: two labels of one box.
        taken: list = []
        if has_boxes[t]:
            box = view.boxes[t, chosen[t]]
            canvas.rectangle(rect.rectangle(box), colour, 2.2)
            numbers = "" if features is None else features.text(t, int(chosen[t]))
            label = f"{chosen[t]}: {numbers}".removesuffix(": ")
            box_tag(canvas, rect, box, label, colour, taken)
        _draw_chosen(canvas, rect, view, node, t, taken)

    def join(canvas: Canvas, rect: FrameRect, after: FrameRect, t: int, labels: bool) -> None:
        if has_boxes[t] and has_boxes[t + 1]:
            start = rect.centre(view.boxes[t, chosen[t]])
            end = after.centre(view.boxes[t + 1, chosen[t + 1]])
            # A black line below keeps the coloured one visible on any frame.
            canvas.line((start, end), (0, 0, 0), 4)
            canvas.line((start, end), colour, 2.5)

    return Strip(title, note, gap=12, paint=paint, join=join)


def similar(view: ViewContent, node: Node, most: int) -> Strip:
    """Draw the nodes that are most similar to the chosen one (STRG Figure 3, GOS Figure 7).

    Args:
        view: the view.
        node: the chosen node (t,i).
        most: M, the number of nodes to draw.

    Returns:
        The strip, with ranks, inner products and cosines.
    """
    stored = view.fields.get("similar")
    if stored is not None and stored.shape[-1] >= most:
        index, value = stored[node], view.fields["similarity"][node]
    else:
        products, valid = _products(view)
        found = similar_nodes(products, valid, min(most, products.shape[1] - 1))
        index, value = (tensor[0].numpy()[node] for tensor in found)

    # Padded boxes fill the list where there are fewer real nodes than asked for.
    count = min(most, int(view.valid.sum()) - 1)
    title = f"{counted(count, 'node')} most similar to node {_name(node)}"
    features = Likeness(view, node)
    note = f"rank: {features.words}; ranked by inner product. {features.about}"
    return _ranked(view, node, index[:count], value[:count], title, note, features)


def listening(view: ViewContent, node: Node, weights: np.ndarray, most: int, title: str) -> Strip:
    """Draw the nodes that the chosen one listens to most, by a head's graph.

    Args:
        view: the view.
        node: the chosen node (t,i).
        weights: [n',n'] over the first boxes of each step; rows listen.
        most: the number of nodes to draw.
        title: of the strip.

    Returns:
        The strip, with ranks and weights.
    """
    # A head may read fewer boxes than the cache has.
    steps, slots = view.valid.shape
    kept = len(weights) // steps
    if node[1] >= kept:
        note = f"the head looks at the first {kept} boxes of a step, not at node {_name(node)}"
        return Strip(title, note)

    row = weights[node[0] * kept + node[1]]
    order = np.argsort(-row, kind="stable")[:most]
    # Smaller weights would be written as .00.
    order = order[row[order] >= 0.005]
    note = (
        f"rank and weight; the {len(order)} largest of {len(row)} have {row[order].sum():.2f} "
        f"of {row.sum():.2f}"
    )
    # From indices over the head's boxes to indices over the cache's.
    flat = order // kept * slots + order % kept
    return _ranked(view, node, flat, row[order], f"{title} of node {_name(node)}", note)


def _ranked(
    view: ViewContent,
    node: Node,
    flat: np.ndarray,
    values: np.ndarray,
    title: str,
    note: str,
    features: Likeness | None = None,
) -> Strip:
    """Nodes by their flat indices, best first; better nodes are brighter."""
    slots = view.valid.shape[1]
    shades = heat_colours(np.linspace(0.95, 0.42, max(len(flat), 1))).tolist()
    ranks_of_step: dict[int, list[int]] = {}
    for rank, index in enumerate(flat.tolist()):
        ranks_of_step.setdefault(index // slots, []).append(rank)

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        _draw_thin_boxes(canvas, rect, view, t)
        taken: list = []
        ranks = ranks_of_step.get(t, [])
        # In reverse, so that the best is on top.
        for rank in reversed(ranks):
            box = view.boxes[t, flat[rank] % slots]
            canvas.rectangle(rect.rectangle(box), tuple(shades[rank]), 2.2)
        for rank in ranks:
            box = view.boxes[t, flat[rank] % slots]
            numbers = compact(values[rank])
            if features is not None:
                numbers = features.text(t, int(flat[rank] % slots), float(values[rank]))
            label = f"#{rank + 1}: {numbers}"
            box_tag(canvas, rect, box, label, tuple(shades[rank]), taken)
        _draw_chosen(canvas, rect, view, node, t, taken)

    return Strip(title, note, paint=paint)


def node_attention(
    view: ViewContent, weights: np.ndarray, title: str, note: str, digits: str = ".2f"
) -> Strip:
    """Draw how much a head weighs every node; heavier boxes are brighter and thicker.

    Args:
        view: the view.
        weights: [T,N] in [0,1].
        title: of the strip.
        note: of the strip; slot, weight and range are added.
        digits: the format of weights.

    Returns:
        The strip.
    """
    valid = view.valid
    low = high = 0.0
    if valid.any():
        low, high = float(weights[valid].min()), float(weights[valid].max())
    level = (weights - low) / (high - low if high > low else 1)

    def colour(t: int, i: int) -> Colour:
        return tuple(heat_colours(np.array(0.3 + 0.7 * level[t, i])).tolist())

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        # The heaviest box last, on top.
        order = sorted(np.flatnonzero(valid[t]).tolist(), key=lambda i: weights[t, i])
        for i in order:
            width = 1 + 2.5 * float(level[t, i])
            canvas.rectangle(rect.rectangle(view.boxes[t, i]), colour(t, i), width)
        taken: list = []
        for i in order[::-1][:LABELLED]:
            label = f"{i}: {weights[t, i]:{digits}}"
            box_tag(canvas, rect, view.boxes[t, i], label, colour(t, i), taken)

    numbers = f"slot and weight, from {low:{digits}} to {high:{digits}}"
    return Strip(title, f"{note}; {numbers}", paint=paint)


def _products(view: ViewContent) -> tuple[torch.Tensor, torch.Tensor]:
    """Inner products [1,n,n] of the cached nodes, and the mask of real boxes [1,T,N]."""
    nodes = torch.from_numpy(view.fields["nodes"].astype(np.float32))[None]
    valid = torch.from_numpy(view.valid)[None]
    return inner_products(nodes, valid), valid


def _name(node: Node) -> str:
    return f"({node[0]},{node[1]})"


def _draw_thin_boxes(canvas: Canvas, rect: FrameRect, view: ViewContent, t: int) -> None:
    """All boxes of a step, thin and grey."""
    for i in np.flatnonzero(view.valid[t]).tolist():
        canvas.rectangle(rect.rectangle(view.boxes[t, i]), GREY, 0.6)


def _draw_chosen(
    canvas: Canvas, rect: FrameRect, view: ViewContent, node: Node, t: int, taken: list
) -> None:
    """The chosen node, in white, in its own step."""
    if t == node[0]:
        canvas.rectangle(rect.rectangle(view.boxes[node]), CHOSEN, 2.6)
        box_tag(canvas, rect, view.boxes[node], f"chosen {_name(node)}", CHOSEN, taken)
