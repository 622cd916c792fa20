"""Linking boxes over time, against plain loops and against digits whose identity is known."""

from itertools import permutations

import numpy as np
import pytest

from pipeline.digits import Meet, load_images
from pipeline.digits.scenes import boxes_of
from pipeline.regions.boxes import iou
from pipeline.regions.tracks import TrackOptions, link_tracks


def plain_links(boxes, valid, nodes, classes, options):
    """The same by trying every assignment, box by box in Python."""
    unit = {}
    real = [nodes[t, i] for t, i in np.argwhere(valid).tolist()] if nodes is not None else []
    for t, i in np.argwhere(valid).tolist():
        if nodes is not None:
            moved = nodes[t, i] - np.mean(real, 0)
            unit[t, i] = moved / np.linalg.norm(moved)

    def affinity(a, b):
        overlap = float(iou(boxes[a][None], boxes[b][None])[0, 0])
        value = overlap
        if nodes is not None:
            cosine = max(0.0, float(unit[a] @ unit[b]))
            value = (1 - options.appearance) * overlap + options.appearance * cosine
        if classes is not None and classes[a] >= 0 and classes[b] >= 0:
            value = value if classes[a] == classes[b] else -1.0
        return value if value >= options.least else 0.0

    tracks, ends = np.full(valid.shape, -1), []
    for t in range(len(boxes)):
        rows = np.flatnonzero(valid[t]).tolist()
        alive = [k for k, (step, _) in enumerate(ends) if t - step <= options.lost + 1]
        # Every way to give each box another track, or none.
        choices = alive + [None] * len(rows)
        best, chosen = -1.0, ()
        for way in set(permutations(choices, len(rows))):
            pairs = [(k, i) for k, i in zip(way, rows, strict=True) if k is not None]
            total = sum(affinity(ends[k], (t, i)) for k, i in pairs)
            if total > best:
                best, chosen = total, way
        for k, i in zip(chosen, rows, strict=True):
            if k is not None and affinity(ends[k], (t, i)) > 0:
                tracks[t, i] = k
                ends[k] = (t, i)
        for i in rows:
            if tracks[t, i] < 0:
                tracks[t, i] = len(ends)
                ends.append((t, i))
    return tracks


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize(("with_nodes", "with_classes"), [(0, 0), (1, 0), (0, 1), (1, 1)])
def test_links_equal_the_best_of_all_assignments(seed, with_nodes, with_classes):
    rng = np.random.default_rng(seed)
    corner = rng.random((4, 3, 2)) * 0.3
    boxes = np.concatenate([corner, corner + 0.4 + 0.2 * rng.random((4, 3, 2))], -1)
    valid = rng.random((4, 3)) < 0.7
    nodes = rng.standard_normal((4, 3, 5)) if with_nodes else None
    classes = rng.integers(-1, 2, (4, 3)) if with_classes else None
    options = TrackOptions(least=0.25, lost=1)
    found = link_tracks(boxes, valid, nodes, classes, options)
    assert found.dtype == np.int32
    assert found.tolist() == plain_links(boxes, valid, nodes, classes, options).tolist()


@pytest.fixture(scope="module")
def digits():
    """Boxes [B,F,n,4] in [0,1], classes [B,n] and a shuffled order of the rows of every frame."""
    task = Meet(digits=3, speed=(1.0, 3.0))
    scenes = task.scenes(load_images()["test"], 0, "test", np.arange(12))
    boxes = boxes_of(task, scenes.corners) / np.float32(task.size)
    order = np.random.default_rng(0).random(boxes.shape[:3]).argsort(-1)
    return boxes, scenes.classes, order


def shuffled(values, order):
    return np.take_along_axis(values, order.reshape(*order.shape, *[1] * (values.ndim - 3)), 2)


def test_tracks_of_digits_are_the_digits(digits):
    """Digits move by up to 3 of 16 pixels a frame, two of them through one another; their classes
    differ. In every frame the rows are in another order.
    """
    boxes, classes, order = digits
    mixed = shuffled(boxes, order)
    valid = np.ones(order.shape, bool)
    for k in range(len(boxes)):
        found = link_tracks(mixed[k], valid[k], None, classes[k][order[k]])
        # Numbers follow the first frame's order.
        first = {int(digit): row for row, digit in enumerate(order[k, 0])}
        assert found.tolist() == [[first[int(d)] for d in frame] for frame in order[k]]


def test_features_tell_digits_that_cross_apart(digits):
    """Without classes; each digit has a feature of its own, with noise on a large common part."""
    boxes, _, order = digits
    rng = np.random.default_rng(1)
    own = rng.standard_normal((boxes.shape[2], 16))
    nodes = 10 + own + 0.2 * rng.standard_normal((*boxes.shape[:3], 16))
    mixed, features = shuffled(boxes, order), shuffled(nodes, order)
    valid = np.ones(order.shape, bool)
    right = 0
    for k in range(len(boxes)):
        found = link_tracks(mixed[k], valid[k], features[k])
        first = {int(digit): row for row, digit in enumerate(order[k, 0])}
        right += found.tolist() == [[first[int(d)] for d in frame] for frame in order[k]]
    assert right == len(boxes)


def test_an_object_that_comes_back_soon_keeps_its_number_and_later_gets_a_new_one():
    boxes = np.tile(np.array([0.1, 0.1, 0.5, 0.5]), (6, 1, 1))
    for away, number in ((1, 0), (2, 0), (3, 1)):
        valid = np.ones((6, 1), bool)
        valid[1 : 1 + away] = False
        found = link_tracks(boxes, valid)[:, 0].tolist()
        assert found[1 + away] == number
        assert found[1 : 1 + away] == [-1] * away


def test_views_without_boxes_and_of_one_step_have_tracks():
    assert link_tracks(np.zeros((3, 2, 4)), np.zeros((3, 2), bool)).tolist() == [[-1, -1]] * 3
    boxes = np.array([[[0, 0, 0.5, 0.5], [0.5, 0.5, 1, 1]]])
    assert link_tracks(boxes, np.ones((1, 2), bool)).tolist() == [[0, 1]]
