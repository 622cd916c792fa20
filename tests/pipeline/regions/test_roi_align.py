"""RoIAlign: the values of torchvision's, the node of a box follows what the box shows, and padding
is never looked at.
"""

import numpy as np
import pytest
import torch
from torchvision.ops import roi_align as reference

from pipeline.regions import roi_align as roi
from pipeline.regions.boxes import to_view
from pipeline.regions.roi_align import roi_align

POOLING = {"max": lambda bins: bins.amax((2, 3)), "mean": lambda bins: bins.mean((2, 3))}


def random_input(batch=2, channels=5, steps=3, height=6, width=9, boxes=4, seed=0):
    torch.manual_seed(seed)
    corners = torch.rand(batch, steps, boxes, 2, 2)
    places = torch.cat([corners.amin(-2), corners.amax(-2)], -1)
    valid = torch.ones(batch, steps, boxes, dtype=torch.bool)
    return torch.randn(batch, channels, steps, height, width), places, valid


def from_torchvision(fmap, boxes, size, pool):
    batch, channels, steps, height, width = fmap.shape
    frames = fmap.transpose(1, 2).reshape(batch * steps, channels, height, width)
    cells = boxes.flatten(0, 1) * torch.tensor([width, height, width, height])
    bins = reference(frames, list(cells), size, spatial_scale=1.0, sampling_ratio=2, aligned=True)
    return POOLING[pool](bins).view(batch, steps, -1, channels)


@pytest.mark.parametrize("pool", ["max", "mean"])
@pytest.mark.parametrize("size", [1, 3, 7])
@pytest.mark.parametrize("grid", [(6, 9), (1, 1), (7, 2), (14, 14)])
def test_equals_torchvision_aligned_roi_align(pool, size, grid):
    fmap, boxes, valid = random_input(height=grid[0], width=grid[1])
    expected = from_torchvision(fmap, boxes, size, pool)
    torch.testing.assert_close(
        roi_align(fmap, boxes, valid, size=size, pool=pool), expected, atol=1e-5, rtol=1e-5
    )


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_gradients_equal_torchvisions(pool):
    fmap, boxes, valid = random_input()
    fmap.requires_grad_()
    weights = torch.randn(2, 3, 4, 5)
    (ours,) = torch.autograd.grad((roi_align(fmap, boxes, valid, pool=pool) * weights).sum(), fmap)
    (theirs,) = torch.autograd.grad((from_torchvision(fmap, boxes, 7, pool) * weights).sum(), fmap)
    torch.testing.assert_close(ours, theirs, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("pool", ["max", "mean"])
def test_a_map_of_ones_gives_one_for_every_box_inside(pool):
    _, boxes, valid = random_input(boxes=30)
    boxes[0, 0, :4] = torch.tensor(
        [[0, 0, 1, 1], [0.5, 0, 1, 1], [1, 1, 1, 1], [0, 0, 0, 0]], dtype=torch.float32
    )
    nodes = roi_align(torch.ones(2, 5, 3, 7, 7), boxes, valid, pool=pool)
    torch.testing.assert_close(nodes, torch.ones_like(nodes))


@pytest.mark.parametrize("box", [(0, 0, 12, 12), (4, 0, 8, 6), (5, 5, 6, 7), (-6, 1, 7, 18)])
def test_area_is_the_mean_over_the_box_of_a_map_that_is_constant_in_each_cell(box):
    """Boxes in twelfths of the frame, whose borders are those of pixels of a map four times as
    fine.
    """
    fmap, _, valid = random_input(boxes=1)
    fine = fmap.repeat_interleave(4, -2).repeat_interleave(4, -1)  # 24 x 36
    (x1, y1, x2, y2) = (max(0, side) * scale for side, scale in zip(box, (3, 2, 3, 2), strict=True))
    expected = fine[..., y1:y2, x1:x2].mean((-1, -2)).transpose(1, 2)[:, :, None]
    boxes = (torch.tensor(box) / 12).expand(2, 3, 1, 4)
    torch.testing.assert_close(
        roi_align(fmap, boxes, valid, pool="area"), expected, atol=1e-5, rtol=1e-5
    )


def test_area_of_ones_is_one_and_of_no_area_zero():
    _, boxes, valid = random_input(boxes=30)
    boxes[0, 0, :2] = torch.tensor([[1, 1, 1, 1], [0.2, 0.2, 0.2, 0.9]], dtype=torch.float32)
    nodes = roi_align(torch.ones(2, 5, 3, 7, 7), boxes, valid, pool="area")
    assert not nodes[0, 0, :2].any()
    nodes[0, 0, :2] = 1
    torch.testing.assert_close(nodes, torch.ones_like(nodes))


@pytest.mark.parametrize("pool", ["max", "mean", "area"])
def test_each_box_sees_only_its_own_step_and_sample(pool):
    _, boxes, valid = random_input()
    steps = torch.arange(6, dtype=torch.float32).view(2, 1, 3, 1, 1)
    nodes = roi_align(steps.expand(2, 5, 3, 6, 9), boxes, valid, pool=pool)
    torch.testing.assert_close(nodes, steps.view(2, 3, 1, 1).expand(2, 3, 4, 5))


@pytest.mark.parametrize("pool", ["max", "mean", "area"])
def test_invalid_boxes_give_zeros_whatever_they_hold(pool):
    fmap, boxes, valid = random_input()
    expected = roi_align(fmap, boxes, valid, pool=pool)
    valid[:, :, 2:] = False
    boxes[:, :, 2] = float("nan")
    boxes[:, :, 3] = 1e9
    nodes = roi_align(fmap, boxes, valid, pool=pool)
    assert not nodes[:, :, 2:].any()
    assert torch.equal(nodes[:, :, :2], expected[:, :, :2])


@pytest.mark.parametrize("pool", ["max", "mean", "area"])
def test_padding_of_the_map_is_never_looked_at(pool):
    fmap, boxes, valid = random_input()
    grid = [(6, 9), (4, 5)]
    padded = torch.full((2, 5, 3, 8, 11), float("nan"))
    for sample, (height, width) in enumerate(grid):
        padded[sample, :, :, :height, :width] = fmap[sample, :, :, :height, :width]
    nodes = roi_align(padded, boxes, valid, pool=pool, grid=torch.tensor(grid))
    for sample, (height, width) in enumerate(grid):
        alone = slice(sample, sample + 1)
        expected = roi_align(
            fmap[alone, :, :, :height, :width], boxes[alone], valid[alone], pool=pool
        )
        torch.testing.assert_close(nodes[alone], expected)


@pytest.mark.parametrize("pool", ["max", "mean", "area"])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_maps_are_aligned_in_float32(pool, dtype):
    fmap, boxes, valid = random_input()
    half = fmap.to(dtype)
    nodes = roi_align(half, boxes, valid, pool=pool)
    assert nodes.dtype == torch.float32
    assert torch.equal(nodes, roi_align(half.float(), boxes, valid, pool=pool))


@pytest.mark.parametrize("pool", ["max", "mean", "area"])
def test_neither_memory_layout_nor_chunks_change_the_nodes(pool, monkeypatch):
    fmap, boxes, valid = random_input()
    expected = roi_align(fmap, boxes, valid, pool=pool)
    torch.testing.assert_close(
        roi_align(fmap.to(memory_format=torch.channels_last_3d), boxes, valid, pool=pool), expected
    )
    monkeypatch.setattr(roi, "_CPU_BYTES", 1)
    torch.testing.assert_close(roi_align(fmap, boxes, valid, pool=pool), expected)


def test_no_boxes_give_no_nodes():
    for pool in roi.POOLS:
        assert roi_align(
            torch.ones(2, 5, 3, 7, 7),
            torch.zeros(2, 3, 0, 4),
            torch.zeros(2, 3, 0).bool(),
            pool=pool,
        ).shape == (
            2,
            3,
            0,
            5,
        )


def seen(frame, crop, flip, cells=16):
    """The view of `frame` [H,W] as a map [1,1,1,cells,cells]: crop, mirror, and the mean of the
    pixels of every cell.
    """
    x, y, width, height = crop
    view = frame[y : y + height, x : x + width]
    view = view[:, ::-1].copy() if flip else view
    means = view.reshape(cells, height // cells, cells, width // cells).mean((1, 3))
    return torch.from_numpy(means).float().view(1, 1, 1, cells, cells)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("crop", [(0, 0, 64, 64), (16, 16, 32, 32), (8, 32, 48, 32)])
def test_a_painted_box_is_followed_by_its_node_through_crop_and_flip(crop, flip):
    frame = np.zeros((64, 64))
    # Off the centre of every crop: mirroring the wrong axis would miss it.
    box = np.array([18, 36, 34, 46])
    frame[box[1] : box[3], box[0] : box[2]] = 1.0
    places, keep = to_view(box / 64, crop, (64, 64), flip)
    assert keep
    fmap, valid = seen(frame, crop, flip), torch.ones(1, 1, 2, dtype=torch.bool)
    upside_down = places[[0, 3, 2, 1]] * [1, -1, 1, -1] + [0, 1, 0, 1]
    boxes = torch.from_numpy(np.stack([places, upside_down])).float().view(1, 1, 2, 4)
    node, wrong = roi_align(fmap, boxes, valid, pool="mean").flatten()
    assert node > 0.7
    assert wrong < 0.25


def test_mismatched_shapes_are_refused():
    fmap, boxes, valid = random_input()
    with pytest.raises(ValueError, match="3 steps"):
        roi_align(fmap, boxes[:, :2], valid[:, :2])
    with pytest.raises(ValueError, match="valid"):
        roi_align(fmap, boxes, valid[:, :, :2])
    with pytest.raises(ValueError, match="2 samples"):
        roi_align(fmap, boxes[:1], valid[:1])
    with pytest.raises(ValueError, match="max, mean"):
        roi_align(fmap, boxes, valid, pool="average")
    with pytest.raises(ValueError, match="grid"):
        roi_align(fmap, boxes, valid, grid=[(6, 9), (7, 9)])
