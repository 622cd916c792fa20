"""From the pixels that a codec stores to the picture on the screen: turn, mirror, square pixels.

Arithmetic on arrays. `video_file.py` reads what a stream says about its pictures.
"""

import struct
from dataclasses import dataclass

import numpy as np

# Whether pixels that are not square become square, or stay as they are stored.
PIXEL_ASPECTS = ("displayed", "stored")

# (a, b, c, d) moves the stored pixel (x, y) to (a·x + c·y, b·x + d·y).
Orientation = tuple[int, int, int, int]
STRAIGHT: Orientation = (1, 0, 0, 1)
# By how many quarter turns, counter-clockwise.
QUARTER_TURNS = (STRAIGHT, (0, -1, 1, 0), (-1, 0, 0, -1), (0, 1, -1, 0))
# By the number in Exif 2.3, 4.6.4 A: on which sides of the picture the first stored row and the
# first stored column are.
EXIF_ORIENTATIONS = {
    1: STRAIGHT,
    2: (-1, 0, 0, 1),
    3: (-1, 0, 0, -1),
    4: (1, 0, 0, -1),
    5: (0, 1, 1, 0),
    6: (0, 1, -1, 0),
    7: (0, -1, -1, 0),
    8: (0, -1, 1, 0),
}
# The sine of the angle by which a matrix may miss a quarter turn: 1.1 degrees. FFmpeg's own
# tolerance is 1 degree.
SKEW = 0.02


@dataclass(frozen=True)
class PictureShape:
    """How a stored picture is shown.

    Attributes:
        width: stored pixels in a row.
        height: stored rows.
        orientation: one of the eight ways to turn and mirror the picture.
        aspect: width of a stored pixel divided by its height.
    """

    width: int
    height: int
    orientation: Orientation = STRAIGHT
    aspect: float = 1.0

    @property
    def mirrored(self) -> bool:
        """Whether the picture is mirrored."""
        a, b, c, d = self.orientation
        return a * d - b * c < 0

    @property
    def swaps_sides(self) -> bool:
        """Whether stored rows become columns."""
        return self.orientation[1] != 0

    @property
    def display_size(self) -> tuple[int, int]:
        """(width, height) on the screen in square pixels: the stored height with its new width."""
        width = self.width
        scaled = self.width * self.aspect
        # `scale=-2:256` of FFmpeg leaves pixels that are almost square: their shape moves the
        # width by one pixel at most.
        if abs(scaled - width) > 1:
            width = round(scaled)
        return (self.height, width) if self.swaps_sides else (width, self.height)

    @property
    def oriented_size(self) -> tuple[int, int]:
        """(width, height) of the stored pixels after turning."""
        return (self.height, self.width) if self.swaps_sides else (self.width, self.height)


def orientation_of_matrix(matrix: bytes | None) -> Orientation:
    """Read FFmpeg's display matrix.

    Args:
        matrix: nine 32-bit numbers in the machine's byte order; None for no matrix.

    Returns:
        One of the eight orientations, STRAIGHT without a matrix.

    Raises:
        ValueError: the matrix turns by another angle than a multiple of 90 degrees.
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


def orient(pixels: np.ndarray, orientation: Orientation) -> np.ndarray:
    """Turn and mirror a stored picture.

    Args:
        pixels: [H,W,3] as stored.
        orientation: how the picture is shown.

    Returns:
        [H,W,3], or [W,H,3] where rows become columns; a view of `pixels`, not a copy.
    """
    a, b, c, d = orientation
    if b:
        pixels, right, down = pixels.swapaxes(0, 1), c, b
    else:
        right, down = a, d
    return pixels[:: down or 1, :: right or 1]


def fit(pixels: np.ndarray, display_size: tuple[int, int], size: tuple[int, int]) -> np.ndarray:
    """Scale an upright picture into a frame of another size.

    A picture of another aspect ratio keeps it and is centred between black bars. One that fits
    already is not resampled.

    Args:
        pixels: [h,w,3] uint8.
        display_size: (width, height) of the picture on the screen.
        size: (width, height) of the frame.

    Returns:
        [H,W,3] uint8.
    """
    if pixels.shape[1::-1] == size == display_size:
        return pixels
    from PIL import Image

    scale = min(size[0] / display_size[0], size[1] / display_size[1])
    width = max(1, min(round(display_size[0] * scale), size[0]))
    height = max(1, min(round(display_size[1] * scale), size[1]))
    picture = Image.fromarray(np.ascontiguousarray(pixels))
    picture = picture.resize((width, height), Image.Resampling.BILINEAR)
    if (width, height) == size:
        return np.asarray(picture)

    frame = np.zeros((size[1], size[0], 3), np.uint8)
    left, top = (size[0] - width) // 2, (size[1] - height) // 2
    frame[top : top + height, left : left + width] = picture
    return frame


def fit_all(frames: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Scale upright frames [F,h,w,3] to (width, height) = `size`: [F,H,W,3] uint8."""
    if frames.shape[2:0:-1] == size:
        return frames
    return np.stack([fit(pixels, size, size) for pixels in frames])
