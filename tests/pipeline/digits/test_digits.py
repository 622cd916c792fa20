"""Generated digit videos: what the task promises, and that a video depends on its own number
alone.
"""

from dataclasses import replace
from itertools import combinations

import numpy as np
import pytest

from pipeline.digits import (
    INK,
    Images,
    Meet,
    draw,
    load_images,
    single_digits,
    split_images,
    video,
    videos,
    write_dataset,
)
from pipeline.manifests.manifest import read_manifest
from pipeline.proposals import build_proposals
from pipeline.video.decode import open_clip

SMALL = Meet(classes=4, digits=3, frames=5, canvas=48, tile=12, together=2, depth=(2, 6))
PAIRS = list(combinations(range(4), 2))


@pytest.fixture(scope="module")
def images() -> dict[str, Images]:
    return load_images()


@pytest.fixture(scope="module")
def made(images):
    return list(videos(Meet(), images["train"], seed=3, split="train", indices=range(60)))


def gaps(boxes: np.ndarray) -> np.ndarray:
    """boxes [F,n,4] -> [F,pairs]: the larger of the two axes' distances between boxes; below 0 they
    overlap by that much.
    """
    i, j = np.triu_indices(boxes.shape[1], 1)
    a, b = boxes[:, i], boxes[:, j]
    return np.maximum(a[..., :2] - b[..., 2:], b[..., :2] - a[..., 2:]).max(-1)


def test_the_label_names_the_pair_whose_boxes_overlap(made):
    for one in made:
        (pair,) = np.flatnonzero((gaps(one.boxes) < 0).any(0))
        assert one.label == "{}-{}".format(*sorted(one.classes[list(PAIRS[pair])]))


def test_exactly_one_pair_meets_as_the_rules_say_and_all_others_keep_their_margin(made):
    task = Meet()
    for one in made:
        gap = gaps(one.boxes)
        meeting = (gap < 0).any(0)
        assert meeting.sum() == 1
        assert (gap[:, meeting] <= -task.depth[0]).sum() >= task.together
        assert gap[:, meeting].min() >= -task.depth[1]
        assert gap[:, ~meeting].min() >= task.margin


def test_digits_of_a_video_have_distinct_classes(made):
    assert all(len(set(one.classes)) == 4 for one in made)


def test_every_digit_has_ink_in_its_box_and_no_ink_is_outside_the_boxes(made):
    for one in made:
        for frame, boxes in zip(one.frames, one.boxes.astype(int), strict=True):
            outside = frame.copy()
            for x1, y1, x2, y2 in boxes:
                assert (frame[y1:y2, x1:x2] >= INK).any()
                outside[y1:y2, x1:x2] = 0
            assert not outside.any()


def test_boxes_stay_on_the_canvas_and_frames_are_grey(made):
    for one in made:
        assert one.frames.shape == (8, 64, 64, 3)
        assert one.frames.dtype == np.uint8
        assert (one.boxes[..., :2] >= 0).all()
        assert (one.boxes[..., 2:] <= 64).all()
        assert (one.frames == one.frames[..., :1]).all()


def test_a_video_depends_on_its_index_and_not_on_how_many_are_made(images, made):
    again = video(Meet(), images["train"], 3, "train", 41)
    assert np.array_equal(again.frames, made[41].frames)
    assert np.array_equal(again.boxes, made[41].boxes)
    some = list(videos(Meet(), images["train"], 3, "train", range(40, 43)))
    assert np.array_equal(some[1].frames, again.frames)


@pytest.mark.parametrize(
    ("seed", "split", "index"), [(4, "train", 41), (3, "val", 41), (3, "train", 31)]
)
def test_another_seed_split_or_index_is_another_video(images, made, seed, split, index):
    assert not np.array_equal(
        video(Meet(), images["train"], seed, split, index).boxes, made[41].boxes
    )


def test_labels_take_turns(images):
    labels = [one.label for one in videos(SMALL, images["val"], 0, "val", range(24))]
    assert {label: labels.count(label) for label in labels} == dict.fromkeys(SMALL.labels, 4)


def test_paths_do_not_depend_on_the_label():
    scenes = [SMALL.scene(number, np.random.default_rng(5)) for number in range(len(SMALL.labels))]
    assert all(np.array_equal(scenes[0].corners, scene.corners) for scene in scenes)


def test_knowing_which_digits_are_there_leaves_every_pair_equally_likely():
    """Of three digits present, each of the three pairs is the label a third of the time."""
    scenes = [SMALL.scene(k % 6, np.random.default_rng([9, k])) for k in range(1200)]
    for present in combinations(range(4), 3):
        labels = [scene.label for scene in scenes if set(scene.classes) == set(present)]
        for a, b in combinations(present, 2):
            share = labels.count(f"{a}-{b}") / len(labels)
            assert abs(share - 1 / 3) < 4 * np.sqrt(2 / 9 / len(labels))


def test_who_meets_does_not_follow_from_the_order_of_painting():
    places = [PAIRS.index(tuple(np.flatnonzero(_meets(SMALL, k)))) for k in range(600)]
    for pair in (0, 1, 3):  # (0,1), (0,2), (1,2) of three digits
        assert abs(places.count(pair) / 600 - 1 / 3) < 4 * np.sqrt(2 / 9 / 600)


def test_either_class_of_the_pair_may_be_painted_first():
    firsts = [SMALL.scene(0, np.random.default_rng([6, k])).classes for k in range(400)]
    smaller = sum(list(classes).index(0) < list(classes).index(1) for classes in firsts)
    assert abs(smaller / 400 - 1 / 2) < 4 * np.sqrt(1 / 4 / 400)


def _meets(task: Meet, k: int) -> np.ndarray:
    """Which digits of scene k are in the pair, [n] bool."""
    scene = task.scene(k % 6, np.random.default_rng([2, k]))
    return np.isin(scene.classes, [int(c) for c in scene.label.split("-")])


def test_later_digits_hide_earlier_ones_only_where_they_have_ink():
    lower, upper = np.full((4, 4), 100, np.uint8), np.full((4, 4), 200, np.uint8)
    upper[:, 2:] = INK - 1
    frame = draw(np.array([[[0, 0], [2, 0]]]), np.stack([lower, upper]), 8)[0, :4]
    assert frame[0].tolist() == [100, 100, 200, 200, 0, 0, 0, 0]
    swapped = draw(np.array([[[2, 0], [0, 0]]]), np.stack([upper, lower]), 8)[0, :4]
    assert swapped[0].tolist() == [100, 100, 100, 100, 0, 0, 0, 0]


def test_no_digit_image_is_in_two_splits(images):
    seen = {split: {tile.tobytes() for tile in some.pixels} for split, some in images.items()}
    assert sum(len(some.classes) for some in images.values()) == 1797
    for a, b in combinations(seen, 2):
        assert not seen[a] & seen[b]


def test_every_split_has_its_share_of_every_class():
    classes = np.repeat(np.arange(10), 20)
    parts = split_images(
        Images("numbered", np.arange(200, dtype=np.uint8).reshape(-1, 1, 1), classes)
    )
    for split, count in (("train", 12), ("val", 4), ("test", 4)):
        assert np.bincount(parts[split].classes).tolist() == [count] * 10
        assert (parts[split].classes == classes[parts[split].pixels.ravel()]).all()


def test_mnist_keeps_its_own_test_images(monkeypatch, tmp_path):
    torch = pytest.importorskip("torch")

    class MNIST:
        def __init__(self, root, train, download):
            count = 100 if train else 30
            self.data = torch.arange(count, dtype=torch.uint8).view(-1, 1, 1) + (
                0 if train else 100
            )
            self.targets = torch.arange(count) % 10

    monkeypatch.setattr("torchvision.datasets.MNIST", MNIST)
    parts = load_images("mnist", tmp_path)
    assert [sorted(parts[split].pixels.ravel()) for split in ("train", "val", "test")] == [
        list(range(90)),
        list(range(90, 100)),
        list(range(100, 130)),
    ]


def test_a_single_digit_lies_whole_on_its_canvas_with_its_class(images):
    tiles = images["val"].resized(10)
    frames, classes = single_digits(tiles, 50, 24, np.random.default_rng(0))
    assert frames.shape == (50, 24, 24, 3)
    known = {}
    for tile, c in zip(tiles.pixels, tiles.classes, strict=True):
        known.setdefault(int(tile.sum()), set()).add(int(c))
    for frame, c in zip(frames[..., 0], classes, strict=True):
        assert c in known[int(frame.sum())]
    # The digits are all over the canvas.
    assert len({tuple(np.argwhere(frame[..., 0])[0]) for frame in frames}) > 25


def test_impossible_rules_are_refused_rather_than_tried_for_ever():
    crowded = Meet(classes=4, digits=4, canvas=24, tile=12, frames=2, together=1, depth=(2, 6))
    with pytest.raises(ValueError, match="no paths in"):
        crowded.scene(0, np.random.default_rng(0))


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": 6},
        {"digits": 1},
        {"tile": 64},
        {"together": 9},
        {"depth": (0, 3)},
        {"speed": (1, 2, 3)},
        {"canvas": "64"},
    ],
)
def test_options_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="meet: expected"):
        replace(Meet(), **wrong)


def test_a_class_without_images_is_named(images):
    few = images["train"].only(np.flatnonzero(images["train"].classes < 2))
    with pytest.raises(ValueError, match=r"none of class [23]"):
        list(videos(SMALL, few, 0, "train", range(6)))


@pytest.fixture(scope="module")
def dataset(tmp_path_factory, images):
    out = tmp_path_factory.mktemp("digits")
    return write_dataset(out, SMALL, {"train": 7, "test": 5}, seed=1, workers=2, images=images)


def test_the_manifest_is_valid_and_says_what_each_video_shows(dataset, images):
    manifest = read_manifest(dataset)
    assert [clip.split for clip in manifest.clips] == ["train"] * 7 + ["test"] * 5
    one = video(SMALL, images["test"], 1, "test", 3)
    clip = manifest.clips[10]
    assert clip.labels == (one.label,)
    assert clip.extra["digits"] == " ".join(map(str, one.classes))


def test_the_files_show_the_frames_that_were_drawn(dataset, images):
    clip = read_manifest(dataset).clips[10]
    drawn = video(SMALL, images["test"], 1, "test", 3).frames
    with open_clip(clip) as reader:
        assert (reader.info.frames, reader.info.width, reader.info.height) == (5, 48, 48)
        assert np.abs(reader.read(range(5)).astype(int) - drawn).mean() < 4


def test_the_boxes_file_is_a_source_of_boxes(dataset, images):
    source = build_proposals("annotations", file=str(dataset.parent / "boxes.csv"), num_boxes=3)
    clip = read_manifest(dataset).clips[10]
    with open_clip(clip) as reader:
        boxes, scores = source.propose(None, clip, reader.info, tuple(range(5)))
    assert (scores == 1).all()
    np.testing.assert_allclose(
        boxes * 48, video(SMALL, images["test"], 1, "test", 3).boxes, atol=1e-4
    )


def test_what_is_written_does_not_depend_on_who_writes_how_many(
    dataset, images, tmp_path, monkeypatch
):
    monkeypatch.setattr("pipeline.digits.video_files.PER_MESSAGE", 3)
    write_dataset(tmp_path, SMALL, {"train": 7, "test": 5}, seed=1, workers=0, images=images)
    for path in dataset.parent.rglob("*.*"):
        assert path.read_bytes() == (tmp_path / path.relative_to(dataset.parent)).read_bytes(), (
            path.name
        )


def test_videos_that_are_there_are_left_alone_and_others_are_refused(dataset, images):
    before = {path: path.stat().st_mtime_ns for path in dataset.parent.rglob("*.*")}
    assert (
        write_dataset(dataset.parent, SMALL, {"train": 7, "test": 5}, seed=1, images=images)
        == dataset
    )
    assert before == {path: path.stat().st_mtime_ns for path in dataset.parent.rglob("*.*")}
    with pytest.raises(ValueError, match="seed: made with 1, asked for 2"):
        write_dataset(dataset.parent, SMALL, {"train": 7, "test": 5}, seed=2, images=images)
    with pytest.raises(ValueError, match=r"margin: made with 3, asked for 2"):
        write_dataset(
            dataset.parent, replace(SMALL, margin=2), {"train": 7, "test": 5}, seed=1, images=images
        )


def test_a_killed_writing_starts_over(dataset, images, tmp_path):
    (tmp_path / "digits.json").write_text("{")  # no manifest: whatever is there was not finished
    again = write_dataset(
        tmp_path, SMALL, {"train": 7, "test": 5}, seed=1, workers=0, images=images
    )
    assert again.read_bytes() == dataset.read_bytes()


def test_an_unknown_split_is_refused(images, tmp_path):
    with pytest.raises(ValueError, match="'training': expected train, val, test"):
        write_dataset(tmp_path, SMALL, {"training": 1}, images=images)
