"""Frozen backbones: the same features as the original, and nothing of either changes."""

import shutil

import pytest
import torch
from torch import nn

from pipeline.backbones import freeze
from pipeline.backbones._non_local import NonLocal
from tests.support.tiny_backbone import NAMES, frames, relative, tiny


def calm(backbone):
    """Make non-local blocks as small as after training.

    A dot product of large maps grows with their third power.
    """
    for module in backbone.modules():
        if isinstance(module, NonLocal):
            nn.init.uniform_(module.bn.weight, 0.05, 0.1)
    return backbone


@pytest.mark.parametrize("name", NAMES)
@torch.no_grad()
def test_frozen_maps_equal_those_of_the_original_at_every_cut(name):
    backbone = calm(tiny(name, **({} if name == "digit_cnn" else {"reduce": 4})))
    frozen = freeze(backbone)
    given = frames(2, 8, 48, 40)
    assert frozen.cuts() == backbone.cuts()
    expected = backbone.maps(backbone.prepare(given), backbone.cuts())
    found = frozen.maps(frozen.prepare(given), frozen.cuts())
    for cut in backbone.cuts():
        assert relative(found[cut], expected[cut]) < 1e-4, cut
        assert frozen.channels(cut) == backbone.channels(cut)


@pytest.mark.parametrize("name", NAMES)
def test_frozen_bf16_stays_near_the_original_and_speaks_bf16(name):
    backbone = calm(tiny(name))
    frozen = freeze(backbone, "bf16")
    x = frozen.prepare(frames())
    found = frozen(x)
    assert x.dtype == found.dtype == torch.bfloat16
    assert relative(found.float(), backbone(backbone.prepare(frames()))) < 0.05
    assert torch.equal(frozen(x.float()), found)
    assert frozen.mean == backbone.mean
    assert frozen.std == backbone.std


@pytest.mark.parametrize("precision", ["fp32", "bf16"])
def test_freezing_and_running_leave_the_original_as_it_was(precision):
    backbone = tiny("i3d_r50").train()
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    frozen = freeze(backbone, precision)
    frozen(frozen.prepare(frames()))
    assert backbone.training
    assert all(p.requires_grad and p.dtype == torch.float32 for p in backbone.parameters())
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert list(backbone.state_dict()) == list(before)


def test_frozen_backbone_keeps_its_statistics_and_its_mode():
    frozen = freeze(tiny("i3d_r50"))
    x = frozen.prepare(frames())
    first = frozen(x)
    before = {key: value.clone() for key, value in frozen.state_dict().items()}
    frozen.train()
    nn.ModuleList([frozen]).train()
    assert not any(module.training for module in frozen.modules())
    assert torch.equal(frozen(x), first)
    assert all(torch.equal(value, before[key]) for key, value in frozen.state_dict().items())


def test_frozen_backbone_needs_no_gradient_and_runs_in_inference_mode():
    frozen = freeze(tiny("i3d_r50"))
    assert not any(p.requires_grad for p in frozen.parameters())
    assert frozen(frozen.prepare(frames())).is_inference()


def test_every_batch_norm_is_folded_away():
    for name in NAMES:
        frozen = freeze(tiny(name))
        assert not any(isinstance(module, nn.BatchNorm3d) for module in frozen.modules()), name


@torch.no_grad()
def test_a_batch_norm_behind_an_inserted_module_stays():
    backbone = tiny("i3d_r50")
    block = backbone.res4[4]
    block.conv2 = nn.Sequential(block.conv2, nn.ELU())
    frozen = freeze(backbone)
    left = [name for name, module in frozen.named_modules() if isinstance(module, nn.BatchNorm3d)]
    assert left == ["res4.4.bn2"]
    assert relative(frozen(frozen.prepare(frames())), backbone(backbone.prepare(frames()))) < 1e-4


def test_a_frozen_copy_shares_nothing_with_the_original():
    backbone = tiny("digit_cnn")
    frozen = freeze(backbone)
    x = frozen.prepare(frames())
    before = frozen(x).clone()
    with torch.no_grad():
        for p in backbone.parameters():
            p.zero_()
    assert torch.equal(frozen(x), before)


def test_what_identifies_a_backbone_survives_freezing():
    backbone = tiny("i3d_r50", res5_stride=1)
    backbone.weights_sha256 = "ab12"
    frozen = freeze(backbone, "bf16")
    assert frozen.name == backbone.name
    assert frozen.options == backbone.options
    assert frozen.weights_sha256 == "ab12"


def test_precisions_that_make_no_sense_are_refused():
    backbone = tiny("digit_cnn")
    with pytest.raises(ValueError, match="fp16 on a CPU is a hundred times slower"):
        freeze(backbone, "fp16")
    with pytest.raises(
        ValueError, match="precision 'half': expected one of fp32, tf32, bf16, fp16"
    ):
        freeze(backbone, "half")


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("g++") is None, reason="torch.compile needs a C++ compiler on a CPU"
)
def test_compiled_maps_equal_those_that_are_not():
    backbone = tiny("resnet18")
    plain, compiled = freeze(backbone), freeze(backbone, compile=True)
    x = plain.prepare(frames())
    assert relative(compiled(x), plain(x)) < 1e-4
