"""Random numbers depend on their key alone, and are uniform."""

import numpy as np

from pipeline.views.stateless_random import Draws


def draws(*key) -> Draws:
    return Draws("test", *key)


def test_keys_that_read_alike_are_different():
    keys = [("1", 2), (1, "2"), ("1,2",), ("12",), (12,), (1, 2), ("1", "2")]
    assert len({Draws(*key).uniform() for key in keys}) == len(keys)


def test_draws_are_uniform():
    stream = draws("uniform")
    sample = np.array([stream.uniform() for _ in range(4000)])
    assert 0 <= sample.min() < 0.01 < 0.99 < sample.max() < 1
    assert abs(sample.mean() - 0.5) < 0.02
    # The first draws of neighbouring keys.
    first = np.array([draws("first", k).uniform() for k in range(4000)])
    assert np.histogram(first, 10, (0, 1))[0].min() > 330
    assert abs(np.corrcoef(first[:-1], first[1:])[0, 1]) < 0.05
    assert {stream.below(3) for _ in range(100)} == {0, 1, 2}
    assert stream.below(1) == 0
