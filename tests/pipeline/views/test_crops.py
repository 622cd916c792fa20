"""Crops are whole pixels inside the frame, at the papers' sizes and positions."""

from collections import Counter

import numpy as np

from pipeline.views.crops import even_crops, full_size, multiscale_crop, square_crop
from pipeline.views.stateless_random import Draws


def draws(*key) -> Draws:
    return Draws("test", *key)


def test_the_last_position_of_a_crop_is_as_likely_as_the_others():
    counts = Counter(square_crop(12, 10, 1.0, draws(key))[0] for key in range(3000))
    assert sorted(counts) == [0, 1, 2]
    assert all(abs(count - 1000) < 120 for count in counts.values())
    assert square_crop(1, 9, 0.2, draws(0))[2:] == (1, 1)  # never nothing


def test_multiscale_crops_are_the_thirteen_positions_and_the_near_pairs():
    crops = [
        multiscale_crop(400, 300, (1.0, 0.875, 0.75, 0.66), 1, draws(key)) for key in range(3000)
    ]
    sides = [300, 263, 225, 198]
    pairs = {(sides[i], sides[j]) for i in range(4) for j in range(4) if abs(i - j) <= 1}
    assert {(w, h) for _, _, w, h in crops} == pairs
    at = {(x, y) for x, y, w, h in crops if (w, h) == (225, 225)}
    grid = {(i * 175 // 4, j * 75 // 4) for i in (0, 2, 4) for j in (0, 2, 4)}
    between = {(i * 175 // 4, j * 75 // 4) for i in (1, 3) for j in (1, 3)}
    assert at == grid | between
    for key in range(50):
        _, _, w, h = multiscale_crop(400, 300, (1.0, 0.5), 0, draws(key))
        assert w == h


def test_test_crops_run_along_the_long_side():
    assert even_crops(340, 256, 1.0, 1) == [(42, 0, 256, 256)]
    assert even_crops(340, 256, 1.0, 3) == [(0, 0, 256, 256), (42, 0, 256, 256), (84, 0, 256, 256)]
    assert even_crops(256, 340, 1.0, 3) == [(0, 0, 256, 256), (0, 42, 256, 256), (0, 84, 256, 256)]
    middle = (58, 16, 224, 224)
    assert even_crops(340, 256, 0.875, 3)[1] == even_crops(340, 256, 0.875, 1)[0] == middle
    eleven = even_crops(456, 256, 1.0, 11)
    assert [x for x, *_ in eleven] == list(range(0, 201, 20))
    assert even_crops(64, 64, 1.0, 3) == [(0, 0, 64, 64)] * 3


def test_full_views_keep_the_aspect_within_half_a_multiple():
    assert full_size(340, 256, 256, 1) == (256, 340)
    assert full_size(1920, 1080, 256, 1) == (256, 455)
    assert full_size(1080, 1920, 256, 32) == (448, 256)
    assert full_size(3, 2000, 10, 32)[1] == 32
    rng = np.random.default_rng(2)
    for width, height in rng.integers(16, 2000, (200, 2)).tolist():
        h, w = full_size(width, height, 256, 32)
        assert h % 32 == w % 32 == 0
        assert min(h, w) == 256
        scale = 256 / min(width, height)
        assert max(abs(w - width * scale), abs(h - height * scale)) <= 16
