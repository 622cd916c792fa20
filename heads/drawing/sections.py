"""What is drawn over the frames of a view: a `Strip` is a strip of the view's steps with one
thing in it.

The boxes and the edges between them are here; what concerns one node is in heads/drawing/nodes.py,
maps and regions in heads/drawing/maps.py.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of
step t, its index t N + i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from heads.drawing.canvas import BACK, FRONT, Canvas, Colour, Place, colour_of
from heads.drawing.source import ViewContent
from heads.interface.masked_layers import front_back
from pipeline.regions.graphs import iou_graph

LABELLED = 12  # boxes of a step that get a label; they come best first
SMALL = 10  # text size of labels
EDGE_GAP = 96.0  # pixels between frames where edges and their weights are drawn
Node = tuple[int, int]


@dataclass
class Strip:
    """`backdrop(t, frame)`: the frame of step t, perhaps under heat; `paint(canvas, place, t)`
    draws over it; `join(canvas, place, next place, t, labels)` draws from step t to t + 1, under
    what `paint` draws, with numbers between the frames if `labels`. `gap`: pixels between frames;
    `scale`: of a frame's height; `legend`: colours and what they stand for.
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


def boxes(shown: ViewContent) -> Strip:
    """Every box in the colour of its slot, with slot and score."""
    scores = shown.fields.get("scores")

    def paint(canvas: Canvas, place: Place, t: int) -> None:
        _boxes(
            canvas,
            place,
            shown,
            t,
            lambda i: f"{i}" if scores is None else f"{i}: {scores[t, i]:.2f}",
        )

    return Strip("boxes", "slot and score", paint=paint)


def edges(
    shown: ViewContent,
    told_graphs: tuple[np.ndarray, np.ndarray] | None,
    least: float,
    scores: bool,
) -> Strip:
    """The front and back graph over the boxes (STRG eq. 3): edges whose weight is at least `least`.

    told_graphs: front and back [T-1,n,n] as a trained head had them; None: from the boxes.
    """
    if told_graphs is None:
        iou = shown.fields["iou"] if "iou" in shown.fields else iou_graph(shown.boxes, shown.valid)
        front, back = (
            g[0].numpy()
            for g in front_back(torch.from_numpy(iou)[None], torch.from_numpy(shown.valid)[None])
        )
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
                    canvas.arrow(
                        *(ends if colour is FRONT else ends[::-1]),
                        colour,
                        0.8 + 1.7 * float(weight),
                    )
            if labels:
                x1, x2 = here.x + here.width + 2, there.x - 2
                y1, y2 = (
                    a[1] + (b[1] - a[1]) * (x - a[0]) / max(b[0] - a[0], 1e-6) for x in (x1, x2)
                )
                left += [(y1, front[t, i, j], f"{i}>{j}")] if front[t, i, j] >= least else []
                right += [(y2, back[t, j, i], f"{j}>{i}")] if back[t, j, i] >= least else []
        _weights(canvas, here, here.x + here.width + 3, left, FRONT)
        _weights(canvas, here, there.x - EDGE_GAP / 2 + 2, right, BACK)

    title = "boxes, front and back edges" if scores else "front and back edges"
    note = f"IoU with the boxes of the next step, rows divided by their sum; weights from {compact(least)}"
    return Strip(
        title, note, ((FRONT, "front"), (BACK, "back")), EDGE_GAP, paint=section.paint, join=join
    )


def _weights(
    canvas: Canvas,
    frame: Place,
    x: float,
    weights: Sequence[tuple[float, float, str]],
    colour: Colour,
) -> None:
    """A column of labels (y, weight, edge) at x, near their y, moved apart beside `frame`; the
    heaviest that fit.
    """
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


def _boxes(
    canvas: Canvas, place: Place, shown: ViewContent, t: int, label: Callable[[int], str]
) -> None:
    slots = np.flatnonzero(shown.valid[t]).tolist()
    for i in reversed(slots):  # the best on top
        canvas.rectangle(place.rectangle(shown.boxes[t, i]), colour_of(i), 1.6)
    taken: list = []
    for i in slots[:LABELLED]:
        box_tag(canvas, place, shown.boxes[t, i], label(i), colour_of(i), taken)


def box_tag(
    canvas: Canvas, place: Place, box: np.ndarray, text: str, colour: Colour, taken: list
) -> None:
    """A label above a box, or inside it at the frame's upper border."""
    x, y, _, _ = place.rectangle(box)
    canvas.tag(
        (x, y - SMALL - 4 if y - SMALL - 4 >= place.y else y), text, colour, SMALL, taken, place
    )
