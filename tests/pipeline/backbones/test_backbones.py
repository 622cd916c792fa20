"""Backbones: cuts, shapes, sizes that the papers report, frame-wise networks, non-local blocks."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.flop_counter import FlopCounterMode

from pipeline.backbones import Backbone, Conv, backbone_names, build_backbone
from pipeline.backbones._contract import CHECKS, cuts_are_fields, saved_weights_give_the_same
from pipeline.backbones._non_local import NonLocal
from pipeline.cache.fields import is_cut
from tests.support.tiny_backbone import NAMES, frames, lively, relative, tiny

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module", params=NAMES)
def backbone(request):
    return tiny(request.param)


def test_every_file_is_a_backbone_and_is_tested():
    assert tuple(backbone_names()) == NAMES


@pytest.mark.parametrize("check", CHECKS)
def test_the_contract(backbone, check):
    CHECKS[check](backbone)


def test_every_cut_is_a_field_that_can_be_stored_and_blocks_belong_to_stages(backbone):
    cuts_are_fields(backbone, is_cut)


def test_saved_weights_give_the_same_maps(backbone):
    saved_weights_give_the_same(backbone, tiny(backbone.name, seed=1))


def test_a_backbone_learns_in_every_parameter(backbone):
    torch.manual_seed(0)
    learner = build_backbone(backbone.name, width=8)
    for module in learner.modules():
        if isinstance(module, NonLocal):
            nn.init.ones_(module.bn.weight)
    learner(learner.prepare(frames(2, 16, 64, 64))).square().sum().backward()
    for name, parameter in learner.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.abs().sum() > 0, name


def test_the_last_block_of_a_stage_is_the_stage():
    backbone = tiny("i3d_r50")
    maps = backbone.maps(backbone.prepare(frames()), ("res4.5", "res4", "res4.4"))
    assert torch.equal(maps["res4.5"], maps["res4"])
    assert not torch.equal(maps["res4.4"], maps["res4"])


def test_names_and_options_that_do_not_exist_are_refused_with_the_nearest():
    with pytest.raises(ValueError, match="'i3d_r5' is not known: did you mean i3d_r50"):
        build_backbone("i3d_r5")
    with pytest.raises(ValueError, match="no option 'temporl': did you mean temporal"):
        build_backbone("i3d_r50", temporl="every")
    with pytest.raises(ValueError, match="res5_stride=3: expected one of 1, 2"):
        build_backbone("i3d_r50", res5_stride=3)
    with pytest.raises(ValueError, match="non_local='dot': expected one of gaussian, dot_product"):
        build_backbone("i3d_r50_nl", non_local="dot")
    with pytest.raises(ValueError, match="pixels 'x'"):
        build_backbone("digit_cnn", pixels="x")
    with pytest.raises(ValueError, match="stages=5"):
        build_backbone("resnet18", stages=5)
    for shared in ("_resnet", "_checkpoints", "_freezing"):
        with pytest.raises(ValueError, match="is not known"):
            build_backbone(shared)


def test_cuts_and_inputs_that_do_not_fit_are_refused():
    backbone = tiny("i3d_r50")
    x = backbone.prepare(frames())
    with pytest.raises(
        ValueError,
        match=r"cut 'res6' is not one of i3d_r50: expected stem, res2, .* such as res5.2",
    ):
        backbone(x, upto="res6")
    with pytest.raises(ValueError, match="cut res2 lies before start res3"):
        backbone(x, upto="res2", start="res3")
    with pytest.raises(ValueError, match=r"expected \[B,128,T,h,w\] at res4"):
        backbone(x, start="res4")
    with pytest.raises(ValueError, match=r"expected \[B,3,T,h,w\] at the input"):
        backbone(x[:, :2])
    with pytest.raises(ValueError, match=r"prepare expects uint8 \[B,F,H,W,3\], got torch.float32"):
        backbone.prepare(frames().float())


def test_prepare_normalises_rgb_and_leaves_the_layout_of_the_frames():
    backbone = tiny("i3d_r50")
    given = frames(2)
    x = backbone.prepare(given)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    by_hand = (given.double() / 255 - mean) / std
    assert torch.allclose(x.double(), by_hand.permute(0, 4, 1, 2, 3), atol=1e-5)
    assert x.is_contiguous(memory_format=torch.channels_last_3d)
    assert x.dtype == torch.float32


def test_digit_network_sees_raw_or_unit_pixels_of_the_mean_colour():
    raw, unit = tiny("digit_cnn"), tiny("digit_cnn", pixels="unit")
    given = frames()
    assert torch.allclose(raw.prepare(given), given.permute(0, 4, 1, 2, 3).float(), atol=1e-3)
    assert torch.allclose(unit.prepare(given) * 255, raw.prepare(given), atol=1e-3)
    x = raw.prepare(given)
    assert torch.allclose(raw(x), raw(x.mean(1, keepdim=True).expand_as(x)), rtol=1e-4, atol=1e-3)


def test_conv_equals_the_plain_3d_convolution():
    torch.manual_seed(0)
    x = torch.randn(2, 4, 7, 9, 8)
    for kernel, stride, padding in [
        ((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        ((3, 1, 1), (1, 1, 1), (1, 0, 0)),
        ((3, 1, 1), (2, 1, 1), (1, 0, 0)),
        ((1, 1, 1), (1, 2, 2), (0, 0, 0)),
        ((1, 1, 1), (2, 1, 1), (0, 0, 0)),
        ((5, 7, 7), (2, 2, 2), (2, 3, 3)),
    ]:
        ours = Conv(4, 6, kernel, stride, padding)
        plain = F.conv3d(x, ours.weight, ours.bias, stride, padding)
        assert torch.allclose(ours(x), plain, atol=1e-5), (kernel, stride)


# Sizes that the papers report, counted without memory or time on the meta device.


def on_meta(name, shape, **options):
    """(parameters, MACs, map shape) of a whole backbone."""
    with torch.device("meta"):
        backbone = build_backbone(name, **options).eval()
        with FlopCounterMode(display=False) as counter:
            y = backbone(torch.empty(shape))
    parameters = sum(p.numel() for p in backbone.parameters())
    return parameters, counter.get_total_flops() // 2, tuple(y.shape)


CLIP = (1, 3, 32, 224, 224)


@pytest.mark.parametrize(
    ("options", "parameters", "macs", "grid"),
    [
        ({}, 32_204_608, 126_780_702_720, (16, 7, 7)),
        ({"res5_stride": 1}, 32_204_608, 170_556_653_568, (16, 14, 14)),
        ({"temporal": "alternating"}, 27_223_872, 113_627_365_376, (16, 7, 7)),
        ({"temporal": "alternating", "res5_stride": 1}, 27_223_872, 152_470_814_720, (16, 14, 14)),
    ],
)
def test_i3d_has_the_parameters_macs_and_grid_of_the_papers(options, parameters, macs, grid):
    assert on_meta("i3d_r50", CLIP, **options) == (parameters, macs, (1, 2048, *grid))


def test_reduction_adds_a_last_stage_of_one_convolution_with_bias():
    options = {"temporal": "alternating", "res5_stride": 1, "reduce": 512}
    parameters, macs, shape = on_meta("i3d_r50", CLIP, **options)
    assert shape == (1, 512, 16, 14, 14)
    assert parameters == 27_223_872 + 2048 * 512 + 512
    assert macs == 152_470_814_720 + 2048 * 512 * 16 * 14 * 14
    backbone = tiny("i3d_r50", reduce=3)
    assert backbone.stages[-2:] == ("res5", "reduced")
    x = backbone.prepare(frames())
    res5 = backbone(x, upto="res5")
    by_hand = torch.einsum("oc,bcthw->bothw", backbone.reduced.weight[:, :, 0, 0, 0], res5)
    by_hand = by_hand + backbone.reduced.bias[:, None, None, None]
    assert torch.allclose(backbone(x), by_hand, atol=1e-4)


@pytest.mark.parametrize("name", ["i3d_r101", "i3d_r101_nl"])
def test_resnet101_turns_128_frames_of_288_into_16_steps_of_18x18(name):
    with torch.device("meta"):
        backbone = build_backbone(name, reduce=512)
        y = backbone(torch.empty(1, 3, 128, 288, 288))
    assert tuple(y.shape) == (1, 512, 16, 18, 18)
    assert backbone.steps(128) == 16
    assert backbone.grid("res5", (288, 288)) == (18, 18)
    assert backbone.channels("res5") == 2048


def test_resnet18_grey_with_three_stages_has_dyregs_parameters():
    with torch.device("meta"):
        backbone = build_backbone("resnet18", stages=3, grey=True)
    assert sum(p.numel() for p in backbone.parameters()) + 256 * 56 + 56 == 2_790_904
    grids = [backbone.grid(cut, (128, 128)) for cut in ("res2", "res3", "res4")]
    assert grids == [(32, 32), (16, 16), (8, 8)]
    assert backbone.stages == ("stem", "res2", "res3", "res4")


def test_digit_network_has_rstgs_parameters_and_grid():
    with torch.device("meta"):
        backbone = build_backbone("digit_cnn")
    assert sum(p.numel() for p in backbone.parameters()) == 4_724_736
    assert [backbone.grid(cut, (64, 64)) for cut in backbone.cuts()] == [(31, 31), (14, 14), (6, 6)]


def test_non_local_blocks_add_the_parameters_of_five_blocks():
    def block(channels):  # three convolutions in, one out, with biases, and the batch norm
        return 4 * channels * (channels // 2) + 3 * (channels // 2) + channels + 2 * channels

    with torch.device("meta"):
        parameters = sum(p.numel() for p in build_backbone("i3d_r50_nl").parameters())
    assert parameters == 27_223_872 + 2 * block(512) + 3 * block(1024)


def test_temporal_kernels_alternate_as_in_the_non_local_release():
    with torch.device("meta"):
        backbone = build_backbone("i3d_r50", temporal="alternating")
    taps = {
        stage: [block.conv1.kernel_size[0] for block in getattr(backbone, stage)]
        for stage in backbone.stages[1:]
    }
    assert taps == {
        "res2": [3, 3, 3],
        "res3": [3, 1, 3, 1],
        "res4": [3, 1, 3, 1, 3, 1],
        "res5": [1, 3, 1],
    }


@pytest.mark.parametrize(
    ("options", "steps", "grid"),
    [
        ({}, {"stem": 32, "res2": 32, "res3": 16}, (56, 56)),
        ({"pool1_time": 1, "pool2_time": 2}, {"stem": 32, "res2": 32, "res3": 16}, (56, 56)),
        ({"pool1_pad": 0}, {"stem": 32, "res2": 32, "res3": 16}, (55, 55)),
        ({"pool2_time": 1}, {"stem": 32, "res2": 32, "res3": 32}, (56, 56)),
        (
            {
                "conv1_stride": 2,
                "pool1_time": 2,
                "pool1_stride": 2,
                "pool2_time": 2,
                "pool1_pad": 0,
            },
            {"stem": 8, "res2": 8, "res3": 4},
            (55, 55),
        ),
    ],
)
def test_pools_and_strides_give_the_steps_and_grids_of_each_release(options, steps, grid):
    with torch.device("meta"):
        backbone = build_backbone("i3d_r50", **options)
    assert {cut: backbone.steps(32, cut) for cut in steps} == steps
    assert backbone.grid("res2", (224, 224)) == grid


# Networks that look at each frame by itself.


@pytest.mark.parametrize(
    ("name", "options"), [("resnet18", {}), ("digit_cnn", {}), ("c2d_r50", {"pool2_time": 1})]
)
@torch.no_grad()
def test_frame_wise_networks_keep_every_frame_to_itself(name, options):
    backbone = tiny(name, **options)
    x = backbone.prepare(frames(1, 5))
    order = torch.tensor([3, 1, 4, 0, 2])
    assert relative(backbone(x[:, :, order]), backbone(x)[:, :, order]) < 1e-6


@torch.no_grad()
def test_i3d_looks_across_frames_and_c2d_only_through_its_pool():
    given = frames(1, 8)
    changed = given.clone()
    changed[:, 0] = 255 - changed[:, 0]
    for name, touched in (("c2d_r50", [True, False, False, False]), ("i3d_r50", [True] * 4)):
        backbone = tiny(name)
        moved = backbone(backbone.prepare(given)) - backbone(backbone.prepare(changed))
        difference = moved.abs().amax((0, 1, 3, 4))
        assert (difference > 0).tolist() == touched, name


# Non-local blocks.


@torch.no_grad()
def test_non_local_blocks_are_the_identity_at_first():
    plain = tiny("i3d_r50", temporal="alternating")
    other = build_backbone("i3d_r50_nl", width=8).eval()
    keys = other.load_state_dict(plain.state_dict(), strict=False)
    assert all(".non_local." in key for key in keys.missing_keys)
    assert not keys.unexpected_keys
    x = plain.prepare(frames())
    assert torch.equal(other(x), plain(x))


@pytest.mark.parametrize("pool", [True, False])
@pytest.mark.parametrize("kind", ["gaussian", "dot_product"])
@torch.no_grad()
def test_non_local_block_is_its_formula(kind, pool):
    torch.manual_seed(0)
    block = lively(NonLocal(8, kind, pool)).eval()
    for layer in (block.theta, block.phi, block.g, block.out):
        nn.init.normal_(layer.weight)
        nn.init.normal_(layer.bias)
    x = torch.randn(2, 8, 3, 6, 4)
    seen = F.max_pool3d(x, (1, 2, 2)) if pool else x

    def rows(layer, map):
        y = torch.einsum("oc,bcthw->bthwo", layer.weight[:, :, 0, 0, 0], map)
        return y.flatten(1, 3) + layer.bias

    affinity = rows(block.theta, x) @ rows(block.phi, seen).mT
    if kind == "gaussian":
        weights = (affinity / 4**0.5).softmax(-1)
    else:
        weights = affinity / affinity.shape[-1]
    inner = (weights @ rows(block.g, seen)).mT.reshape(2, 4, 3, 6, 4)
    y = rows(block.out, inner).mT.reshape(x.shape)
    norm = block.bn
    y = F.batch_norm(y, norm.running_mean, norm.running_var, norm.weight, norm.bias)
    assert torch.allclose(block(x), x + y, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("name", "places"),
    [
        ("i3d_r50_nl", ["res3.1", "res3.3", "res4.1", "res4.3", "res4.5"]),
        ("i3d_r101_nl", ["res3.1", "res3.3", "res4.6", "res4.13", "res4.20"]),
    ],
)
def test_five_non_local_blocks_are_spread_evenly_over_res3_and_res4(name, places):
    with torch.device("meta"):
        backbone = build_backbone(name)
    assert [
        cut
        for cut in backbone.cuts()
        if "." in cut and backbone.get_submodule(cut).non_local is not None
    ] == places


def test_listing_backbones_loads_no_torch():
    code = (
        "import sys; from pipeline.backbones import backbone_names; "
        "print(len(backbone_names()), 'torch' in sys.modules)"
    )
    printed = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout
    assert printed.split() == [str(len(NAMES)), "False"]


def test_a_backbone_says_how_it_was_built():
    backbone = build_backbone("i3d_r50", width=8, res5_stride=1)
    assert isinstance(backbone, Backbone)
    assert backbone.name == "i3d_r50"
    assert backbone.options["res5_stride"] == 1
    assert backbone.options["temporal"] == "every"
    assert backbone.weights_sha256 == ""
