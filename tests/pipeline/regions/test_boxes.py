"""Box geometry: a box follows what it shows through crop and flip, and overlap is measured in
continuous coordinates.
"""

import numpy as np
import pytest

from pipeline.regions.boxes import area, from_view, iou, pack, to_view

SOURCE = (64, 48)  # width, height


def random_boxes(rng, *shape, low=0.0, high=1.0):
    corners = rng.uniform(low, high, (*shape, 2, 2))
    return np.concatenate([corners.min(-2), corners.max(-2)], axis=-1)


def random_crop(rng, source=SOURCE):
    width, height = rng.integers(4, source[0]), rng.integers(4, source[1])
    return (
        rng.integers(0, source[0] - width + 1),
        rng.integers(0, source[1] - height + 1),
        width,
        height,
    )


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("seed", range(12))
def test_a_painted_rectangle_is_found_where_to_view_says(seed, flip):
    rng = np.random.default_rng(seed)
    x1, x2 = sorted(rng.choice(SOURCE[0] + 1, 2, replace=False))
    y1, y2 = sorted(rng.choice(SOURCE[1] + 1, 2, replace=False))
    frame = np.zeros((SOURCE[1], SOURCE[0]), dtype=bool)
    frame[y1:y2, x1:x2] = True
    x, y, width, height = crop = random_crop(rng)
    view = frame[y : y + height, x : x + width]
    view = view[:, ::-1] if flip else view

    box, keep = to_view(
        np.array([x1, y1, x2, y2]) / np.array([*SOURCE, *SOURCE]), crop, SOURCE, flip
    )

    rows, columns = np.flatnonzero(view.any(1)), np.flatnonzero(view.any(0))
    assert keep == (view.sum() >= 0.01 * frame.sum())
    if keep:
        painted = [columns[0], rows[0], columns[-1] + 1, rows[-1] + 1]
        np.testing.assert_allclose(box * [width, height, width, height], painted, atol=1e-9)


def test_a_flip_never_touches_y():
    boxes = random_boxes(np.random.default_rng(0), 50)
    crop = (3, 5, 40, 30)
    straight, _ = to_view(boxes, crop, SOURCE, False)
    mirrored, _ = to_view(boxes, crop, SOURCE, True)
    np.testing.assert_array_equal(mirrored[:, [1, 3]], straight[:, [1, 3]])
    np.testing.assert_allclose(mirrored[:, [0, 2]], 1 - straight[:, [2, 0]])


def test_the_whole_frame_as_crop_changes_nothing():
    boxes = random_boxes(np.random.default_rng(1), 5, 7).astype(np.float32)
    seen, keep = to_view(boxes, (0, 0, *SOURCE), SOURCE, False)
    np.testing.assert_array_equal(seen, boxes)
    assert seen.dtype == np.float32
    assert keep.all()


@pytest.mark.parametrize("flip", [False, True])
def test_from_view_undoes_to_view_for_boxes_inside_the_crop(flip):
    rng = np.random.default_rng(2)
    inside = random_boxes(rng, 40)
    for _ in range(10):
        crop = random_crop(rng)
        whole = from_view(inside, crop, SOURCE, flip)
        again, keep = to_view(whole, crop, SOURCE, flip)
        np.testing.assert_allclose(again, inside, atol=1e-12)
        assert keep.all()


def test_a_box_is_kept_from_one_hundredth_of_its_area_on():
    crop = (32, 0, 32, 48)  # the right half
    # 1.0 % of its width is right of the middle.
    edge = np.array([0.5 - 0.495, 0.2, 0.5 + 0.005, 0.8])
    just_in, just_out = edge + np.array([0, 0, 1e-6, 0]), edge - np.array([0, 0, 1e-4, 0])
    _, keep = to_view(np.stack([just_in, just_out]), crop, SOURCE, False)
    np.testing.assert_array_equal(keep, [True, False])


def test_boxes_without_area_or_outside_the_crop_are_dropped():
    boxes = np.array(
        [
            [0.2, 0.2, 0.2, 0.6],
            [0.5, 0.5, 0.5, 0.5],
            [0.6, 0.6, 0.4, 0.9],
            [0.8, 0.8, 0.9, 0.9],
            [0.1, 0.1, 0.3, 0.3],
        ]
    )
    seen, keep = to_view(boxes, (0, 0, 32, 24), SOURCE, False)
    np.testing.assert_array_equal(keep, [False, False, False, False, True])
    assert ((seen >= 0) & (seen <= 1)).all()


def test_a_crop_without_area_is_refused():
    with pytest.raises(ValueError, match="widths and heights above 0"):
        to_view(np.zeros((1, 4)), (0, 0, 0, 10), SOURCE, False)


def test_iou_equals_a_count_of_small_cells():
    rng = np.random.default_rng(3)
    a, b = rng.integers(0, 20, (2, 30, 2, 2))
    a, b = (np.concatenate([c.min(1), c.max(1)], axis=-1) for c in (a, b))
    cells = np.stack(np.meshgrid(np.arange(20), np.arange(20)), -1) + 0.5
    inside = [
        ((cells > c[:, None, None, :2]) & (cells < c[:, None, None, 2:])).all(-1) for c in (a, b)
    ]
    both = (inside[0][:, None] & inside[1]).sum((-2, -1))
    either = (inside[0][:, None] | inside[1]).sum((-2, -1))
    np.testing.assert_allclose(iou(a.astype(float), b.astype(float)), both / np.maximum(either, 1))


def test_iou_is_symmetric_bounded_and_one_with_itself():
    rng = np.random.default_rng(4)
    a, b = random_boxes(rng, 3, 8), random_boxes(rng, 3, 5)
    overlap = iou(a, b)
    assert overlap.shape == (3, 8, 5)
    assert ((overlap >= 0) & (overlap <= 1)).all()
    np.testing.assert_allclose(overlap, iou(b, a).swapaxes(-1, -2))
    np.testing.assert_allclose(np.diagonal(iou(a, a), axis1=-2, axis2=-1), 1)


def test_iou_is_unmoved_by_a_common_shift_scale_or_mirror():
    rng = np.random.default_rng(5)
    a, b = random_boxes(rng, 20), random_boxes(rng, 20)
    expected = iou(a, b)
    np.testing.assert_allclose(
        iou(a * 3 + [1, 2, 1, 2], b * 3 + [1, 2, 1, 2]), expected, atol=1e-12
    )
    a, b = (to_view(boxes, (0, 0, *SOURCE), SOURCE, True)[0] for boxes in (a, b))
    np.testing.assert_allclose(iou(a, b), expected, atol=1e-12)


def test_iou_of_boxes_without_area_is_zero_not_nan():
    point, line, box = [0.5, 0.5, 0.5, 0.5], [0.2, 0.2, 0.2, 0.9], [0, 0, 1, 1]
    inverted = [0.9, 0.9, 0.1, 0.1]
    boxes = np.array([point, line, [0, 0, 0, 0], inverted, box], dtype=np.float32)
    with np.errstate(all="raise"):
        overlap = iou(boxes, boxes)
    expected = np.zeros((5, 5))
    expected[4, 4] = 1
    np.testing.assert_array_equal(overlap, expected)


def test_iou_counts_touching_boxes_as_apart():
    assert iou(np.array([[0.0, 0, 0.5, 1]]), np.array([[0.5, 0, 1, 1]]))[0, 0] == 0


def test_pack_puts_valid_rows_first_by_score_and_pads_with_zeros():
    rng = np.random.default_rng(6)
    boxes, scores, keep = (
        random_boxes(rng, 4, 9),
        rng.uniform(0, 1, (4, 9)),
        rng.uniform(size=(4, 9)) < 0.6,
    )
    packed, best, valid = pack(boxes, scores, keep, 12)
    assert packed.shape == (4, 12, 4)
    assert packed.dtype == best.dtype == np.float32
    for t in range(4):
        order = sorted(np.flatnonzero(keep[t]), key=lambda i: -scores[t, i])
        np.testing.assert_array_equal(valid[t], np.arange(12) < len(order))
        np.testing.assert_array_equal(packed[t, : len(order)], boxes[t, order].astype(np.float32))
        np.testing.assert_array_equal(best[t, : len(order)], scores[t, order].astype(np.float32))
        assert not packed[t, len(order) :].any()
        assert not best[t, len(order) :].any()


def test_pack_keeps_the_order_of_equal_scores_and_the_best_when_there_are_too_many():
    boxes = np.arange(24, dtype=np.float32).reshape(6, 4)
    packed, _, valid = pack(boxes, [1, 1, 1, 1, 1, 2], [True, True, False, True, True, True], 3)
    np.testing.assert_array_equal(packed, boxes[[5, 0, 1]])
    assert valid.all()


def test_pack_never_takes_a_padded_row_for_a_box():
    boxes = np.full((3, 4), np.nan, dtype=np.float32)
    boxes[1] = [0, 0, 1, 1]
    packed, scores, valid = pack(boxes, [-1, 0, -1], [True, True, True], 2)
    np.testing.assert_array_equal(valid, [True, False])
    np.testing.assert_array_equal(packed, [[0, 0, 1, 1], [0, 0, 0, 0]])
    np.testing.assert_array_equal(scores, [0, 0])


def test_pack_of_no_boxes_at_all_is_all_padding():
    packed, scores, valid = pack(np.zeros((2, 0, 4)), np.zeros((2, 0)), np.zeros((2, 0)), 3)
    assert packed.shape == (2, 3, 4)
    assert not packed.any()
    assert not scores.any()
    assert not valid.any()


def test_area_is_in_continuous_coordinates():
    np.testing.assert_allclose(
        area(np.array([[1.0, 2, 3, 5], [3, 3, 3, 9], [3, 3, 2, 2]])), [6, 0, 0]
    )
