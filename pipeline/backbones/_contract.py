"""What extraction and fine-tuning rely on in any backbone, as checks that run on one.

The tests run them over every backbone of ours, and `vidgraph check-plugin` over a plug-in.
"""

from collections.abc import Callable

import torch
from torch import Tensor

from pipeline.backbones._base import Backbone
from pipeline.backbones._freezing import freeze
from pipeline.plugins import require


def frames(batch: int = 1, length: int = 8, height: int = 48, width: int = 40) -> Tensor:
    """Random RGB frames uint8 [B,F,H,W,3], always the same."""
    generator = torch.Generator().manual_seed(0)
    shape = (batch, length, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def cuts_are_fields(backbone: Backbone, is_cut: Callable[[str], bool]) -> None:
    """Every cut has the name of a field that can be stored; blocks belong to stages.

    Args:
        backbone: in evaluation mode.
        is_cut: `pipeline.cache.fields.is_cut`.
    """
    require(
        isinstance(backbone, Backbone),
        f"build returns {type(backbone).__name__}, expected a pipeline.backbones.Backbone",
    )
    cuts = backbone.cuts()
    require(len(cuts) == len(set(cuts)) > 0, f"expected cuts of different names, got {cuts}")
    for cut in cuts:
        require(is_cut(cut), f"{cut!r} is not the name of a cut, such as stem, res4, res4.3, conv1")
    require(
        {cut.split(".")[0] for cut in cuts} == set(backbone.stages),
        f"the cuts {cuts} have blocks of stages that are not there: {backbone.stages}",
    )
    require(
        backbone.last == backbone.stages[-1] == cuts[-1],
        f"the last cut is {cuts[-1]}, expected the last stage, {backbone.last}",
    )


@torch.no_grad()
def shapes_are_as_computed(backbone: Backbone) -> None:
    """Maps have the shapes that `channels`, `steps` and `grid` work out, at odd sizes too."""
    # 9 frames of 45 x 51 pixels: sizes that no stride divides.
    maps = backbone.maps(backbone.prepare(frames(2, 9, 45, 51)), backbone.cuts())
    require(tuple(maps) == backbone.cuts(), f"maps() gives {tuple(maps)}")
    for cut, found in maps.items():
        wanted = (2, backbone.channels(cut), backbone.steps(9, cut), *backbone.grid(cut, (45, 51)))
        require(
            tuple(found.shape) == wanted,
            f"the map at {cut} has the shape {list(found.shape)}, `channels`, `steps` and `grid` "
            f"say {list(wanted)}: correct `channels` or `path` of the unit",
        )


@torch.no_grad()
def two_pieces_equal_the_whole(backbone: Backbone) -> None:
    """To stop at any cut and to continue from there gives what the whole network gives."""
    x = backbone.prepare(frames(2))
    whole = backbone(x)
    for cut, found in backbone.maps(x, backbone.cuts()).items():
        again = backbone(found.contiguous(), start=cut)
        require(torch.equal(again, whole), f"continued from {cut} the result differs")


@torch.no_grad()
def one_pass_equals_separate_passes(backbone: Backbone) -> None:
    """Maps of one pass equal those of separate passes; the input stays as it was."""
    x = backbone.prepare(frames())
    before = x.clone()
    together = backbone.maps(x, backbone.cuts())
    for cut in backbone.cuts():
        same = torch.equal(together[cut], backbone(x, upto=cut))
        require(same, f"the map at {cut} is changed by what runs after it (in place?)")
    require(torch.equal(x, before), "the backbone changes its input in place")


@torch.no_grad()
def memory_format_never_matters(backbone: Backbone) -> None:
    """Each unit gives the same for a map in channels last and for a contiguous one.

    `pipeline.backbones.Conv` and torch's convolutions are safe in both. A convolution that a unit
    calls as a function, or makes while it runs, may crash in the backward pass.
    """
    x = backbone.prepare(frames())
    for names, unit in backbone.units():
        last = unit(x.contiguous(memory_format=torch.channels_last_3d))
        plain = unit(x.contiguous())
        close = torch.allclose(last, plain, rtol=1e-4, atol=1e-4 * float(plain.abs().max() + 1e-6))
        name = names[0] if names else type(unit).__name__
        require(close, f"{name} gives other values for a map in channels last")
        x = plain


@torch.no_grad()
def frozen_copy_gives_the_same(backbone: Backbone) -> None:
    """The frozen copy that extraction runs gives the same maps, up to rounding."""
    frozen = freeze(backbone)
    given = frames()
    whole, found = backbone(backbone.prepare(given)), frozen(frozen.prepare(given))
    off = float((found - whole).abs().max() / whole.abs().max().clamp(min=1e-12))
    require(off < 1e-3, f"frozen, the result differs by {off:.2g} of the largest value")


@torch.no_grad()
def saved_weights_give_the_same(backbone: Backbone, other: Backbone) -> None:
    """Weights that are loaded into another backbone of the same options give the same maps.

    Args:
        backbone: in evaluation mode.
        other: built again, with other weights; it gets those of `backbone`.
    """
    other.load_state_dict(backbone.state_dict())
    given = frames()
    same = torch.equal(other.eval()(other.prepare(given)), backbone(backbone.prepare(given)))
    require(same, "loaded weights give another result")


CHECKS: dict[str, Callable[[Backbone], None]] = {
    check.__name__: check
    for check in (
        shapes_are_as_computed,
        two_pieces_equal_the_whole,
        one_pass_equals_separate_passes,
        memory_format_never_matters,
        frozen_copy_gives_the_same,
    )
}
