"""Modules inside backbones: where they run, what they see, how they are saved."""

import copy

import pytest
import torch
from torch import nn

from pipeline.backbones import freeze
from tests.support.tiny_backbone import NAMES, frames, relative, tiny

POINTS = ("stem", "res2.1", "res3", "res4.4", "res4.4.conv2", "res5.0.conv1")


class Scale(nn.Module):
    """Multiplies by its one parameter, and keeps what it saw."""

    def __init__(self, by):
        super().__init__()
        self.by = nn.Parameter(torch.tensor(float(by)))
        self.seen = None

    def forward(self, x):
        self.seen = x.detach().clone()
        return x * self.by


class Shrink(nn.Module):
    def forward(self, x):
        return x[:, :, ::2]


def with_module(point, module, name="i3d_r50", **options):
    backbone = tiny(name, **options)
    backbone.insert(point, module)
    return backbone


@pytest.mark.parametrize("point", POINTS)
@torch.no_grad()
def test_an_identity_at_any_point_leaves_every_map_bit_equal(point):
    plain, other = tiny("i3d_r50"), with_module(point, nn.Identity())
    x = plain.prepare(frames(1, 4))
    expected, found = (backbone.maps(x, backbone.cuts()) for backbone in (plain, other))
    assert all(torch.equal(found[cut], expected[cut]) for cut in plain.cuts())


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_every_backbone_takes_a_module_after_each_stage_and_inside_its_blocks(name):
    backbone = tiny(name)
    x = backbone.prepare(frames(1, 4))
    before = backbone(x)
    inside = {"digit_cnn": "conv2.conv"}.get(name, "res3.1.conv2")
    for point in (*backbone.stages, inside):
        backbone.insert(point, Scale(2))
    assert tuple(backbone.inserted) == (*backbone.stages, inside)
    assert not torch.equal(backbone(x), before)
    for module in (backbone.inserted[point] for point in backbone.inserted):
        nn.init.ones_(module.by)
    assert torch.equal(backbone(x), before)


@torch.no_grad()
def test_a_module_inside_a_block_lies_between_its_convolution_and_the_batch_norm():
    backbone = with_module("res4.4.conv2", Scale(3))
    block, noted = backbone.res4[4], {}
    backbone.res4[4].bn2.register_forward_pre_hook(
        lambda _, given: noted.update(bn=given[0].clone())
    )
    block.bn1.register_forward_hook(lambda _, __, result: noted.update(relu=result.relu()))
    backbone(backbone.prepare(frames()))
    seen = backbone.inserted["res4.4.conv2"].seen
    expected = nn.functional.conv3d(noted["relu"], block.conv2.weight, padding=(0, 1, 1))
    assert relative(seen, expected) < 1e-5
    assert torch.equal(noted["bn"], 3 * seen)


@torch.no_grad()
def test_a_module_after_a_block_sees_the_cut_of_the_plain_backbone_and_the_next_block_its_result():
    plain, other = tiny("i3d_r50"), with_module("res4.4", Scale(3))
    x = plain.prepare(frames())
    at = plain(x, upto="res4.4")
    assert torch.equal(other(x, upto="res4.4"), 3 * at)
    assert torch.equal(other.inserted["res4.4"].seen, at)
    assert torch.equal(other(x), plain(3 * at, start="res4.4"))


@pytest.mark.parametrize(
    ("point", "cut"),
    [
        ("res4.4", "res4.4"),
        ("res4", "res4"),
        ("res4.4.conv2", "res4.3"),
        ("res4.0.conv2", "res3"),
        ("res2.0.conv1", "stem"),
    ],
)
@torch.no_grad()
def test_the_plain_map_at_the_cut_before_a_point_starts_a_run_through_the_module(point, cut):
    plain, other = tiny("i3d_r50"), with_module(point, Scale(2))
    x = plain.prepare(frames())
    assert other.before(point) == cut
    found = other(plain(x, upto=cut), start=cut)
    assert torch.equal(found, other(x))
    assert not torch.equal(found, plain(x))


@torch.no_grad()
def test_non_local_blocks_inserted_into_a_plain_trunk_make_the_trunk_that_has_them():
    whole, plain = tiny("i3d_r50_nl"), tiny("i3d_r50", temporal="alternating")
    state = whole.state_dict()
    plain.load_state_dict({key: value for key, value in state.items() if ".non_local." not in key})
    for point in ("res3.1", "res3.3", "res4.1", "res4.3", "res4.5"):
        plain.insert(point, whole.get_submodule(point).non_local)
    x = whole.prepare(frames())
    for cut in ("res3.1", "res5"):  # up to the rounding that another memory layout brings
        assert relative(plain(x, upto=cut), whole(x, upto=cut)) < 1e-5


@torch.no_grad()
def test_event_adaptive_blocks_inserted_into_a_plain_trunk_make_the_trunk_that_has_them():
    whole, plain = tiny("ean_r50"), tiny("ean_r50", eab="none")
    state = whole.state_dict()
    plain.load_state_dict(
        {key: value for key, value in state.items() if not key.startswith("eab.")}
    )
    for stage, block in whole.eab.items():
        plain.insert(stage, block)
    x = whole.prepare(frames())
    assert relative(plain(x), whole(x)) < 1e-5
    at = whole(x, upto="res4.5")  # before the last block, in both
    assert relative(plain(at, start="res4"), whole(at, start="res4.5")) < 1e-5


def test_a_point_in_the_first_block_has_no_cut_before_it():
    assert tiny("i3d_r50").before("stem.conv1") is None


@torch.no_grad()
def test_a_start_after_the_point_leaves_the_module_out():
    plain, other = tiny("i3d_r50"), with_module("res3.1.conv2", Scale(2))
    at = plain(plain.prepare(frames()), upto="res3")
    assert torch.equal(other(at, start="res3"), plain(at, start="res3"))


def test_sizes_are_known_at_points_too():
    for point in POINTS:
        module = Scale(1)
        backbone = with_module(point, module)
        backbone(backbone.prepare(frames(1, 9, 45, 51)))
        told = (
            1,
            backbone.channels(point),
            backbone.steps(9, point),
            *backbone.grid(point, (45, 51)),
        )
        assert tuple(module.seen.shape) == told


def test_modules_learn_and_are_saved_with_the_backbone():
    backbone = with_module("res4.4.conv2", Scale(2))
    backbone.insert("res3", Scale(3))
    backbone(backbone.prepare(frames())).sum().backward()
    assert all(
        p.grad.abs() > 0 for name, p in backbone.named_parameters() if name.startswith("inserted.")
    )
    state = copy.deepcopy(backbone.state_dict())
    assert [key for key in state if key.endswith(".by")] == [
        "inserted.res4_4_conv2.by",
        "inserted.res3.by",
    ]
    other = with_module("res4.4.conv2", Scale(0))
    other.insert("res3", Scale(0))
    other.load_state_dict(state)
    x = backbone.prepare(frames())
    with torch.no_grad():
        assert torch.equal(other(x), backbone(x))


def test_a_backbone_without_modules_has_the_parameters_it_had():
    plain = tiny("i3d_r50")
    assert not [key for key in plain.state_dict() if "inserted" in key]
    assert len(plain.inserted) == 0
    with pytest.raises(KeyError):
        plain.inserted["res4"]


def test_points_that_do_not_exist_or_are_taken_are_refused():
    backbone = tiny("i3d_r50")
    for point in ("res6", "res4.9", "res4.4.conv9", "res4.4.bn2", "res4.conv2", "res4.4."):
        with pytest.raises(ValueError, match=f"cut '{point}' is not one of i3d_r50"):
            backbone.insert(point, nn.Identity())
    backbone.insert("res4", nn.Identity())
    backbone.insert("res4.4.conv2", nn.Identity())
    for point in ("res4", "res4.5", "res4.4.conv2"):
        with pytest.raises(ValueError, match=f"{point} has a module already"):
            backbone.insert(point, nn.Identity())
    assert tuple(backbone.inserted) == ("res4", "res4.4.conv2")


@pytest.mark.parametrize("point", ["res3", "res3.1.conv2"])
def test_a_module_that_changes_the_shape_is_refused(point):
    backbone = with_module(point, Shrink())
    with pytest.raises(
        ValueError,
        match=rf"the module at {point} must keep the shape of its input: \[1, .* became \[1, ",
    ):
        backbone(backbone.prepare(frames()))


@torch.no_grad()
def test_freezing_keeps_modules_and_only_the_batch_norm_behind_one():
    backbone = with_module("res4.4.conv2", Scale(2))
    backbone.insert("res3.2", Scale(3))
    frozen = freeze(backbone)
    assert [n for n, module in frozen.named_modules() if isinstance(module, nn.BatchNorm3d)] == [
        "res4.4.bn2"
    ]
    x = backbone.prepare(frames())
    before = backbone(x)
    assert relative(frozen(x), before) < 1e-4
    nn.init.zeros_(backbone.inserted["res4.4.conv2"].by)
    assert relative(frozen(x), before) < 1e-4, "the copy has modules of its own"
    assert freeze(backbone, "bf16")(x).dtype == torch.bfloat16
    with pytest.raises(ValueError, match="insert it into the original"):
        frozen.insert("res4", nn.Identity())


@torch.no_grad()
def test_what_is_above_a_cut_runs_as_before_without_the_parameters_below():
    whole = with_module("res4.4.conv2", Scale(2))
    upper = copy.deepcopy(whole)
    upper.keep_above("res4.3")
    x = whole.prepare(frames())
    at = tiny("i3d_r50")(x, upto="res4.3")
    assert torch.equal(upper(at, start="res4.3"), whole(x))
    kept = {key.split(".")[0] for key in upper.state_dict()}
    assert kept == {"pixel_mean", "pixel_std", "res4", "res5", "inserted"}
    assert not [key for key in upper.state_dict() if key.startswith(("res4.0.", "res4.3."))]
    assert [upper.channels(cut) for cut in upper.cuts()] == [
        whole.channels(cut) for cut in whole.cuts()
    ]
    assert upper.grid("res5", (64, 64)) == whole.grid("res5", (64, 64))
    for start in (None, "res4.2"):
        with pytest.raises(
            ValueError, match=r"only what is above res4.3 was kept: pass its map and start=res4.3"
        ):
            upper(x if start is None else at, start=start)
    with pytest.raises(
        ValueError, match=r"a module at res4.4.conv2 runs before res4.4: keep what is above res4.3"
    ):
        whole.keep_above("res4.4")
