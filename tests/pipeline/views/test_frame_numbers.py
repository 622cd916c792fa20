"""Frame numbers follow the papers' arithmetic and stay inside the clip."""

from collections import Counter

import numpy as np

from pipeline.views.frame_numbers import (
    gos_frames,
    linspace_frames,
    segment_frames,
    stride_frames,
)
from pipeline.views.sampling import OFFSETS
from pipeline.views.stateless_random import Draws


def draws(*key) -> Draws:
    return Draws("test", *key)


def all_frames(length: int, frames: int, key: int) -> list[list[int]]:
    """Every way of numbering, for training and for the clips of a test."""
    found = [segment_frames(length, frames, 1, offsets, draws(key)) for offsets in OFFSETS]
    found.append(gos_frames(length, frames, draws(key)))
    found += [stride_frames(length, frames, step, draws(key)) for step in (0.3, 1.0, 4.995)]
    for clip, clips in ((0, 1), (0, 2), (1, 2), (4, 5)):
        found.append(segment_frames(length, frames, clip=clip, clips=clips))
        found.append(stride_frames(length, frames, 2.5, clip=clip, clips=clips))
        found.append(linspace_frames(length, frames, clip, clips))
        found.append(gos_frames(length, frames, None, clip, clips))
    return found


def test_frame_numbers_are_in_the_clip_and_never_go_back():
    rng = np.random.default_rng(0)
    for key in range(300):
        length, frames = int(rng.integers(1, 200)), int(rng.integers(1, 50))
        for numbers in all_frames(length, frames, key):
            assert len(numbers) == frames
            assert 0 <= min(numbers) <= max(numbers) < length
            assert numbers == sorted(numbers)


def test_each_frame_lies_in_its_segment():
    for length in (1, 5, 31, 32, 33, 49, 100, 1000):
        for key in range(50):
            for numbers in (
                segment_frames(length, 32, draws=draws(length, key)),
                segment_frames(length, 32),
            ):
                for k, number in enumerate(numbers):
                    assert k * length // 32 <= number < (k + 1) * length / 32


def test_segments_show_every_frame_equally_often():
    counts = Counter(
        number for key in range(4000) for number in segment_frames(10, 4, draws=draws(key))
    )
    assert sorted(counts) == list(range(10))
    assert all(abs(count - 1600) < 160 for count in counts.values())


def test_a_middle_frame_stands_for_each_segment_at_test():
    assert segment_frames(8, 4) == [1, 3, 5, 7]
    for length in (16, 49, 100):
        tick = length / 16
        assert segment_frames(length, 16) == [int(tick / 2 + tick * k) for k in range(16)]


def test_two_test_clips_start_at_0_and_half_a_segment():
    for length in (20, 49, 100):  # DyReg-GNN's and EAN's released code
        tick = length / 16
        assert segment_frames(length, 16, clip=0, clips=2) == [int(tick * k) for k in range(16)]
        assert segment_frames(length, 16, clip=1, clips=2) == [
            int(tick * k + tick / 2) for k in range(16)
        ]


def test_several_consecutive_frames_are_neighbours_and_repeat_the_last():
    for length in (1, 3, 5, 9, 40, 100):
        for key in range(20):
            for numbers in (
                segment_frames(length, 40, 5, draws=draws(key)),
                segment_frames(length, 40, 5, "tsn", draws(key)),
                segment_frames(length, 40, 5),
            ):
                for start, *rest in np.reshape(numbers, (8, 5)).tolist():
                    assert rest == [min(start + j, length - 1) for j in range(1, 5)]
    tick = (100 - 4) / 8  # EAN's released code
    assert segment_frames(100, 40, 5)[::5] == [int(tick / 2 + tick * k) for k in range(8)]
    numbers = segment_frames(100, 40, 5, draws=draws(0))
    assert max(numbers) == max(numbers[::5]) + 4


def test_tsn_offsets_are_those_of_the_papers():
    for key in range(50):
        # DyReg-GNN's released code: segments of 49 // 16 = 3 frames.
        numbers = segment_frames(49, 16, offsets="tsn", draws=draws(key))
        assert all(3 * k <= number < 3 * k + 3 for k, number in enumerate(numbers))
    seen = {
        number
        for key in range(200)
        for number in segment_frames(49, 16, offsets="tsn", draws=draws(key))
    }
    assert seen == set(range(48))
    assert segment_frames(10, 16, offsets="tsn", draws=draws(0)) == [0] * 16
    # EAN's released code: nine frames hold five starts for eight segments, so these are sorted
    # random; eight frames give the first.
    starts = [segment_frames(9, 40, 5, "tsn", draws(key))[::5] for key in range(100)]
    assert {start for row in starts for start in row} == set(range(5))
    assert all(row == sorted(row) for row in starts)
    assert segment_frames(8, 40, 5, "tsn", draws(0))[::5] == [0] * 8


def test_short_videos_repeat_frames_evenly():
    assert segment_frames(4, 8) == [0, 0, 1, 1, 2, 2, 3, 3]
    assert segment_frames(1, 8, draws=draws(0)) == [0] * 8
    for key in range(50):
        assert set(segment_frames(4, 8, draws=draws(key))) == {0, 1, 2, 3}
    assert linspace_frames(3, 5) == [0, 0, 1, 1, 2]


def test_stride_starts_anywhere_in_training_and_spreads_at_test():
    last = 100 - 1 - 31 * 2
    starts = {stride_frames(100, 32, 2.0, draws(key))[0] for key in range(600)}
    assert starts == set(range(last + 1))
    spread = [stride_frames(100, 32, 2.0, clip=clip, clips=10) for clip in range(10)]
    assert (spread[0][0], spread[-1][-1]) == (0, 99)
    assert set(np.diff([numbers[0] for numbers in spread])) <= {last // 9, last // 9 + 1}
    assert stride_frames(100, 32, 2.0)[0] == last // 2


def test_stride_repeats_the_last_frame_of_a_short_video():
    assert stride_frames(5, 8, 1.0) == [0, 1, 2, 3, 4, 4, 4, 4]
    assert stride_frames(5, 8, 1.0, draws(0)) == [0, 1, 2, 3, 4, 4, 4, 4]


def test_linspace_runs_from_the_first_frame_to_the_last():
    for length in (32, 49, 94, 120):
        numbers = linspace_frames(length, 32)
        expected = np.floor(np.linspace(0, length - 1, 32) + 1e-9)
        assert np.abs(np.array(numbers) - expected).max() == 0
        shifted = linspace_frames(length, 32, 1, 2)
        shift = int(0.5 * length / 32 + 0.5)  # RSTG's released code
        assert shifted == [min(number + shift, length - 1) for number in numbers]
    assert linspace_frames(7, 1) == [0]


def test_gos_jitter_is_nothing_below_63_frames():
    for length in (5, 32, 62):  # GOS's released code
        steps = linspace_frames(length, 32)
        assert gos_frames(length, 32, draws(0)) == gos_frames(length, 32, draws(1)) == steps
    assert len({tuple(gos_frames(63, 32, draws(key))) for key in range(5)}) == 5
    for key in range(50):
        numbers = np.array(gos_frames(200, 32, draws(key)))
        steps = np.array(linspace_frames(200, 32))
        assert numbers[0] == 0
        assert ((numbers - steps >= 0) & (numbers - steps <= 3)).all()  # step 6.4, half of it 3
    assert gos_frames(200, 32) == gos_frames(200, 32, None, 0, 5) == linspace_frames(200, 32)
    assert len({tuple(gos_frames(300, 32, None, clip, 5)) for clip in range(5)}) == 5
