"""DyReg-GNN as a module and as a head: its equations (NeurIPS 2021, sec. 3) and its figures."""

import copy

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from heads.interface.clips import Clips, Dims, clips_of
from heads.interface.joint_norm import JointNorm
from heads.papers.dyreg.kernels import NODES
from heads.papers.dyreg.module import DyReg, recorded
from heads.papers.dyreg.regions import REGIONS
from heads.zoo import build_head, head_changes
from pipeline.backbones import build_backbone
from tests.support.small_dyreg import (
    GRID,
    PREDICTED,
    VARIANTS,
    B,
    C,
    T,
    boxes,
    dyreg,
    maps,
    norm_map,
    regions_of,
)
from tests.support.tiny_backbone import tiny

variants = pytest.mark.parametrize("variant", VARIANTS)

# ---- the module


@variants
@pytest.mark.parametrize("regions", REGIONS)
@pytest.mark.parametrize("width", [6, C])  # projected, not projected
def test_at_first_the_module_is_the_identity_bit_for_bit(variant, regions, width):
    x = maps()
    for dtype in (torch.float64, torch.float32):
        module = dyreg(random=False, variant=variant, regions=regions, width=width).to(dtype)
        assert module(x.to(dtype)).equal(x.to(dtype))
    assert (module.enter is not None) == (width < C)


@variants
def test_the_module_follows_its_equations(variant):
    module, x = dyreg(variant=variant, anchors="grid"), maps()
    frames = x.transpose(1, 2)
    inner = torch.stack(
        [
            torch.stack([norm_map(module.enter[1], module.enter[0](f[None])[0]) for f in video])
            for video in frames
        ]
    )
    kernels = regions_of(module, x).kernels
    v = torch.stack(
        [
            torch.stack(
                [
                    inner[b, t].flatten(1) @ k.flatten()
                    for b in range(B)
                    for t in range(T)
                    for k in kernels[b, t]
                ]
            )
        ]
    )
    v = v.view(B, T, NODES, -1) + kernels.flatten(3) @ module.place.weight.T + module.place.bias
    v = module.graph(v)
    for b in range(B):
        for t in range(T):
            y = sum(k * node[:, None, None] for k, node in zip(kernels[b, t], v[b, t], strict=True))
            expected = frames[b, t] + norm_map(module.norm, module.leave(y[None])[0])
            torch.testing.assert_close(module(x)[b, :, t], expected, rtol=1e-9, atol=1e-9)


def test_a_constant_map_gives_constant_nodes():
    module = dyreg(width=C, anchors="grid")
    nn.init.zeros_(module.place.weight)
    nn.init.zeros_(module.place.bias)
    x = torch.full((B, T, C, *GRID), 2.5, dtype=torch.float64)
    nodes = module.nodes(x, module.regions(maps().transpose(1, 2)).kernels)
    torch.testing.assert_close(nodes, torch.full_like(nodes, 2.5))


def test_the_embedding_of_the_place_moves_the_regions_too():
    module = dyreg(width=C)
    kernels = module.regions(maps().transpose(1, 2)).kernels
    nodes = module.nodes(torch.zeros(B, T, C, *GRID, dtype=torch.float64), kernels)
    torch.testing.assert_close(
        nodes, kernels.flatten(3) @ module.place.weight.T + module.place.bias
    )
    assert torch.autograd.grad(nodes.square().sum(), module.regions.alpha)[0].abs().min() > 0


class Constant(nn.Module):
    def __init__(self, value: torch.Tensor):
        super().__init__()
        self.value = value

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.value.expand(x.shape)


def test_a_single_node_is_painted_with_its_kernel():
    module, x = dyreg(width=C, anchors="grid"), maps()
    v = torch.zeros(NODES, C, dtype=torch.float64)
    v[4] = torch.arange(C)
    module.graph, module.norm = Constant(v), nn.Identity()
    kernels = regions_of(module, x).kernels[:, :, 4]
    painted = (module(x) - x).transpose(1, 2)
    torch.testing.assert_close(
        painted, kernels[:, :, None] * v[4][:, None, None], rtol=1e-9, atol=1e-12
    )


@variants
@pytest.mark.parametrize(
    "regions", ["dynamic", "lite", "position_only", "static", "semantic", "detector", "fixed"]
)
def test_no_output_depends_on_a_later_frame(variant, regions):
    module, x = dyreg(variant=variant, regions=regions), maps()
    before = module(x)
    x[:, :, 2] += torch.randn(C, *GRID)
    after = module(x)
    torch.testing.assert_close(after[:, :, :2], before[:, :, :2], rtol=0, atol=1e-12)
    assert (after[:, :, 2] - before[:, :, 2]).abs().max() > 0.1


def test_regions_that_are_constant_in_time_do_look_ahead():
    module, x = dyreg(regions="constant_time"), maps()
    before = module(x)
    x[:, :, 2] += torch.randn(C, *GRID)
    assert (module(x)[:, :, 0] - before[:, :, 0]).abs().max() > 1e-6


def test_earlier_frames_are_remembered():
    module, x = dyreg(), maps()
    before = module(x)
    x[:, :, 0] += torch.randn(C, *GRID)
    assert (module(x)[:, :, 2] - before[:, :, 2]).abs().max() > 1e-6


def live(module: nn.Module) -> set[str]:
    """Parameters with a gradient beyond rounding."""
    sizes = {
        name: float(p.grad.abs().max())
        for name, p in module.named_parameters()
        if p.grad is not None
    }
    return {name for name, size in sizes.items() if size > 1e-15 * max(sizes.values())}


@variants
@pytest.mark.parametrize("width", [6, C])
def test_gradients_arrive_in_three_steps(variant, width):
    """First the wrapper; then the graph, projections, the embedding and alpha; at last the regions,
    which separate the nodes.

    Attention is uniform as long as the nodes are the same, so that its weights wait for the
    regions; a key's bias adds the same to a whole row of the softmax and never learns.
    """
    module, x = dyreg(variant=variant, width=width, random=False), maps()
    optimiser, target = torch.optim.SGD(module.parameters(), 0.01), maps(seed=9)
    start, seen = {n: p.detach().clone() for n, p in module.named_parameters()}, []
    for _ in range(3):
        optimiser.zero_grad()
        (module(x) * target).sum().backward()
        seen.append(live(module))
        optimiser.step()
    names = set(start)
    late = {
        n
        for n in names
        if (n.startswith("regions.") and n != "regions.alpha") or ".attention." in n
    }
    assert seen[0] == {"norm.weight", "norm.bias"}
    assert seen[1] == names - late
    assert seen[2] == names - {"graph.attention.key.bias"}
    found = regions_of(module, x)
    assert (found.offsets.std(2) > 0).any()
    moved = {n for n, p in module.named_parameters() if not p.equal(start[n])}
    assert moved >= names - {"graph.attention.key.bias"}


@pytest.mark.parametrize("regions", REGIONS)
def test_another_resolution_is_averaged_to_the_built_one(regions):
    """f sees the averaged map, while the geometry is that of the larger one."""
    module, grid = dyreg(regions=regions, width=C), (16, 14)
    x = maps(grid)
    assert module(x).shape == x.shape
    found = regions_of(module, x)
    assert found.kernels.shape[-2:] == grid
    if regions in PREDICTED:
        small = F.adaptive_avg_pool3d(x, (T, *GRID))
        torch.testing.assert_close(found.offsets, regions_of(module, small).offsets)
        middle = torch.tensor(grid) / 2 * (1 + torch.tanh(found.offsets[..., 2:]))
        torch.testing.assert_close(
            found.centres, middle.clamp_min(0).minimum(torch.tensor([15.0, 13.0]).double())
        )
    if regions == "semantic":
        expected = (
            regions_of(module, F.adaptive_avg_pool3d(x, (T, *GRID))).kernels.mean((-1, -2)) / 4
        )
        torch.testing.assert_close(found.kernels.mean((-1, -2)), expected, rtol=0.2, atol=0.02)


@variants
def test_half_precision_stays_close_and_keeps_the_dtype(variant):
    module = dyreg(variant=variant).float()
    x = maps().float()
    exact = module(x)
    with torch.autocast("cpu", torch.bfloat16):
        rough = module(x)
        assert module(x.bfloat16()).dtype == torch.bfloat16
    half = copy.deepcopy(module).bfloat16()(x.bfloat16())
    assert (rough.dtype, half.dtype) == (torch.float32, torch.bfloat16)
    for y in (rough, half.float()):
        assert (y - exact).abs().mean() < 0.1 * exact.abs().mean()


def test_what_is_recorded_is_forgotten_so_that_a_module_can_be_copied():
    module = dyreg()
    with recorded([module]) as records:
        module(maps())
        module(maps())
    assert len(records[0]) == 2
    assert module.record is None
    module(maps())
    assert len(records[0]) == 2
    assert copy.deepcopy(module)(maps()).equal(module(maps()))


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"variant": "other"}, "option variant: expected one of paper, released, got 'other'"),
        ({"regions": "moving"}, "option regions: expected one of dynamic, lite"),
        ({"anchors": "corner"}, "option anchors: expected one of centre, grid"),
    ],
)
def test_wrong_options_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        dyreg(**options)


def test_a_map_of_other_channels_is_refused():
    with pytest.raises(ValueError, match=r"expected a map \[B,8,T,h,w\]"):
        dyreg()(maps(channels=5))


def test_joint_norm_keeps_scale_and_shift_by_channel():
    norm, x = JointNorm(C, axes=3, channel=-3).double(), maps().transpose(1, 2)
    with torch.no_grad():
        norm.weight.normal_()
        norm.bias.normal_()
    torch.testing.assert_close(norm(x)[1, 2], norm_map(norm, x[1, 2]))


# ---- the head


K = 5
CUT = {"res4.3": (1024 // 8, 6, 5), "res5.0": (2048 // 8, 3, 3), "res5": (C, *GRID)}
TSM = {"backbone": "tsm_r50", "backbone_options": {"width": 8}}


def head(random=True, dims=None, **options) -> nn.Module:
    torch.manual_seed(0)
    made = (
        build_head("dyreg", dims or Dims(T, 4, 7, CUT), K, width=6, offset_width=5, **options)
        .double()
        .eval()
    )
    if random:
        with torch.no_grad():
            for module in made.dyregs:
                for parameter in module.parameters():
                    parameter.copy_(torch.randn_like(parameter) * 0.3)
    return made


def views(grid=None, **fields) -> Clips:
    g = torch.Generator().manual_seed(3)
    fmaps = {
        cut: torch.rand(B, T, *size, generator=g, dtype=torch.float64) for cut, size in CUT.items()
    }
    return clips_of({**fmaps, **boxes(4), **fields}, dtype=None)


@pytest.mark.parametrize(
    "at", ["res4.4.conv2", "res5.1.conv2", "res4.4.conv2, res5.1.conv2", "res5.0"]
)
def test_the_head_is_the_plain_network_at_first_bit_for_bit(at):
    made, clips = head(random=False, at=at, **TSM), views()
    nn.init.normal_(made.fc.weight)
    torch.manual_seed(0)
    plain = build_backbone("tsm_r50", width=8).double().eval()
    plain.load_state_dict(made.network.state_dict(), strict=False)
    y = plain(clips.get(made.cut).transpose(1, 2), start=made.cut)
    assert made(clips).logits.equal(made.fc(y.mean((-1, -2)).transpose(1, 2)).mean(1))
    assert made.points == tuple(at.split(", "))


def test_without_regions_the_head_is_the_plain_network_for_good():
    made, clips = head(at="res4.4.conv2", regions="none", **TSM), views()
    torch.manual_seed(0)
    plain = build_backbone("tsm_r50", width=8).double().eval()
    plain.load_state_dict(made.network.state_dict(), strict=False)
    y = plain(clips.get("res4.3").transpose(1, 2), start="res4.3")
    assert made.needs == ("res4.3",)
    assert made(clips).logits.equal(made.fc(y.mean((-1, -2)).transpose(1, 2)).mean(1))
    assert made(clips, want_maps=True).maps == {}
    assert not [name for name, _ in made.named_parameters() if "inserted" in name]


def test_a_module_that_starts_above_zero_changes_the_map_and_learns_at_the_first_step():
    module, x = dyreg(random=False, start=0.5), maps()
    change = module(x) - x
    assert torch.allclose(change.std(), torch.tensor(0.5).double(), rtol=1e-3)  # LN's variance is 1
    change.square().sum().backward()
    assert module.graph.time.weight_ih_l0.grad.abs().max() > 0


def test_the_head_reads_the_last_cut_before_its_first_module():
    assert head(at="res4.4.conv2,res5.1.conv2", **TSM).needs == ("res4.3",)
    assert head(at="res5.1.conv2", **TSM).needs == ("res5.0",)
    assert head().needs == ("res5",)
    assert head(at="res5.1.conv2", regions="detector", **TSM).needs == ("res5.0", "boxes", "valid")


def test_modules_fit_the_maps_at_their_points():
    made = head(at="res4.4.conv2,res5.1.conv2", **TSM)
    assert [(module.channels, module.grid) for module in made.dyregs] == [
        (32, (6, 5)),
        (64, (3, 3)),
    ]


def test_only_what_is_above_the_cut_is_kept():
    made = head(at="res5.1.conv2", **TSM)
    names = {name.split(".")[1] for name in made.state_dict() if name.startswith("network.")}
    assert names == {"res5", "inserted", "pixel_mean", "pixel_std"}


def test_a_cached_map_gives_what_frames_give():
    made = head(at="res4.4.conv2", **TSM)
    whole = tiny("tsm_r50").double()
    frames = torch.rand(B, 3, T, 96, 80, dtype=torch.float64)
    clips = Clips(maps={"res4.3": whole(frames, upto="res4.3").transpose(1, 2)})
    kept = {name: p for name, p in made.network.state_dict().items() if name in whole.state_dict()}
    whole.load_state_dict(kept, strict=False)
    whole.insert("res4.4.conv2", made.dyregs[0])
    live = made.fc(whole(frames).mean((-1, -2)).transpose(1, 2)).mean(1)
    torch.testing.assert_close(made(clips).logits, live, rtol=1e-12, atol=1e-12)


def test_maps_hold_the_regions_of_every_module():
    found = head(at="res4.4.conv2,res5.1.conv2", **TSM)(views(), want_maps=True).maps
    sizes = {"offsets": (4,), "centres": (2,), "radii": (2,)}
    assert {name: tuple(m.shape) for name, m in found.items()} == {
        f"{name}.{point}": (B, T, NODES, *size)
        for point, grid in (("res4.4.conv2", (6, 5)), ("res5.1.conv2", (3, 3)))
        for name, size in {"kernels": grid, **sizes}.items()
    }


@pytest.mark.parametrize("options", [{}, {"at": "res5.1.conv2", **TSM}])
def test_detector_regions_of_padded_boxes_never_change_logits(options):
    made, clips = head(regions="detector", **options), views()
    clips.valid[0, 1, 2:] = False
    before = made(clips).logits
    clips.boxes[0, 1, 2:] = 0.7
    assert made(clips).logits.equal(before)
    clips.boxes[0, 1, 0] = torch.tensor([0.0, 0.0, 0.2, 0.2])
    assert not made(clips).logits.equal(before)
    assert all(module.boxes is None for module in made.dyregs)


def test_padding_of_a_map_never_changes_logits():
    made, clips = head(), views()
    before = made(clips).logits
    clips.maps["res5"] = F.pad(clips.maps["res5"], (0, 2, 0, 3), value=5.0)
    clips.grid = torch.tensor([GRID] * B)
    assert made(clips).logits.equal(before)


@variants
def test_in_a_network_every_parameter_learns(variant):
    """With running statistics: over those of a batch, b before a batch norm never learns."""
    made, clips = head(random=False, at="res5.1.conv2", variant=variant, **TSM), views()
    nn.init.normal_(made.fc.weight)
    # Where it starts, gradients arrive one step after the other: see above.
    nn.init.ones_(made.dyregs[0].norm.weight)
    nn.init.ones_(made.dyregs[0].regions.alpha)
    F.cross_entropy(made(clips).logits, torch.tensor([0, 1])).backward()
    names = {name for name, _ in made.named_parameters()}
    assert names - live(made) == {"network.inserted.res5_1_conv2.graph.attention.key.bias"}
    made.train().zero_grad()
    F.cross_entropy(made(clips).logits, torch.tensor([0, 1])).backward()
    norm = made.dyregs[0].norm
    assert norm.bias.grad.abs().max() < 1e-12 < norm.weight.grad.abs().max()


@pytest.mark.parametrize(
    ("options", "match"),
    [
        ({"backbone": "tsm_r50"}, "backbone and at go together"),
        ({"at": "res4.4.conv2"}, "backbone and at go together"),
        ({"at": "res5.1.conv2", "backbone": "tsm_r50"}, "has 256 channels, that of tsm_r50 2048"),
        ({"at": "res3.2.conv2", **TSM}, "needs res3.1"),
        ({"at": "res4.4.conv9", **TSM}, "res4.4.conv9"),
        ({"width": 0}, "width: expected at least 1"),
        ({"regions": "none"}, "'none' leaves nothing to learn without a backbone"),
    ],
)
def test_heads_that_cannot_be_are_refused(options, match):
    with pytest.raises(ValueError, match=match):
        build_head("dyreg", Dims(T, 4, 7, CUT), K, **options)


# ---- the papers' figures


def parameters(module: nn.Module) -> int:
    return sum(p.numel() for p in module.parameters())


def test_the_papers_own_graph_has_fewer_parameters():
    """Table 6 counts the released graph. Eq. (8) and (9) have one GRU and no norms: 4 480 fewer."""
    counts = [
        parameters(DyReg(128, (16, 16), 32, offset_width=32, variant=variant))
        for variant in VARIANTS
    ]
    assert counts[1] - counts[0] == (15 * 1024 + 22 * 32) - (11 * 1024 + 10 * 32) == 4480


def test_runs_with_lite_or_semantic_regions_of_before_are_refused_and_no_others():
    changed = {kind for kind in (*REGIONS, "none") if head_changes("dyreg", 1, {"regions": kind})}
    assert changed == {"lite", "semantic"}
    assert not head_changes("dyreg", 2, {"regions": "lite"})


def test_a_divisor_gives_resnet_18_the_releases_widths():
    """A quarter of 128, 256 and 512 channels."""
    dims = Dims(16, maps={"res3.1": (128, 28, 28)})
    options = {"backbone": "tsm_r18", "at": "res3.1,res4.1,res5.1", "offset_width": 8}
    widths = []
    for divisor in (1, 4):
        with torch.device("meta"):
            head = build_head("dyreg", dims, 5, **options, width_divisor=divisor)
        widths.append([module.place.out_features for module in head.dyregs])
    assert widths == [[128, 256, 256], [32, 64, 128]]
