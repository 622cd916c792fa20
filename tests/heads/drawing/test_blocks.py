"""EAN's Figures 9 to 11: stages over time, M and its kernels, from the frames of a cached view."""

import numpy as np
import pytest
import torch

from heads.drawing.backbone_output import run_backbone
from heads.drawing.block_panels import attention_vector, heard_of
from heads.drawing.draw import Style, draw_view
from pipeline.backbones import EventAdaptiveBlock, build_backbone, fusion_matrix, kernel_sizes
from pipeline.backbones._ean import Design, fuse
from pipeline.cache.reader import Cache, CacheError
from pipeline.manifests.manifest import read_manifest
from pipeline.stages.extract import extract
from tests.support.tiny_backbone import lively
from tests.support.tiny_cache import Tiny
from tests.support.tiny_videos import INLINE, config_of, make_videos

STAGES = ("stem", "res2", "res3", "res4", "res5")


@pytest.mark.parametrize("variant", ["paper", "released"])
@pytest.mark.parametrize("fusion", ["dynamic", "static", "shuffle", "identity"])
@torch.no_grad()
def test_the_kernels_are_those_that_an_impulse_meets(variant, fusion):
    """Every channel's impulse through both halves with M between them, without the ReLU."""
    block = lively(EventAdaptiveBlock(32, Design(variant, fusion))).double().eval()
    x = torch.randn(1, 32, 3, 4, 4, dtype=torch.float64)
    matrix = fusion_matrix(block, x)

    def linear(z):
        return block.second(fuse(matrix.expand(len(z), -1, -1), block.first(z)))

    impulses = torch.zeros(8, 8, 9, 9, 9, dtype=torch.float64)
    impulses[range(8), range(8), 4, 4, 4] = 1
    answers = linear(impulses) - linear(torch.zeros_like(impulses[:1]))
    norms = answers.square().sum((0, 1)).sqrt()[2:7, 2:7, 2:7]
    # A tap that reads the step after answers an impulse one step earlier.
    torch.testing.assert_close(kernel_sizes(block, matrix[0]), norms.flip(0, 1, 2))
    assert answers.square().sum() == pytest.approx(float(norms.square().sum()))


@torch.no_grad()
def test_the_matrix_is_the_one_that_the_block_computes_with():
    block = lively(EventAdaptiveBlock(32, Design("released"))).double().eval()
    x, seen = torch.randn(2, 32, 3, 4, 4, dtype=torch.float64), []
    block.matrix.register_forward_hook(lambda module, inputs, output: seen.append(output))
    block(x)
    assert torch.equal(fusion_matrix(block, x), seen[0])


@pytest.fixture(scope="module")
def extracted(tmp_path_factory):
    """A cache of tiny videos, extracted with a narrow trunk."""
    folder = make_videos(tmp_path_factory.mktemp("videos"), clips=2)
    options = {"width": 4, "eab": "stem,res3"}
    config = config_of(folder, backbone="ean_r50", backbone_options=options, keep=("res5",))
    manifest = read_manifest(folder / "manifest.csv")
    extract(config, manifest, folder / "cache", INLINE)
    return Cache(folder / "cache")


def test_the_backbone_sees_the_view_that_the_cache_holds(extracted):
    group = extracted["train"]
    found = run_backbone(extracted, "clip1", "train", 1)
    stored = group.batch(group.rows_of("clip1")[1:2], ["res5"])["res5"][0]  # [T,C,h,w]
    assert list(found.maps) == list(STAGES)
    np.testing.assert_allclose(found.maps["res5"], np.abs(stored).mean(1), rtol=1e-4, atol=1e-6)
    assert [block.stage for block in found.blocks] == ["stem", "res3"]
    assert [block.matrix.shape for block in found.blocks] == [(1, 1), (8, 8)]


def test_stages_and_blocks_are_drawn_where_they_are_asked_for(extracted):
    style = Style(height=32, width=400)
    asked = draw_view(extracted, "clip0", what=["stages", "blocks"], style=style)
    assert [strip.title for strip in asked.sections] == [f"{name} over time" for name in STAGES]
    assert len(asked.panels) == 2
    assert asked.picture().height > 200
    assert not {"stages", "blocks"} & set(draw_view(extracted, "clip0", style=style).what)


@pytest.mark.parametrize("what", [(), ("boxes",)])
def test_weights_that_nothing_would_read_are_refused(what, extracted):
    with pytest.raises(ValueError, match=r"weights nope.pt are for stages and blocks: pass --what"):
        draw_view(extracted, "clip0", what=what, weights="nope.pt")


def test_weights_of_another_backbone_are_refused(extracted, tmp_path):
    other = build_backbone("ean_r50", weights="none", width=4, eab="stem,res3")
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(ValueError, match=r"other\.pth: not those that .* was extracted with"):
        draw_view(extracted, "clip0", what=["stages"], weights=tmp_path / "other.pth")


def test_a_cache_without_frames_or_blocks_says_so(tmp_path):
    cache = Tiny().write(tmp_path)
    with pytest.raises((ValueError, CacheError), match="vidgraph extract"):
        draw_view(cache, "clip-18", what=["stages"])
    with pytest.raises(ValueError, match="no Event Adaptive Blocks"):
        draw_view(cache, "clip-18", what=["blocks"])


def test_the_attention_vector_is_what_each_token_is_given():
    weights = np.zeros((1, 2, 6, 6), np.float32)
    weights[0, :, :, 4] = 1  # everything listens to object 0 of step 2, of two objects a step
    heard = heard_of(weights, 3)
    assert heard.shape == (1, 3, 2)
    assert heard[0].tolist() == [[0, 0], [0, 0], [1, 0]]
    assert attention_vector(weights, 3).height > 62
