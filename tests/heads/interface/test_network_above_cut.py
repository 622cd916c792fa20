"""Heads above a cut: EAN's last block and res5, learned from the map before them."""

import pytest
import torch

from heads.interface.clips import Dims, clips_of
from heads.interface.network_above_cut import smallest_frames
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from tests.support.tiny_backbone import frames, relative, tiny

WIDTH, T = 4, 8
DIMS = Dims(
    T, maps={"res4.5": (16 * WIDTH, 5, 4), "res4": (16 * WIDTH, 5, 4), "res5": (32 * WIDTH, 3, 2)}
)
TRUNK = {"backbone": "ean_r50", "backbone_options": {"width": WIDTH}}


def head(cut="res4.5", **options):
    torch.manual_seed(0)
    return build_head("ean", DIMS, 6, width=16, cut=cut, **TRUNK, **options)


def some_map(batch=2, cut="res4.5"):
    return clips_of({cut: torch.rand(batch, T, *DIMS.maps[cut])})


@pytest.mark.parametrize("variant", ["paper", "released"])
@torch.no_grad()
def test_the_part_above_the_cut_and_the_head_are_the_whole_network_on_frames(variant, tmp_path):
    whole = tiny("ean_r50", width=WIDTH)
    torch.save(whole.state_dict(), tmp_path / "trunk.pth")
    model = head(weights=str(tmp_path / "trunk.pth"), variant=variant).eval()
    torch.nn.init.ones_(model.head.objects.norm.weight)
    x = whole.prepare(frames(2, T, 80, 64))
    maps = whole.maps(x, ("res4.5", "res5"))
    found = model(clips_of({"res4.5": maps["res4.5"].transpose(1, 2)})).logits
    assert (
        relative(found, model.head(clips_of({"res5": maps["res5"].transpose(1, 2)})).logits) < 1e-5
    )


def test_everything_above_the_cut_learns_and_nothing_below_is_kept():
    model = head().train()
    model(some_map()).logits.square().sum().backward()
    trained = {
        name
        for name, p in model.network.named_parameters()
        if p.grad is not None and p.grad.abs().sum() > 0
    }
    assert trained == {name for name, _ in model.network.named_parameters()}
    assert {name.split(".")[0] for name in trained} == {"eab", "res5"}
    assert {name.split(".")[1] for name in trained if name.startswith("eab.")} == {"res4"}


def test_from_behind_the_block_only_res5_is_left():
    assert {name.split(".")[0] for name, _ in head("res4").network.named_parameters()} == {"res5"}


def test_needs_are_the_map_and_what_the_head_needs_besides():
    assert head().needs == ("res4.5",)
    boxes = Dims(T, 2, 0, DIMS.maps)
    assert build_head("ean", boxes, 6, cut="res4", regions="boxes", width=16, **TRUNK).needs == (
        "res4",
        "boxes",
        "valid",
    )


def test_cuts_and_maps_that_do_not_fit_are_refused():
    with pytest.raises(
        ValueError, match="head ean: nothing of ean_r50 comes after res5: choose an earlier cut"
    ):
        head("res5")
    with pytest.raises(ValueError, match=r"the cached res4 has 64 channels, that of ean_r50 128"):
        build_head("ean", DIMS, 6, cut="res4", backbone="ean_r50", backbone_options={"width": 8})
    clips = clips_of({**some_map().tensors(), "grid": torch.tensor([[5, 4], [5, 3]])})
    with pytest.raises(
        ValueError, match="head ean runs a network on maps of one size, got 2 sizes"
    ):
        head()(clips)


def test_padding_of_a_map_never_changes_logits():
    model, clips = head().eval(), some_map()
    wide = torch.full((2, T, 16 * WIDTH, 6, 7), 1e3)
    wide[..., :5, :4] = clips.maps["res4.5"]
    with torch.no_grad():
        found = model(clips_of({"res4.5": wide, "grid": torch.tensor([[5, 4]] * 2)})).logits
        assert relative(found, model(clips).logits) < 1e-5


@pytest.mark.parametrize("name", ["ean_r50", "i3d_r50", "resnet18", "digit_cnn"])
def test_frames_of_a_grid_give_that_grid_and_a_pixel_less_gives_another(name):
    network = build_backbone(name, width=8)
    cut = network.stages[1]
    H, W = smallest_frames(network, cut, (7, 5))
    assert network.grid(cut, (H, W)) == (7, 5)
    assert network.grid(cut, (H - 1, W - 1)) == (6, 4)
