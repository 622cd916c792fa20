"""Strips of boxes. A `Strip` is one row of a view's frames.

Edges between boxes are in heads/drawing/edges.py, strips about one node in heads/drawing/nodes.py,
maps and regions in heads/drawing/maps.py.

Letters: T steps, N boxes per step, n = T N nodes, M neighbours, h w grid; node (t,i) is box i of
step t, its index t N + i.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from heads.drawing.canvas import Canvas, Colour, FrameRect, colour_of
from heads.drawing.source import ViewContent

# Boxes of a step that get a label. The cache stores the best boxes first.
LABELLED = 12
LABEL_SIZE = 10
# What is said of boxes, in words.
LABEL_WORDS = {"box_class": "class", "track": "track"}

# Pixels between frames where edges and their weights are drawn.
EDGE_GAP = 96.0
Node = tuple[int, int]


@dataclass
class Strip:
    """A row of frames, one per step, with one kind of drawing over them.

    Attributes:
        title: written above the strip.
        note: written behind the title, or below it.
        legend: (colour, meaning) pairs.
        gap: pixels between frames.
        scale: a frame's height as a fraction of the style's.
        backdrop: (t, frame) -> the picture to draw for step t, e.g. the frame under heat.
        paint: (canvas, rect, t) draws over the frame of step t.
        join: (canvas, rect, next rect, t, labels) draws from step t to t + 1, before `paint`
            does. With `labels` it writes numbers between the frames. None: nothing.
    """

    title: str
    note: str = ""
    legend: Sequence[tuple[Colour, str]] = ()
    gap: float = 8.0
    scale: float = 1.0
    backdrop: Callable[[int, Image.Image], Image.Image] = field(default=lambda t, frame: frame)
    paint: Callable[[Canvas, FrameRect, int], None] = field(default=lambda canvas, rect, t: None)
    join: Callable[[Canvas, FrameRect, FrameRect, int, bool], None] | None = None


def compact(value: float) -> str:
    """Format a number in few characters: .83 for 0.83, 1.0 for 1, three digits from 2 on."""
    if abs(value) >= 99999.5:
        return f"{value:.1e}".replace("e+0", "e").replace("e+", "e")
    if abs(value) >= 99.95:
        return f"{value:.0f}"
    if abs(value) >= 1.995:
        return f"{value:.3g}"
    text = f"{value:.2f}"
    return text[:-1] if text.endswith("00") else text.replace("0.", ".", 1)


def boxes(view: ViewContent) -> Strip:
    """Draw every box with slot and score, and with its class and its track where they are known.

    Its colour is that of its track, else of its slot.
    """
    scores = view.fields.get("scores")
    named = ["slot", *[word for name, word in LABEL_WORDS.items() if name in view.fields]]
    note = ", ".join(named) + " and score"
    if "track" in view.fields:
        note += "; a colour per track"

    def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
        def label(i: int) -> str:
            text = " ".join([str(i), *_labels(view, t, i)])
            return text if scores is None else f"{text}: {scores[t, i]:.2f}"

        draw_boxes(canvas, rect, view, t, label)

    return Strip("boxes", note, paint=paint)


def _labels(view: ViewContent, t: int, i: int) -> list[str]:
    """The class and the track of a box, as far as they are known: cup, #3."""
    found = []
    number = int(view.fields["box_class"][t, i]) if "box_class" in view.fields else -1
    if number >= 0:
        names = view.cache.box_classes
        found.append(names[number] if number < len(names) else f"class {number}")
    track = _track(view, t, i)
    return [*found, f"#{track}"] if track >= 0 else found


def _track(view: ViewContent, t: int, i: int) -> int:
    """The track of a box; -1 for none."""
    return int(view.fields["track"][t, i]) if "track" in view.fields else -1


def colour_of_box(view: ViewContent, t: int, i: int) -> Colour:
    """Return the colour of a box: one for each track, and one for each slot without tracks."""
    track = _track(view, t, i)
    return colour_of(track if track >= 0 else i)


def draw_boxes(
    canvas: Canvas, rect: FrameRect, view: ViewContent, t: int, label: Callable[[int], str]
) -> None:
    """Draw the boxes of a step in the colours of their slots, the best on top.

    Args:
        canvas: where to draw.
        rect: the step's frame.
        view: the view.
        t: the step.
        label: slot -> the text above its box.
    """
    slots = np.flatnonzero(view.valid[t]).tolist()

    # In reverse, so that the best box is on top.
    for i in reversed(slots):
        canvas.rectangle(rect.rectangle(view.boxes[t, i]), colour_of_box(view, t, i), 1.6)
    taken: list = []
    for i in slots[:LABELLED]:
        box_tag(canvas, rect, view.boxes[t, i], label(i), colour_of_box(view, t, i), taken)


def box_tag(
    canvas: Canvas, rect: FrameRect, box: np.ndarray, text: str, colour: Colour, taken: list
) -> None:
    """Draw a label above a box, or inside it at the frame's upper border.

    Args:
        canvas: where to draw.
        rect: the box's frame.
        box: x1 y1 x2 y2 in [0,1] of the frame.
        text: the label.
        colour: of its background.
        taken: rectangles of earlier labels (see `Canvas.tag`).
    """
    x, y, _, _ = rect.rectangle(box)
    above = y - LABEL_SIZE - 4
    if above >= rect.y:
        y = above
    canvas.tag((x, y), text, colour, LABEL_SIZE, taken, rect)
