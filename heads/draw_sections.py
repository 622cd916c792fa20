"""What is drawn over the frames of a view: each function makes a `Section`, a strip of the view's steps with one thing in it.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of step t, its index t N + i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image, ImageChops, ImageFilter

from heads.draw_canvas import BACK, CHOSEN, FRONT, GREY, OVER, Canvas, Colour, Place, colour_of, heat_colours, heated
from heads.draw_source import Shown
from heads.layers import front_back
from pipeline.graphs import inner_products, iou_graph, nearest_nodes, similar_nodes

LABELLED = 12  # boxes of a step that get a label; they come best first
SMALL = 10  # text size of labels
EDGE_GAP = 96.0  # pixels between frames where edges and their weights are drawn
Node = tuple[int, int]


@dataclass
class Section:
    """`backdrop(t, frame)`: the frame of step t, perhaps under heat; `paint(canvas, place, t)` draws over it; `join(canvas,
    place, next place, t, labels)` draws from step t to t + 1, under what `paint` draws, with numbers between the frames if
    `labels`. `gap`: pixels between frames; `scale`: of a frame's height; `legend`: colours and what they stand for.
    """

    title: str
    note: str = ""
    legend: Sequence[tuple[Colour, str]] = ()
    gap: float = 8.0
    scale: float = 1.0
    backdrop: Callable[[int, Image.Image], Image.Image] = field(default=lambda t, frame: frame)
    paint: Callable[[Canvas, Place, int], None] = field(default=lambda canvas, place, t: None)
    join: Callable[[Canvas, Place, Place, int, bool], None] | None = None


def compact(value: float) -> str:
    """.83 for 0.83, 1.0 for 1, three digits of what is larger."""
    if abs(value) >= 99999.5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 1.995:
        return f"{value:.3g}"
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("00") else text.replace("0.", ".", 1)


def boxes(shown: Shown) -> Section:
    """Every box in the colour of its slot, with slot and score."""
    scores = shown.fields.get("scores")

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        _boxes(canvas, place, shown, t, lambda i: f"{i}" if scores is None else f"{i}: {scores[t, i]:.2f}")

    return Section("boxes", "slot and score", paint=paint)


def edges(shown: Shown, told_graphs: tuple[np.ndarray, np.ndarray] | None, least: float, scores: bool) -> Section:
    """The front and back graph over the boxes (STRG eq. 3): edges whose weight is at least `least`.

    told_graphs: front and back [T-1,n,n] as a trained head had them; None: from the boxes.
    """
    if told_graphs is None:
        iou = shown.fields["iou"] if "iou" in shown.fields else iou_graph(shown.boxes, shown.valid)
        front, back = (g[0].numpy() for g in front_back(torch.from_numpy(iou)[None], torch.from_numpy(shown.valid)[None]))
    else:
        front, back = told_graphs
    section = boxes(shown)
    if not scores:
        section.paint = lambda canvas, place, t: _boxes(canvas, place, shown, t, str)

    def join(canvas: Canvas, here: Place, there: Place, t: int, labels: bool) -> None:
        left, right = [], []
        for i, j in np.argwhere(np.maximum(front[t], back[t].T) >= least).tolist():
            a, b = here.centre(shown.boxes[t, i]), there.centre(shown.boxes[t + 1, j])
            for weight, colour, down in ((front[t, i, j], FRONT, -1.5), (back[t, j, i], BACK, 1.5)):
                if weight >= least:
                    ends = [(a[0], a[1] + down), (b[0], b[1] + down)]
                    canvas.arrow(*(ends if colour is FRONT else ends[::-1]), colour, 0.8 + 1.7 * float(weight))
            if labels:
                x1, x2 = here.x + here.width + 2, there.x - 2
                y1, y2 = (a[1] + (b[1] - a[1]) * (x - a[0]) / max(b[0] - a[0], 1e-6) for x in (x1, x2))
                left += [(y1, front[t, i, j], f"{i}>{j}")] if front[t, i, j] >= least else []
                right += [(y2, back[t, j, i], f"{j}>{i}")] if back[t, j, i] >= least else []
        _weights(canvas, here, here.x + here.width + 3, left, FRONT)
        _weights(canvas, here, there.x - EDGE_GAP / 2 + 2, right, BACK)

    title = "boxes, front and back edges" if scores else "front and back edges"
    note = f"IoU with the boxes of the next step, rows divided by their sum; weights from {compact(least)}"
    return Section(title, note, ((FRONT, "front"), (BACK, "back")), EDGE_GAP, paint=section.paint, join=join)


def _weights(canvas: Canvas, frame: Place, x: float, weights: Sequence[tuple[float, float, str]], colour: Colour) -> None:
    """A column of labels (y, weight, edge) at x, near their y, moved apart beside `frame`; the heaviest that fit."""
    tall = SMALL + 5
    kept = sorted(sorted(weights, key=lambda label: -label[1])[: int(frame.height // tall)])
    places: list[float] = []
    for y, _, _ in kept:
        places.append(max(y - tall / 2, places[-1] + tall if places else frame.y))
    end = frame.y + frame.height
    for k in reversed(range(len(places))):  # what was pushed out below comes back up
        places[k] = end = min(places[k], end - tall)
    for y, (_, weight, edge) in zip(places, kept, strict=True):
        canvas.tag((x, y), f"{edge}: {compact(weight)}", colour, SMALL)


def nearest(shown: Shown, node: Node) -> Section:
    """The node of each step that is nearest to the chosen one, by inner product, joined by a line (GOS eq. 4)."""
    table = shown.fields.get("nearest")
    if table is None:
        table = nearest_nodes(*_products(shown))[0].numpy()
    return _sequence(shown, node, table, f"nearest nodes of node {_name(node)}", "largest inner product in each step")


def told_nearest(shown: Shown, node: Node, table: np.ndarray) -> Section:
    """The same as GOS's temp_conv chose them: [T,N,T] numbers of boxes."""
    return _sequence(shown, node, table.astype(int), f"temp_conv: sequence of node {_name(node)}", "as the head chose it")


def _sequence(shown: Shown, node: Node, table: np.ndarray, title: str, note: str) -> Section:
    chosen, there = table[node], shown.valid.any(1)
    colour = colour_of(node[1])

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        _dim(canvas, place, shown, t)
        if there[t]:
            _mark(canvas, place, shown.boxes[t, chosen[t]], colour, str(chosen[t]))
        _chosen(canvas, place, shown, node, t)

    def join(canvas: Canvas, here: Place, there_: Place, t: int, labels: bool) -> None:
        if there[t] and there[t + 1]:
            ends = here.centre(shown.boxes[t, chosen[t]]), there_.centre(shown.boxes[t + 1, chosen[t + 1]])
            canvas.line(ends, (0, 0, 0), 4)
            canvas.line(ends, colour, 2.5)

    return Section(title, note, gap=12, paint=paint, join=join)


def similar(shown: Shown, node: Node, most: int) -> Section:
    """The `most` nodes that are most similar to the chosen one (STRG Figure 3, GOS Figure 7), ranked."""
    if shown.fields.get("similar") is not None and shown.fields["similar"].shape[-1] >= most:
        index, value = shown.fields["similar"][node], shown.fields["similarity"][node]
    else:
        products, valid = _products(shown)
        found = similar_nodes(products, valid, min(most, products.shape[1] - 1))
        index, value = (tensor[0].numpy()[node] for tensor in found)
    real = min(most, int(shown.valid.sum()) - 1)
    note = "rank and inner product of their features"
    return _ranked(shown, node, index[:real], value[:real], f"{real} nodes most similar to node {_name(node)}", note)


def listening(shown: Shown, node: Node, weights: np.ndarray, most: int, title: str) -> Section:
    """The nodes that the chosen one hears most by a head's graph: weights [n',n'] over the first boxes of each step."""
    steps, there = shown.valid.shape
    kept = len(weights) // steps  # a head may look at fewer boxes than the cache has
    if node[1] >= kept:
        return Section(title, f"the head looks at the first {kept} boxes of a step, node {_name(node)} is none of them")
    row = weights[node[0] * kept + node[1]]
    order = np.argsort(-row, kind="stable")[:most]
    order = order[row[order] >= 0.005]
    flat = order // kept * there + order % kept
    note = f"rank and weight; the {len(order)} largest of {len(row)} have {row[order].sum():.2f} of {row.sum():.2f}"
    return _ranked(shown, node, flat, row[order], f"{title} of node {_name(node)}", note)


def _ranked(shown: Shown, node: Node, flat: np.ndarray, values: np.ndarray, title: str, note: str) -> Section:
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
            _tag(canvas, place, box, f"#{rank + 1}: {compact(values[rank])}", colour, taken)
        _chosen(canvas, place, shown, node, t, taken)

    return Section(title, note, paint=paint)


def node_attention(shown: Shown, weights: np.ndarray, title: str, note: str) -> Section:
    """How much a head makes of every node: weights [T,N] in [0,1], boxes brighter and thicker the more."""
    valid = shown.valid
    low, high = (float(f(weights[valid])) if valid.any() else 0.0 for f in (np.min, np.max))
    level = (weights - low) / (high - low if high > low else 1)

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        order = sorted(np.flatnonzero(valid[t]).tolist(), key=lambda i: weights[t, i])
        taken: list = []
        for i in order:
            colour = tuple(heat_colours(np.array(0.3 + 0.7 * level[t, i])).tolist())
            canvas.rectangle(place.rectangle(shown.boxes[t, i]), colour, 1 + 2.5 * float(level[t, i]))
        for i in order[::-1][:LABELLED]:
            colour = tuple(heat_colours(np.array(0.3 + 0.7 * level[t, i])).tolist())
            _tag(canvas, place, shown.boxes[t, i], f"{i}: {weights[t, i]:.2f}", colour, taken)

    return Section(title, f"{note}; slot and weight, from {low:.2f} to {high:.2f}", paint=paint)


def heat(maps: np.ndarray, title: str, note: str = "", scale: float = 1.0) -> Section:
    """Maps [T,h,w] as heat over their frames, the largest number of all steps the hottest; one map [1,h,w] is for all steps."""
    low, high = float(maps.min()), float(maps.max())
    level = (maps - low) / (high - low if high > low else 1)

    def backdrop(t: int, frame: Image.Image) -> Image.Image:
        return heated(frame, level[t if len(level) > 1 else 0])

    numbers = f"from {low:.2g} to {high:.2g}; spread evenly, {1 / maps[0].size:.2g}"
    return Section(title, f"{note}{'; ' if note else ''}{numbers}", scale=scale, backdrop=backdrop)


def background(shown: Shown, node: Node, weights: np.ndarray, cells: tuple[int, int], title: str) -> Section:
    """Which cells the chosen slot hears in every step (GOS back_incor): weights [T,N,G] over the h w cells of a map."""
    h, w = shown.fields["grid"].tolist() if "grid" in shown.fields else cells
    maps = weights[:, node[1]].reshape(-1, *cells)[:, : min(h, cells[0]), : min(w, cells[1])]
    section = heat(maps, f"{title} of box {node[1]} of each step", "the cells of its own step that the box hears")

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        if shown.valid[t, node[1]]:
            canvas.rectangle(place.rectangle(shown.boxes[t, node[1]]), CHOSEN, 2)

    section.paint = paint
    return section


def regions(kernels: np.ndarray, title: str, centres: np.ndarray | None = None, radii: np.ndarray | None = None) -> Section:
    """DyReg's regions (its Figure 3): kernels [T or 1,N,h,w] of each node, drawn to where they have half their height.

    With centres and radii [T or 1,N,2] (y, x) in cells these are boxes, else outlines of whatever shape the kernels have.
    """
    size = np.array(kernels.shape[-2:], np.float32)

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        t = t if len(kernels) > 1 else 0
        there = [i for i, kernel in enumerate(kernels[t]) if kernel.max() > 0]
        middles = {}
        for i in there:
            if centres is None or radii is None:
                _outline(canvas, place, kernels[t, i], colour_of(i))
                middles[i] = place.at(*_mean_place(kernels[t, i]))
            else:
                middle, half = (centres[t, i] + 0.5) / size, radii[t, i] / 2 / size  # a cell's middle is half a cell in
                (y1, x1), (y2, x2) = (middle - half).clip(0, 1), (middle + half).clip(0, 1)
                canvas.rectangle(place.rectangle((x1, y1, x2, y2)), colour_of(i), 1.6)
                middles[i] = place.at(*middle[::-1])
        taken: list = []
        for i, (x, y) in middles.items():
            canvas.tag((x - 5, y - 7), str(i), colour_of(i), SMALL, taken, place)

    note = "each node's kernel down to half its height, and its number in the middle"
    return Section(title, note, paint=paint)


def _outline(canvas: Canvas, place: Place, kernel: np.ndarray, colour: Colour) -> None:
    """The rim of where a kernel [h,w] has at least half its height, and a breath of colour inside."""
    size = max(1, round(OVER * place.width)), max(1, round(OVER * place.height))
    high = Image.fromarray((kernel / kernel.max()).astype(np.float32)).resize(size, Image.Resampling.BILINEAR)
    inside = Image.fromarray(np.uint8(np.asarray(high) >= 0.5) * 255)
    canvas.tint(inside.point(lambda v: v // 8), colour, place)
    canvas.tint(ImageChops.subtract(inside, inside.filter(ImageFilter.MinFilter(7))), colour, place)


def _mean_place(kernel: np.ndarray) -> tuple[float, float]:
    """(x, y) in [0,1] of a kernel's centre of mass; what is negative counts for nothing."""
    mass = np.maximum(kernel, 0) / np.maximum(kernel, 0).sum()
    y, x = ((mass.sum(1 - axis) * (np.arange(n) + 0.5)).sum() / n for axis, n in enumerate(mass.shape))
    return float(x), float(y)


def grid(weights: np.ndarray, node: int | None, title: str) -> Section:
    """RSTG's 14 nodes with how much they send: weights [T,14,14], rows receive; to node `node`, or on average over receivers.

    A disc lies in each cell of the 3x3 and of the 2x2 grid, as large as its share of the largest; the frame's rim is the 1x1.
    """
    sent = np.abs(weights).mean(1) if node is None else np.abs(weights[:, node])
    top = float(sent.max()) or 1.0
    colours = colour_of(1), colour_of(0), colour_of(2)
    places = [((j + 0.5) / s, (i + 0.5) / s, k) for k, s in enumerate((3, 2, 1)) for i in range(s) for j in range(s)]

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        for k, s in ((0, 3), (1, 2)):
            for cut in range(1, s):
                canvas.line([place.at(cut / s, 0), place.at(cut / s, 1)], colours[k], 1, dashed=True)
                canvas.line([place.at(0, cut / s), place.at(1, cut / s)], colours[k], 1, dashed=True)
        for number, (u, v, k) in enumerate(places):
            share = float(sent[t, number]) / top
            if k == 2:
                canvas.rectangle(place.rectangle((0, 0, 1, 1)), colours[k], 0.5 + 5 * share)
                continue
            canvas.disc(place.at(u, v), 1.5 + place.height / 14 * share**0.5, colours[k], (0, 0, 0))
            if number == node:
                canvas.disc(place.at(u, v), 4 + place.height / 14, None, CHOSEN, 2)

    to = "to the others, on average" if node is None else f"to node {node}"
    legend = tuple(zip(colours, ("3x3", "2x2", "1x1: the rim"), strict=True))
    return Section(title, f"how much each node of the grids sends {to}; largest {compact(top)}", legend, paint=paint)


def _products(shown: Shown) -> tuple[torch.Tensor, torch.Tensor]:
    valid = torch.from_numpy(shown.valid)[None]
    return inner_products(torch.from_numpy(shown.fields["nodes"].astype(np.float32))[None], valid), valid


def _name(node: Node) -> str:
    return f"({node[0]},{node[1]})"


def _boxes(canvas: Canvas, place: Place, shown: Shown, t: int, label: Callable[[int], str]) -> None:
    slots = np.flatnonzero(shown.valid[t]).tolist()
    for i in reversed(slots):  # the best on top
        canvas.rectangle(place.rectangle(shown.boxes[t, i]), colour_of(i), 1.6)
    taken: list = []
    for i in slots[:LABELLED]:
        _tag(canvas, place, shown.boxes[t, i], label(i), colour_of(i), taken)


def _tag(canvas: Canvas, place: Place, box: np.ndarray, text: str, colour: Colour, taken: list) -> None:
    """A label above a box, or inside it at the frame's upper border."""
    x, y, _, _ = place.rectangle(box)
    canvas.tag((x, y - SMALL - 4 if y - SMALL - 4 >= place.y else y), text, colour, SMALL, taken, place)


def _dim(canvas: Canvas, place: Place, shown: Shown, t: int) -> None:
    for i in np.flatnonzero(shown.valid[t]).tolist():
        canvas.rectangle(place.rectangle(shown.boxes[t, i]), GREY, 0.6)


def _mark(canvas: Canvas, place: Place, box: np.ndarray, colour: Colour, text: str) -> None:
    canvas.rectangle(place.rectangle(box), colour, 2.2)
    _tag(canvas, place, box, text, colour, [])


def _chosen(canvas: Canvas, place: Place, shown: Shown, node: Node, t: int, taken: list | None = None) -> None:
    """The chosen node, in white."""
    if t == node[0]:
        canvas.rectangle(place.rectangle(shown.boxes[node]), CHOSEN, 2.6)
        _tag(canvas, place, shown.boxes[node], f"chosen {_name(node)}", CHOSEN, [] if taken is None else taken)
