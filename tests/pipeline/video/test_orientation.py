"""From stored pixels to shown ones: the eight turns by their definition, square pixels, and no
picture stretched.
"""

import struct
from itertools import product

import numpy as np
import pytest

from pipeline.video.orientation import STRAIGHT, PictureShape, fit, orient, orientation_of_matrix

EIGHT = [(a, 0, 0, d) for a, d in product((1, -1), repeat=2)] + [
    (0, b, c, 0) for b, c in product((1, -1), repeat=2)
]


def matrix(a: float, b: float, c: float, d: float) -> bytes:
    """FFmpeg's display matrix: 16.16 fixed point, the third column 2.30."""
    return struct.pack(
        "=9i", *(round(value * 65536) for value in (a, b, 0, c, d, 0, 0, 0)), 1 << 30
    )


@pytest.mark.parametrize("turn", EIGHT)
def test_every_pixel_goes_where_the_matrix_sends_it(turn):
    a, b, c, d = turn
    pixels = np.arange(2 * 3 * 3, dtype=np.uint8).reshape(2, 3, 3)
    sent = {(a * x + c * y, b * x + d * y): pixels[y, x] for y in range(2) for x in range(3)}
    left, top = min(x for x, _ in sent), min(y for _, y in sent)
    shown = orient(pixels, turn)
    assert shown.shape == ((2, 3, 3) if a else (3, 2, 3))
    assert all((shown[y - top, x - left] == value).all() for (x, y), value in sent.items())
    assert PictureShape(3, 2, turn).oriented_size == shown.shape[1::-1]


@pytest.mark.parametrize("turn", EIGHT)
def test_a_matrix_is_read_as_its_turn_whatever_its_scale(turn):
    assert orientation_of_matrix(matrix(*turn)) == turn
    assert orientation_of_matrix(matrix(*(0.5 * value for value in turn))) == turn
    assert PictureShape(4, 2, turn).mirrored == (np.linalg.det(np.array(turn).reshape(2, 2)) < 0)


def test_no_matrix_and_an_empty_one_turn_nothing():
    assert (
        orientation_of_matrix(None)
        == orientation_of_matrix(b"")
        == orientation_of_matrix(bytes(36))
        == STRAIGHT
    )


def test_a_turn_by_another_angle_is_refused():
    sine = 0.5**0.5
    with pytest.raises(ValueError, match="no multiple of 90 degrees"):
        orientation_of_matrix(matrix(sine, sine, -sine, sine))
    # Half a degree, as hands hold a phone.
    assert orientation_of_matrix(matrix(0.9999, 0.01, -0.01, 0.9999)) == STRAIGHT


@pytest.mark.parametrize(
    ("stored", "aspect", "shown"),
    [
        ((720, 576), 16 / 15, (768, 576)),  # PAL 4:3
        ((720, 576), 64 / 45, (1024, 576)),  # PAL 16:9
        ((720, 480), 8 / 9, (640, 480)),  # NTSC 4:3
        ((1440, 1080), 4 / 3, (1920, 1080)),  # HDV
        ((340, 256), 64 / 51, (427, 256)),
        ((456, 256), 512 / 513, (456, 256)),  # of 1920x1080 by scale=-2:256 of FFmpeg
    ],
)
def test_pixels_that_are_not_square_get_the_width_of_the_screen(stored, aspect, shown):
    assert PictureShape(*stored, aspect=aspect).display_size == shown
    assert PictureShape(*stored, (0, 1, -1, 0), aspect).display_size == shown[::-1]
    assert PictureShape(*stored, (0, 1, -1, 0), aspect).oriented_size == stored[::-1]


def test_a_picture_of_another_shape_keeps_its_own():
    """A square of 32 pixels in a picture of 96x128 pixels, among pictures of 128x96."""
    pixels = np.zeros((128, 96, 3), np.uint8)
    pixels[48:80, 32:64] = 255
    page = fit(pixels, (96, 128), (128, 96))
    assert page.shape == (96, 128, 3)
    bright = page[..., 0] > 128
    assert bright.any(0).sum() == bright.any(1).sum() == 24  # three quarters
    assert not page[:, :28].any()
    assert not page[:, 100:].any()  # 72 columns in the middle


def test_nothing_is_resampled_where_nothing_changes():
    pixels = np.random.default_rng(0).integers(0, 255, (8, 6, 3), np.uint8)
    assert fit(pixels, (6, 8), (6, 8)) is pixels


def test_a_smaller_picture_of_the_same_shape_fills_the_page():
    page = fit(np.full((24, 32, 3), 200, np.uint8), (32, 24), (64, 48))
    assert page.shape == (48, 64, 3)
    assert (page == 200).all()
