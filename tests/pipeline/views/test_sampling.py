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

from pipeline.views.frame_numbers import stride_frames
from pipeline.views.sampling import (
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


# Determinism


def test_a_view_is_what_it_was_when_caches_were_written():
    """Written down once.

    If this fails, every cache made before disagrees with its own configuration: raise FORMAT.
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
    "gos_floor": (7, 4, 230, 230),
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


# Frame numbers


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


def test_stride_needs_a_frame_rate():
    for fps in (0.0, float("nan"), float("inf"), None):
        with pytest.raises(ValueError, match=r"clip c: .*source_fps"):
            views_of(Sampling(sampling="stride"), Info(fps=fps), "c", (), 0)
        view = at_test(Sampling(sampling="stride", source_fps=12.0), Info(fps=fps))[0]
        assert set(np.diff(view.frames)) == {2}
    # The file's own rate wins.
    view = at_test(Sampling(sampling="stride", source_fps=12.0), Info(200))[0]
    assert set(np.diff(view.frames)) == {4}


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


def test_the_released_rounding_of_gos_is_down_and_that_of_its_crop_to_the_nearest_pixel():
    sides = {}
    for crop in ("gos", "gos_floor"):
        sampling = Sampling(frames=1, train_views=40, train_crop=crop)
        views = training(sampling, Info(width=379, height=253))
        sides[crop] = {view.crop[2] for view in views}
        assert sides[crop] == {view.crop[3] for view in views}
    # 0.9 x 253 = 227.7
    assert sides == {"gos": {253, 228}, "gos_floor": {253, 227}}


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
        ({"stretch": [240]}, "stretch"),
        ({"stretch": [240, 0]}, "stretch"),
    ],
)
def test_an_option_outside_its_range_is_named(options, named):
    with pytest.raises(ValueError, match=rf"^sampling\.{named}: expected .*; got "):
        Sampling(**options)


def test_crops_of_stretched_frames_are_the_same_part_of_the_frame_itself():
    """EAN's release: frames of 320x240 whatever their aspect, then the centre of 224x224."""
    info = Info(width=200, height=100)
    released = Sampling(stretch=[240, 320], test_short_side=240)
    crop = at_test(released, info)[0].crop
    assert crop == pytest.approx((48 * 200 / 320, 8 * 100 / 240, 224 * 200 / 320, 224 * 100 / 240))

    # Training views are those of a frame of that size, drawn with the same numbers.
    options = {"train_crop": "multiscale", "train_views": 20}
    stretched = training(Sampling(**options, stretch=(240, 320)), info)
    plain = training(Sampling(**options), Info(width=320, height=240))
    scales = (200 / 320, 100 / 240) * 2
    for one, other in zip(stretched, plain, strict=True):
        assert one.crop == pytest.approx([a * b for a, b in zip(other.crop, scales, strict=True)])
        assert (one.frames, one.flip, one.size) == (other.frames, other.flip, other.size)
    assert training(Sampling(**options, stretch=(240, 320)), Info(width=320, height=240)) == plain


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
