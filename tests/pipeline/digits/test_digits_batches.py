"""Batches of digit videos in memory: the same bits as one by one with Pillow, on every device, in
every batch.
"""

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pipeline.digits import (
    TASKS,
    DigitVideos,
    Images,
    SyncDigits,
    draw,
    generate,
    load_images,
    video,
)
from pipeline.digits.batches import stretch_
from pipeline.digits.resize import Shrink, weights_of
from pipeline.digits.scenes import shrink, stretch

DEVICES = [
    "cpu",
    pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU")),
]


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images()["train"]


@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", TASKS)
def test_batches_show_what_files_show(images, name, device):
    task = TASKS[name]()
    made = generate(task, images, range(5, 16), seed=3, device=device)
    assert made.frames.shape == (11, task.frames, task.size, task.size)
    assert made.frames.dtype == torch.uint8
    assert made.frames.device.type == device
    for k, index in enumerate(range(5, 16)):
        one = video(task, images, 3, "train", index)
        assert np.array_equal(made.rgb[k].cpu().numpy(), one.frames)
        assert np.array_equal(made.boxes[k].cpu().numpy(), one.boxes)
        assert np.array_equal(made.classes[k].cpu().numpy(), one.classes)
        assert task.labels[made.labels[k]] == one.label


@pytest.mark.parametrize("name", TASKS)
def test_a_video_does_not_depend_on_its_batch(images, name):
    videos = DigitVideos(TASKS[name](), images, seed=1, split="val")
    together, some = videos[range(12)], videos[[11, 4, 4]]
    for field in ("frames", "labels", "boxes", "corners", "classes", "chosen"):
        assert torch.equal(getattr(some, field), getattr(together, field)[[11, 4, 4]]), field


@pytest.mark.parametrize("name", TASKS)
def test_the_chosen_digits_are_those_that_the_label_names(images, name):
    task = TASKS[name]()
    made = generate(task, images, range(40))
    for label, classes, chosen in zip(made.labels, made.classes, made.chosen, strict=True):
        some = classes[chosen].tolist()
        assert task.labels[label] == (f"{min(some)}-{max(some)}" if some else "none")


def test_batches_follow_the_indices_and_end_with_the_rest(images):
    videos = DigitVideos(SyncDigits(frames=2), images)
    order = [9, 3, 7, 1, 0]
    parts = list(videos.batches(order, 2))
    assert [frames.shape for frames, _ in parts] == [(2, 2, 64, 64, 3)] * 2 + [(1, 2, 64, 64, 3)]
    whole = videos[order]
    assert torch.equal(torch.cat([frames for frames, _ in parts]), whole.rgb)
    assert torch.equal(torch.cat([labels for _, labels in parts]), whole.labels)
    for wrong in ([], 3):
        with pytest.raises(ValueError, match="expected a list of one or more numbers"):
            videos[wrong]


def test_frames_do_not_change_under_autocast(images):
    videos = DigitVideos(SyncDigits(), images)
    with torch.autocast("cpu", torch.bfloat16):
        inside = videos[range(3)]
    assert torch.equal(inside.frames, videos[range(3)].frames)


def pillow(picture: np.ndarray, size: int) -> np.ndarray:
    return np.asarray(Image.fromarray(picture).resize((size, size), Image.Resampling.BILINEAR))


@pytest.mark.parametrize(
    ("side", "size"), [(100, 64), (256, 128), (28, 18), (50, 49), (37, 11), (30, 1)]
)
def test_weights_are_pillows(side, size):
    """A row of a single bright pixel, and noise: rows first, rounded, then columns."""
    rng = np.random.default_rng(side)
    weights = weights_of(side, size)
    for picture in (
        rng.integers(0, 256, (side, side), dtype=np.uint8),
        np.eye(side, dtype=np.uint8) * 255,
    ):
        rows = np.floor(picture @ weights.T + 0.5)
        assert np.array_equal(np.floor(weights @ rows + 0.5), pillow(picture, size))


@pytest.mark.parametrize(
    ("side", "size", "tile"),
    [(100, 64, 28), (256, 128, 28), (20, 7, 5), (30, 29, 28), (64, 1, 60), (31, 30, 2)],
)
def test_windows_of_the_tiles_hold_all_that_is_to_be_seen(side, size, tile):
    """Tiles of noise in all corners, at random places, and over one another."""
    rng = np.random.default_rng(0)
    last = side - tile
    corners = np.concatenate(
        [rng.integers(0, last + 1, (40, 3, 2)), [[[0, 0], [last, last], [0, last]]]]
    )
    tiles = rng.integers(0, 256, (3, tile, tile), dtype=np.uint8)
    canvases = np.concatenate([draw(some[None], tiles, side) for some in corners])
    made = Shrink(side, size, tile)(torch.from_numpy(canvases), torch.from_numpy(corners)).numpy()
    assert np.array_equal(made, shrink(canvases, size))
    assert np.array_equal(made[0], pillow(canvases[0], size))


def test_contrast_is_stretched_as_imresize_did():
    """(v - min) · 255 / (max - min), rounded; a frame of one shade becomes black."""
    rng = np.random.default_rng(1)
    frames = np.concatenate(
        [
            rng.integers(low, high, (1, 9, 9))
            for low, high in ((0, 256), (0, 200), (31, 87), (40, 41))
        ]
    )
    frames = frames.astype(np.uint8)
    frames[0].flat[:2] = 0, 255
    stretched = stretch(frames)
    for before, after in zip(frames.astype(float), stretched, strict=True):
        scale = 255.0 / ((before.max() - before.min()) or 1)
        assert np.array_equal(
            after, (((before - before.min()) * scale).clip(0, 255) + 0.5).astype(np.uint8)
        )
    assert np.array_equal(stretched[0], frames[0])
    given = torch.from_numpy(frames.copy())
    stretch_(given)
    assert np.array_equal(given.numpy(), stretched)


def test_stretching_is_an_option_and_on_for_syncmnist_only(images):
    assert {name: kind().stretch for name, kind in TASKS.items()} == {
        "meet": False,
        "sync3": True,
        "sync5": True,
        "multisync": False,
    }
    dark = Images("dark", images.pixels // 2, images.classes)
    task = SyncDigits(frames=3, size=100)
    stretched, plain = (
        generate(kind, dark, range(4)).frames for kind in (task, replace(task, stretch=False))
    )
    assert (stretched.amax((2, 3)) == 255).all()
    assert plain.max() < 200
