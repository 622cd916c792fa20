"""Dist (DyReg-GNN, Table 1): how far regions are from annotated boxes."""

import math

import pytest
import torch

from heads.interface.region_distance import RegionDistance, region_middles
from heads.papers.dyreg.kernels import area_grid, kernels_of

B, T, N, M, GRID = 2, 3, 4, 3, (5, 8)


@pytest.fixture
def regions() -> dict[str, torch.Tensor]:
    torch.manual_seed(0)
    centres = torch.rand(B, T, N, 2) * torch.tensor([4.0, 7.0])
    radii = torch.rand(B, T, N, 2) + 1
    return {"kernels.res4": kernels_of(centres, radii, GRID), "centres.res4": centres}


@pytest.fixture
def boxes() -> torch.Tensor:
    torch.manual_seed(1)
    corner = torch.rand(B, T, M, 2) / 2
    return torch.cat([corner, corner + torch.rand(B, T, M, 2) / 2], -1)


def by_hand(regions, boxes, valid) -> tuple[float, float]:
    """One box and one region at a time."""
    to_region, to_box = [], []
    for b in range(B):
        for t in range(T):
            places = []
            for y, x in regions["centres.res4"][b, t].tolist():
                places.append(((x + 0.5) / GRID[1], (y + 0.5) / GRID[0]))
            middles = []
            for (x1, y1, x2, y2), is_box in zip(boxes[b, t].tolist(), valid[b, t], strict=True):
                if is_box:
                    middles.append(((x1 + x2) / 2, (y1 + y2) / 2))
            to_region += [min(math.dist(m, place) for place in places) for m in middles]
            if middles:
                to_box += [min(math.dist(m, place) for m in middles) for place in places]
    return sum(to_region) / len(to_region), sum(to_box) / len(to_box)


def test_dist_is_the_mean_distance_to_the_nearest_middle_in_parts_of_the_sides(regions, boxes):
    valid = torch.rand(B, T, M) < 0.6
    valid[0, 1] = False  # a step without a box
    found = RegionDistance()
    found.add(regions, boxes, valid)
    expected = by_hand(regions, boxes, valid)
    figures = found.figures()
    assert (figures["dist"], figures["dist_regions"]) == pytest.approx(expected, abs=1e-6)
    assert found.boxes == valid.sum()
    assert found.steps == valid.any(-1).sum()


def test_batches_count_by_their_boxes_and_modules_alike(regions, boxes):
    other = {"kernels.res5": area_grid((6, 6)).expand(B, 1, 9, 6, 6)}
    parts = []
    for maps in (regions, other):
        whole, pieces = RegionDistance(), RegionDistance()
        whole.add(maps, boxes)
        for b in range(B):
            pieces.add({name: one[b : b + 1] for name, one in maps.items()}, boxes[b : b + 1])
        assert pieces.figures() == pytest.approx(whole.figures())
        parts.append(whole.figures()["dist"])
    both = RegionDistance()
    both.add({**regions, **other}, boxes)
    assert both.figures()["dist"] == pytest.approx(sum(parts) / 2)


def test_fixed_regions_have_the_middles_of_a_grid_of_three():
    for grid in ((6, 9), (14, 14), (7, 16)):
        kernels = area_grid(grid)[None, None]
        thirds = [1 / 6, 1 / 2, 5 / 6]
        expected = torch.tensor([(x, y) for y in thirds for x in thirds])
        found = region_middles({"kernels.res4": kernels})["res4"][0, 0]
        # A cell that a third cuts counts with its own middle.
        torch.testing.assert_close(found, expected, atol=0.01, rtol=0)


def test_regions_with_and_without_a_centre_agree_inside_the_map():
    centres, radii = torch.tensor([[[[2.25, 3.5], [2.0, 4.0]]]]), torch.full((1, 1, 2, 2), 2.0)
    kernels = kernels_of(centres, radii, GRID)
    exact = region_middles({"kernels.a": kernels, "centres.a": centres})["a"]
    assert region_middles({"kernels.a": kernels})["a"].sub(exact).abs().max() < 0.02


def test_a_region_whose_kernel_is_empty_is_nobody_s_nearest(regions, boxes):
    kept = RegionDistance()
    kept.add({name: one[:, :, :2] for name, one in regions.items()}, boxes)
    emptied = {name: one.clone() for name, one in regions.items()}
    emptied["kernels.res4"][:, :, 2:] = 0
    found = RegionDistance()
    found.add(emptied, boxes)
    assert found.figures() == pytest.approx(kept.figures())


def test_without_a_box_there_is_no_figure(regions, boxes):
    found = RegionDistance()
    found.add(regions, boxes, torch.zeros(B, T, M, dtype=torch.bool))
    assert found.figures() == {}


def test_maps_without_regions_and_other_steps_are_refused(regions, boxes):
    with pytest.raises(ValueError, match=r"expected maps with kernels\.POINT.*got attention"):
        RegionDistance().add({"attention": boxes}, boxes)
    with pytest.raises(ValueError, match="boxes of 3 steps as the regions at res4, got 2"):
        RegionDistance().add(regions, boxes[:, :2])
