"""Where DyReg-GNN looks (NeurIPS 2021, eq. 2 to 6): kernels, regions, distillation."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heads.papers.dyreg.distillation import distillation_loss
from heads.papers.dyreg.generators import Fishnet, place_waves
from heads.papers.dyreg.kernels import (
    ANCHORS,
    NODES,
    anchor_points,
    area_grid,
    geometry,
    kernels_of,
)
from heads.papers.dyreg.regions import REGIONS, build_regions
from tests.support.small_dyreg import (
    GRID,
    PREDICTED,
    B,
    C,
    T,
    boxes,
    dyreg,
    maps,
    norm_by_hand,
    norm_map,
    over_time,
    regions_of,
)

# ---- geometry and kernels


def wild(n=2000) -> torch.Tensor:
    return torch.randn(n, NODES, 4, generator=torch.Generator().manual_seed(1)) * torch.tensor(
        [3.0, 3.0, 5.0, 5.0]
    )


@pytest.mark.parametrize("grid", [(14, 14), (7, 9)])
def test_kernels_are_non_negative_of_sum_one_and_rank_one_whatever_the_offsets(grid):
    for anchors in ANCHORS:
        centres, radii = geometry(wild(), anchor_points(anchors, grid), grid)
        kernels = kernels_of(centres, radii, grid)
        assert kernels.shape == (2000, NODES, *grid)
        assert (kernels >= 0).all()
        torch.testing.assert_close(
            kernels.sum((-1, -2)), torch.ones(2000, NODES), rtol=0, atol=1e-5
        )
        # Of rank one with sum 1: the product of its sums.
        outer = kernels.sum(-1)[..., :, None] * kernels.sum(-2)[..., None, :]
        torch.testing.assert_close(kernels, outer, rtol=0, atol=1e-6)
        assert ((centres >= 0) & (centres <= torch.tensor(grid) - 1)).all()


def test_enormous_offsets_give_flat_kernels_and_no_nan():
    offsets = torch.tensor([1e4, 1e4, 0, 0]).expand(NODES, 4).requires_grad_()
    kernels = kernels_of(*geometry(offsets, anchor_points("grid", GRID), GRID), GRID)
    torch.testing.assert_close(kernels, torch.full_like(kernels, 1 / 56))
    assert torch.isfinite(torch.autograd.grad((kernels * torch.rand(GRID)).sum(), offsets)[0]).all()


def test_zero_offsets_stay_at_the_anchors_with_the_papers_radius():
    zero = torch.zeros(NODES, 4, dtype=torch.float64)
    centres, radii = geometry(zero, anchor_points("centre", (14, 14)), (14, 14))
    assert (centres == 7.0).all()  # not 6.5, the middle of the indices
    torch.testing.assert_close(radii, torch.full_like(radii, 14 / 6 + 2))
    points = anchor_points("grid", (12, 18))
    torch.testing.assert_close(
        geometry(zero, points, (12, 18))[0], points.double(), rtol=0, atol=1e-12
    )
    assert points.tolist() == [[y, x] for y in (2, 6, 10) for x in (3, 9, 15)]


def test_offsets_are_height_width_down_right():
    moved, radii = geometry(
        torch.tensor([[0.5, 0.0, 0.0, 0.3]]), anchor_points("centre", (14, 14))[:1], (14, 14)
    )
    assert radii[0, 0] == pytest.approx(math.exp(0.5) * (14 / 6 + 1) + 1)
    assert radii[0, 1] == pytest.approx(14 / 6 + 2)
    assert moved[0].tolist() == pytest.approx([7.0, 7 + 7 * math.tanh(0.3)])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_anchors_at_the_border_can_leave_it(dtype):
    border = torch.tensor([[0.0, 14.0]])
    assert geometry(torch.zeros(1, 4, dtype=dtype), border, (14, 14))[0].tolist() == [
        [pytest.approx(0, abs=1e-5), 13]
    ]
    inwards = torch.tensor([[0, 0, math.atanh(1 - 1e-7), -math.atanh(1 - 1e-7)]], dtype=dtype)
    assert geometry(inwards, border, (14, 14))[0].tolist() == [[pytest.approx(7, abs=1e-4)] * 2]


def test_kernels_without_normalisation_are_the_papers():
    centres, radii = torch.tensor([[2.5, 3.0]]), torch.tensor([[2.0, 1.5]])
    kernel = kernels_of(centres, radii, GRID, normalise=False)[0]
    for y in range(GRID[0]):
        for x in range(GRID[1]):
            assert kernel[y, x] == pytest.approx(
                max(0, 2 - abs(y - 2.5)) * max(0, 1.5 - abs(x - 3))
            )
    assert kernels_of(centres, radii, GRID)[0].allclose(kernel / kernel.sum())


def test_a_ramp_is_read_at_the_centre_and_shows_where_to_move_it():
    """Exactly for whole radii; within a twentieth of a cell for others."""
    grid = (14, 14)
    ramp = torch.arange(14, dtype=torch.float64)[:, None].expand(14, 14)
    centres = torch.tensor([[5.3, 6.0], [7.77, 6.0]], dtype=torch.float64).requires_grad_()
    for radius, tolerance in ((3.0, 1e-12), (3.4, 0.05)):
        values = (
            kernels_of(centres, torch.full((2, 2), radius, dtype=torch.float64), grid) * ramp
        ).sum((-1, -2))
        torch.testing.assert_close(values, centres[:, 0], rtol=0, atol=tolerance)
        (gradient,) = torch.autograd.grad(values.sum(), centres)
        assert (gradient[:, 0] > 0.7).all()
        assert gradient[:, 1].abs().max() < 1e-12


@pytest.mark.parametrize("grid", [(7, 7), (8, 7), (14, 14), (3, 12)])
def test_fixed_regions_are_the_cells_of_a_three_by_three_grid_by_area(grid):
    cells = area_grid(grid)
    torch.testing.assert_close(cells.sum((-1, -2)), torch.ones(NODES, dtype=torch.float64))
    torch.testing.assert_close(
        cells.mean(0), torch.full(grid, 1 / (grid[0] * grid[1]), dtype=torch.float64)
    )
    # Thirds of a cell lie in one area.
    fine = F.interpolate(cells[None] / 9, scale_factor=3, mode="nearest")[0]
    blocks = fine.unflatten(1, (3, grid[0])).unflatten(3, (3, grid[1]))
    for node in range(NODES):
        inside = blocks[node, node // 3, :, node % 3]
        assert (
            inside.sum() == pytest.approx(1)
            if grid[0] % 3 == 0 == grid[1] % 3
            else inside.min() > 0
        )


# ---- what predicts the regions


@pytest.mark.parametrize(("cells", "size"), [(7, 5), (8, 6), (14, 6), (16, 7), (28, 6), (32, 7)])
def test_the_big_generator_has_the_papers_sizes(cells, size):
    net = Fishnet(4, (cells, cells))
    assert net.size == (size, size)
    assert net(torch.randn(1, 4, cells, cells)).shape == (1, 16, size, size)


def test_the_big_generator_is_the_papers_layers():
    """1x1, 3x3, 3x3, a transposed 3x3 plus the first 3x3, 3x3; the norm after each ReLU."""
    torch.manual_seed(0)
    net, x = Fishnet(C, (28, 28)).double(), maps((28, 28), steps=1)[:1, :, 0]

    def layer(block: nn.Sequential, x: torch.Tensor, transposed=False) -> torch.Tensor:
        convolution, _, norm = block
        run = F.conv_transpose2d if transposed else F.conv2d
        y = run(
            x, convolution.weight, convolution.bias, 1 if convolution.kernel_size == (1, 1) else 2
        ).relu()
        return norm_map(norm, y[0])[None]

    tail0 = layer(net.tail0, layer(net.enter, x))
    tail1 = layer(net.tail1, tail0)
    assert (tail0.shape, tail1.shape) == ((1, 32, 13, 13), (1, 16, 6, 6))
    torch.testing.assert_close(
        net(x), layer(net.leave, layer(net.up, tail1, transposed=True) + tail0)
    )


@pytest.mark.parametrize("cells", [3, 5, 9, 10, 13, 17, 19, 27, 35, 50])
def test_other_maps_run_too_also_beside_another_side(cells):
    x = torch.randn(1, 4, cells, 11)
    assert Fishnet(4, (cells, 11))(x).shape[1:] == (16, *Fishnet(4, (cells, 11)).size)
    assert Fishnet(4, (cells, 11), upsample=True)(x).shape == (1, 32, cells, 11)


@pytest.mark.parametrize(
    ("grid", "match"), [((51, 51), "later"), ((56, 56), "later"), ((2, 7), "earlier")]
)
def test_maps_that_it_cannot_take_are_refused(grid, match):
    with pytest.raises(ValueError, match=match):
        build_regions("dynamic", 4, grid)


@pytest.mark.parametrize(("cells", "middle"), [(16, 8), (14, 7), (28, 14), (15, 8), (7, 7), (8, 8)])
def test_the_semantic_network_keeps_the_edge_and_adds_what_enters(cells, middle):
    net, x = Fishnet(4, (cells, cells), upsample=True), torch.randn(1, 4, cells, cells)
    entered = net.enter(x)
    assert net.tail0(entered).shape[-2:] == (middle, middle)
    with torch.no_grad():
        for weight in net.leave.parameters():
            weight.zero_()
    torch.testing.assert_close(net(x), entered)


def test_the_position_map_of_the_lite_generator():
    waves = place_waves(6, (5, 4))
    for y in range(5):
        for x in range(4):
            for k in range(3):
                wave = math.cos if k % 2 else math.sin
                row, column = y / 4 / 10000 ** (k / 3), x / 3 / 10000 ** (k / 3)
                assert waves[k, y, x] == pytest.approx(wave(row), abs=1e-6)
                assert waves[3 + k, y, x] == pytest.approx(wave(column), abs=1e-6)


def test_the_lite_generator_divides_every_location_between_the_nodes():
    module = dyreg(regions="lite", random=False, width=C)
    lite = module.regions.generator
    lite.out = nn.Identity()
    x = maps().transpose(1, 2).flatten(0, 1)
    everything = (x + lite.place(lite.waves[None])).sum((-1, -2))
    torch.testing.assert_close(lite(x).sum(1), everything)


def test_the_norm_that_the_release_of_lite_declares_changes_nothing_and_does_not_learn():
    lite = dyreg(regions="lite", width=C).regions.generator
    x = maps().transpose(1, 2).flatten(0, 1)
    before = lite(x)
    with torch.no_grad():
        lite.norm.weight.mul_(7).add_(1)
    torch.testing.assert_close(lite(x), before)
    still = {name for name, weight in lite.named_parameters() if not weight.requires_grad}
    assert still == {"norm.weight", "norm.bias"}


@pytest.mark.parametrize("regions", REGIONS)
def test_regions_have_the_shapes_of_their_kind(regions):
    found = regions_of(dyreg(regions=regions), maps())
    steps = 1 if regions in ("constant_time", "static", "fixed") else T
    assert found.kernels.shape == (B, steps, NODES, *GRID)
    assert (found.offsets is not None) == (regions in PREDICTED)
    assert (found.centres is None) == (regions in ("fixed", "semantic"))
    if regions in PREDICTED:
        assert found.offsets.shape == (B, steps, NODES, 4)
        assert found.offsets.requires_grad
    if regions != "semantic":
        torch.testing.assert_close(
            found.kernels.sum((-1, -2)), torch.ones(B, steps, NODES, dtype=torch.float64)
        )


@pytest.mark.parametrize("regions", PREDICTED)
def test_at_first_all_regions_lie_in_the_middle(regions):
    module = dyreg(regions=regions, random=False)
    found = regions_of(module, maps())
    assert (found.offsets == 0).all()
    assert (found.kernels == found.kernels[:, :, :1]).all()
    expected = torch.tensor(GRID).double() / 6 + (1 if regions == "position_only" else 2)
    torch.testing.assert_close(found.radii, expected.expand_as(found.radii))


def test_static_regions_are_those_of_no_video_and_constant_time_those_of_one():
    x = maps()
    static, constant = dyreg(regions="static"), dyreg(regions="constant_time")
    assert regions_of(static, x).offsets.equal(regions_of(static, maps(seed=7)).offsets)
    offsets = regions_of(constant, x).offsets
    torch.testing.assert_close(regions_of(constant, x[:, :, [2, 0, 1]]).offsets, offsets)
    assert (offsets[0] - offsets[1]).abs().max() > 1e-6


def test_predicted_positions_have_a_fixed_size():
    found = regions_of(dyreg(regions="position_only"), maps())
    assert (found.radii == torch.tensor([8 / 6 + 1, 7 / 6 + 1], dtype=torch.float64)).all()
    assert found.centres.std() > 0


def test_only_g_tells_the_nodes_apart():
    module = dyreg()
    spread = regions_of(module, maps()).offsets.std(2)
    assert (spread > 1e-4).all()
    with torch.no_grad():
        for p in (module.regions.generator.g.weight, module.regions.generator.g.bias):
            p.copy_(p.unflatten(0, (NODES, -1))[:1].expand(NODES, *(-1,) * p.dim()).flatten(0, 1))
    offsets = regions_of(module, maps()).offsets
    torch.testing.assert_close(offsets, offsets[:, :, :1].expand_as(offsets))


def test_detector_regions_lie_on_the_boxes():
    given = boxes(4)
    given["boxes"][0, 0, 0] = torch.tensor([0.25, 0.5, 0.75, 1.0])  # x1 y1 x2 y2
    given["boxes"][0, 0, 1] = torch.tensor([0.54, 0.54, 0.56, 0.56])  # between two cells
    given["valid"][0, 0, 2] = False
    x = maps().transpose(1, 2)
    found = build_regions("detector", C, GRID)(x, **given)
    assert found.centres[0, 0, 0].tolist() == [6.0, 3.5]
    assert found.radii[0, 0, 0].tolist() == [2.0, 1.75]
    sums = found.kernels.sum((-1, -2))
    torch.testing.assert_close(sums[0, 0], torch.tensor([1, 1, 0, 1, 0, 0, 0, 0, 0]).double())
    given["boxes"][0, 0, 2] = 7.0
    assert build_regions("detector", C, GRID)(x, **given).kernels.equal(found.kernels)
    with pytest.raises(ValueError, match="needs boxes and valid"):
        build_regions("detector", C, GRID)(x)
    with pytest.raises(ValueError, match=r"expected boxes \[2,3,n,4\]"):
        build_regions("detector", C, GRID)(x, given["boxes"][:1], given["valid"][:1])


def test_regions_follow_their_equations_from_g_on():
    """o = alpha (W LN(GRU(LN(g))) + b), both LN over (9, d_o) of a frame."""
    module, x = dyreg(width=C), maps()
    inner, net = x.transpose(1, 2), module.regions
    m = net.generator.fishnet(inner.flatten(0, 1))
    weight = net.generator.g.weight.flatten(1)  # one row of weights per node and number
    g = (m.flatten(1) @ weight.T + net.generator.g.bias).view(B, T, NODES, 5)
    z = torch.stack([norm_by_hand(net.norm_in, f) for f in g.flatten(0, 1)]).unflatten(0, (B, T))
    z = over_time(net.time, z)
    z = torch.stack([norm_by_hand(net.norm, f) for f in z.flatten(0, 1)]).unflatten(0, (B, T))
    torch.testing.assert_close(
        regions_of(module, x).offsets, (z @ net.linear.weight.T + net.linear.bias) * net.alpha
    )


# ---- distillation


def test_distillation_is_the_smooth_distance_of_the_offsets_and_leaves_the_teachers_alone():
    torch.manual_seed(0)
    students = [torch.randn(B, T, NODES, 4, requires_grad=True) for _ in range(2)]
    teachers = [torch.randn(B, T, NODES, 4, requires_grad=True) * 2 for _ in range(2)]
    loss, total = distillation_loss(students, teachers), 0
    for s, t in zip(students, teachers, strict=True):
        d = (s - t).abs()
        total = total + torch.where(d < 1, d * d / 2, d - 0.5).mean() / 2
    torch.testing.assert_close(loss, total)
    assert all(
        g is None for g in torch.autograd.grad(loss, teachers, allow_unused=True, retain_graph=True)
    )
    loss.backward()
    assert all(s.grad.abs().sum() > 0 for s in students)
    assert distillation_loss(students, [s.detach() for s in students]) == 0


def test_distillation_refuses_what_does_not_belong_together():
    o = torch.zeros(B, T, NODES, 4)
    with pytest.raises(ValueError, match="a teacher for each module, got 2 modules and 1 teachers"):
        distillation_loss([o, o], [o])
    with pytest.raises(ValueError, match=r"\[2, 3, 9, 4\] and \[2, 1, 9, 4\]"):
        distillation_loss([o], [o[:, :1]])
    with pytest.raises(ValueError, match="and none"):
        distillation_loss([o], [None])


def test_a_student_learns_its_teachers_regions():
    teacher, student, x = dyreg(seed=1).float(), dyreg(seed=2, random=False).float(), maps().float()
    with torch.no_grad():
        goal = regions_of(teacher, x).offsets
    optimiser, losses = torch.optim.Adam(student.parameters(), 0.02), []
    for _ in range(25):
        optimiser.zero_grad()
        loss = distillation_loss([regions_of(student, x).offsets], [goal])
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.3 * losses[0]
