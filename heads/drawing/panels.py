"""What stands beside the frames: the caption, the structure that GOS chose (its Figure 4), the
classes with the best scores.
"""

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
    shortened,
    text_width,
    wrapped,
)
from heads.drawing.head_output import HeadResult
from heads.drawing.source import ViewContent

RIGHT, WRONG = (20, 130, 70), (190, 30, 45)
LINE = 17  # pixels from one line of text to the next
TEXT = 12


def caption_lines(
    shown: ViewContent, told: HeadResult | None, width: float
) -> list[tuple[str, int, Colour]]:
    """The caption in lines of (text, size, colour): clip; view and label; prediction; why there are
    no frames.
    """
    lines = [(shortened(shown.clip.clip, 20, width), 20, INK)]
    label = "; ".join(shown.clip.labels) or "none"
    about = f"{shown.group.name} view {shown.view} of {shown.group.per_clip}, split {shown.clip.split}; label: {label}"
    lines += [(line, TEXT, INK) for line in wrapped(about, TEXT, width)]
    lines += [(line, TEXT, FAINT) for line in wrapped(_of_what(shown), TEXT, width)]
    if shown.missing:
        said = f"no frames, boxes on grey: {shown.missing}"
        lines += [(line, TEXT, WRONG) for line in wrapped(said, TEXT, width)]
    if told is not None:
        right = told.classes[told.best] in shown.clip.labels
        known = bool(shown.clip.labels)
        verdict = f" ({'right' if right else 'wrong'})" if known else ""
        said = f"{told.head}, {told.run.name}, {told.checkpoint}: {told.classes[told.best]}"
        said += f", {told.scores_kind} {_score(told, told.best)}{verdict}"
        colour = (RIGHT if right else WRONG) if known else INK
        lines += [(line, TEXT, colour) for line in wrapped(said, TEXT, width)]
    return lines


def _of_what(shown: ViewContent) -> str:
    said = f"{len(shown.steps)} steps of {len(shown.images)} frames"
    if "crop" in shown.fields:
        x, y, width, height, whole, tall = shown.fields["crop"].tolist()
        said += f"; {width:.0f}x{height:.0f} pixels at ({x:.0f},{y:.0f}) of {whole:.0f}x{tall:.0f}"
    return said + ("; mirrored" if shown.flip else "")


def predictions(told: HeadResult, labels: tuple[str, ...], most: int, width: float = 520) -> Canvas:
    """Bars of the `most` classes with the highest scores, the clip's own among `labels` in
    green.
    """
    order = np.argsort(-told.scores, kind="stable")[:most].tolist()
    canvas = Canvas(width, 24 + 22 * len(order))
    canvas.text(
        (0, 0), f"predictions: {told.scores_kind}, the best {len(order)} of {len(told.classes)}", 14
    )
    names = min(width / 2, max(text_width(told.classes[k], TEXT) for k in order) + 8)
    low = min(0.0, float(told.scores[order].min()))
    full = max(float(told.scores[order[0]]) - low, 1e-9)
    if told.scores_kind != "logits":
        low, full = 0.0, 1.0
    for n, k in enumerate(order):
        y, own = 24 + 22 * n, told.classes[k] in labels
        colour = RIGHT if own else (FAINT if labels else INK)
        canvas.text(
            (0, y + 8),
            shortened(told.classes[k], TEXT, names - 8),
            TEXT,
            colour if own else INK,
            "lm",
        )
        length = (width - names - 60) * (float(told.scores[k]) - low) / full
        canvas.rectangle((names, y, names + max(length, 1), y + 15), colour, 0, fill=colour)
        canvas.text((names + max(length, 1) + 6, y + 8), _score(told, k), TEXT, INK, "lm")
    return canvas


def _score(told: HeadResult, k: int) -> str:
    """Percent for what lies in [0,1], logits as they are."""
    return (
        f"{told.scores[k]:.3g}" if told.scores_kind == "logits" else f"{100 * told.scores[k]:.1f} %"
    )


def structure(told: HeadResult, width: float = 620) -> Canvas:
    """The operation of every edge between the supernodes (GOS Figure 4), its weight where all are
    mixed; a row per cell.
    """
    chosen, weights = told.maps["structure"].astype(int), told.maps["weights"]
    last = max(j for _, j in told.edges)
    above, below = 26 + 44 * max(1, last - 1), 40 + 44 * max(0, last - 2)
    canvas = Canvas(width, 24 + (above + below) * len(chosen))
    canvas.text(
        (0, 0), "structure: the heaviest operation of each edge, and its weight in the softmax", 14
    )
    for cell, operations in enumerate(chosen.tolist()):
        y = 24 + (above + below) * cell + above
        places = [(40 + (width - 80) * k / last, y) for k in range(last + 1)]
        for (i, j), o, w in zip(told.edges, operations, weights[cell], strict=True):
            _edge(canvas, places, (i, j), told.space[o], colour_of(o), float(w[o]))
        for k, (x, _) in enumerate(places):
            canvas.disc((x, y), 15, PAPER, INK, 1.5)
            canvas.text((x, y), f"s{k}", TEXT, INK, "mm")
        if len(chosen) > 1:
            canvas.text((0, y - above + 4), f"cell {cell + 1}", TEXT, FAINT)
    return canvas


def _edge(
    canvas: Canvas,
    places: list[Point],
    edge: tuple[int, int],
    name: str,
    colour: Colour,
    weight: float,
) -> None:
    """An arc from supernode i to j: straight to the next one, above for those from an even i, below
    from an odd one.
    """
    i, j = edge
    (x1, y), (x2, _) = places[i], places[j]
    rise = 0.0 if j == i + 1 else (-1 if i % 2 == 0 else 1) * 44.0 * (j - i - 1)
    steps = np.linspace(0, np.pi, 33)
    points = [(x1 + (x2 - x1) * (1 - np.cos(a)) / 2, y + rise * float(np.sin(a))) for a in steps]
    if rise == 0:
        points = [(x1, y), (x2, y)]
    if name == "none":
        for k in range(0, len(points) - 1, 2 if rise else 1):
            canvas.line([points[k], points[k + 1]], GREY, 1.2, dashed=rise == 0)
    else:
        canvas.line(points, colour, 2.2)
        canvas.arrow((x2 - 26, y), (x2 - 15, y), colour, 2.2) if rise == 0 else None
    text = f"{name} {weight:.2f}"
    middle = (x1 + x2) / 2 - (text_width(text, TEXT - 1) + 5) / 2, y + rise - 8
    canvas.tag(middle, text, GREY if name == "none" else colour, TEXT - 1)
