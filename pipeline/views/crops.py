"""Rectangles of whole pixels inside a frame: the crops of training and test views."""

from pipeline.views.stateless_random import Draws

# x, y, width, height in pixels of the upright source frame.
Crop = tuple[int, int, int, int]

# Positions of `multiscale_crop`, in quarters of the free width and height: the 3 x 3 of corners,
# edges and centre, then the 2 x 2 between them. Cached crops depend on this order.
_POSITIONS = (
    *((0, 0), (2, 0), (4, 0)),
    *((0, 2), (2, 2), (4, 2)),
    *((0, 4), (2, 4), (4, 4)),
    *((1, 1), (3, 1)),
    *((1, 3), (3, 3)),
)


def square_crop(width: int, height: int, scale: float, draws: Draws) -> Crop:
    """Return a square at a uniformly random position.

    Args:
        width: pixels of the frame.
        height: pixels of the frame.
        scale: side of the square, as a fraction of the frame's short side, in (0, 1].
        draws: random numbers of the view.
    """
    return _anywhere(width, height, _side(width, height, scale), draws)


def floored_square_crop(width: int, height: int, scale: float, draws: Draws) -> Crop:
    """Return what `square_crop` does, with a side that is rounded down, as in GOS's released code.

    Args:
        width: pixels of the frame.
        height: pixels of the frame.
        scale: side of the square, as a fraction of the frame's short side, in (0, 1].
        draws: random numbers of the view.
    """
    return _anywhere(width, height, _side(width, height, scale, add=0), draws)


def multiscale_crop(
    width: int, height: int, scales: tuple[float, ...], max_distort: int, draws: Draws
) -> Crop:
    """Return TSN's multi-scale crop: a random size at one of 13 positions.

    TSN also snaps sides within 3 pixels to the output size, which saves a resize of frames that
    were scaled before. Frames are not scaled before here, so nothing snaps.

    Args:
        width: pixels of the frame.
        height: pixels of the frame.
        scales: possible sides, as fractions of the frame's short side.
        max_distort: how many places of `scales` the width may be from the height.
        draws: random numbers of the view.
    """
    sides = [_side(width, height, scale) for scale in scales]
    pairs = []
    for i, crop_height in enumerate(sides):
        for j, crop_width in enumerate(sides):
            if abs(i - j) <= max_distort:
                pairs.append((crop_width, crop_height))

    w, h = pairs[draws.below(len(pairs))]
    across, down = _POSITIONS[draws.below(len(_POSITIONS))]
    return across * (width - w) // 4, down * (height - h) // 4, w, h


def even_crops(width: int, height: int, scale: float, count: int) -> list[Crop]:
    """Return squares spread evenly along the long side, from end to end; one is centred.

    Three are left, middle, right of a landscape frame, and top, middle, bottom of a portrait
    one. They are centred along the short side.

    Args:
        width: pixels of the frame.
        height: pixels of the frame.
        scale: side of each square, as a fraction of the frame's short side, in (0, 1].
        count: how many, from 1.
    """
    side = _side(width, height, scale)
    x = (width - side) // 2
    y = (height - side) // 2
    if count == 1:
        return [(x, y, side, side)]

    crops = []
    for k in range(count):
        if width >= height:
            x = round_quotient(k * (width - side), count - 1)
        else:
            y = round_quotient(k * (height - side), count - 1)
        crops.append((x, y, side, side))
    return crops


def full_size(width: int, height: int, short_side: int, multiple: int) -> tuple[int, int]:
    """Return the (height, width) of a whole frame that is resized to a short side.

    Each side is rounded to the nearest multiple, at least one. This changes the aspect by at
    most half a multiple: at 256 and 32 by 6.3 %. Boxes in [0,1] and maps change alike.

    Args:
        width: pixels of the frame.
        height: pixels of the frame.
        short_side: pixels of the output's short side, before rounding.
        multiple: pixels of which both output sides are a multiple.
    """
    short = min(width, height)
    sides = []
    for side in (height, width):
        rounded = round_quotient(side * short_side, short * multiple) * multiple
        sides.append(max(rounded, multiple))
    return sides[0], sides[1]


def _anywhere(width: int, height: int, side: int, draws: Draws) -> Crop:
    # The first and the last position are as likely as the others.
    x = draws.below(width - side + 1)
    y = draws.below(height - side + 1)
    return x, y, side, side


def _side(width: int, height: int, scale: float, add: float = 0.5) -> int:
    """A part of the short side in whole pixels: the nearest, or rounded down with `add` = 0."""
    # A crop of a tiny frame still has a pixel.
    return max(1, int(scale * min(width, height) + add))


def round_quotient(numerator: int, denominator: int) -> int:
    """Divide whole numbers and round to the nearest one, halves up.

    Python's round() takes halves to the even number, and a float cannot hold every quotient.
    """
    return (2 * numerator + denominator) // (2 * denominator)
