"""From the pixels that a codec stores to the picture that a player shows: turned, mirrored, with
square pixels.

Pure arithmetic on arrays. What a stream says about its pictures is read in `decode.py`.
"""

import struct
from dataclasses import dataclass

import numpy as np

PIXEL_ASPECTS = ("displayed", "stored")  # pixels that are not square become square, or stay
Rotation = tuple[int, int, int, int]  # see Shape
STRAIGHT = (1, 0, 0, 1)
QUARTERS = (STRAIGHT, (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))  # counter-clockwise
# By the orientation of Exif 2.3, 4.6.4 A: which sides of the picture its first row and its first
# column are.
EXIF_TURNS = {
    1: STRAIGHT,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
# the sine of the angle up to which a turn counts as a quarter turn: 1.1 degrees; FFmpeg takes 1
# degree
SKEW = 0.02


@dataclass(frozen=True)
class PictureShape:
    """How a stored picture is shown.

    `width` and `height` are stored pixels. `turn` = (a, b, c, d) moves the stored pixel (x, y) to
    (a·x + c·y, b·x + d·y): one of the eight ways to turn and mirror a picture. `aspect` is the
    width of a stored pixel by its height.
    """

    width: int
    height: int
    turn: Rotation = STRAIGHT
    aspect: float = 1.0

    @property
    def mirrored(self) -> bool:
        """Whether the turn mirrors the picture."""
        a, b, c, d = self.turn
        return a * d - b * c < 0

    @property
    def shown(self) -> tuple[int, int]:
        """(width, height) in square pixels of the picture on the screen: the stored height stays,
        the width follows.

        Pixels whose shape moves the width by one pixel at most are square: `scale=-2:256` of FFmpeg
        leaves such shapes.
        """
        width = self.width * self.aspect
        width = self.width if abs(width - self.width) <= 1 else round(width)
        return (self.height, width) if self.turn[1] else (width, self.height)

    @property
    def upright(self) -> tuple[int, int]:
        """(width, height) of the stored pixels once they are turned."""
        return (self.height, self.width) if self.turn[1] else (self.width, self.height)


def turn_of(matrix: bytes | None) -> Rotation:
    """FFmpeg's display matrix (nine 32-bit numbers) as one of the eight turns; STRAIGHT without a
    matrix.

    ValueError if the matrix turns by another angle than a multiple of 90 degrees.
    """
    if not matrix:
        return STRAIGHT
    a, b, _, c, d = (float(value) for value in struct.unpack("=9i", matrix[:36])[:5])
    straight, across = max(abs(a), abs(d)), max(abs(b), abs(c))
    if not (straight or across):
        return STRAIGHT
    if min(straight, across) > SKEW * max(straight, across):
        raise ValueError(
            "its display matrix turns the picture by an angle that is no multiple of 90 degrees"
        )
    if straight > across:
        return _sign(a), 0, 0, _sign(d)
    return 0, _sign(b), _sign(c), 0


def _sign(value: float) -> int:
    return -1 if value < 0 else 1


def turned(pixels: np.ndarray, turn: Rotation) -> np.ndarray:
    """A stored picture [H,W,3] as it is shown, without a copy."""
    a, b, c, d = turn
    if b:
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    return pixels[:: down or 1, :: right or 1]


def fitted(pixels: np.ndarray, shown: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Scales a turned picture [h,w,3], displayed at `shown`, to `size` [H,W,3]; both are (width,
    height).

    A picture of another aspect ratio keeps it and is centred between black bars. One that fits
    already is not resampled.
    """
    if pixels.shape[1::-1] == size == shown:
        return pixels
    from PIL import Image

    scale = min(size[0] / shown[0], size[1] / shown[1])
    width, height = (
        max(1, min(round(side * scale), most)) for side, most in zip(shown, size, strict=True)
    )
    picture = Image.fromarray(np.ascontiguousarray(pixels)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    if (width, height) == size:
        return np.asarray(picture)
    page = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    page[top : top + height, left : left + width] = picture
    return page
