"""How clips are divided into shards."""

import pytest

from pipeline.stages.shard_sizes import FEWEST, SHARDS, divide
from pipeline.views.equal_views import same_test_views
from pipeline.views.sampling import Sampling, views_of
from pipeline.views.video_info import VideoInfo

TRAIN, TEST = (("train", 0),), (("test", 0), ("test", 1), ("test", 2))
SIZES = {"train": 10, "test": 20}


@pytest.mark.parametrize("clips", [64, 65, 127, 128, 255, 256, 257, 300, 10_802])
def test_there_are_64_shards_where_there_are_that_many_clips(clips):
    lengths = divide([TRAIN] * clips, SIZES, 2 << 30)
    assert sum(lengths) == clips
    assert SHARDS <= len(lengths) < 2 * SHARDS


@pytest.mark.parametrize("clips", [1, 3, 4, 24, 63])
def test_few_clips_are_in_shards_of_four(clips):
    lengths = divide([TRAIN] * clips, SIZES, 2 << 30)
    assert sum(lengths) == clips
    assert set(lengths[:-1]) <= {FEWEST}
    assert lengths[-1] <= FEWEST


def test_no_shard_has_more_bytes_than_it_may_whatever_the_views_of_its_clips():
    views = [TRAIN, TEST] * 50
    lengths = divide(views, SIZES, 200)
    first = 0
    for length in lengths:
        part = views[first : first + length]
        first += length
        bytes_of = sum(SIZES[group] for keys in part for group, _ in keys)
        assert bytes_of <= 200
    assert first == 100
    # A clip that is larger than a shard has one of its own.
    assert divide([TEST, TEST], SIZES, 1) == [1, 1]


def test_a_given_number_of_clips_counts():
    assert divide([TRAIN] * 7, SIZES, 1, shard_size=3) == [3, 3, 1]


@pytest.mark.parametrize("rule", ["segments", "stride", "linspace", "gos"])
@pytest.mark.parametrize("crops", [1, 3])
def test_views_that_are_called_the_same_are_the_same_in_every_video(rule, crops):
    def views(clips: int, length: int) -> list:
        sampling = Sampling(
            frames=8, sampling=rule, fps=3.0, test_clips=clips, test_crops=crops, train_views=0
        )
        return views_of(sampling, VideoInfo(length, 7.3, 64, 48), "clip", (), 0)

    lengths = [1, 2, 7, 8, 9, 30, 31, 64, 97, 250, 251]
    sampling = Sampling(sampling=rule, test_crops=crops)
    for before, after in ((1, 2), (1, 3), (1, 5), (2, 4), (2, 3), (3, 5), (4, 10)):
        same = same_test_views(sampling, before, after)
        for old in range(before * crops):
            found = {
                new
                for new in range(after * crops)
                if _always(views, before, old, after, new, lengths)
            }
            assert found == ({same[old]} if old in same else set()), (before, after, old)


def _always(views, before, old, after, new, lengths) -> bool:
    for length in lengths:
        a, b = views(before, length)[old], views(after, length)[new]
        if (a.frames, a.crop) != (b.frames, b.crop):
            return False
    return True
