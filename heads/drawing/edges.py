"""The strip of front and back edges between the boxes of neighbouring steps (STRG eq. 3).

With few edges, arrows join the boxes and numbers stand beside them. With many, the lines are
bundled: they leave the frames alone, and join the numbers of boxes in the gap between two frames.
The weights stand in a table below.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from heads.drawing.canvas import (
    BACK,
    FAINT,
    FRONT,
    INK,
    PAPER,
    Canvas,
    Colour,
    FrameRect,
    colour_of,
    text_width,
)
from heads.drawing.sections import EDGE_GAP, LABEL_SIZE, Strip, boxes, compact, draw_boxes
from heads.drawing.source import ViewContent
from heads.interface.masked_layers import front_back
from pipeline.regions.graphs import iou_graph

# Edges between two steps, in one direction, whose numbers have room beside a frame.
MOST_BESIDE = 6

# Pixels between frames where edges are bundled, and of the numbers of boxes at both sides of it.
BUNDLE_GAP, PORT = 76.0, 11

# Weights below this fade towards the paper.
FULL = 0.6


@dataclass(frozen=True)
class Edge:
    """Both directions between box i of step t and box j of step t + 1.

    Attributes:
        t, i, j: the boxes.
        front: weight of the edge from i to j.
        back: weight of the edge from j to i.
    """

    t: int
    i: int
    j: int
    front: float
    back: float


class EdgeDrawing:
    """The edges of a view.

    Args:
        view: the view.
        head_graphs: front and back [T-1,n,n] of a trained head; None computes them from the boxes.
        least: the smallest weight of an edge that is drawn.
        steps: the steps that are drawn; () for all.
    """

    def __init__(
        self,
        view: ViewContent,
        head_graphs: tuple[np.ndarray, np.ndarray] | None,
        least: float,
        steps: Sequence[int] = (),
    ):
        self.view, self.least = view, least
        front, back = head_graphs if head_graphs is not None else _iou_graphs(view)
        self.front, self.back = front, back
        self.edges: list[Edge] = []
        drawn = set(steps or range(len(view.steps)))
        for t in range(len(front)):
            if not {t, t + 1} <= drawn:
                continue
            for i, j in np.argwhere(np.maximum(front[t], back[t].T) >= least).tolist():
                self.edges.append(Edge(t, i, j, float(front[t, i, j]), float(back[t, j, i])))

    @property
    def crowded(self) -> bool:
        """Whether the numbers of some step have no room beside its frame."""
        count: dict[int, int] = {}
        for edge in self.edges:
            count[edge.t] = count.get(edge.t, 0) + 1
        return max(count.values(), default=0) > MOST_BESIDE

    def strip(self, scores: bool) -> Strip:
        """Return the strip.

        Args:
            scores: whether boxes are labelled with their scores, too.
        """
        title, paint = "boxes, front and back edges", boxes(self.view).paint
        if not scores:
            title = "front and back edges"

            def paint(canvas: Canvas, rect: FrameRect, t: int) -> None:
                draw_boxes(canvas, rect, self.view, t, str)

        note = (
            "IoU with the boxes of the next step, rows divided by their sum; "
            f"weights from {compact(self.least)}"
        )
        legend = ((FRONT, "front"), (BACK, "back"))
        if self.crowded:
            note += "; smaller weights are fainter, the numbers are in the table below"
            join, gap = self._bundle, BUNDLE_GAP
        else:
            join, gap = self._arrows, EDGE_GAP
        return Strip(title, note, legend, gap, paint=paint, join=join)

    def _between(self, t: int) -> list[Edge]:
        return [edge for edge in self.edges if edge.t == t]

    def _arrows(
        self, canvas: Canvas, rect: FrameRect, after: FrameRect, t: int, labels: bool
    ) -> None:
        """Arrows from centre to centre, with numbers where they leave and enter a frame."""
        front_labels, back_labels = [], []
        for edge in self._between(t):
            i, j = edge.i, edge.j
            start = rect.centre(self.view.boxes[t, i])
            end = after.centre(self.view.boxes[t + 1, j])

            # The two directions run beside one another. Labels stand where the line leaves its
            # frame and where it enters the next.
            if edge.front >= self.least:
                line = [(start[0], start[1] - 1.5), (end[0], end[1] - 1.5)]
                canvas.arrow(*line, _faded(FRONT, edge.front), 0.8 + 1.7 * edge.front)
                y = _height_at(rect.x + rect.width + 2, start, end)
                front_labels.append((y, edge.front, f"{i}>{j}"))
            if edge.back >= self.least:
                line = [(end[0], end[1] + 1.5), (start[0], start[1] + 1.5)]
                canvas.arrow(*line, _faded(BACK, edge.back), 0.8 + 1.7 * edge.back)
                y = _height_at(after.x - 2, start, end)
                back_labels.append((y, edge.back, f"{j}>{i}"))
        if labels:
            _weights(canvas, rect, rect.x + rect.width + 3, front_labels, FRONT)
            _weights(canvas, rect, after.x - EDGE_GAP / 2 + 2, back_labels, BACK)

    def _bundle(
        self, canvas: Canvas, rect: FrameRect, after: FrameRect, t: int, labels: bool
    ) -> None:
        """Curves in the gap, from the number of a box to the number of a box."""
        found = self._between(t)
        # A video shows one frame, so there is no gap.
        if after.x <= rect.x:
            self._arrows(canvas, rect, after, t, False)
            return
        left = self._ports(rect, t, {edge.i for edge in found})
        right = self._ports(after, t + 1, {edge.j for edge in found})
        start_x, end_x = rect.x + rect.width + 4 + PORT + 3, after.x - 4 - PORT - 3

        lines = []
        for edge in found:
            for weight, colour, offset in ((edge.front, FRONT, -1.2), (edge.back, BACK, 1.2)):
                if weight >= self.least:
                    start = (start_x, left[edge.i] + offset)
                    lines.append((weight, colour, start, (end_x, right[edge.j] + offset)))
        # The heaviest are on top.
        for weight, colour, start, end in sorted(lines, key=lambda line: line[0]):
            canvas.line(_curve(start, end), _faded(colour, weight), 0.7 + 1.6 * weight)

        for x, ports in ((start_x - PORT - 3, left), (end_x + 3, right)):
            for slot, y in ports.items():
                _port(canvas, x, y, slot)

    def _ports(self, rect: FrameRect, t: int, slots: set[int]) -> dict[int, float]:
        """The y of the number of each box, beside its box where there is room."""
        wanted = sorted((rect.centre(self.view.boxes[t, slot])[1], slot) for slot in slots)
        step = min(PORT + 1.0, rect.height / max(1, len(wanted)))
        placed: list[float] = []
        for y, _ in wanted:
            lowest = placed[-1] + step if placed else rect.y + step / 2
            placed.append(max(y, lowest))
        # Numbers that this moved below the frame come back up.
        end = rect.y + rect.height + step / 2
        for k in reversed(range(len(placed))):
            placed[k] = end = min(placed[k], end - step)
        return {slot: y for (_, slot), y in zip(wanted, placed, strict=True)}

    def table(self, width: float) -> Canvas:
        """Return the weights as a panel: a column for each two neighbouring steps.

        Args:
            width: of the page, pixels; columns wrap to further rows.
        """
        by_step = {t: self._between(t) for t in sorted({edge.t for edge in self.edges})}
        size, line = LABEL_SIZE + 1, LABEL_SIZE + 5
        column = 26 + text_width("10 - 10", size) + 2 * text_width(".00", size) + 30
        per_row = max(1, int(width // column))
        groups = list(by_step.items())
        rows = [groups[first : first + per_row] for first in range(0, len(groups), per_row)]

        heights = [line * (3 + max(len(edges) for _, edges in row)) for row in rows]
        used = column * min(per_row, len(groups))
        canvas = Canvas(min(width, max(used, 300.0)), 24 + sum(heights))
        canvas.text((0, 0), "weights of the edges: box, box of the next step", 14)
        y = 24.0
        for row, height in zip(rows, heights, strict=True):
            for k, (t, edges) in enumerate(row):
                self._table_column(canvas, (k * column, y), t, edges, size)
            y += height
        return canvas

    def _table_column(
        self, canvas: Canvas, at: tuple[float, float], t: int, edges: Sequence[Edge], size: int
    ) -> None:
        """The edges of one step, by box, with front and back weights."""
        (x, y), line = at, LABEL_SIZE + 5
        pair, number = text_width("10 - 10", size) + 10, text_width(".00", size) + 8
        canvas.text((x, y), f"steps {t} and {t + 1}", size, INK)
        canvas.text((x + pair + number, y + line), "front", size, FRONT, "ra")
        canvas.text((x + pair + 2 * number + 10, y + line), "back", size, BACK, "ra")
        for k, edge in enumerate(sorted(edges, key=lambda edge: (edge.i, edge.j)), 2):
            top = y + k * line
            canvas.text((x, top), f"{edge.i} - {edge.j}", size, FAINT)
            for place, weight in ((number, edge.front), (2 * number + 10, edge.back)):
                text = compact(weight) if weight >= self.least else f"<{compact(self.least)}"
                canvas.text((x + pair + place, top), text, size, INK, "ra")


def _iou_graphs(view: ViewContent) -> tuple[np.ndarray, np.ndarray]:
    """The front and back graph of the cached boxes."""
    iou = view.fields.get("iou")
    if iou is None:
        iou = iou_graph(view.boxes, view.valid)
    front, back = front_back(torch.from_numpy(iou)[None], torch.from_numpy(view.valid)[None])
    return front[0].numpy(), back[0].numpy()


def _height_at(x: float, start: tuple[float, float], end: tuple[float, float]) -> float:
    """y of a line at x."""
    return start[1] + (end[1] - start[1]) * (x - start[0]) / max(end[0] - start[0], 1e-6)


def _curve(start: tuple[float, float], end: tuple[float, float]) -> list[tuple[float, float]]:
    """An S from start to end that is level at both ends."""
    points = []
    for u in np.linspace(0, 1, 17).tolist():
        level = u * u * (3 - 2 * u)
        points.append((start[0] + (end[0] - start[0]) * u, start[1] + (end[1] - start[1]) * level))
    return points


def _faded(colour: Colour, weight: float) -> Colour:
    """A colour on its way to the paper's, the lighter the weight."""
    share = 0.2 + 0.8 * min(1.0, weight / FULL)
    mixed = [round(p + (c - p) * share) for c, p in zip(colour, PAPER, strict=True)]
    return mixed[0], mixed[1], mixed[2]


def _port(canvas: Canvas, x: float, y: float, slot: int) -> None:
    """The number of a box on its colour."""
    corners = (x, y - PORT / 2, x + PORT, y + PORT / 2)
    canvas.rectangle(corners, colour_of(slot), 0, fill=colour_of(slot))
    canvas.text((x + PORT / 2, y), str(slot), 8, INK, "mm")


def _weights(
    canvas: Canvas,
    frame: FrameRect,
    x: float,
    weights: Sequence[tuple[float, float, str]],
    colour: Colour,
) -> None:
    """Draw a column of labels (y, weight, edge) at x, near their y, beside `frame`.

    Only the heaviest are drawn where there is no room for all.
    """
    height = LABEL_SIZE + 5
    heaviest = sorted(weights, key=lambda label: -label[1])[: int(frame.height // height)]
    kept = sorted(heaviest)

    # Labels that overlap move down.
    tops: list[float] = []
    for y, _, _ in kept:
        lowest = tops[-1] + height if tops else frame.y
        tops.append(max(y - height / 2, lowest))

    # Labels that this moved below the frame come back up.
    end = frame.y + frame.height
    for k in reversed(range(len(tops))):
        tops[k] = end = min(tops[k], end - height)

    for y, (_, weight, edge) in zip(tops, kept, strict=True):
        canvas.tag((x, y), f"{edge}: {compact(weight)}", colour, LABEL_SIZE)
