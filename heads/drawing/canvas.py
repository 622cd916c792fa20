"""Drawing primitives on a Pillow image: lines, boxes, labels, arrows, heat maps, Unicode text.

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

SUPERSAMPLING = 2  # canvas pixels per pixel of the finished picture
PAPER, INK, FAINT, GREY = (255, 255, 255), (24, 24, 27), (113, 113, 122), (176, 176, 182)

# One colour per box slot. They differ from one another, from skin and from grass, also for
# people who confuse red and green.
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

# Dark to bright.
_HEAT = (
    (0, 0, 4),
    (66, 10, 104),
    (147, 38, 103),
    (221, 81, 58),
    (252, 165, 10),
    (252, 255, 164),
)

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
    """Return the colour of a box slot, region or operation; colours repeat after ten."""
    return PALETTE[slot % len(PALETTE)]


def text_colour_on(background: Colour) -> Colour:
    """Return black or white, whichever has the higher contrast with `background`."""
    r, g, b = background
    luma = 0.299 * r + 0.587 * g + 0.114 * b
    return (0, 0, 0) if luma > 128 else (255, 255, 255)


def heat_colours(values: np.ndarray) -> np.ndarray:
    """Map values to colours, from nearly black over red to pale yellow.

    Args:
        values: numbers in [0,1], any shape [...].

    Returns:
        RGB, uint8 [...,3].
    """
    stops = np.linspace(0, 1, len(_HEAT))
    channels = []
    for channel in zip(*_HEAT, strict=True):
        channels.append(np.interp(values, stops, channel))
    return np.stack(channels, -1).round().astype(np.uint8)


def heat_overlay(frame: Image.Image, values: np.ndarray) -> Image.Image:
    """Lay a heat map over a grey copy of a frame; hot cells cover more of the frame.

    Args:
        frame: the picture, any size.
        values: the map [h,w], numbers in [0,1]; it is stretched over the frame.

    Returns:
        An RGB picture of the frame's size.
    """
    heat = Image.fromarray(np.asarray(values, np.float32))
    heat = heat.resize(frame.size, Image.Resampling.BICUBIC)
    level = np.clip(np.asarray(heat), 0, 1)

    grey = np.asarray(frame.convert("L"), np.float32)[..., None]
    opacity = 0.3 + 0.45 * level[..., None]
    mixed = grey * (1 - opacity) + heat_colours(level) * opacity
    return Image.fromarray(mixed.clip(0, 255).astype(np.uint8))


# A page has hundreds of labels, and loading a font takes milliseconds.
@lru_cache(maxsize=256)
def _font(name: str, size: int):
    """Pillow's own font for "", else an installed font file; None where it is not installed."""
    try:
        return ImageFont.truetype(name, size) if name else ImageFont.load_default(size)
    except OSError:
        return None


@lru_cache(maxsize=4096)
def _has_glyph(font_name: str, character: str) -> bool:
    """Whether a font has a glyph of its own for a character."""
    font = _font(font_name, 20)
    if font is None:
        return False
    if character.isspace():
        return True

    # A font draws the same placeholder for every character that it lacks. No font has U+10FFFF.
    mask, placeholder = font.getmask(character), font.getmask("\U0010ffff")
    return mask.size != placeholder.size or bytes(mask) != bytes(placeholder)


@lru_cache(maxsize=4096)
def legible(text: str) -> tuple[str, str]:
    r"""Replace what cannot be drawn on this machine by escapes such as \u6f22.

    Args:
        text: any text. Control characters become escapes, too.

    Returns:
        (text, font): the text to draw, and the file name of the font that has most of it
        ("" for Pillow's own font).
    """
    text = "".join([_escape_unless(c.isprintable(), c) for c in text])
    for name in ("", *_FONTS):
        if all(_has_glyph(name, c) for c in set(text)):
            return text, name

    def glyphs(name: str) -> int:
        return sum(_has_glyph(name, c) for c in text)

    best = max(("", *_FONTS), key=glyphs)
    return "".join([_escape_unless(_has_glyph(best, c), c) for c in text]), best


def _escape_unless(drawable: bool, character: str) -> str:
    if drawable:
        return character
    if ord(character) > 126:
        return character.encode("ascii", "backslashreplace").decode()
    return f"\\x{ord(character):02x}"


@dataclass(frozen=True)
class FrameRect:
    """The rectangle of a frame on a canvas.

    Attributes:
        x, y: its upper left corner, canvas pixels.
        width, height: its size, canvas pixels.
    """

    x: float
    y: float
    width: float
    height: float

    def at(self, u: float, v: float) -> Point:
        """Convert a point of the frame, (0,0) to (1,1), to canvas pixels."""
        return self.x + u * self.width, self.y + v * self.height

    def rectangle(self, box: Sequence[float]) -> tuple[float, float, float, float]:
        """Convert a box x1 y1 x2 y2 in [0,1] of the frame to canvas pixels."""
        x1, y1, x2, y2 = map(float, box)
        return *self.at(x1, y1), *self.at(x2, y2)

    def centre(self, box: Sequence[float]) -> Point:
        """Return the centre of a box x1 y1 x2 y2 in [0,1], in canvas pixels."""
        x1, y1, x2, y2 = map(float, box)
        return self.at((x1 + x2) / 2, (y1 + y2) / 2)


class Canvas:
    """A white picture to draw on.

    Args:
        width: pixels, rounded up.
        height: pixels, rounded up.
    """

    def __init__(self, width: float, height: float):
        self.width, self.height = math.ceil(width), math.ceil(height)
        size = (self.width * SUPERSAMPLING, self.height * SUPERSAMPLING)
        self._image = Image.new("RGB", size, PAPER)
        self._draw = ImageDraw.Draw(self._image)

    def finished(self) -> Image.Image:
        """Return the picture, RGB of width x height."""
        return self._image.resize((self.width, self.height), Image.Resampling.BOX)

    def image(self, picture: Image.Image, rect: FrameRect) -> None:
        """Draw a picture, stretched to `rect`."""
        picture = picture.convert("RGB").resize(_size(rect), Image.Resampling.BICUBIC)
        self._image.paste(picture, _corner(rect.x, rect.y))

    def paste(self, other: "Canvas", at: Point) -> None:
        """Copy another canvas here, its upper left corner at a point."""
        self._image.paste(other._image, _corner(*at))

    def tint(self, mask: Image.Image, colour: Colour, rect: FrameRect) -> None:
        """Blend a colour over `rect`; the mask (mode L), stretched to it, is the opacity."""
        mask = mask.resize(_size(rect), Image.Resampling.BILINEAR)
        self._image.paste(colour, _corner(rect.x, rect.y), mask)

    def line(
        self, points: Sequence[Point], colour: Colour, width: float = 1.5, dashed: bool = False
    ) -> None:
        """Draw a line through the points; `dashed` takes exactly two of them."""
        if dashed:
            (x1, y1), (x2, y2) = points
            # An odd number of pieces, so that the line ends with a dash.
            count = max(1, int(math.hypot(x2 - x1, y2 - y1) / 5)) | 1
            ends = []
            for k in range(count + 1):
                ends.append((x1 + (x2 - x1) * k / count, y1 + (y2 - y1) * k / count))
            for k in range(0, count, 2):
                self.line(ends[k : k + 2], colour, width)
            return

        thickness = max(1, round(width * SUPERSAMPLING))
        self._draw.line(_scaled(points), colour, thickness, joint="curve")

    def arrow(self, start: Point, end: Point, colour: Colour, width: float = 1.5) -> None:
        """Draw a line with an arrowhead at `end`."""
        (x1, y1), (x2, y2) = start, end
        length = math.hypot(x2 - x1, y2 - y1) or 1.0
        u, v = (x2 - x1) / length, (y2 - y1) / length
        head = min(length, 4 + 1.5 * width)

        base_x, base_y = x2 - u * head, y2 - v * head
        self.line([start, (base_x, base_y)], colour, width)
        left = (base_x - v * head / 2, base_y + u * head / 2)
        right = (base_x + v * head / 2, base_y - u * head / 2)
        self._draw.polygon(_scaled([(x2, y2), left, right]), colour)

    def rectangle(
        self,
        corners: Sequence[float],
        colour: Colour,
        width: float = 1.5,
        fill: Colour | None = None,
    ) -> None:
        """Draw a rectangle with a dark border around its outline, visible on any frame.

        Args:
            corners: x1 y1 x2 y2.
            colour: of the outline.
            width: of the outline; 0 draws none.
            fill: colour of the inside; None leaves it as it is.
        """
        x1, y1, x2, y2 = (round(v * SUPERSAMPLING) for v in corners)
        # Pillow refuses corners in the wrong order.
        x2, y2 = max(x1, x2), max(y1, y2)
        if fill is not None:
            self._draw.rectangle((x1, y1, x2, y2), fill)

        # The border is one canvas pixel wide on either side of the outline.
        if width:
            thickness = max(1, round(width * SUPERSAMPLING))
            around = (x1 - 1, y1 - 1, x2 + 1, y2 + 1)
            self._draw.rectangle(around, outline=(0, 0, 0), width=thickness + 2)
            self._draw.rectangle((x1, y1, x2, y2), outline=colour, width=thickness)

    def disc(
        self,
        centre: Point,
        radius: float,
        fill: Colour | None,
        edge: Colour | None = None,
        width: float = 1.0,
    ) -> None:
        """Draw a disc; with `fill` None, a ring."""
        (x, y), r = centre, max(radius, 0.5)
        corners = _scaled([(x - r, y - r), (x + r, y + r)])
        self._draw.ellipse(corners, fill, edge, max(1, round(width * SUPERSAMPLING)))

    def text(
        self, at: Point, text: str, size: int, colour: Colour = INK, anchor: str = "la"
    ) -> float:
        """Draw one line of text at a point and return its width; `anchor` is Pillow's."""
        text, name = legible(text)
        font = _font(name, size * SUPERSAMPLING)
        self._draw.text(_scaled([at])[0], text, colour, font, anchor)
        return font.getlength(text) / SUPERSAMPLING

    def tag(
        self,
        at: Point,
        text: str,
        colour: Colour,
        size: int,
        taken: list | None = None,
        within: FrameRect | None = None,
    ):
        """Draw a label: text on a filled rectangle.

        Args:
            at: the upper left corner.
            text: one line.
            colour: of the rectangle.
            size: of the text.
            taken: rectangles x1 y1 x2 y2 of earlier labels. The label moves beside them, and
                its own rectangle is appended.
            within: the label moves into this rectangle.
        """
        width, height = text_width(text, size) + 5, size + 4
        x, y = at
        if within is not None:
            x = min(max(x, within.x), max(within.x, within.x + within.width - width))
            y = min(max(y, within.y), within.y + within.height - height)
        if taken is not None:
            x, y = _free_corner(x, y, width, height, taken, within)
            taken.append((x, y, x + width, y + height))

        self.rectangle((x, y, x + width - 0.5, y + height - 0.5), colour, 0, fill=colour)
        self.text((x + 2.5, y + height / 2), text, size, text_colour_on(colour), "lm")


def _free_corner(
    x: float, y: float, width: float, height: float, taken: list, within: FrameRect | None
) -> Point:
    """Move a label's upper left corner down, then right, until it overlaps none of `taken`."""
    top = y
    for _ in range(2 * len(taken) + 1):
        hit = []
        for x1, y1, x2, y2 in taken:
            if x < x2 and x + width > x1 and y < y2 and y + height > y1:
                hit.append((x1, y1, x2, y2))
        if not hit:
            break

        y = max(y2 for _, _, _, y2 in hit)
        # No room below: start again at the top, to the right.
        if within is not None and y + height > within.y + within.height + 1:
            x, y = max(x2 for _, _, x2, _ in hit), top
    return x, y


def _scaled(points: Sequence[Point]) -> list[Point]:
    """Points in pixels of the enlarged canvas."""
    return [(x * SUPERSAMPLING, y * SUPERSAMPLING) for x, y in points]


def _corner(x: float, y: float) -> tuple[int, int]:
    """A point in whole pixels of the enlarged canvas."""
    return round(x * SUPERSAMPLING), round(y * SUPERSAMPLING)


def _size(rect: FrameRect) -> tuple[int, int]:
    """A rectangle's size in whole pixels of the enlarged canvas."""
    width, height = round(rect.width * SUPERSAMPLING), round(rect.height * SUPERSAMPLING)
    return max(1, width), max(1, height)


def text_width(text: str, size: int) -> float:
    """Return the width of a line of text, in pixels."""
    text, name = legible(text)
    return _font(name, size * SUPERSAMPLING).getlength(text) / SUPERSAMPLING


def shorten(text: str, size: int, width: float) -> str:
    """Return `text`, or as much of it as fits into `width` pixels with an ellipsis."""
    if text_width(text, size) <= width:
        return text

    # Characters differ in width, so the longest text that fits is searched for.
    low, high = 0, len(text)
    while low < high:
        middle = (low + high + 1) // 2
        if text_width(text[:middle] + "...", size) <= width:
            low = middle
        else:
            high = middle - 1
    return text[:low] + "..."


def wrap(text: str, size: int, width: float) -> list[str]:
    """Break `text` between words into lines of at most `width` pixels.

    A word that is longer than a line is shortened.
    """
    lines: list[str] = []
    for word in text.split(" "):
        if lines and text_width(f"{lines[-1]} {word}", size) <= width:
            lines[-1] += f" {word}"
        else:
            lines.append(shorten(word, size, width))
    return lines
