"""The small I3D and non-local baselines of the digit tasks, from generated videos to logits."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from heads.interface.clips import Clips, Dims
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.digits import SyncDigits, generate, load_images
from tests.support.tiny_backbone import frames, relative, tiny

BASELINES = ("digit_i3d", "digit_nl")
CLASSIFIER = 1024 * 46 + 46


@pytest.mark.parametrize(
    ("name", "parameters", "macs"),
    [("digit_i3d", 10_177_774, 13_582_336_000), ("digit_nl", 10_704_366, 15_260_057_600)],
)
def test_they_are_about_as_large_as_the_digit_network_and_keep_every_frame(name, parameters, macs):
    with torch.device("meta"):
        backbone = build_backbone(name).eval()
        with FlopCounterMode(display=False) as counter:
            y = backbone(torch.empty(1, 3, 10, 64, 64))
    assert y.shape == (1, 1024, 10, 8, 8)
    assert sum(p.numel() for p in backbone.parameters()) + CLASSIFIER == parameters
    assert counter.get_total_flops() // 2 == macs  # digit_cnn: 23.4 G


@pytest.mark.parametrize("name", BASELINES)
def test_pooled_features_of_generated_videos_train_end_to_end(name):
    """One step of descent changes the trunk's first weights and the logits."""
    task = SyncDigits()
    made = generate(task, load_images()["train"], range(2))
    torch.manual_seed(0)
    backbone = build_backbone(name, width=8)
    dims = Dims(T=task.frames, C=backbone.channels())
    head = build_head("pool", dims, len(task.labels), dropout=0.0)
    optimiser = torch.optim.SGD([*backbone.parameters(), *head.parameters()], lr=0.1)

    def logits() -> torch.Tensor:
        pooled = backbone(backbone.prepare(made.rgb)).mean((3, 4)).transpose(1, 2)
        return head(Clips(pooled=pooled)).logits

    first, before = logits(), backbone.stem.conv1.weight.detach().clone()
    assert first.shape == (2, 46)
    torch.nn.functional.cross_entropy(first, made.labels).backward()
    optimiser.step()
    assert not torch.equal(backbone.stem.conv1.weight, before)
    assert not torch.equal(logits(), first)


@pytest.mark.parametrize("name", BASELINES)
@torch.no_grad()
def test_grey_or_colour_is_a_choice(name):
    given = frames(1, 3, 16, 16)
    grey, colour = tiny(name, width=8), tiny(name, width=8, grey=False)
    assert (grey.stem.conv1.in_channels, colour.stem.conv1.in_channels) == (1, 3)
    x = grey.prepare(given)
    turned = x.roll(1, dims=1)  # other colours, the same mean
    assert relative(grey(turned), grey(x)) < 1e-5
    assert relative(colour(turned), colour(x)) > 1e-3


@torch.no_grad()
def test_only_the_temporal_taps_and_non_local_blocks_see_other_frames():
    given = frames(1, 9, 24, 24)
    changed = given.clone()
    changed[:, 0] = 255 - changed[:, 0]
    for name, options, far in (
        ("digit_i3d", {"temporal": "none"}, 0),
        ("digit_nl", {"temporal": "none"}, 8),
    ):
        backbone = tiny(name, width=8, **options)
        moved = backbone(backbone.prepare(given)) - backbone(backbone.prepare(changed))
        touched = moved.abs().amax((0, 1, 3, 4)) > 0
        assert touched.nonzero().max() == far, name


def non_local_places(backbone) -> list[str]:
    blocks = [cut for cut in backbone.cuts() if "." in cut]
    return [cut for cut in blocks if backbone.get_submodule(cut).non_local is not None]


def test_one_non_local_block_is_in_the_second_residual_stage():
    """RSTG, sec. 3.1; before the last block of a stage, as in Wang et al. 2018, Table 2b."""
    assert non_local_places(tiny("digit_nl", width=8)) == ["res3.2"]
    of_i3d = ["res3.1", "res3.3", "res4.1", "res4.3", "res4.5"]
    assert non_local_places(tiny("digit_nl", width=8, non_local_at="")) == of_i3d
    two = tiny("digit_i3d", width=8, non_local="dot_product", non_local_at="res2.0,res4.5")
    assert non_local_places(two) == ["res2.0", "res4.5"]


def test_other_non_local_blocks_are_another_version_of_the_backbone():
    """The same options once gave five blocks."""
    assert tiny("digit_nl", width=8).version == 2
    assert getattr(tiny("digit_nl", width=8, non_local_at=""), "version", 1) == 1


def test_a_plain_network_has_no_non_local_block():
    plain = tiny("digit_i3d", width=8)
    assert all(block.non_local is None for block in (*plain.res3, *plain.res4))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temporal": "some"}, "temporal='some': expected one of every, alternating, none"),
        ({"non_local": "dot"}, "non_local='dot': expected one of gaussian, dot_product, none"),
        (
            {"non_local_at": "res3.9,res3.1"},
            "non_local_at='res3.9': expected one of res2.0, res2.1",
        ),
        ({"width": 0}, "width=0: expected"),
        ({"reduce": -1}, "reduce=-1"),
    ],
)
def test_options_that_do_not_fit_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_backbone("digit_i3d", **options)
