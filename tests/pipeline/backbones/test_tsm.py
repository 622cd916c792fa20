"""TSM: what the shift moves, that the rest of the ResNet is as before, how far a frame is seen."""

import pytest
import torch
from torchvision.models import resnet18, resnet50

from pipeline.backbones import build_backbone
from pipeline.backbones._tsm import TemporalShift
from tests.support.tiny_backbone import frames, relative, tiny


def test_an_eighth_of_the_channels_comes_from_each_neighbour_and_zeros_from_outside():
    # Step t = 1, 2, 3, channel c: 100 t + c.
    x = torch.arange(1, 4).float()[:, None] * 100 + torch.arange(16)
    y = TemporalShift(8)(x.T[None, :, :, None, None])[0, :, :, 0, 0]
    assert y[:2].tolist() == [[200, 300, 0], [201, 301, 0]]
    assert y[2:4].tolist() == [[0, 102, 202], [0, 103, 203]]
    assert torch.equal(y[4:], x.T[4:])


def test_a_single_step_sees_zeros_on_both_sides():
    y = TemporalShift(4)(torch.ones(1, 8, 1, 2, 2))
    assert y[0, :, 0, 0, 0].tolist() == [0] * 4 + [1] * 4


def test_the_shift_leaves_its_input_alone_and_hands_every_gradient_back():
    x = torch.randn(1, 8, 4, 2, 2, requires_grad=True)
    before = x.detach().clone()
    TemporalShift(8)(x).sum().backward()
    assert torch.equal(x.detach(), before)
    counts = x.grad[0, :, :, 0, 0]
    assert counts[0].tolist() == [0, 1, 1, 1]  # the first step's value has left the clip
    assert counts[1].tolist() == [1, 1, 1, 0]
    assert (counts[2:] == 1).all()


@pytest.mark.parametrize(("name", "theirs"), [("tsm_r18", resnet18), ("tsm_r50", resnet50)])
def test_parameters_are_those_of_the_image_network(name, theirs):
    with torch.device("meta"):
        found = sum(p.numel() for p in build_backbone(name).parameters())
        expected = sum(
            p.numel() for key, p in theirs().named_parameters() if not key.startswith("fc.")
        )
    assert found == expected


@pytest.mark.parametrize("name", ["tsm_r18", "tsm_r50"])
@torch.no_grad()
def test_without_a_shift_each_frame_is_an_image_and_with_it_the_shortcut_still_is(name):
    shifted, plain = tiny(name), tiny(name, shift=0)
    x = plain.prepare(frames(1, 5))
    one = torch.cat([plain(x[:, :, t : t + 1]) for t in range(5)], 2)
    assert relative(plain(x), one) < 1e-6
    assert relative(shifted(x), one) > 1e-3
    block = shifted.res2[1]
    last = block.bn2 if name == "tsm_r18" else block.bn3
    torch.nn.init.zeros_(last.weight)
    torch.nn.init.zeros_(last.bias)
    at = shifted(x, upto="res2.0")
    assert torch.equal(block(at), at)


@torch.no_grad()
def test_the_middle_of_a_still_clip_does_not_feel_its_ends():
    """Away from the ends by as many steps as there are blocks, a shift of equal frames changes
    nothing.
    """
    backbone = tiny("tsm_r18")  # eight blocks
    still = backbone.prepare(frames(1, 1)).expand(-1, -1, 21, -1, -1)
    y = backbone(still)
    assert relative(y[:, :, 8:13], y[:, :, 10:11].expand(-1, -1, 5, -1, -1)) < 1e-5
    assert relative(y[:, :, :1], y[:, :, 10:11]) > 1e-3
    unshifted = tiny("tsm_r18", shift=0)(still[:, :, :1])
    assert relative(y[:, :, 10:11], unshifted) < 1e-5


@torch.no_grad()
def test_a_frame_reaches_one_step_further_with_every_block():
    backbone = tiny("tsm_r18")
    given = frames(1, 9)
    changed = given.clone()
    changed[:, 4] = 255 - changed[:, 4]
    a, b = (
        backbone.maps(backbone.prepare(x), ("stem", "res2.0", "res2.1", "res3"))
        for x in (given, changed)
    )
    for cut, reach in (("stem", 0), ("res2.0", 1), ("res2.1", 2), ("res3", 4)):
        touched = (a[cut] - b[cut]).abs().amax((0, 1, 3, 4)) > 0
        assert touched.nonzero()[:, 0].tolist() == list(range(4 - reach, 5 + reach)), cut


def test_shifts_that_make_no_sense_are_refused():
    for shift in (1, -8):
        with pytest.raises(ValueError, match=f"shift={shift}: expected 8"):
            build_backbone("tsm_r50", shift=shift)
