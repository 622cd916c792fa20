"""The memory format of convolutions, seen from inside torch: what its operators receive."""

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from heads.config.recipe import recipe_from
from heads.config.recipe_tables import FrameOptions
from heads.finetuning.frame_training import new_network
from heads.finetuning.joint_network import joint_dims
from heads.interface.clips import Clips
from pipeline.backbones import build_backbone, freeze
from pipeline.networks.memory_format import channels_last_is_safe, convolve, guard, lay_out, plain
from pipeline.proposals import build_proposals
from pipeline.proposals.digit_rpn import fit
from tests.heads.zoo.test_zoo import CASES, make, some_clips
from tests.support.tiny_backbone import NAMES, frames, relative, tiny


def suggests_channels_last(x: torch.Tensor) -> bool:
    """Return what c10's `is_channels_last_strides` says, by which torch chooses.

    Strides rise in the order C, w, h, T, B, and none is smaller than the axes before it need. One
    channel with one place does not count.
    """
    least = 0
    sizes, strides = x.shape, x.stride()
    for axis in (1, *range(x.dim() - 1, 1, -1), 0):
        if sizes[axis] == 0 or strides[axis] < least or (axis == 0 and least == strides[1]):
            return False
        least = strides[axis] * max(sizes[axis], 1)
    return strides[1] != 0


class Convolutions(TorchDispatchMode):
    """Record every convolution: (operator, channels in, channels out, whether channels last)."""

    def __init__(self):
        super().__init__()
        self.seen: list[tuple[str, int, int, bool]] = []

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        name = function.__name__.partition(".")[0]
        if "conv" in name and name not in ("_convert_element_type", "convert_element_type"):
            x, weight, *others = args[1:] if name == "convolution_backward" else args
            transposed = any(value is True for value in others[:6])
            sizes = weight.shape[:2] if transposed else (x.shape[1], weight.shape[0])
            last = x.dim() > 3 and (suggests_channels_last(x) or suggests_channels_last(weight))
            channels_out = weight.shape[1] if transposed else sizes[1]
            self.seen.append((name, int(x.shape[1]), int(channels_out), last))
        return function(*args, **(kwargs or {}))

    def check(self) -> set[tuple[str, int, int, bool]]:
        """Return the convolutions; check that none ran in channels last that must not."""
        assert self.seen
        wrong = {(n, a, b) for n, a, b, last in self.seen if last and (a % 8 or b % 8)}
        assert not wrong, wrong
        return set(self.seen)


def last_and_backward(seen) -> tuple[bool, bool]:
    return any(last for *_, last in seen), any("backward" in name for name, *_ in seen)


def test_torch_sees_channels_last_where_the_strides_say_so():
    """Ours is c10's rule: the output is in channels last exactly where an input is said to be."""
    for sizes in ((2, 8, 5, 5), (2, 1, 5, 5), (1, 8, 1, 1), (3, 4, 1, 7)):
        plain_x = torch.zeros(sizes)
        for x in (plain_x, plain_x.contiguous(memory_format=torch.channels_last)):
            y = nn.Conv2d(sizes[1], 16, 1)(x)
            is_last = y.is_contiguous(memory_format=torch.channels_last)
            if y.shape[2] * y.shape[3] > 1:
                assert suggests_channels_last(x) == is_last, (sizes, x.stride())


@pytest.mark.parametrize(
    "sizes", [(2, 1, 5, 5), (2, 8, 1, 1), (2, 3, 4, 5), (1, 1, 1, 1), (2, 4, 3, 5, 6), (0, 4, 2, 2)]
)
def test_plain_strides_are_those_of_a_new_tensor(sizes):
    last = {4: torch.channels_last, 5: torch.channels_last_3d}[len(sizes)]
    x = torch.randn(sizes).contiguous(memory_format=last)
    assert plain(x).stride() == torch.empty(sizes).stride()
    assert torch.equal(plain(x), x)


def test_only_a_cpu_and_only_narrow_layers_are_kept_from_channels_last():
    assert channels_last_is_safe("cpu", 8, 64)
    assert not channels_last_is_safe("cpu", 3, 64)
    assert not channels_last_is_safe("cpu", 64, 12)
    assert channels_last_is_safe("cuda", 3, 12)


@pytest.mark.parametrize(
    "sizes", [(4, 8, 1, 2), (3, 16, 3, 1), (16, 4, 1, 2), (1, 8, 3, 2), (8, 16, 1, 2)]
)
@pytest.mark.parametrize("last", [False, True])
def test_values_gradients_and_format_are_those_of_torch(sizes, last):
    channels, width, kernel, stride = sizes
    x = torch.randn(2, channels, 9, 7, dtype=torch.float64)
    x = (x.contiguous(memory_format=torch.channels_last) if last else x).requires_grad_()
    weight = torch.randn(width, channels, kernel, kernel, dtype=torch.float64, requires_grad=True)
    found = convolve(x, weight, stride=stride, padding=kernel // 2)
    expected = torch.nn.functional.conv2d(x, weight, stride=stride, padding=kernel // 2)
    torch.testing.assert_close(found, expected)
    assert not last or found.is_contiguous(memory_format=torch.channels_last)
    mine = torch.autograd.grad(found.sin().sum(), (x, weight))
    theirs = torch.autograd.grad(expected.sin().sum(), (x, weight))
    torch.testing.assert_close(mine, theirs)


@pytest.mark.parametrize("width", [4, 8])
@pytest.mark.parametrize("name", NAMES)
def test_backbones_in_training(name, width):
    backbone = lay_out(tiny(name, width=width), "cpu").train()
    with Convolutions() as convolutions:
        backbone(backbone.prepare(frames(1, 8, 40, 40))).sum().backward()
    assert last_and_backward(convolutions.check())[1]


@pytest.mark.parametrize("name", NAMES)
def test_frozen_backbones_run_in_channels_last_where_they_may(name):
    backbone = freeze(tiny(name, width=8))
    with Convolutions() as convolutions:
        y = backbone(backbone.prepare(frames(1, 8, 40, 40)))
    seen = convolutions.check()
    assert {last for _, a, b, last in seen if a % 8 == 0 and b % 8 == 0} == {True}
    assert y.is_contiguous(memory_format=torch.channels_last_3d)


@pytest.mark.parametrize("case", CASES)
def test_heads_on_maps_that_come_from_a_backbone(case):
    """Its maps are in channels last, those of a cache are not."""
    head, clips = make(case, dtype=torch.float32), some_clips(dtype=torch.float32)
    for name, fmap in clips.maps.items():
        last = fmap.transpose(1, 2).contiguous(memory_format=torch.channels_last_3d)
        clips.maps[name] = last.transpose(1, 2)
    with Convolutions() as convolutions:
        head.train()(clips).logits.sum().backward()
    if convolutions.seen:
        convolutions.check()


@pytest.mark.parametrize("narrow", [3, 4])
def test_a_network_of_somebody_elses_is_guarded(narrow):
    """Layers of torch's own in a head: convolutions, transposed ones, in any number of axes."""
    network = nn.Sequential(
        nn.Conv2d(16, narrow, 3), nn.ReLU(), nn.ConvTranspose2d(narrow, 8, 3), nn.Conv2d(8, 8, 1)
    )
    guard(guard(network))
    assert sum(len(layer._forward_pre_hooks) for layer in network) == 2
    x = torch.randn(2, 16, 9, 9).contiguous(memory_format=torch.channels_last).requires_grad_()
    with Convolutions() as convolutions:
        network(x).sum().backward()
    convolutions.check()


def test_the_region_proposal_networks(tmp_path):
    pixels = np.random.default_rng(0).integers(0, 256, (4, 64, 64, 3), np.uint8)
    boxes = np.tile(np.array([8, 8, 24, 24], np.float32), (4, 2, 1))
    with Convolutions() as convolutions:
        fit(tmp_path / "digit.pt", pixels, boxes, steps=2, batch=4)
    assert last_and_backward(convolutions.check()) == (True, True)
    for name, options in (
        ("torchvision", {"weights": "none", "size": 64}),
        ("digit_rpn", {"weights": str(tmp_path / "digit.pt")}),
    ):
        source = build_proposals(name, num_boxes=3, **options)
        with Convolutions() as convolutions:
            source.propose(torch.from_numpy(pixels), None, None, (0,))
        assert last_and_backward(convolutions.check()) == (True, False)


def test_a_network_from_frames_to_logits():
    """As `finetune` and `reproduce` train it: a narrow backbone, and a head with a convolution."""
    head = {"name": "conv_lstm", "cut": "res3", "width": 5, "convs": 1}
    train = {"epochs": 1, "batch": 2}
    recipe = recipe_from({"name": "a", "source": "a test", "head": head, "train": train})
    backbone = build_backbone("tsm_r18", width=4)
    dims = joint_dims(backbone, 4, 48)
    network = new_network(recipe, backbone, dims, 3, 0, FrameOptions(train_from="stem"))
    lay_out(network, "cpu")
    with Convolutions() as convolutions:
        network(Clips(frames=frames(2, 4, 48, 48))).logits.sum().backward()
    assert last_and_backward(convolutions.check())[1]


def test_a_frozen_stem_of_three_colours_gives_the_values_of_channels_last():
    """Older caches stay comparable: only the order of sums may differ, by the CPU's kernel."""
    backbone = tiny("i3d_r50", width=64)
    x = backbone.prepare(frames(1, 4, 64, 64))
    layer = backbone.stem.conv1
    with torch.inference_mode():
        found = lay_out(layer, "cpu")(x)
        weight = layer.weight.contiguous(memory_format=torch.channels_last_3d)
        before = nn.functional.conv3d(x, weight, layer.bias, layer.stride, layer.padding)
    assert relative(found, before) < 1e-5


@pytest.mark.parametrize("channels", [1, 2])
def test_few_channels_are_widened_and_give_what_they_gave(channels):
    x = torch.rand(2, channels, 3, 9, 9).contiguous(memory_format=torch.channels_last_3d)
    weight = torch.rand(8, channels, 1, 3, 3, requires_grad=True)
    y = convolve(x, weight, None, (1, 2, 2), (0, 1, 1))
    assert y.is_contiguous(memory_format=torch.channels_last_3d)
    expected = F.conv3d(x.contiguous(), weight, None, (1, 2, 2), (0, 1, 1))
    torch.testing.assert_close(y, expected, rtol=1e-5, atol=1e-6)
    (found,) = torch.autograd.grad(y.sum(), weight)
    (wanted,) = torch.autograd.grad(expected.sum(), weight)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-6)
