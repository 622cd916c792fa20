"""Panels beside the frames: the caption, GOS's structure (as in its Figure 5), the best classes."""

import numpy as np

from heads.drawing.canvas import (
    FAINT,
    GREY,
    INK,
    PAPER,
    Canvas,
    Colour,
    Point,
    colour_of,
    shorten,
    text_width,
    wrap,
)
from heads.drawing.head_output import HeadResult
from heads.drawing.source import ViewContent
from pipeline.text.counted import counted

RIGHT, WRONG = (20, 130, 70), (190, 30, 45)

# Pixels from one line of text to the next, and the size of text.
LINE = 17
TEXT = 12

# Pixels of the structure panel: radius of a supernode, height of an arc over one supernode.
NODE_RADIUS = 15
ARC_HEIGHT = 44


def caption_lines(
    view: ViewContent, result: HeadResult | None, width: float
) -> list[tuple[str, int, Colour]]:
    """Write the caption: the clip, the view and its label, the prediction, why frames are missing.

    Args:
        view: the view.
        result: what a head returns for it; None without a head.
        width: of the page, pixels; longer lines are wrapped.

    Returns:
        Lines of (text, size, colour).
    """
    clip = view.clip
    # The clip's id is the title; long lines below it are wrapped, not shortened.
    lines = [(shorten(clip.clip, 20, width), 20, INK)]

    def add(text: str, colour: Colour) -> None:
        lines.extend([(line, TEXT, colour) for line in wrap(text, TEXT, width)])

    label = "; ".join(clip.labels) or "none"
    add(
        f"{view.group.name} view {view.number} of {view.group.per_clip}, split {clip.split}; "
        f"label: {label}",
        INK,
    )
    add(_sizes(view), FAINT)
    if view.missing:
        add(f"no frames, boxes on grey: {view.missing}", WRONG)

    if result is not None:
        best = result.classes[result.best]
        verdict, colour = "", INK
        if clip.labels and best in clip.labels:
            verdict, colour = " (right)", RIGHT
        elif clip.labels:
            verdict, colour = " (wrong)", WRONG
        score = f"{result.scores_kind} {_score(result, result.best)}"
        source = f"{result.head}, {result.run.name}, {result.checkpoint}"
        add(f"{source}: {best}, {score}{verdict}", colour)
    return lines


def _sizes(view: ViewContent) -> str:
    """Steps, frames, crop and mirroring of a view, in words."""
    text = f"{counted(len(view.steps), 'step')} of {counted(len(view.images), 'frame')}"
    if "crop" in view.fields:
        x, y, width, height, full_width, full_height = view.fields["crop"].tolist()
        text += f"; {width:.0f}x{height:.0f} pixels at ({x:.0f},{y:.0f})"
        text += f" of {full_width:.0f}x{full_height:.0f}"
    if view.flip:
        text += "; mirrored"
    return text


def predictions(
    result: HeadResult, labels: tuple[str, ...], most: int, width: float = 520, of: str = ""
) -> Canvas:
    """Draw bars of the classes with the highest scores, the true classes in green.

    Args:
        result: what the head returns.
        labels: the clip's true classes; may be empty.
        most: the number of classes to draw.
        width: of the panel, pixels.
        of: what the predictions were made with; "" is the structure of `result`, if it names one.

    Returns:
        The panel.
    """
    of = of or (f"structure {result.structure}" if result.structure else "")
    order = np.argsort(-result.scores, kind="stable")[:most].tolist()
    canvas = Canvas(width, 24 + 22 * len(order))
    title = f"predictions: {result.scores_kind}, the best {len(order)} of {len(result.classes)}"
    if of:
        title = f"predictions with {of}: {result.scores_kind}"
    canvas.text((0, 0), shorten(title, 14, width), 14)

    # Logits have no fixed range, so the bars show the drawn ones relative to their best.
    low, span = 0.0, 1.0
    if result.scores_kind == "logits":
        low = min(0.0, float(result.scores[order].min()))
        span = max(float(result.scores[order[0]]) - low, 1e-9)

    widest = max([text_width(result.classes[k], TEXT) for k in order])
    left = min(width / 2, widest + 8)
    for n, k in enumerate(order):
        y = 24 + 22 * n
        bar, name_colour = INK, INK
        if result.classes[k] in labels:
            bar = name_colour = RIGHT
        elif labels:
            bar = FAINT
        name = shorten(result.classes[k], TEXT, left - 8)
        canvas.text((0, y + 8), name, TEXT, name_colour, "lm")

        length = (width - left - 60) * (float(result.scores[k]) - low) / span
        right = left + max(length, 1)
        canvas.rectangle((left, y, right, y + 15), bar, 0, fill=bar)
        canvas.text((right + 6, y + 8), _score(result, k), TEXT, INK, "lm")
    return canvas


def _score(result: HeadResult, k: int) -> str:
    """A class's score: a logit as it is, others in percent."""
    if result.scores_kind == "logits":
        return f"{result.scores[k]:.3g}"
    return f"{100 * result.scores[k]:.1f} %"


def structure(result: HeadResult, width: float = 620) -> Canvas:
    """Draw the operation of every edge between supernodes (as in GOS's Figure 5), a row per cell.

    It is the heaviest one, or that of the structure that all views were given.

    Args:
        result: what a head `gos` returns.
        width: of the panel, pixels.

    Returns:
        The panel; each edge is labelled with its operation and that operation's weight.
    """
    chosen, weights = result.maps["structure"].astype(int), result.maps["weights"]
    last = max([j for _, j in result.edges])
    above = 26 + ARC_HEIGHT * max(1, last - 1)
    below = 40 + ARC_HEIGHT * max(0, last - 2)
    canvas = Canvas(width, 24 + (above + below) * len(chosen))
    title = "structure: the heaviest operation of each edge, and its weight in the softmax"
    if result.structure:
        title = f"structure {result.structure}, with the weights that this view gives it"
    canvas.text((0, 0), shorten(title, 14, width), 14)

    for cell, operations in enumerate(chosen.tolist()):
        y = 24 + (above + below) * cell + above
        centres = [(40 + (width - 80) * k / last, y) for k in range(last + 1)]
        for edge, o, w in zip(result.edges, operations, weights[cell], strict=True):
            _draw_edge(canvas, centres, edge, result.space[o], colour_of(o), float(w[o]))
        for k, centre in enumerate(centres):
            canvas.disc(centre, NODE_RADIUS, PAPER, INK, 1.5)
            canvas.text(centre, f"s{k}", TEXT, INK, "mm")
        if len(chosen) > 1:
            canvas.text((0, y - above + 4), f"cell {cell + 1}", TEXT, FAINT)
    return canvas


def _draw_edge(
    canvas: Canvas,
    centres: list[Point],
    edge: tuple[int, int],
    operation: str,
    colour: Colour,
    weight: float,
) -> None:
    """Draw an edge from supernode i to j with its label.

    An edge to the next supernode is straight. Others are arcs, above for an even i, below for an
    odd one, so that they do not cross. The operation "none" is dashed and grey.
    """
    i, j = edge
    (x1, y), (x2, _) = centres[i], centres[j]
    straight = j == i + 1
    rise = 0.0 if straight else float(ARC_HEIGHT * (j - i - 1))
    if i % 2 == 0:
        rise = -rise

    points = [(x1, y), (x2, y)]
    if not straight:
        points = []
        for angle in np.linspace(0, np.pi, 33):
            x = x1 + (x2 - x1) * (1 - np.cos(angle)) / 2
            points.append((x, y + rise * float(np.sin(angle))))

    if operation == "none":
        colour = GREY
        # Every second piece of an arc is drawn, which makes it dashed.
        for k in range(0, len(points) - 1, 2):
            canvas.line([points[k], points[k + 1]], GREY, 1.2, dashed=straight)
    else:
        canvas.line(points, colour, 2.2)
        if straight:
            canvas.arrow((x2 - NODE_RADIUS - 11, y), (x2 - NODE_RADIUS, y), colour, 2.2)

    text = f"{operation} {weight:.2f}"
    label_x = (x1 + x2) / 2 - (text_width(text, TEXT - 1) + 5) / 2
    # The label lies on the middle of the edge.
    canvas.tag((label_x, y + rise - 8), text, colour, TEXT - 1)
