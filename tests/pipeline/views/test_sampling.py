"""Sampling follows the papers' arithmetic, and gives the same numbers everywhere, in any order."""

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import asdict, dataclass, replace
from pathlib import Path

import numpy as np
import pytest

from pipeline.views.crops import even_crops, full_size, multiscale_crop, square_crop
from pipeline.views.frame_numbers import (
    gos_frames,
    linspace_frames,
    segment_frames,
    stride_frames,
)
from pipeline.views.sampling import (
    OFFSETS,
    SAMPLINGS,
    TEST_CROPS,
    TRAIN_CROPS,
    Sampling,
    View,
    count_views,
    views_of,
)
from pipeline.views.stateless_random import Draws


@dataclass(frozen=True)
class Info:
    frames: int = 100
    fps: float = 24.0
    width: int = 340
    height: int = 256


INFO = Info()


def training(sampling: Sampling, info=INFO, clip="clip", labels=(), seed=0) -> list[View]:
    return [view for view in views_of(sampling, info, clip, labels, seed) if view.group == "train"]


def at_test(sampling: Sampling, info=INFO, clip="clip", labels=(), seed=0) -> list[View]:
    return [view for view in views_of(sampling, info, clip, labels, seed) if view.group == "test"]


def draws(*key) -> Draws:
    return Draws("test", *key)


# Determinism


def test_a_view_is_what_it_was_when_caches_were_written():
    """Written down once. If this fails, every cache made before would disagree with its own
    configuration: raise FORMAT.
    """
    sampling = Sampling(frames=8, train_views=2, test_clips=2)
    views = views_of(sampling, Info(), "v_0001", ("x",), seed=7)
    assert views[:2] == EXPECTED_TRAIN
    assert views[2] == View(
        "test", 0, (0, 12, 25, 37, 50, 62, 75, 87), (42, 0, 256, 256), (224, 224), False
    )
    assert views[3] == View(
        "test", 1, (6, 18, 31, 43, 56, 68, 81, 93), (42, 0, 256, 256), (224, 224), False
    )
    crops = {
        crop: training(replace(sampling, train_crop=crop), seed=7)[0].crop for crop in TRAIN_CROPS
    }
    assert crops == EXPECTED_CROPS
    assert [Draws("a", 1).uniform(), Draws(0, "é\n").uniform()] == EXPECTED_UNIFORM


EXPECTED_TRAIN = [
    View("train", 0, (3, 18, 34, 49, 51, 63, 81, 88), (90, 8, 230, 230), (224, 224), False),
    View("train", 1, (8, 18, 25, 43, 51, 70, 86, 95), (101, 12, 230, 230), (224, 224), True),
]
EXPECTED_CROPS = {
    "gos": (7, 4, 230, 230),
    "short_side": (10, 13, 184, 184),
    "multiscale": (0, 0, 192, 169),
    "centre": (42, 0, 256, 256),
}
EXPECTED_UNIFORM = [0.7609662762573297, 0.5061442554151092]

PROGRAM = """
import json, sys
from dataclasses import asdict
from types import SimpleNamespace
from pipeline.views.sampling import Sampling, views_of
info = SimpleNamespace(frames=100, fps=24.0, width=340, height=256)
views = {}
for clip in sys.argv[1:]:
    found = views_of(Sampling(train_views=3), info, clip, ("x",), 3)
    views[clip] = [asdict(view) for view in found]
print(json.dumps(views))
"""


def test_views_do_not_depend_on_the_process_or_the_order_of_clips():
    clips = ["b", "ä", "a", "c d"]
    here = {
        clip: [asdict(v) for v in views_of(Sampling(train_views=3), Info(), clip, ("x",), 3)]
        for clip in sorted(clips)
    }
    env = {**os.environ, "PYTHONHASHSEED": "12345", "OMP_NUM_THREADS": "1"}
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *clips],
        cwd=root,
        env=env,
        capture_output=True,
        text=True,
        check=True,
    )
    assert json.loads(done.stdout) == json.loads(json.dumps(here))


@pytest.mark.parametrize("crop", TRAIN_CROPS)
def test_a_training_view_depends_on_neither_the_other_views_nor_the_test_options(crop):
    sampling = Sampling(train_views=5, train_crop=crop)
    five = training(sampling)
    assert training(replace(sampling, train_views=2)) == five[:2]
    for options in (
        {"test_clips": 7},
        {"test_clips": 0},
        {"test_crops": 3},
        {"test_crops": "full", "test_short_side": 512},
    ):
        assert training(replace(sampling, **options)) == five


def test_frames_crop_and_flip_are_drawn_apart():
    view = training(Sampling())[0]
    assert training(Sampling(train_crop="multiscale"))[0].frames == view.frames
    assert training(Sampling(frames=16, offsets="tsn"))[0].crop == view.crop
    assert [v.flip for v in training(Sampling(train_views=20, frames=4, train_crop="centre"))] == [
        v.flip for v in training(Sampling(train_views=20))
    ]


def test_seed_clip_and_number_each_change_the_view():
    views = (
        training(Sampling(train_views=2))
        + training(Sampling(), seed=1)
        + training(Sampling(), clip="other")
    )
    assert len({(view.frames, view.crop) for view in views}) == 4


def test_test_views_draw_nothing():
    for sampling in SAMPLINGS:
        options = Sampling(sampling=sampling, test_clips=3, test_crops=3)
        assert at_test(options) == at_test(options, clip="other", labels=("x",), seed=9)


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


# Frame numbers


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


def test_stride_keeps_the_frame_rate():
    for fps, gap in (
        (24.0, {4}),
        (12.0, {2}),
        (6.0, {1}),
        (29.97, {5}),
        (25.0, {4, 5}),
        (3.0, {0, 1}),
    ):
        options = Sampling(sampling="stride", fps=6.0, train_views=3, test_clips=3)
        for view in views_of(options, Info(frames=1000, fps=fps), "c", (), 0):
            found = set(np.diff(view.frames))
            if fps == 29.97:
                assert found <= gap | {4}
            else:
                assert found == gap
    frames = np.array(stride_frames(10_000, 32, 29.97 / 6.0, clip=0, clips=2))
    assert np.abs(frames - np.arange(32) * 29.97 / 6).max() <= 0.5  # the rounding never adds up


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


def test_stride_needs_a_frame_rate():
    for fps in (0.0, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match=r"clip c: .*source_fps"):
            views_of(Sampling(sampling="stride"), Info(fps=fps), "c", (), 0)
        view = at_test(Sampling(sampling="stride", source_fps=12.0), Info(fps=fps))[0]
        assert set(np.diff(view.frames)) == {2}
    # The file's own rate wins.
    view = at_test(Sampling(sampling="stride", source_fps=12.0), Info(200))[0]
    assert set(np.diff(view.frames)) == {4}


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


# Crops


def inside(crop, width: int, height: int) -> bool:
    x, y, w, h = crop
    return x >= 0 and y >= 0 and w >= 1 and h >= 1 and x + w <= width and y + h <= height


def test_crops_are_whole_pixels_inside_the_frame():
    rng = np.random.default_rng(1)
    for key in range(300):
        width, height = (int(n) for n in rng.integers(1, 700, 2))
        for train_crop in TRAIN_CROPS:
            for test_crops in TEST_CROPS:
                options = Sampling(frames=1, train_crop=train_crop, test_crops=test_crops)
                for view in views_of(options, Info(width=width, height=height), str(key), (), 0):
                    assert inside(view.crop, width, height), (view, width, height)
                    assert all(isinstance(number, int) for number in view.crop)


def test_gos_crops_have_its_two_scales_and_go_everywhere():
    crops = [view.crop for view in training(Sampling(frames=1, train_views=400))]
    sides = Counter(w for _, _, w, h in crops if w == h)
    assert set(sides) == {256, 230}  # 0.9 x 256 = 230.4
    assert abs(sides[256] - 200) < 50
    whole = [x for x, y, w, _ in crops if w == 256]
    assert min(whole) < 5
    assert max(whole) > 79
    assert {y for _, y, w, _ in crops if w == 256} == {0}
    small = np.array([(x / 110, y / 26) for x, y, w, _ in crops if w == 230])
    assert np.abs(small.mean(0) - 0.5).max() < 0.1
    assert small.min() == 0
    assert small.max() == 1


def test_the_last_position_of_a_crop_is_as_likely_as_the_others():
    counts = Counter(square_crop(12, 10, 1.0, draws(key))[0] for key in range(3000))
    assert sorted(counts) == [0, 1, 2]
    assert all(abs(count - 1000) < 120 for count in counts.values())
    assert square_crop(1, 9, 0.2, draws(0))[2:] == (1, 1)  # never nothing


def test_random_short_sides_crop_the_right_share():
    options = Sampling(frames=1, train_views=500, train_crop="short_side")
    crops = [view.crop for view in training(options, Info(width=600, height=512))]
    sides = [w for _, _, w, h in crops if w == h]
    assert len(sides) == 500
    # 224 of a short side of 320 up to 256, in a frame of 512
    assert min(sides) == round(224 / 320 * 512)
    assert max(sides) == round(224 / 256 * 512)
    small = Sampling(size=56, train_crop="short_side")
    assert training(small)[0].crop == training(replace(small, short_side=[64, 80]))[0].crop
    fixed = training(Sampling(train_crop="short_side", short_side=(256, 256)))[0]
    assert fixed.crop[2:] == (224, 224)


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


def test_the_papers_test_views():
    info = Info(width=340, height=256)
    gos = at_test(Sampling(test_short_side=224), info)[0]
    assert (gos.crop, gos.size) == ((42, 0, 256, 256), (224, 224))
    assert at_test(Sampling(), info)[0] == gos  # the default
    dyreg = at_test(Sampling(test_short_side=256), info)[0]
    assert (dyreg.crop, dyreg.size) == ((58, 16, 224, 224), (224, 224))
    rstg = at_test(Sampling(test_crops=11, test_clips=2), info)
    assert len(rstg) == 22
    assert {(view.crop[2:], view.size) for view in rstg} == {((256, 256), (256, 256))}
    assert [view.number for view in rstg] == list(range(22))
    assert len({view.frames for view in rstg[:11]}) == 1
    strg = at_test(Sampling(test_crops="full"), info)[0]
    assert (strg.crop, strg.size) == ((0, 0, 340, 256), (256, 352))


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


# Flips, counts, options


def test_protected_labels_never_flip_and_others_do_at_the_probability():
    options = Sampling(frames=1, train_views=400, flip_protect=["left", "right"])
    assert not any(view.flip for view in training(options, labels=("other", "left")))
    assert abs(sum(view.flip for view in training(options, labels=("other",))) - 200) < 40
    assert not any(view.flip for view in training(replace(options, flip=0.0)))
    assert all(view.flip for view in training(replace(options, flip=1.0)))
    assert not any(view.flip for view in at_test(replace(options, flip=1.0)))


def test_protection_leaves_frames_and_crops_alone():
    options = Sampling(train_views=4, flip_protect=("left",))
    free, kept = training(options, labels=()), training(options, labels=("left",))
    assert [replace(view, flip=False) for view in free] == kept


def test_the_count_and_sizes_of_views_are_known_before_any_clip_is_opened():
    for crops in TEST_CROPS:
        options = Sampling(frames=4, train_views=3, test_clips=2, test_crops=crops, test_multiple=1)
        for info in (Info(), Info(frames=1, width=5, height=900)):
            views = views_of(options, info, "c", (), 0)
            assert Counter(view.group for view in views) == count_views(options)
            for view in views:
                assert len(view.frames) == 4
                assert options.size_of(view.group) in (view.size, None)
    assert count_views(Sampling(train_views=0)) == {"train": 0, "test": 1}


def test_a_clip_without_a_picture_is_refused():
    for info in (Info(frames=0), Info(width=0), Info(height=0)):
        with pytest.raises(ValueError, match="clip c: expected at least one frame"):
            views_of(Sampling(), info, "c", (), 0)


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ({"frames": 0}, "frames"),
        ({"frames": 3.0}, "frames"),
        ({"frames": True}, "frames"),
        ({"sampling": "random"}, "sampling"),
        ({"consecutive": 5}, "consecutive"),
        ({"consecutive": 4, "sampling": "stride"}, "consecutive"),
        ({"offsets": "gos"}, "offsets"),
        ({"fps": 0}, "fps"),
        ({"fps": float("inf")}, "fps"),
        ({"source_fps": -1.0}, "source_fps"),
        ({"size": 0}, "size"),
        ({"train_views": -1}, "train_views"),
        ({"train_views": 0, "test_clips": 0}, "train_views"),
        ({"train_crop": "center"}, "train_crop"),
        ({"scales": ()}, "scales"),
        ({"scales": (1.1,)}, "scales"),
        ({"scales": 0.9}, "scales"),
        ({"scales": (1.0, 0.9), "train_crop": "centre"}, "scales"),
        ({"scales": (1.0,), "train_crop": "short_side"}, "scales"),
        ({"max_distort": -1}, "max_distort"),
        ({"short_side": (200, 320)}, "short_side"),
        ({"short_side": (320, 256)}, "short_side"),
        ({"short_side": 256}, "short_side"),
        ({"flip": 1.5}, "flip"),
        ({"flip": float("nan")}, "flip"),
        ({"flip_protect": "left"}, "flip_protect"),
        ({"test_crops": 5}, "test_crops"),
        ({"test_crops": True}, "test_crops"),
        ({"test_short_side": 0}, "test_short_side"),
        ({"test_short_side": 200}, "test_short_side"),
        ({"test_size": 300, "test_crops": 3}, "test_size"),
        ({"test_multiple": 0}, "test_multiple"),
    ],
)
def test_an_option_outside_its_range_is_named(options, named):
    with pytest.raises(ValueError, match=rf"^sampling\.{named}: expected .*; got "):
        Sampling(**options)


def test_an_unknown_option_names_the_nearest():
    with pytest.raises(
        ValueError, match=r"sampling\.train_view: no such option; did you mean train_views"
    ):
        Sampling.from_dict({"train_view": 3})


def test_whole_and_real_spellings_are_one_configuration():
    whole = Sampling(fps=6, source_fps=12, flip=1, scales=[1])
    real = Sampling(fps=6.0, source_fps=12.0, flip=1.0, scales=(1.0,))
    assert json.dumps(asdict(whole)) == json.dumps(asdict(real))


def test_options_survive_json():
    options = Sampling(
        scales=(1.0, 0.5), flip_protect=("a", "b"), test_crops="full", source_fps=12.0
    )
    assert Sampling.from_dict(json.loads(json.dumps(asdict(options)))) == options
    sides = Sampling(train_crop="short_side", short_side=(224, 300))
    assert Sampling.from_dict(json.loads(json.dumps(asdict(sides)))) == sides
