"""Arrange a drawing: strips and panels as one picture, or as the frames of a video.

Lengths are pixels. A strip has one frame per step and wraps at the page's width.
"""

import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from heads.drawing.canvas import (
    FAINT,
    INK,
    PAPER,
    Canvas,
    Colour,
    FrameRect,
    shorten,
    text_width,
    wrap,
)
from heads.drawing.head_output import HeadResult
from heads.drawing.panels import LINE, TEXT, caption_lines
from heads.drawing.sections import Strip
from heads.drawing.source import ViewContent
from heads.runs.run_files import write_atomically
from pipeline.files.owners import new_claim_name, part_path, remove_abandoned_of
from pipeline.video.decode import write_video

PICTURES = (".png", ".jpg", ".jpeg", ".webp")

# A frame is enlarged to fill the page's width, up to this factor.
MOST_STRETCH = 2.0

# Pixels around the page, above a strip, below a row of frames, between the frames of a video.
MARGIN, TITLE, FOOT, SPACE = 20, 38, 18, 16


@dataclass(frozen=True)
class Style:
    """How much is drawn, and how large.

    Attributes:
        height: of a frame, pixels, 32 or more; frames are enlarged where the page has room.
        width: of the page, pixels, 200 or more.
        steps: the steps to draw; () for all.
        neighbours: M, how many similar nodes are drawn.
        least: the smallest weight of an edge that is drawn.
        top: how many classes the predictions show.

    Raises:
        ValueError: a size that leaves nothing to draw.
    """

    height: int = 180
    width: int = 1600
    steps: tuple[int, ...] = ()
    neighbours: int = 10
    least: float = 0.25
    top: int = 5

    def __post_init__(self) -> None:
        for name, low in {"height": 32, "width": 200, "neighbours": 1, "top": 1}.items():
            if getattr(self, name) < low:
                raise ValueError(f"{name}: expected at least {low}, got {getattr(self, name)}")


@dataclass
class Drawing:
    """A view with everything that is drawn of it.

    Attributes:
        what: names of `heads.drawing.draw.WHAT`, in their order.
        view: the view.
        result: what a trained head returns for it; None without a head.
        sections: the strips of frames.
        panels: what stands beside or below the frames.
        style: sizes and limits.
    """

    what: tuple[str, ...]
    view: ViewContent
    result: HeadResult | None
    sections: list[Strip]
    panels: list[Canvas]
    style: Style

    @property
    def missing(self) -> str:
        """Why frames are grey, or ""."""
        return self.view.missing

    def picture(self) -> Image.Image:
        """Return the strips below one another, then the panels, as one RGB picture."""
        return page(self).finished()

    def frames(self) -> np.ndarray:
        """Return the view as a video: every strip's drawing over each frame, side by side.

        Returns:
            [F,H,W,3] uint8 with even H and W.
        """
        screens = []
        for k in range(len(self.view.images)):
            screens.append(np.asarray(screen(self, k).finished()))
        return np.stack(screens)

    def save(self, path: str | Path, fps: float = 0.0) -> Path:
        """Write a picture or a video.

        Args:
            path: a name that ends in .png, .jpg, .jpeg, .webp or .mp4.
            fps: a video's frame rate; 0 makes it last 4 seconds.

        Returns:
            The path.

        Raises:
            ValueError: another ending.
        """
        path = Path(path)
        ending = path.suffix.lower()
        if ending not in (*PICTURES, ".mp4"):
            raise ValueError(f"{path}: expected a name that ends in {', '.join(PICTURES)} or .mp4")
        path.parent.mkdir(parents=True, exist_ok=True)
        remove_abandoned_of(path)

        # The encoder wants a path, so a video is written to a part file and renamed.
        if ending == ".mp4":
            part = part_path(path, new_claim_name())
            try:
                frames = self.frames()
                write_video(part, frames, fps or max(len(frames) / 4, 1.0))
                os.replace(part, path)
            finally:
                part.unlink(missing_ok=True)
        else:
            image = self.picture()
            kind = {".png": "PNG", ".webp": "WEBP"}.get(ending, "JPEG")
            write_atomically(path, lambda file: image.save(file, kind, quality=92))
        return path


@dataclass
class _StripSize:
    """Pixels of a frame, frames per row, and rows of a strip."""

    width: float
    height: float
    per_row: int
    rows: int


def page(drawing: Drawing) -> Canvas:
    """Draw the picture: caption, strips, panels."""
    style, strips = drawing.style, drawing.sections
    steps = list(style.steps) or list(range(len(drawing.view.steps)))
    sizes = [_strip_size(drawing, strip, len(steps)) for strip in strips]

    # A row that continues in the next one has room behind its last frame for the joining lines.
    widths = []
    for strip, size in zip(strips, sizes, strict=True):
        used = size.per_row * (size.width + strip.gap)
        widths.append(used - strip.gap if size.rows == 1 else used)
    least = min(640.0, style.width - 2.0 * MARGIN)
    inner = max(least, *widths, *[panel.width for panel in drawing.panels])

    lines = caption_lines(drawing.view, drawing.result, inner)
    headings = [_heading_height(strip, inner) for strip in strips]
    placed, panels_height = _arrange(drawing.panels, inner)
    height = _caption_height(lines)
    for heading, size in zip(headings, sizes, strict=True):
        height += heading + size.rows * (size.height + FOOT) + 8
    canvas = Canvas(inner + 2 * MARGIN, height + panels_height + MARGIN)

    y = _draw_caption(canvas, lines)
    for strip, heading, size in zip(strips, headings, sizes, strict=True):
        _draw_heading(canvas, strip, MARGIN, y, inner)
        y += heading
        for first in range(0, len(steps), size.per_row):
            rect = FrameRect(MARGIN, y, size.width, size.height)
            _draw_row(canvas, drawing.view, strip, steps, first, size.per_row, rect)
            y += size.height + FOOT
        y += 8
    for panel, x, down in placed:
        canvas.paste(panel, (MARGIN + x, y + down))
    return canvas


def screen(drawing: Drawing, k: int) -> Canvas:
    """Draw image k of the video: the caption, every strip's drawing over the frame, the panels."""
    view, strips = drawing.view, drawing.sections
    sizes = [_frame_size(drawing, strip) for strip in strips]
    width = max([w for w, _ in sizes], default=0.0)
    height = max([h for _, h in sizes], default=0.0)

    # Up to three strips lie side by side, more of them in two rows or as the page's width allows.
    room = drawing.style.width - 2 * MARGIN + SPACE
    fitting = int(room // ((width or 1) + SPACE))
    wanted = len(sizes) if len(sizes) < 4 else math.ceil(len(sizes) / 2)
    columns = max(1, min(fitting, wanted))
    rows = math.ceil(len(sizes) / columns)

    panel_widths = [panel.width for panel in drawing.panels]
    inner = max(columns * (width + SPACE) - SPACE, 320.0, *panel_widths)
    lines = caption_lines(view, drawing.result, inner)
    placed, panels_height = _arrange(drawing.panels, inner)
    total = _caption_height(lines) + rows * (height + TITLE) + FOOT + panels_height + MARGIN
    # Video codecs want even sizes.
    canvas = Canvas(math.ceil((inner + 2 * MARGIN) / 2) * 2, math.ceil(total / 2) * 2)

    # The step that the image belongs to, or the last one before it.
    t = max([t for t, at in enumerate(view.steps) if at <= k], default=0)
    y = _draw_caption(canvas, lines)
    for n, strip in enumerate(strips):
        left = MARGIN + n % columns * (width + SPACE)
        top = y + n // columns * (height + TITLE) + TITLE - 16
        rect = FrameRect(left, top, *sizes[n])
        canvas.text((left, top - 18), shorten(strip.title, TEXT, rect.width), TEXT, INK)
        canvas.image(strip.backdrop(t, view.images[k]), rect)
        if strip.join is not None and t + 1 < len(view.steps):
            strip.join(canvas, rect, rect, t, False)
        strip.paint(canvas, rect, t)

    y += rows * (height + TITLE)
    foot = f"step {t}"
    if view.frame_numbers:
        foot += f", frame {view.frame_numbers[k]}"
    canvas.text((MARGIN, y), foot, 11, FAINT)
    for panel, x, down in placed:
        canvas.paste(panel, (MARGIN + x, y + FOOT + down))
    return canvas


def _frame_size(drawing: Drawing, strip: Strip) -> tuple[float, float]:
    """Width and height of a frame in a strip."""
    width, height = drawing.view.images[0].size
    scaled = drawing.style.height * strip.scale
    return max(16.0, scaled * width / height), scaled


def _strip_size(drawing: Drawing, strip: Strip, steps: int) -> _StripSize:
    """Wrap a strip of `steps` frames into rows of equal length that fit the page."""
    width, height = _frame_size(drawing, strip)
    room = drawing.style.width - 2 * MARGIN
    per_row = steps
    if steps * (width + strip.gap) - strip.gap > room:
        per_row = max(1, min(steps - 1, int(room // (width + strip.gap))))
    rows = math.ceil(steps / per_row)
    # Rows of equal length, instead of full ones and a short one.
    per_row = math.ceil(steps / rows)
    # A row that continues in the next one has a gap behind its last frame, too.
    gaps = per_row if rows > 1 else per_row - 1
    stretch = min(MOST_STRETCH, max(1.0, (room - gaps * strip.gap) / (per_row * width)))
    return _StripSize(width * stretch, height * stretch, per_row, rows)


def _caption_height(lines: Sequence[tuple[str, int, Colour]]) -> float:
    return MARGIN + sum([size + LINE - TEXT for _, size, _ in lines]) + 6


def _draw_caption(canvas: Canvas, lines: Sequence[tuple[str, int, Colour]]) -> float:
    """Draw the caption's lines; return the y below them."""
    y = float(MARGIN)
    for text, size, colour in lines:
        canvas.text((MARGIN, y), text, size, colour)
        y += size + LINE - TEXT
    return y + 6


def _heading_height(strip: Strip, width: float) -> float:
    return TITLE - 18 + 16 * len(_note_lines(strip, width)) + 2 * bool(_note_lines(strip, width))


def _note_lines(strip: Strip, width: float) -> list[str]:
    """The lines of a note below its title; [] where it stands behind the title."""
    if not strip.note or _note_fits(strip, width):
        return []
    return wrap(strip.note, TEXT, width)


def _note_fits(strip: Strip, width: float) -> bool:
    """Whether a strip's note has room behind its title and legend."""
    legend = sum([26 + text_width(text, TEXT) for _, text in strip.legend])
    return text_width(strip.title, 15) + 14 + legend + text_width(strip.note, TEXT) <= width


def _draw_heading(canvas: Canvas, strip: Strip, left: float, y: float, width: float) -> None:
    """Draw a strip's title and legend in one line, its note behind them or below."""
    x = left + canvas.text((left, y), strip.title, 14) + 14
    for colour, text in strip.legend:
        canvas.rectangle((x, y + 3, x + 12, y + 13), colour, 0, fill=colour)
        x += 16 + canvas.text((x + 16, y + 2), text, TEXT, FAINT) + 10

    if strip.note and _note_fits(strip, width):
        canvas.text((x, y + 2), strip.note, TEXT, FAINT)
    for k, line in enumerate(_note_lines(strip, width)):
        canvas.text((left, y + 18 + 16 * k), line, TEXT, FAINT)


def _draw_row(
    canvas: Canvas,
    view: ViewContent,
    strip: Strip,
    steps: list[int],
    first: int,
    count: int,
    rect: FrameRect,
) -> None:
    """Draw `count` frames from the `first` of `steps` on, and what joins them.

    The first frame lies at `rect`, the others to its right.
    """
    row = steps[first : first + count]
    rects = _frames_of_row(rect, strip.gap, 0, len(row))
    for t, at in zip(row, rects, strict=True):
        canvas.image(strip.backdrop(t, view.images[view.steps[t]]), at)

    if strip.join is not None:
        _draw_joins(canvas, strip, steps, first, len(row), rect)

    for t, at in zip(row, rects, strict=True):
        strip.paint(canvas, at, t)
        foot = f"step {t}"
        if view.frame_numbers:
            foot += f", frame {view.frame_numbers[view.steps[t]]}"
        # Small frames have room for the step alone.
        if text_width(foot, 11) > at.width:
            foot = str(t)
        canvas.text((at.x, at.y + at.height + 3), foot, 11, FAINT)


def _draw_joins(
    canvas: Canvas, strip: Strip, steps: list[int], first: int, count: int, rect: FrameRect
) -> None:
    """Draw a strip's lines between the frames of a row, and to the rows before and after.

    A line to a step of another row is cut off in the gap behind its frame. It continues before
    the frame that it leads to.
    """
    # One frame more at either end stands for the other rows' neighbours. Steps that are not
    # drawn leave gaps: only consecutive steps are joined.
    rects = _frames_of_row(rect, strip.gap, -1, count + 1)
    for k in range(first - 1, first + count):
        if k < 0 or k + 1 >= len(steps) or steps[k + 1] != steps[k] + 1:
            continue
        at = k - first + 1
        strip.join(canvas, rects[at], rects[at + 1], steps[k], k >= first)

    # What the lines draw beyond the row is erased: no line leaves the page, or enters its margin.
    end, below = rects[-1].x, rect.y + rect.height + 1
    canvas.rectangle((end, rect.y - 1, canvas.width, below), PAPER, 0, fill=PAPER)
    canvas.rectangle((0, rect.y - 1, rect.x - 1, below), PAPER, 0, fill=PAPER)


def _frames_of_row(rect: FrameRect, gap: float, start: int, stop: int) -> list[FrameRect]:
    """Rectangles of frames `start` to `stop` - 1 of a row whose frame 0 lies at `rect`."""
    stride = rect.width + gap
    rects = []
    for k in range(start, stop):
        rects.append(FrameRect(rect.x + k * stride, rect.y, rect.width, rect.height))
    return rects


def _arrange(
    panels: Sequence[Canvas], width: float
) -> tuple[list[tuple[Canvas, float, float]], float]:
    """The panels with their x and y, side by side where they fit, and the height of all."""
    placed, x, y, tallest = [], 0.0, 0.0, 0.0
    for panel in panels:
        if x and x + panel.width > width:
            x, y, tallest = 0.0, y + tallest + 16, 0.0
        placed.append((panel, x, y))
        x, tallest = x + panel.width + 40, max(tallest, panel.height)
    return placed, y + tallest
