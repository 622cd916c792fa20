"""Encoders at other sizes than their own: what the library computes for that size, or an error."""

import pytest
import torch

from pipeline.backbones import build_backbone
from tests.pipeline.encoders.test_encoders import (
    PREFIX,
    clips,
    folder,  # noqa: F401 (a fixture)
    normalised,
)
from tests.support.tiny_encoders import CONFIGS

# Classes of frames that take any size, without an option or with it.
ANY_SIZE = {"Dinov2": {}, "DINOv3ViT": {}, "InternVLVision": {}, "ConvNext": {}, "ResNet": {}}
for _kind in ("ViT", "CLIPVision", "SiglipVision"):
    ANY_SIZE[_kind] = {"interpolate_pos_encoding": True}


def pixels_of(frames: int, height: int, width: int) -> torch.Tensor:
    """Random clips uint8 [1,F,H,W,3]."""
    generator = torch.Generator().manual_seed(1)
    shape = (1, frames, height, width, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def last_map(backbone, pixels: torch.Tensor) -> torch.Tensor:
    with torch.no_grad():
        return backbone(backbone.prepare(pixels))


def library_model(path, **changed):
    from transformers import AutoModel

    return AutoModel.from_pretrained(path, **changed).eval()


@pytest.mark.parametrize("kind", ANY_SIZE)
def test_another_size_is_what_the_library_interpolates(kind, folder):  # noqa: F811
    pixels = pixels_of(2, 48, 64)
    found = last_map(build_backbone(f"hf:{folder(kind)}", "pretrained").eval(), pixels)
    with torch.no_grad():
        frames = normalised(pixels).flatten(0, 1)
        wanted = library_model(folder(kind))(pixel_values=frames, **ANY_SIZE[kind])
    wanted = wanted.last_hidden_state
    for t in range(2):
        if wanted.dim() == 4:
            torch.testing.assert_close(found[0, :, t], wanted[t], rtol=1e-5, atol=1e-5)
            continue
        tokens = wanted[t, PREFIX.get(kind, 0) :]
        for number, token in enumerate(tokens):
            place = found[0, :, t, number // 8, number % 8]
            torch.testing.assert_close(place, token, rtol=1e-5, atol=1e-5)


def test_vjepa_numbers_the_places_of_the_size_that_it_is_given(folder):  # noqa: F811
    backbone = build_backbone(f"hf:{folder('VJEPA2')}", "pretrained").eval()
    for side in (48, 32):
        pixels = pixels_of(4, side, side)
        own = library_model(folder("VJEPA2"), crop_size=side)
        with torch.no_grad():
            wanted = own(pixel_values_videos=normalised(pixels), skip_predictor=True)
        cells = side // 8
        wanted = wanted.last_hidden_state.transpose(1, 2).unflatten(2, (2, cells, cells))
        torch.testing.assert_close(last_map(backbone, pixels), wanted, rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match=r"square grid\); it takes 8 frames of 32x32"):
        backbone.grid("last", (32, 48))


def test_swin_shifts_its_windows_on_a_large_map_after_a_small_one(folder):  # noqa: F811
    backbone = build_backbone(f"hf:{folder('Swin')}", "pretrained").eval()
    for side in (32, 64, 32):
        pixels = pixels_of(1, side, side)
        with torch.no_grad():
            wanted = library_model(folder("Swin"))(pixel_values=normalised(pixels).flatten(0, 1))
        cells = side // 8
        wanted = wanted.last_hidden_state.transpose(1, 2).unflatten(2, (1, cells, cells))
        torch.testing.assert_close(last_map(backbone, pixels), wanted, rtol=1e-5, atol=1e-5)
    # Sizes are worked out on one copy of the model, whichever was asked for before.
    with pytest.raises(ValueError, match=r"it takes frames of 32x32 \(--size\)"):
        backbone.grid("last", (16, 16))
    assert backbone.grid("last", (40, 32)) == (5, 4)


def test_timesformer_is_refused_frames_that_it_would_mix(folder):  # noqa: F811
    backbone = build_backbone(f"hf:{folder('Timesformer')}")
    with pytest.raises(ValueError, match=r"into 4 frames\); it takes 4 frames of 32x32"):
        backbone.steps(8)
    assert backbone.grid("last", (48, 64)) == (6, 8)


def test_a_size_that_no_map_has_is_not_counted_either(folder):  # noqa: F811
    from heads.evaluation.counting import count_backbone

    name = f"hf:{folder('Hiera')}"
    with pytest.raises(ValueError, match=r"takes frames of 64x64 \(--size\)"):
        count_backbone(name, {}, frames=4, size=(32, 32))


def test_the_count_of_a_transformer_is_that_of_its_layers(folder):  # noqa: F811
    from heads.evaluation.counting import count_backbone

    found = count_backbone(f"hf:{folder('ViT')}", {}, frames=4, size=(32, 32))
    # Per frame 16 patches of 3 x 8 x 8 and a class token; 3 layers of width 32, hidden width 64.
    patches = 16 * 3 * 8 * 8 * 32
    layer = 17 * (4 * 32 * 32 + 2 * 32 * 64) + 2 * 17 * 17 * 32
    assert found.total.macs == 4 * (patches + 3 * layer)
    weights = 3 * (4 * (32 * 32 + 32) + 32 * 64 + 64 + 64 * 32 + 32 + 4 * 32)
    embedding = 3 * 8 * 8 * 32 + 32 + 17 * 32 + 32
    assert found.total.parameters == weights + embedding + 64


# Tokens beside the map


@pytest.mark.parametrize("kind", PREFIX)
def test_tokens_are_those_that_the_library_puts_first(kind, folder):  # noqa: F811
    backbone = build_backbone(f"hf:{folder(kind)}", "pretrained").eval()
    pixels = clips(kind)
    with torch.no_grad():
        _, found = backbone.maps_with_tokens(backbone.prepare(pixels), ("last",), "last")
        x, own = normalised(pixels), library_model(folder(kind))
        is_video = kind in ("Vivit", "Timesformer")
        wanted = own(pixel_values=x if is_video else x.flatten(0, 1)).last_hidden_state
    wanted = wanted[:, : PREFIX[kind]].unflatten(0, (2, -1))
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert found.shape[1:] == backbone.token_shape(pixels.shape[1])


def test_a_model_whose_last_map_alone_has_a_token_starts_from_its_other_maps(folder):  # noqa: F811
    backbone = build_backbone(f"hf:{folder('DINOv3ConvNext')}", "pretrained").eval()
    with torch.no_grad():
        maps = backbone.maps(backbone.prepare(clips("DINOv3ConvNext")), backbone.cuts())
        again = backbone(maps["stage1"].contiguous(), start="stage1")
    torch.testing.assert_close(again, maps["last"], rtol=1e-5, atol=1e-5)
    with pytest.raises(ValueError, match="class tokens beside last alone, not beside stage1"):
        backbone.token_shape(3, "stage1")


@pytest.mark.parametrize("kind", CONFIGS)
def test_compiled_blocks_give_the_same_map(kind, folder, monkeypatch):  # noqa: F811
    compiled, ran = [], []

    def compile(forward):
        number = len(compiled)
        compiled.append(forward)

        def counted(*args, **options):
            ran.append(number)
            return forward(*args, **options)

        return counted

    # The compiler itself is torch's; what is tested is that blocks are compiled where they lie.
    monkeypatch.setattr(torch, "compile", compile)
    backbone = build_backbone(f"hf:{folder(kind)}", "pretrained").eval()
    pixels = clips(kind, 1)
    before = last_map(backbone, pixels)
    backbone.compile_units()
    # Layers, or stages, as the configuration counts them. Swin's map lies inside its stages.
    config = CONFIGS[kind]
    count = config.get("num_hidden_layers") or len(config["depths"])
    if kind == "Swin":
        count = sum(config["depths"])
    torch.testing.assert_close(last_map(backbone, pixels), before, rtol=0, atol=0)
    assert ran == list(range(count)) == list(range(len(compiled)))


# torchvision and timm: the library's own classifier on our map gives the library's logits


def torchvision_logits(name: str, own: torch.nn.Module, fmap: torch.Tensor) -> torch.Tensor:
    """The logits of a model of torchvision, from its last map [1,C,T,h,w], by its last layers."""
    if name == "s3d":
        return own.classifier(own.avgpool(fmap)).mean((2, 3, 4))
    classifier = own.fc if hasattr(own, "fc") else own.head
    return classifier(fmap.mean((2, 3, 4)))


VIDEOS = {"r3d_18": 32, "mc3_18": 32, "r2plus1d_18": 32, "s3d": 224, "swin3d_t": 64}


@pytest.mark.slow
@pytest.mark.parametrize("name", VIDEOS)
def test_videos_of_torchvision_have_the_map_that_its_classifier_reads(name):
    from torchvision.models import get_model

    torch.manual_seed(0)
    own = get_model(name, weights=None).eval()
    backbone = build_backbone(f"torchvision:{name}").eval()
    state = own.state_dict()
    backbone.model.load_state_dict({key: state[key] for key in backbone.model.state_dict()})
    side = VIDEOS[name]
    clip = torch.randn(1, 3, 16, side, side, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, fmap = own(clip), backbone(clip)
        found = torchvision_logits(name, own, fmap)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
    shape = backbone.channels(), backbone.steps(16), *backbone.grid("last", (side, side))
    assert tuple(fmap.shape[1:]) == shape


@pytest.mark.slow
def test_mvit_has_the_tokens_that_its_classifier_follows():
    from torchvision.models import get_model

    torch.manual_seed(0)
    own = get_model("mvit_v2_s", weights=None).eval()
    backbone = build_backbone("torchvision:mvit_v2_s").eval()
    state = own.state_dict()
    backbone.model.load_state_dict({key: state[key] for key in backbone.model.state_dict()})
    clip = torch.randn(1, 3, 16, 224, 224, generator=torch.Generator().manual_seed(1))
    tokens = []
    own.norm.register_forward_hook(lambda module, given, output: tokens.append(output))
    with torch.no_grad():
        own(clip)
        fmap = backbone(clip)
        _, first = backbone.maps_with_tokens(clip, ("last",), "last")
    wanted = tokens[0][0, 1:].T.unflatten(1, (8, 7, 7))
    torch.testing.assert_close(fmap[0], wanted, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(first[0, 0], tokens[0][0, :1], rtol=1e-4, atol=1e-5)


TIMM = ("swin_tiny_patch4_window7_224", "hiera_tiny_224", "vit_small_patch16_224")


@pytest.mark.slow
@pytest.mark.parametrize("name", TIMM)
def test_models_of_timm_have_the_map_that_its_head_reads(name):
    timm = pytest.importorskip("timm", reason="pip install 'vidgraph[timm]'")
    torch.manual_seed(0)
    own = timm.create_model(name, num_classes=7).eval()
    backbone = build_backbone(f"timm:{name}").eval()
    state = own.state_dict()
    backbone.model.load_state_dict({key: state[key] for key in backbone.model.state_dict()})
    frame = torch.randn(1, 3, 1, 224, 224, generator=torch.Generator().manual_seed(1))
    with torch.no_grad():
        wanted, fmap = own(frame[:, :, 0]), backbone(frame)[:, :, 0]
        if name.startswith("swin"):  # [B,h,w,C]
            features = fmap.movedim(1, -1)
        elif name.startswith("hiera"):
            features = fmap.flatten(2).transpose(1, 2)
        else:
            _, tokens = backbone.maps_with_tokens(frame, ("last",), "last")
            features = torch.cat([tokens[:, 0], fmap.flatten(2).transpose(1, 2)], 1)
        found = own.forward_head(features)
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-5)
