"""SyncDigits and MultiSyncDigits: the rules of RSTG's and DyReg's generators, on many paths."""

import json
from collections import Counter
from dataclasses import replace
from itertools import combinations, product

import numpy as np
import pytest
from click.testing import CliRunner

from cli.manifest import command as manifest_command
from pipeline.digits import (
    INK,
    TASKS,
    Images,
    MultiSyncDigits,
    Scenes,
    Sync3,
    SyncDigits,
    load_images,
    video,
    write_dataset,
)
from pipeline.digits.counted_random import CountedRandom
from pipeline.manifests.manifest import read_manifest
from pipeline.proposals import build_proposals
from pipeline.video.decode import open_clip

MANY = 20_000
PAIRS = list(combinations(range(5), 2))


@pytest.fixture(scope="module")
def images() -> Images:
    return load_images()["train"]


@pytest.fixture(scope="module")
def sync(images) -> Scenes:
    return SyncDigits().scenes(images, 7, "train", np.arange(MANY))


@pytest.fixture(scope="module")
def multi(images) -> Scenes:
    return MultiSyncDigits().scenes(images, 7, "train", np.arange(MANY))


def as_often(found: int, share: float, of: int) -> bool:
    """Whether `found` of `of` is `share` of them as far as five standard deviations can tell."""
    return abs(found - share * of) < 5 * np.sqrt(share * (1 - share) * of)


def steps(scenes: Scenes) -> np.ndarray:
    """What each digit moved between frames, [B,F-1,n,2]."""
    return np.diff(scenes.corners, axis=1)


def moved_alike(scenes: Scenes) -> np.ndarray:
    """Which pairs of digits made the same steps throughout, [B,pairs]."""
    moved = steps(scenes)
    return np.stack([(moved[:, :, a] == moved[:, :, b]).all((1, 2)) for a, b in PAIRS], 1)


# Random numbers.


def test_the_counters_numbers_are_those_of_splitmix64():
    draws = CountedRandom(("any",), np.zeros(1))
    draws._starts = np.array([1234567], np.uint64)
    known = [
        6457827717110365317,
        3203168211198807973,
        9817491932198370423,
        4593380528125082431,
        16408922859458223821,
    ]
    assert [*draws.bits(2)[0], *draws.bits(3)[0]] == known


def test_a_streams_numbers_depend_on_key_and_index_alone():
    together = CountedRandom(("a", 1), np.arange(50))
    numbers = np.concatenate([together.bits(3), together.bits(2)], 1)
    one = CountedRandom(("a", 1), [31])
    assert np.array_equal(np.concatenate([one.bits(4), one.bits(1)], 1)[0], numbers[31])
    assert len(np.unique(numbers)) == 250
    assert not np.isin(CountedRandom(("a", 2), np.arange(50)).bits(5), numbers).any()
    with pytest.raises(ValueError, match="video -1: expected indices from 0"):
        CountedRandom(("a",), np.array([3, -1]))


def test_numbers_below_n_are_equally_likely_and_each_has_its_own_n():
    limits = np.tile(np.array([1, 6, 10]), (MANY, 1))
    found = CountedRandom(("b",), np.arange(MANY)).below(limits, 3)
    for column, n in enumerate((1, 6, 10)):
        counts = np.bincount(found[:, column], minlength=n)
        assert len(counts) == n
        assert all(as_often(count, 1 / n, MANY) or n == 1 for count in counts)


# SyncMNIST.


def test_one_video_in_92_has_no_pair(sync):
    alone = ~sync.chosen.any(1)
    assert as_often(alone.sum(), 1 / 92, MANY)
    assert np.array_equal(sync.labels == 45, alone)
    assert (sync.chosen[~alone] == [True, True, False, False, False]).all()


def test_digits_0_and_1_keep_their_offset_in_exactly_the_synchronous_videos_and_no_other_pair_does(
    sync,
):
    assert np.array_equal(moved_alike(sync)[:, 0], sync.labels != 45)
    assert not moved_alike(sync)[:, 1:].any()
    offset = sync.corners[:, :, 0] - sync.corners[:, :, 1]
    assert ((offset == offset[:, :1]).all((1, 2)) == (sync.labels != 45)).all()


def test_steps_are_from_minus_10_to_9_and_as_long_on_average_as_the_rule_makes_them(sync):
    moved = steps(sync)
    pairs, others = moved[sync.labels != 45][:, :, 0], moved[:, :, 2:]
    for some in (pairs, others):
        assert np.array_equal(np.unique(some), np.arange(-10, 10))
    assert abs(np.abs(pairs).mean() - 4.66) < 0.03
    assert abs(np.abs(others).mean() - 4.85) < 0.02
    assert abs(others.mean() + 0.35) < 0.03


def test_places_end_at_70_after_a_move_and_71_survives_only_where_a_pair_cannot_move(sync):
    corners = sync.corners
    assert corners.min() == 0
    # A move comes before frame 0, so no frame shows a start at 71.
    assert corners[:, :, 2:].max() == 70
    assert corners.max() == 71
    stuck = np.argwhere(corners[:, 1:] == 71)
    assert set(stuck[:, 2]) <= {0, 1}
    assert all((steps(sync)[b, f, :2, axis] == 0).all() for b, f, _, axis in stuck)


def test_paths_are_distributed_as_those_of_the_rule_written_out_plainly(sync):
    """The rule of RSTG's `create_syncMNIST`, digit by digit, with numpy's generator."""
    rng = np.random.default_rng(0)

    def limits(c):
        return max(-10, min(10, -c)), max(-10, min(10, 71 - c))

    found = []
    for _ in range(4000):
        # On one axis: the two of the pair, and another digit.
        places = [int(rng.integers(0, 72)) for _ in range(3)]
        path = []
        for _ in range(10):
            (low0, high0), (low1, high1), (low2, high2) = (limits(c) for c in places)
            low, high = max(low0, low1), min(high0, high1)
            step = int(rng.integers(low, high)) if low < high else 0
            places = [
                places[0] + step,
                places[1] + step,
                places[2] + int(rng.integers(low2, high2)),
            ]
            path.append(list(places))
        found.append(path)
    plain, ours = (
        np.array(found),
        sync.corners[sync.labels != 45][:, :, :3].swapaxes(2, 3).swapaxes(1, 2),
    )
    ours = ours.reshape(-1, 10, 3)  # both axes are alike
    for digit, frame in product(range(3), (0, 4, 9)):
        expected = np.histogram(plain[:, frame, digit], bins=np.arange(0, 73, 8))[0] / len(plain)
        shares = np.histogram(ours[:, frame, digit], bins=np.arange(0, 73, 8))[0] / len(ours)
        assert np.abs(shares - expected).max() < 5 * np.sqrt(0.15 / len(plain))
    gap = [np.abs(some[:, 9, 0] - some[:, 9, 1]).mean() for some in (plain, ours)]
    assert abs(gap[0] - gap[1]) < 1.5


def test_digit_0_is_every_image_in_turn_and_the_others_are_random_images_of_other_classes(
    sync, images
):
    assert np.array_equal(sync.rows[:, 0], np.arange(MANY) % len(images.classes))
    assert np.array_equal(images.classes[sync.rows], sync.classes)
    assert all(len(set(classes)) == 5 for classes in sync.classes)
    others = sync.classes[sync.classes[:, 0] == 4][:, 1:]
    for place in range(4):
        counts = np.delete(np.bincount(others[:, place], minlength=10), 4)
        assert all(as_often(count, 1 / 9, len(others)) for count in counts)
    sevens = sync.rows[:, 1][sync.classes[:, 1] == 7]
    assert set(sevens) == set(np.flatnonzero(images.classes == 7))


def test_labels_number_the_unordered_pairs_and_then_none(sync):
    numbers = {}
    for i in range(10):
        for j in range(i):
            numbers[i, j] = i * (i - 1) // 2 + j
    assert sorted(numbers.values()) == list(range(45))
    high, low = sync.classes[:, :2].max(1), sync.classes[:, :2].min(1)
    expected = [
        numbers[i, j] if together else 45
        for i, j, together in zip(high, low, sync.chosen[:, 0], strict=True)
    ]
    assert np.array_equal(sync.labels, expected)
    assert set(sync.labels) == set(range(46))
    names = SyncDigits().labels
    assert len(names) == 46
    assert names[45] == "none"
    assert all(names[number] == f"{j}-{i}" for (i, j), number in numbers.items())


def test_later_digits_lie_above_earlier_ones_so_that_the_pair_lies_below(images):
    """Each class is one shade of grey: every pixel shows the last of the digits whose tile holds
    it.
    """
    task = SyncDigits(digits=4, frames=6, canvas=40, size=40, tile=12, stretch=False)
    shades = Images(
        "shades",
        (100 + 10 * images.classes)[:, None, None].repeat(12, 1).repeat(12, 2).astype(np.uint8),
        images.classes,
    )
    covered = 0
    for index in range(20):
        one = video(task, shades, 0, "train", index)
        expected = np.zeros((6, 40, 40), int)
        for frame, boxes in enumerate(one.boxes.astype(int)):
            for (x1, y1, x2, y2), digit in zip(boxes, one.classes, strict=True):
                covered += (expected[frame, y1:y2, x1:x2] > 0).sum()
                expected[frame, y1:y2, x1:x2] = 100 + 10 * digit
        assert np.array_equal(one.frames[..., 0], expected)
    assert covered > 0


# MultiSyncMNIST.


def test_one_video_in_56_has_no_subset_and_all_sizes_and_subsets_of_a_size_are_equally_likely(
    multi,
):
    sizes = np.bincount(multi.chosen.sum(1), minlength=6)
    assert sizes[1] == 0
    assert as_often(sizes[0], 1 / 56, MANY)
    for size in range(2, 6):
        assert as_often(sizes[size], 55 / 56 / 4, MANY)
    for size in (2, 3, 4):
        some = multi.chosen[multi.chosen.sum(1) == size]
        subsets = Counter(map(tuple, some.tolist()))
        assert len(subsets) == {2: 10, 3: 10, 4: 5}[size]
        assert all(as_often(count, 1 / len(subsets), len(some)) for count in subsets.values())


def test_digits_of_the_subset_make_the_same_steps_and_no_others_do(multi):
    expected = np.stack([multi.chosen[:, a] & multi.chosen[:, b] for a, b in PAIRS], 1)
    assert np.array_equal(moved_alike(multi), expected)
    moved = steps(multi)
    assert (moved.min(), moved.max()) == (-10, 9)
    assert (multi.corners.min(), multi.corners.max() <= 227) == (0, True)


def test_the_label_is_the_smallest_and_the_largest_class_of_the_subset(multi):
    names = MultiSyncDigits().labels
    assert (len(names), names[45], names[46], names[55]) == (56, "none", "0-0", "9-9")
    for label, classes, chosen in zip(multi.labels, multi.classes, multi.chosen, strict=True):
        some = classes[chosen]
        assert names[label] == (f"{some.min()}-{some.max()}" if len(some) else "none")
    assert set(multi.labels) == set(range(56))


def test_classes_are_drawn_with_replacement(multi, images):
    assert all(as_often(count, 1 / 10, 5 * MANY) for count in np.bincount(multi.classes.ravel()))
    differ = sum(len(set(classes)) == 5 for classes in multi.classes.tolist())
    assert as_often(differ, 10 * 9 * 8 * 7 * 6 / 10**5, MANY)
    assert np.array_equal(images.classes[multi.rows], multi.classes)


def distances(scenes: Scenes) -> np.ndarray:
    """How far apart the digits of each pair are in each frame, [B,F,pairs], canvas pixels."""
    offsets = [scenes.corners[:, :, a] - scenes.corners[:, :, b] for a, b in PAIRS]
    return np.stack([np.linalg.norm(offset, axis=-1) for offset in offsets], 2)


def test_synchronous_digits_are_at_most_160_pixels_apart_in_every_frame_and_others_are_not(multi):
    apart = distances(multi)
    together = np.stack([multi.chosen[:, a] & multi.chosen[:, b] for a, b in PAIRS], 1)
    found = np.where(together[:, None], apart, 0)
    assert found.max() <= 160
    assert (found.max(1) > 155).any(0).all()  # every pair comes as far as it may
    others = np.where(together[:, None], 0, apart)
    assert (others.max(1) > 250).any(0).all()


def test_synchronous_digits_start_anywhere_near_enough_to_those_before_them():
    """One digit at a time, tried until it is near enough, with numpy's generator.

    With steps of a pixel, the first frame shows where digits start.
    """
    task = MultiSyncDigits(reach=1, digits=3, max_distance=90)
    ours = task.scenes(load_images()["train"], 0, "train", np.arange(MANY))
    ours = ours.corners[ours.chosen.all(1), 0]

    rng, plain = np.random.default_rng(0), []
    for _ in range(3000):
        places: list[np.ndarray] = []
        while len(places) < 3:
            place = rng.integers(0, 228, 2)
            if all(np.hypot(*(place - other)) <= 90 for other in places):
                places.append(place)
        plain.append(places)
    plain = np.array(plain)
    for digit in range(3):
        bins = np.arange(0, 229, 38)
        for axis in range(2):
            shares = np.histogram(ours[:, digit, axis], bins)[0] / len(ours)
            expected = np.histogram(plain[:, digit, axis], bins)[0] / len(plain)
            assert np.abs(shares - expected).max() < 5 * np.sqrt(0.25 / len(plain))
    for a, b in ((0, 1), (0, 2), (1, 2)):
        gaps = [np.linalg.norm(some[:, a] - some[:, b], axis=-1).mean() for some in (ours, plain)]
        assert abs(gaps[0] - gaps[1]) < 2


def test_where_synchronous_digits_start_depends_on_no_other_video(multi, images):
    task = MultiSyncDigits()
    for index in (0, 17, 4711):
        alone = task.scenes(images, 7, "train", np.array([index]))
        assert np.array_equal(alone.corners[0], multi.corners[index])


def test_a_largest_distance_of_0_sets_no_limit(images):
    free = MultiSyncDigits(max_distance=0).scenes(images, 0, "train", np.arange(500))
    assert distances(free)[:, 0][free.chosen.all(1)].max() > 250
    with pytest.raises(ValueError, match="multisync: expected max_distance from 0"):
        MultiSyncDigits(max_distance=-1)


# What a guess is worth.


@pytest.mark.parametrize("task", [Sync3(), SyncDigits(), SyncDigits(digits=10, none_in=4)])
def test_a_guess_knows_the_classes_and_takes_the_likeliest_label(task):
    pairs = task.digits * (task.digits - 1) // 2
    assert task.guess == pytest.approx(max((1 - 1 / task.none_in) / pairs, 1 / task.none_in))


def test_a_guess_at_a_subset_is_right_as_often_as_counting_says():
    task = MultiSyncDigits(digits=3)
    total = 0.0
    for classes in product(range(10), repeat=3):
        labels = Counter()
        for size, share in ((2, 1 / 3), (3, 1)):
            for some in combinations(classes, size):
                labels[min(some), max(some)] += share / 2
        total += 55 / 56 * max(labels.values()) / 1000
    assert task.guess == pytest.approx(total)


# Frames, boxes, files.


@pytest.mark.parametrize("name", ["sync3", "sync5", "multisync"])
def test_boxes_lie_where_the_ink_is(images, name):
    """Ink spreads over less than a pixel beyond the boxes when the canvas is shrunk; each box holds
    its digit.
    """
    task = TASKS[name]()
    assert (task.shown, task.size) == {"multisync": (14, 128)}.get(name, (18, 64))
    for index in range(6):
        one = video(task, images, 3, "train", index)
        assert one.boxes.shape == (10, task.digits, 4)
        assert np.allclose(one.boxes[..., 2:] - one.boxes[..., :2], 28 * task.size / task.canvas)
        assert (one.boxes.min() >= 0) & (one.boxes.max() <= task.size)
        for frame, boxes in zip(one.frames[..., 0], one.boxes, strict=True):
            outside = frame.copy()
            for x1, y1, x2, y2 in boxes:
                whole = frame[int(y1) : int(np.ceil(y2)), int(x1) : int(np.ceil(x2))]
                assert (whole >= INK).mean() > 0.1
                outside[
                    max(0, int(y1) - 1) : int(np.ceil(y2)) + 1,
                    max(0, int(x1) - 1) : int(np.ceil(x2)) + 1,
                ] = 0
            assert not outside.any()


def test_paths_never_change(images):
    """Numbers come from a hash of our own, so that a seed means the same videos with every version
    of numpy.
    """
    corners = SyncDigits().scenes(images, 0, "train", np.array([3])).corners
    assert corners[0, 0].tolist() == [[14, 4], [62, 2], [32, 6], [33, 2], [42, 35]]


@pytest.mark.parametrize(
    ("seed", "split", "index"), [(4, "train", 11), (3, "val", 11), (3, "train", 12)]
)
def test_another_seed_split_or_index_has_other_paths(images, seed, split, index):
    first = SyncDigits().scenes(images, 3, "train", np.array([11])).corners
    assert not np.array_equal(
        SyncDigits().scenes(images, seed, split, np.array([index])).corners, first
    )


@pytest.mark.parametrize(
    "wrong",
    [
        {"digits": 1},
        {"digits": 11},
        {"frames": 0},
        {"reach": 0},
        {"size": 101},
        {"tile": 99},
        {"none_in": 1},
        {"stretch": 1},
        {"canvas": "100"},
    ],
)
def test_options_that_do_not_fit_are_refused(wrong):
    with pytest.raises(ValueError, match="sync5: expected"):
        replace(SyncDigits(), **wrong)


def test_a_class_without_images_is_named(images):
    with pytest.raises(ValueError, match="images sklearn: none of class 6"):
        SyncDigits().scenes(
            images.only(np.flatnonzero(images.classes != 6)), 0, "train", np.arange(3)
        )


def test_the_digits_verb_writes_every_task_with_boxes_that_can_be_read(tmp_path):
    for name, options in (("sync3", ["--set", "none_in=3"]), ("multisync", ["--set", "digits=3"])):
        out = tmp_path / name
        counts = ["--train", "2", "--val", "0", "--test", "1", "--workers", "0"]
        result = CliRunner().invoke(
            manifest_command, ["digits", "--out", str(out), "--task", name, *counts, *options]
        )
        assert result.exit_code == 0, result.output
        assert f"vidgraph extract --manifest {out}/manifest.csv" in result.stderr
        assert "vidgraph" not in result.stdout
        source = build_proposals("annotations", file=str(out / "boxes.csv"), num_boxes=4)
        clip = read_manifest(out / "manifest.csv").clips[1]
        task = replace(TASKS[name](), **{"sync3": {"none_in": 3}, "multisync": {"digits": 3}}[name])
        drawn = video(task, load_images()["train"], 0, "train", 1)
        with open_clip(clip) as reader:
            boxes, scores = source.propose(None, clip, reader.info, tuple(range(10)))
            assert np.abs(reader.read(range(10)).astype(int) - drawn.frames).mean() < 4
        assert (scores == [1, 1, 1, -1]).all()
        np.testing.assert_allclose(boxes[:, :3] * task.size, drawn.boxes, atol=1e-3)
        assert clip.labels == (drawn.label,)


def test_multisync_files_made_before_the_largest_distance_are_not_taken_for_new_ones(tmp_path):
    images, task = load_images(), MultiSyncDigits(frames=1, digits=2)
    write_dataset(tmp_path, task, {"test": 1}, workers=0, images=images)
    record = json.loads((tmp_path / "digits.json").read_text())
    del record["max_distance"]
    (tmp_path / "digits.json").write_text(json.dumps(record))
    with pytest.raises(ValueError, match="max_distance: made with None, asked for 160"):
        write_dataset(tmp_path, task, {"test": 1}, workers=0, images=images)


def test_files_of_one_task_are_not_taken_for_those_of_another(tmp_path):
    images = load_images()
    write_dataset(tmp_path, Sync3(frames=1), {"test": 1}, workers=0, images=images)
    with pytest.raises(ValueError, match="task: made with 'sync3', asked for 'sync5'"):
        write_dataset(
            tmp_path, SyncDigits(digits=3, frames=1), {"test": 1}, workers=0, images=images
        )
