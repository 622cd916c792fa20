"""Masked means and softmax, box graphs and their products."""

import pytest
import torch
from torchvision.ops import box_iou

from heads.interface.masked_layers import (
    along_back,
    along_front,
    dense_graph,
    front_back,
    grid_mean,
    masked_mean,
    masked_softmax,
    next_frame_iou,
    row_normalise,
)

B, T, N, C = 2, 4, 3, 5


def random_boxes(generator: torch.Generator) -> torch.Tensor:
    corner = torch.rand(B, T, N, 2, generator=generator, dtype=torch.float64) * 0.6
    side = torch.rand(B, T, N, 2, generator=generator, dtype=torch.float64) * 0.4
    return torch.cat([corner, corner + side], -1)


@pytest.fixture
def generator():
    return torch.Generator().manual_seed(0)


def test_masked_mean_counts_only_what_is_valid(generator):
    x = torch.randn(B, T, N, C, generator=generator)
    mask = torch.rand(B, T, N, generator=generator) < 0.5
    mask[1] = False
    expected = x[0][mask[0]].mean(0)
    torch.testing.assert_close(masked_mean(x, mask)[0], expected)
    assert (masked_mean(x, mask)[1] == 0).all()


def test_masked_softmax_rows_sum_to_one_or_are_empty(generator):
    mask = torch.tensor([[True, True, False], [False, False, False]])
    weights = masked_softmax(torch.randn(2, 3, generator=generator) * 50, mask)
    assert weights[0].sum() == 1
    assert weights[0, 2] == 0
    assert (weights[1] == 0).all()


def test_empty_rows_stay_zero_and_tiny_rows_still_sum_to_one():
    graph = torch.tensor([[0.0, 0.0], [1e-30, 3e-30], [2.0, 6.0]])
    torch.testing.assert_close(
        row_normalise(graph), torch.tensor([[0, 0], [0.25, 0.75], [0.25, 0.75]])
    )


def test_next_frame_iou_is_torchvisions(generator):
    boxes = random_boxes(generator)
    iou = next_frame_iou(boxes)
    for b in range(B):
        for t in range(T - 1):
            torch.testing.assert_close(iou[b, t], box_iou(boxes[b, t], boxes[b, t + 1]))
    assert (next_frame_iou(torch.zeros(1, 2, 2, 4)) == 0).all()  # padded boxes have no area


def test_iou_does_not_depend_on_a_common_translation_or_scale(generator):
    boxes = random_boxes(generator)
    torch.testing.assert_close(next_frame_iou(boxes * 3.7 + 1.9), next_frame_iou(boxes))


def test_products_frame_by_frame_equal_the_dense_matrices(generator):
    valid = torch.rand(B, T, N, generator=generator) < 0.7
    front, back = front_back(next_frame_iou(random_boxes(generator)), valid)
    x = torch.randn(B, T, N, C, generator=generator, dtype=torch.float64)
    flat = x.flatten(1, 2)
    torch.testing.assert_close(along_front(front, x).flatten(1, 2), dense_graph(front, 1) @ flat)
    torch.testing.assert_close(along_back(back, x).flatten(1, 2), dense_graph(back, -1) @ flat)


def test_padded_boxes_have_no_edges(generator):
    valid = torch.ones(B, T, N, dtype=torch.bool)
    valid[:, 1, 2] = False
    front, back = front_back(torch.ones(B, T - 1, N, N), valid)
    assert (front[:, 0, :, 2] == 0).all()
    assert (front[:, 1, 2] == 0).all()
    assert (back[:, 0, 2] == 0).all()
    assert (back[:, 1, :, 2] == 0).all()
    torch.testing.assert_close(front[:, 0, :, :2], torch.full((B, N, 2), 0.5))


def test_grid_mean_ignores_the_padding(generator):
    fmap = torch.randn(2, T, C, 4, 6, generator=generator)
    narrow = fmap[1, ..., :3, :2].mean((-1, -2))
    fmap[1, ..., 3:, :] = float("nan")
    fmap[1, ..., 2:] = float("nan")
    means = grid_mean(fmap, torch.tensor([[4, 6], [3, 2]]))
    torch.testing.assert_close(means[0], fmap[0].mean((-1, -2)))
    torch.testing.assert_close(means[1], narrow)
    torch.testing.assert_close(grid_mean(fmap[:1], None), means[:1])
