"""Which part of a frame a view sees: rectangles of whole pixels inside a frame of `width` x
`height` pixels.
"""

from pipeline.views.stateless_random import Draws

Crop = tuple[int, int, int, int]  # x, y, width, height in pixels


def square_crop(width: int, height: int, share: float, draws: Draws) -> Crop:
    """A square of `share` times the short side, uniformly anywhere."""
    side = _side(width, height, share)
    x, y = draws.below(width - side + 1), draws.below(height - side + 1)
    return x, y, side, side


def multiscale_crop(
    width: int, height: int, scales: tuple[float, ...], max_distort: int, draws: Draws
) -> Crop:
    """TSN's multi-scale crop: one of the (width, height) pairs at most `max_distort` scales apart,
    at one of 13 positions.

    TSN also snaps sides within 3 pixels to the output size, which saves a resize of frames scaled
    before; here there is none.
    """
    sides = [_side(width, height, scale) for scale in scales]
    pairs = [
        (w, h)
        for i, h in enumerate(sides)
        for j, w in enumerate(sides)
        if abs(i - j) <= max_distort
    ]
    w, h = pairs[draws.below(len(pairs))]
    across, down = _POSITIONS[draws.below(len(_POSITIONS))]
    return across * (width - w) // 4, down * (height - h) // 4, w, h


# In quarters of the free way: the 3 x 3 of corners, edges and centre, and the 2 x 2 between them.
_POSITIONS = [(i, j) for j in (0, 2, 4) for i in (0, 2, 4)] + [
    (i, j) for j in (1, 3) for i in (1, 3)
]


def even_crops(width: int, height: int, share: float, count: int) -> list[Crop]:
    """`count` squares of `share` times the short side: one in the centre, more evenly along the
    long side, from end to end.

    Three are left, middle, right of a landscape frame, top, middle, bottom of a portrait one.
    Across, they are centred.
    """
    side = _side(width, height, share)
    x, y = (width - side) // 2, (height - side) // 2
    if count == 1:
        return [(x, y, side, side)]
    if width >= height:
        return [(nearest(k * (width - side), count - 1), y, side, side) for k in range(count)]
    return [(x, nearest(k * (height - side), count - 1), side, side) for k in range(count)]


def full_size(width: int, height: int, short_side: int, multiple: int) -> tuple[int, int]:
    """(height, width) of a whole frame whose short side becomes `short_side`: each side to the
    nearest multiple, at least one.

    The aspect is kept within half a multiple: at 256 and 32 within 6.3 %, which boxes in [0,1] and
    their maps share.
    """
    short = min(width, height)
    sides = (nearest(side * short_side, short * multiple) * multiple for side in (height, width))
    return tuple(max(side, multiple) for side in sides)


def _side(width: int, height: int, share: float) -> int:
    return max(1, int(share * min(width, height) + 0.5))


def nearest(numerator: int, denominator: int) -> int:
    """The quotient to the nearest whole number, halves up: round() takes halves to the even
    number.
    """
    return (2 * numerator + denominator) // (2 * denominator)
