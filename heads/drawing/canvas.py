"""Ink on paper: a canvas with lines, boxes, labels and arrows, the colours, heat, and text in
whatever script it is.

Lengths are pixels of the finished picture. A canvas is drawn at twice its size and halved at the
end, so that lines are smooth.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from PIL import Image, ImageDraw, ImageFont

Colour = tuple[int, int, int]
Point = tuple[float, float]

OVER = 2  # canvas pixels per pixel of the picture
PAPER, INK, FAINT, GREY = (255, 255, 255), (24, 24, 27), (113, 113, 122), (176, 176, 182)
# One colour per box slot, told apart from one another, from skin and from grass, and by people who
# confuse red and green.
PALETTE = (
    (230, 159, 0),
    (0, 158, 255),
    (255, 73, 130),
    (40, 214, 120),
    (250, 228, 66),
    (170, 110, 255),
    (255, 120, 40),
    (0, 216, 214),
    (255, 170, 220),
    (160, 190, 60),
)
FRONT, BACK, CHOSEN = (255, 122, 0), (30, 110, 255), (255, 255, 255)
_HEAT = (
    (0, 0, 4),
    (66, 10, 104),
    (147, 38, 103),
    (221, 81, 58),
    (252, 165, 10),
    (252, 255, 164),
)  # dark to bright
# Where Pillow's own font lacks a character, the first of these that is installed and has it.
_FONTS = (
    "DejaVuSans.ttf",
    "NotoSans-Regular.ttf",
    "NotoSansCJK-Regular.ttc",
    "NotoSansCJKsc-Regular.otf",
    "wqy-zenhei.ttc",
    "wqy-microhei.ttc",
    "DroidSansFallbackFull.ttf",
    "NotoSansArabic-Regular.ttf",
    "NotoSansDevanagari-Regular.ttf",
    "Arial Unicode.ttf",
    "PingFang.ttc",
    "msyh.ttc",
)


def colour_of(slot: int) -> Colour:
    """The colour of a box slot, region or operation; they repeat after ten."""
    return PALETTE[slot % len(PALETTE)]


def ink_on(colour: Colour) -> Colour:
    """Black or white, whichever is read better on `colour`."""
    r, g, b = colour
    return (0, 0, 0) if 0.299 * r + 0.587 * g + 0.114 * b > 128 else (255, 255, 255)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Values in [0,1] of any shape -> RGB uint8 [...,3], from nearly black over red to pale
    yellow.
    """
    stops = np.linspace(0, 1, len(_HEAT))
    channels = [np.interp(values, stops, [colour[k] for colour in _HEAT]) for k in range(3)]
    return np.stack(channels, -1).round().astype(np.uint8)


def heated(frame: Image.Image, values: np.ndarray) -> Image.Image:
    """`frame` in grey under a map [h,w] of numbers in [0,1]: its cells in place, the hotter the
    less of the frame is seen.
    """
    stretched = Image.fromarray(np.asarray(values, np.float32)).resize(
        frame.size, Image.Resampling.BICUBIC
    )
    level = np.clip(np.asarray(stretched), 0, 1)[..., None]
    grey = np.asarray(frame.convert("L"), np.float32)[..., None]
    share = 0.3 + 0.45 * level
    return Image.fromarray(
        (grey * (1 - share) + heat_colours(level[..., 0]) * share).clip(0, 255).astype(np.uint8)
    )


@lru_cache(maxsize=256)
def _font(name: str, size: int):
    """Pillow's own font for "", else the installed one of that file name; None where there is
    none.
    """
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has(name: str, character: str) -> bool:
    """Whether a font draws `character` as something else than what it draws for what no font
    has.
    """
    font = _font(name, 20)
    if font is None:
        return False
    if character.isspace():
        return True
    mask, nothing = font.getmask(character), font.getmask("\U0010ffff")
    return mask.size != nothing.size or bytes(mask) != bytes(nothing)


@lru_cache(maxsize=4096)
def legible(text: str) -> tuple[str, str]:
    """(text, font): what can be drawn of `text` on this machine. What no font has, and control characters, become \\u6f22."""
    text = "".join(c if c.isprintable() else _escaped(c) for c in text)
    for name in ("", *_FONTS):
        if all(_has(name, c) for c in set(text)):
            return text, name
    best = max(("", *_FONTS), key=lambda name: sum(_has(name, c) for c in text))
    return "".join(c if _has(best, c) else _escaped(c) for c in text), best


def _escaped(character: str) -> str:
    return (
        character.encode("ascii", "backslashreplace").decode()
        if ord(character) > 126
        else f"\\x{ord(character):02x}"
    )


@dataclass(frozen=True)
class Place:
    """Where a frame lies on a canvas: its upper left corner, width and height."""

    x: float
    y: float
    width: float
    height: float

    def at(self, u: float, v: float) -> Point:
        """A point of the frame, (0,0) to (1,1), on the canvas."""
        return self.x + u * self.width, self.y + v * self.height

    def rectangle(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """x1 y1 x2 y2 in [0,1] of the frame -> the same on the canvas."""
        x1, y1, x2, y2 = map(float, box)
        return *self.at(x1, y1), *self.at(x2, y2)

    def centre(self, box: Sequence[float]) -> Point:
        """The middle of a box."""
        x1, y1, x2, y2 = map(float, box)
        return self.at((x1 + x2) / 2, (y1 + y2) / 2)


class Canvas:
    """White paper of width x height pixels."""

    def __init__(self, width: float, height: float):
        self.width, self.height = math.ceil(width), math.ceil(height)
        self._image = Image.new("RGB", (self.width * OVER, self.height * OVER), PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def finished(self) -> Image.Image:
        """The picture, RGB of width x height."""
        return self._image.resize((self.width, self.height), Image.Resampling.BOX)

    def image(self, picture: Image.Image, place: Place) -> None:
        """A picture stretched over `place`."""
        size = max(1, round(place.width * OVER)), max(1, round(place.height * OVER))
        self._image.paste(
            picture.convert("RGB").resize(size, Image.Resampling.BICUBIC),
            self._whole(place.x, place.y),
        )

    def sheet(self, other: "Canvas", at: Point) -> None:
        """Another canvas, its upper left corner at a point."""
        self._image.paste(other._image, self._whole(*at))

    def tint(self, mask: Image.Image, colour: Colour, place: Place) -> None:
        """A colour over `place`, as strong as the mask (mode L) is there."""
        size = max(1, round(place.width * OVER)), max(1, round(place.height * OVER))
        self._image.paste(
            colour, self._whole(place.x, place.y), mask.resize(size, Image.Resampling.BILINEAR)
        )

    def line(
        self, points: Sequence[Point], colour: Colour, width: float = 1.5, dashed: bool = False
    ) -> None:
        """A line through the points; `dashed` is for two of them."""
        if dashed:
            (x1, y1), (x2, y2) = points
            steps = max(1, int(math.hypot(x2 - x1, y2 - y1) / 5)) | 1  # odd: ends with a dash
            cuts = [
                (x1 + (x2 - x1) * k / steps, y1 + (y2 - y1) * k / steps) for k in range(steps + 1)
            ]
            for k in range(0, steps, 2):
                self.line(cuts[k : k + 2], colour, width)
            return
        self._draw.line(
            [(x * OVER, y * OVER) for x, y in points],
            colour,
            max(1, round(width * OVER)),
            joint="curve",
        )

    def arrow(self, start: Point, end: Point, colour: Colour, width: float = 1.5) -> None:
        """A line with a head at `end`."""
        (x1, y1), (x2, y2) = start, end
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        u, v, size = (x2 - x1) / length, (y2 - y1) / length, min(length, 4 + 1.5 * width)
        bx, by = x2 - u * size, y2 - v * size
        self.line([start, (bx, by)], colour, width)
        corners = [
            (x2, y2),
            (bx - v * size / 2, by + u * size / 2),
            (bx + v * size / 2, by - u * size / 2),
        ]
        self._draw.polygon([(x * OVER, y * OVER) for x, y in corners], colour)

    def rectangle(
        self,
        corners: Sequence[float],
        colour: Colour,
        width: float = 1.5,
        fill: Colour | None = None,
    ) -> None:
        """An outline x1 y1 x2 y2, with a dark line around it that keeps it visible on any frame."""
        x1, y1, x2, y2 = (round(v * OVER) for v in corners)
        x2, y2, thick = max(x1, x2), max(y1, y2), max(1, round(width * OVER))
        if fill is not None:
            self._draw.rectangle((x1, y1, x2, y2), fill)
        if width:
            self._draw.rectangle(
                (x1 - 1, y1 - 1, x2 + 1, y2 + 1), outline=(0, 0, 0), width=thick + 2
            )
            self._draw.rectangle((x1, y1, x2, y2), outline=colour, width=thick)

    def disc(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None,
        edge: Colour | None = None,
        width: float = 1.0,
    ) -> None:
        """A disc, or with `fill` None a ring."""
        (x, y), r = centre, max(radius, 0.5)
        corners = [(x - r) * OVER, (y - r) * OVER, (x + r) * OVER, (y + r) * OVER]
        self._draw.ellipse(corners, fill, edge, max(1, round(width * OVER)))

    def text(
        self, at: Point, text: str, size: int, colour: Colour = INK, anchor: str = "la"
    ) -> float:
        """One line of text at a point, `anchor` as Pillow's; returns its width."""
        text, name = legible(text)
        font = _font(name, size * OVER)
        self._draw.text((at[0] * OVER, at[1] * OVER), text, colour, font, anchor)
        return font.getlength(text) / OVER

    def tag(
        self,
        at: Point,
        text: str,
        colour: Colour,
        size: int,
        taken: list | None = None,
        within: Place | None = None,
    ):
        """A label on a patch of `colour`, its upper left corner `at` a point, moved into `within`
        and beside those `taken`.
        """
        width, height = text_width(text, size) + 5, size + 4
        x, y = at
        if within is not None:
            x = min(max(x, within.x), max(within.x, within.x + within.width - width))
            y = min(max(y, within.y), within.y + within.height - height)
        if taken is not None:
            top = y
            for _ in range(2 * len(taken) + 1):
                hit = [
                    b
                    for b in taken
                    if x < b[2] and x + width > b[0] and y < b[3] and y + height > b[1]
                ]
                if not hit:
                    break
                y = max(b[3] for b in hit)
                if (
                    within is not None and y + height > within.y + within.height + 1
                ):  # no room below: on to the right
                    x, y = max(b[2] for b in hit), top
            taken.append((x, y, x + width, y + height))
        self.rectangle((x, y, x + width - 0.5, y + height - 0.5), colour, 0, fill=colour)
        self.text((x + 2.5, y + height / 2), text, size, ink_on(colour), "lm")

    @staticmethod
    def _whole(x: float, y: float) -> tuple[int, int]:
        return round(x * OVER), round(y * OVER)


def text_width(text: str, size: int) -> float:
    """Pixels that a line of text takes."""
    text, name = legible(text)
    return _font(name, size * OVER).getlength(text) / OVER


def shortened(text: str, size: int, width: float) -> str:
    """`text`, or as much of it as fits into `width` with an ellipsis."""
    if text_width(text, size) <= width:
        return text
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (
            (middle, high)
            if text_width(text[:middle] + "...", size) <= width
            else (low, middle - 1)
        )
    return text[:low] + "..."


def wrapped(text: str, size: int, width: float) -> list[str]:
    """`text` in lines of at most `width`, broken between words; a word that is longer is
    shortened.
    """
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shortened(word, size, width))
    return lines
