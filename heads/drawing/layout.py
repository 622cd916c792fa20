"""Where everything lies: the strips of a picture, row by row, and the panels of a video's frame.

Lengths are pixels. A strip is a `Strip` with one frame per step; it wraps to the width that the
style gives.
"""

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING

from heads.drawing.canvas import FAINT, INK, PAPER, Canvas, Colour, Place, shortened, text_width
from heads.drawing.panels import LINE, TEXT, caption_lines
from heads.drawing.sections import Strip

if TYPE_CHECKING:
    from heads.drawing.draw import Drawing

MARGIN, TITLE, FOOT = 20, 38, 18  # around the page, above a strip, below a row of frames


def _frame_width(drawing: "Drawing", section: Strip) -> tuple[float, float]:
    """Width and height of a frame in a section."""
    width, height = drawing.shown.images[0].size
    tall = drawing.style.height * section.scale
    return max(16.0, tall * width / height), tall


def page(drawing: "Drawing") -> Canvas:
    """The picture: caption, strips, panels."""
    shown, style = drawing.shown, drawing.style
    steps = list(style.steps) or list(range(len(shown.steps)))
    room = style.width - 2 * MARGIN
    plans = []
    for section in drawing.sections:
        wide, tall = _frame_width(drawing, section)
        per_row = len(steps)
        if len(steps) * (wide + section.gap) - section.gap > room:
            per_row = max(1, min(len(steps) - 1, int(room // (wide + section.gap))))
        rows = math.ceil(len(steps) / per_row)
        per_row = math.ceil(len(steps) / rows)  # even rows
        plans.append((section, wide, tall, per_row, rows))
    # Behind the last frame of a row there is room for what leads to the next row.
    used = max((p[3] * (p[1] + p[0].gap) - (p[4] == 1) * p[0].gap for p in plans), default=0)
    inner = max(used, 640.0, *(panel.width for panel in drawing.panels))
    lines = caption_lines(shown, drawing.told, inner)
    top = MARGIN + sum(size + LINE - TEXT for _, size, _ in lines) + 6
    heads = [_heading_height(section, inner) for section in drawing.sections]
    strips = sum(head + p[4] * (p[2] + FOOT) + 8 for head, p in zip(heads, plans, strict=True))
    panels, below = _arranged(drawing.panels, inner)
    canvas = Canvas(inner + 2 * MARGIN, top + strips + below + MARGIN)
    y = _caption(canvas, lines)
    for head, (section, wide, tall, per_row, _) in zip(heads, plans, strict=True):
        _heading(canvas, section, MARGIN, y, inner)
        y += head
        for first in range(0, len(steps), per_row):
            _row(canvas, drawing, section, steps, first, per_row, Place(MARGIN, y, wide, tall))
            y += tall + FOOT
        y += 8
    for panel, x, down in panels:
        canvas.sheet(panel, (MARGIN + x, y + down))
    return canvas


def _caption(canvas: Canvas, lines: Sequence[tuple[str, int, Colour]]) -> float:
    y = float(MARGIN)
    for text, size, colour in lines:
        canvas.text((MARGIN, y), text, size, colour)
        y += size + LINE - TEXT
    return y + 6


def _heading_height(section: Strip, width: float) -> float:
    return TITLE if section.note and not _note_fits(section, width) else TITLE - 18


def _note_fits(section: Strip, width: float) -> bool:
    """Whether a section's note has room behind its title and legend."""
    legend = sum(26 + text_width(text, TEXT) for _, text in section.legend)
    return text_width(section.title, 15) + 14 + legend + text_width(section.note, TEXT) <= width


def _heading(canvas: Canvas, section: Strip, x: float, y: float, width: float) -> None:
    """Title and legend of a section in one line, its note behind them or below."""
    left = x
    x += canvas.text((x, y), section.title, 14) + 14
    for colour, text in section.legend:
        canvas.rectangle((x, y + 3, x + 12, y + 13), colour, 0, fill=colour)
        x += 16 + canvas.text((x + 16, y + 2), text, TEXT, FAINT) + 10
    if section.note and _note_fits(section, width):
        canvas.text((x, y + 2), section.note, TEXT, FAINT)
    elif section.note:
        canvas.text((left, y + 18), shortened(section.note, TEXT, width), TEXT, FAINT)


def _row(
    canvas: Canvas,
    drawing: "Drawing",
    section: Strip,
    steps: list[int],
    first: int,
    count: int,
    place: Place,
) -> None:
    """`count` frames from the `first` of `steps` on, at `place` and to the right of it, and what
    joins them.

    A line to a step of another row is cut off in the gap behind its frame, and goes on before the
    frame that it leads to.
    """
    shown, stride = drawing.shown, place.width + section.gap
    here = steps[first : first + count]
    places = [
        Place(place.x + k * stride, place.y, place.width, place.height) for k in range(len(here))
    ]
    for t, at in zip(here, places, strict=True):
        canvas.image(section.backdrop(t, shown.images[shown.steps[t]]), at)
    if section.join is not None:
        before, after = (
            steps[first - 1] if first else -1,
            steps[first + count] if first + count < len(steps) else -1,
        )
        if before == here[0] - 1 and first:
            section.join(
                canvas,
                Place(place.x - stride, place.y, place.width, place.height),
                places[0],
                before,
                False,
            )
        for k, t in enumerate(here):
            if (here[k + 1] if k + 1 < len(here) else after) == t + 1:
                section.join(
                    canvas,
                    places[k],
                    Place(places[k].x + stride, place.y, place.width, place.height),
                    t,
                    True,
                )
        end = places[-1].x + stride
        canvas.rectangle(
            (end, place.y - 1, canvas.width, place.y + place.height + 1), PAPER, 0, fill=PAPER
        )
    for t, at in zip(here, places, strict=True):
        section.paint(canvas, at, t)
        foot = f"step {t}"
        if shown.numbers:
            foot += f", frame {shown.numbers[shown.steps[t]]}"
        if text_width(foot, 11) > at.width:
            foot = str(t)
        canvas.text((at.x, at.y + at.height + 3), foot, 11, FAINT)


def _arranged(
    panels: Sequence[Canvas], width: float
) -> tuple[list[tuple[Canvas, float, float]], float]:
    """The panels with their places, side by side where they fit, and the height of all."""
    found, x, y, tallest = [], 0.0, 0.0, 0.0
    for panel in panels:
        if x and x + panel.width > width:
            x, y, tallest = 0.0, y + tallest + 16, 0.0
        found.append((panel, x, y))
        x, tallest = x + panel.width + 40, max(tallest, panel.height)
    return found, y + tallest


def screen(drawing: "Drawing", k: int) -> Canvas:
    """Image k of the video: the caption, every section's drawing over the frame, the panels."""
    shown, style = drawing.shown, drawing.style
    t = max((t for t, at in enumerate(shown.steps) if at <= k), default=0)
    sizes = [_frame_width(drawing, section) for section in drawing.sections]
    columns = max(
        1, int((style.width - 2 * MARGIN + 16) // (max((w for w, _ in sizes), default=1) + 16))
    )
    columns = max(1, min(columns, len(sizes) if len(sizes) < 4 else math.ceil(len(sizes) / 2)))
    wide, tall = max((w for w, _ in sizes), default=0.0), max((h for _, h in sizes), default=0.0)
    rows = math.ceil(len(sizes) / columns)
    inner = max(columns * (wide + 16) - 16, 320.0, *(panel.width for panel in drawing.panels), 0.0)
    lines = caption_lines(shown, drawing.told, inner)
    top = MARGIN + sum(size + LINE - TEXT for _, size, _ in lines) + 6
    panels, below = _arranged(drawing.panels, inner)
    height = top + rows * (tall + TITLE) + FOOT + below + MARGIN
    canvas = Canvas(math.ceil((inner + 2 * MARGIN) / 2) * 2, math.ceil(height / 2) * 2)
    y = _caption(canvas, lines)
    for n, section in enumerate(drawing.sections):
        place = Place(
            MARGIN + n % columns * (wide + 16),
            y + n // columns * (tall + TITLE) + TITLE - 16,
            *sizes[n],
        )
        canvas.text((place.x, place.y - 18), shortened(section.title, TEXT, place.width), TEXT, INK)
        canvas.image(section.backdrop(t, shown.images[k]), place)
        if section.join is not None and t + 1 < len(shown.steps):
            section.join(canvas, place, place, t, False)
        section.paint(canvas, place, t)
    y += rows * (tall + TITLE)
    canvas.text(
        (MARGIN, y),
        f"step {t}" + (f", frame {shown.numbers[k]}" if shown.numbers else ""),
        11,
        FAINT,
    )
    for panel, x, down in panels:
        canvas.sheet(panel, (MARGIN + x, y + FOOT + down))
    return canvas
