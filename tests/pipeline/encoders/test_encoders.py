"""Encoders of other libraries as backbones: each gives what its library's own forward gives."""

import json
import shutil
import sys

import numpy as np
import pytest
import torch

from pipeline.backbones import build_backbone, freeze
from pipeline.cache.fields import is_cut
from pipeline.encoder_names import is_encoder, without_folder
from pipeline.stages.config import ExtractConfig
from pipeline.stages.frozen_networks import BatchRow, FrozenNetworks
from pipeline.views.sampling import Sampling
from tests.support.tiny_encoders import CONFIGS, PIXELS, save_encoder

VIDEO = {"VideoMAE": 8, "VJEPA2": 8, "Vivit": 8, "Timesformer": 4}
# Class and register tokens before the patches.
PREFIX = {"Vivit": 1, "Timesformer": 1, "ViT": 1, "Dinov2": 1, "DINOv3ViT": 5, "CLIPVision": 1}
PREFIX |= {"DINOv3ConvNext": 1, "InternVLVision": 1}
SEQUENCES = ("VideoMAE", "VJEPA2", "SiglipVision", "ConvNext", "ResNet")


def needs(package: str) -> None:
    pytest.importorskip(package, reason=f"pip install 'vidgraph[{package}]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """kind -> the folder of a tiny model, saved once."""
    needs("transformers")
    saved = {}

    def of(kind: str):
        if kind not in saved:
            saved[kind] = save_encoder(tmp_path_factory.mktemp(kind), kind)
        return saved[kind]

    return of


def clips(kind: str, batch: int = 2) -> torch.Tensor:
    """Random clips uint8 [B,F,H,W,3] of the model's own size."""
    side = 64 if kind == "Hiera" else 32
    generator = torch.Generator().manual_seed(0)
    shape = (batch, VIDEO.get(kind, 3), side, side, 3)
    return torch.randint(0, 256, shape, dtype=torch.uint8, generator=generator)


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """[B,F,3,H,W], by the definition."""
    mean, std = torch.tensor(PIXELS["image_mean"]), torch.tensor(PIXELS["image_std"])
    return ((pixels / 255 - mean) / std).permute(0, 1, 4, 2, 3)


def library_map(kind: str, path, pixels: torch.Tensor) -> torch.Tensor:
    """[B,C,T,h,w] of the library's own last_hidden_state, put in order by plain loops."""
    from transformers import AutoModel

    model, x = AutoModel.from_pretrained(path).eval(), normalised(pixels)
    B, F = x.shape[:2]
    with torch.no_grad():
        if kind == "VJEPA2":
            found = model(pixel_values_videos=x, skip_predictor=True).last_hidden_state
        elif kind in VIDEO:
            found = model(pixel_values=x).last_hidden_state
        else:
            found = model(pixel_values=x.flatten(0, 1)).last_hidden_state
    if found.dim() == 4:
        return found.unflatten(0, (B, F)).transpose(1, 2)
    found = found[:, PREFIX.get(kind, 0) :]
    side = round((found.shape[1] / (F // 2 if kind in VIDEO else 1)) ** 0.5)
    if kind == "Timesformer":
        side = 4
    steps = found.shape[1] // side**2 if kind in VIDEO else F
    out = torch.empty(B, found.shape[-1], steps, side, side)
    for b in range(B):
        for t in range(steps):
            for i in range(side * side):
                row, token = b, t * side * side + i
                if kind == "Timesformer":  # a place's frames follow one another
                    token = i * steps + t
                if kind not in VIDEO:
                    row, token = b * F + t, i
                out[b, :, t, i // side, i % side] = found[row, token]
    return out


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_last_map_is_what_the_library_computes(kind, folder):
    backbone = build_backbone(f"hf:{folder(kind)}", "pretrained").eval()
    pixels = clips(kind)
    with torch.no_grad():
        found = backbone(backbone.prepare(pixels))
    wanted = library_map(kind, folder(kind), pixels)
    torch.testing.assert_close(found, wanted, rtol=1e-5, atol=1e-5)
    assert backbone.prefix == PREFIX.get(kind, 0)


@pytest.mark.parametrize("kind", CONFIGS)
def test_maps_have_the_shapes_that_are_worked_out_and_names_that_are_cuts(kind, folder):
    backbone = build_backbone(f"hf:{folder(kind)}").eval()
    pixels = clips(kind, 1)
    with torch.no_grad():
        maps = backbone.maps(backbone.prepare(pixels), backbone.cuts())
    frames, height, width = pixels.shape[1:4]
    for cut, found in maps.items():
        assert is_cut(cut)
        wanted = backbone.channels(cut), backbone.steps(frames, cut)
        assert tuple(found.shape) == (1, *wanted, *backbone.grid(cut, (height, width)))
    assert backbone.last == "last"
    assert backbone.cuts()[0] in ("layer0", "stage1")


@pytest.mark.parametrize("kind", SEQUENCES)
def test_a_model_continues_from_the_map_of_any_block(kind, folder):
    backbone = build_backbone(f"hf:{folder(kind)}", "pretrained").eval()
    with torch.no_grad():
        maps = backbone.maps(backbone.prepare(clips(kind)), backbone.cuts())
        for cut, found in maps.items():
            again = backbone(found.contiguous(), start=cut)
            torch.testing.assert_close(again, maps["last"], rtol=1e-5, atol=1e-5)
    upper = build_backbone(f"hf:{folder(kind)}", "pretrained").eval()
    cut = upper.cuts()[0]
    upper.keep_above(cut)
    torch.testing.assert_close(upper(maps[cut], start=cut), maps["last"], rtol=1e-5, atol=1e-5)


def test_a_model_with_a_class_token_does_not_start_from_a_map_alone(folder):
    backbone = build_backbone(f"hf:{folder('ViT')}").eval()
    x = torch.zeros(1, 32, 2, 4, 4)
    with pytest.raises(ValueError, match="1 class or register tokens beside the map at layer1"):
        backbone(x, start="layer1")


def test_blocks_after_the_last_cut_that_is_wanted_do_not_run(folder):
    backbone = build_backbone(f"hf:{folder('VideoMAE')}", "pretrained").eval()
    for parameter in backbone.units()[-2][1].parameters():
        parameter.data.fill_(float("nan"))
    with torch.no_grad():
        maps = backbone.maps(backbone.prepare(clips("VideoMAE")), ("layer1",))
    assert maps["layer1"].isfinite().all()


def test_units_have_every_parameter_once(folder):
    for kind in ("VideoMAE", "ViT", "Swin"):
        backbone = build_backbone(f"hf:{folder(kind)}")
        found = [id(p) for _, unit in backbone.units() for p in unit.parameters()]
        between = {id(p) for p in backbone.model.parameters()} - set(found)
        assert len(found) == len(set(found))
        assert not between, kind


def test_a_module_at_a_cut_sees_the_map_and_changes_what_follows(folder):
    backbone = build_backbone(f"hf:{folder('ViT')}", "pretrained").eval()
    x = backbone.prepare(clips("ViT"))
    with torch.no_grad():
        before = backbone.maps(x, ("layer1", "last"))
        seen = []

        class Double(torch.nn.Module):
            def forward(self, fmap):
                seen.append(fmap)
                return 2 * fmap

        backbone.insert("layer1", Double())
        after = backbone.maps(x, ("layer1", "last"))
    torch.testing.assert_close(seen[0], before["layer1"])
    torch.testing.assert_close(after["layer1"], 2 * before["layer1"])
    assert (after["last"] - before["last"]).abs().max() > 1e-3


@pytest.mark.parametrize("kind", ["VJEPA2", "DINOv3ViT", "ConvNext"])
def test_what_is_cached_equals_the_live_encoder(kind, folder):
    tokens = ("tokens",) if kind in PREFIX else ()
    frames = VIDEO.get(kind, 3)
    config = ExtractConfig(
        backbone=f"hf:{folder(kind)}",
        weights="pretrained",
        keep=("pooled", "last", *tokens),
        sampling=Sampling(frames=frames, size=32),
        dtype="float32",
    )
    networks, pixels = FrozenNetworks(config), clips(kind)
    rows = [BatchRow(view.numpy()) for view in pixels]
    arrays = networks.launch(rows, (32, 32)).wait()
    live = build_backbone(config.backbone, "pretrained").eval()
    with torch.no_grad():
        fmap = live(live.prepare(pixels))
    wanted = fmap.transpose(1, 2)
    np.testing.assert_allclose(arrays["last"], wanted, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(arrays["pooled"], wanted.mean((-1, -2)), rtol=1e-4, atol=1e-5)
    for name, shape in networks.shapes((32, 32)).items():
        if name in arrays:
            assert arrays[name].shape[1:] == shape, name
    if tokens:
        from transformers import AutoModel

        x = normalised(pixels).flatten(0, 1)
        with torch.no_grad():
            own = AutoModel.from_pretrained(folder(kind)).eval()(pixel_values=x).last_hidden_state
        own = own[:, :5].unflatten(0, (2, frames))
        np.testing.assert_allclose(arrays["tokens"], own, rtol=1e-4, atol=1e-5)


def test_tokens_of_a_backbone_without_any_are_refused(folder):
    for name in ("digit_cnn", f"hf:{folder('ConvNext')}"):
        sampling = Sampling(frames=4, size=32)
        config = ExtractConfig(backbone=name, keep=("tokens",), sampling=sampling)
        with pytest.raises(ValueError, match="no class or register tokens"):
            FrozenNetworks(config).shapes((32, 32))


def test_a_frozen_copy_gives_the_same_in_other_precisions_too(folder):
    backbone = build_backbone(f"hf:{folder('VideoMAE')}", "pretrained").eval()
    pixels = clips("VideoMAE")
    with torch.no_grad():
        whole = backbone(backbone.prepare(pixels))
    frozen = freeze(backbone)
    torch.testing.assert_close(frozen(frozen.prepare(pixels)), whole, rtol=1e-4, atol=1e-5)
    rough = freeze(backbone, precision="bf16")
    found = rough(rough.prepare(pixels)).float()
    assert (found - whole).abs().max() < 0.1 * whole.abs().max()


def test_sizes_are_interpolated_or_refused_with_those_that_work(folder):
    assert build_backbone(f"hf:{folder('ViT')}").grid("last", (48, 64)) == (6, 8)
    assert build_backbone(f"hf:{folder('VJEPA2')}").steps(16) == 8
    with pytest.raises(ValueError, match=r"not take 16 frames of 32x32 .*takes 8 frames of 32x32"):
        build_backbone(f"hf:{folder('VideoMAE')}").steps(16)
    # A model of frames takes any number of them: only the size is at fault.
    refusal = r"not take frames of 4x4 pixels .*takes frames of 32x32 \(--size\)"
    with pytest.raises(ValueError, match=refusal):
        build_backbone(f"hf:{folder('ViT')}").grid("last", (4, 4))


# Weights


def test_a_file_of_weights_gives_what_its_folder_gives(folder, tmp_path):
    from safetensors.torch import load_file

    name, there = f"hf:{folder('VideoMAE')}", folder("VideoMAE") / "model.safetensors"
    torch.save(load_file(there), tmp_path / "weights.pt")
    whole = build_backbone(name, "pretrained")
    for source in (there, tmp_path / "weights.pt", folder("VideoMAE")):
        other = build_backbone(name, str(source))
        assert other.weights_sha256 == whole.weights_sha256
        for key, tensor in whole.state_dict().items():
            assert tensor.equal(other.state_dict()[key]), key
    assert build_backbone(name, "none").weights_sha256 == ""


def test_weights_that_lack_a_part_are_refused(folder, tmp_path):
    from safetensors.torch import load_file, save_file

    state = load_file(folder("VideoMAE") / "model.safetensors")
    dropped = next(key for key in state if "layer.1" in key)
    state.pop(dropped)
    save_file(state, tmp_path / "less.safetensors")
    with pytest.raises(ValueError, match="do not fit: the file misses"):
        build_backbone(f"hf:{folder('VideoMAE')}", str(tmp_path / "less.safetensors"))
    with pytest.raises(ValueError, match=r"weights imagenet: .* takes pretrained"):
        build_backbone(f"hf:{folder('VideoMAE')}", "imagenet")
    with pytest.raises(ValueError, match="no such file"):
        build_backbone(f"hf:{folder('VideoMAE')}", str(tmp_path / "nothing.pt"))


def test_a_fine_tuned_backbone_is_loaded_with_its_mean_and_std(folder, tmp_path):
    name = f"hf:{folder('VideoMAE')}"
    tuned = build_backbone(name, "pretrained")
    tuned.pixel_mean += 0.1
    next(tuned.model.parameters()).data += 1
    torch.save({"backbone": tuned.state_dict()}, tmp_path / "run.pt")
    again = build_backbone(name, str(tmp_path / "run.pt"))
    for key, tensor in tuned.state_dict().items():
        assert tensor.equal(again.state_dict()[key]), key


def test_a_folder_counts_by_its_content_and_not_by_its_name(folder, tmp_path):
    here = folder("ViT")
    shutil.copytree(here, tmp_path / "moved")
    assert without_folder(f"hf:{here}") == without_folder(f"hf:{tmp_path}/moved")
    changed = json.loads((here / "config.json").read_text()) | {"num_attention_heads": 4}
    (tmp_path / "moved" / "config.json").write_text(json.dumps(changed))
    assert without_folder(f"hf:{here}") != without_folder(f"hf:{tmp_path}/moved")
    records = [ExtractConfig(backbone=f"hf:{here}").computed("", "")["backbone"]]
    assert str(here) not in records[0]
    assert without_folder("timm:resnet18") == "timm:resnet18"


def test_code_of_a_repository_is_never_run(tmp_path):
    needs("transformers")
    (tmp_path / "own.py").write_text("raise SystemExit('executed')")
    config = {"model_type": "unheard_of", "auto_map": {"AutoConfig": "own.C", "AutoModel": "own.M"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="is never run"):
        build_backbone(f"hf:{tmp_path}")


def test_a_model_that_cuts_frames_by_no_convolution_is_refused_with_advice(tmp_path):
    needs("transformers")
    import transformers

    # SigLIP 2 for any aspect ratio: it takes patches, which a linear layer reads.
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2}
    vision = {**sizes, "intermediate_size": 64, "num_patches": 16, "patch_size": 8}
    config = transformers.Siglip2VisionConfig(**vision)
    transformers.Siglip2VisionModel(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    with pytest.raises(ValueError, match=r"no convolution .* choose a model of frames or clips"):
        build_backbone(f"hf:{tmp_path}", None)


@pytest.mark.parametrize("name", ["hf:", "trochvision:resnet18"])
def test_an_unknown_library_is_refused_with_the_known_ones(name):
    with pytest.raises(ValueError, match=r"hf:REPOSITORY-OR-FOLDER, timm:NAME or torchvision:NAME"):
        build_backbone(name, None)


def test_a_folder_without_a_processor_is_refused_unless_mean_and_std_are_given(folder, tmp_path):
    shutil.copytree(folder("ViT"), tmp_path / "m")
    (tmp_path / "m" / "preprocessor_config.json").unlink()
    with pytest.raises(ValueError, match=r"no preprocessor_config\.json says the mean"):
        build_backbone(f"hf:{tmp_path}/m")
    given = build_backbone(f"hf:{tmp_path}/m", mean=(0.5, 0.5, 0.5), std=(0.1, 0.2, 0.3))
    assert given.std == pytest.approx((0.1, 0.2, 0.3))


@pytest.mark.parametrize(("library", "package"), [("timm", "timm"), ("hf", "transformers")])
def test_where_a_library_is_missing_the_error_says_what_to_install(library, package, monkeypatch):
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"pip install 'vidgraph\[{package}\]'"):
        build_backbone(f"{library}:anything")


def test_names_of_encoders_are_no_paths():
    assert is_encoder("hf:facebook/vjepa2-vitl-fpc64-256")
    assert is_encoder("torchvision:r3d_18")
    assert not is_encoder("i3d_r50")
    assert not is_encoder("./timm.py")


# timm and torchvision


@pytest.mark.parametrize("model", ["test_vit", "test_convnext", "test_resnet"])
def test_the_last_map_of_timm_is_its_forward_features(model):
    needs("timm")
    backbone = build_backbone(f"timm:{model}").eval()
    pixels = torch.randint(0, 256, (2, 2, 160, 160, 3), dtype=torch.uint8)
    mean, std = torch.tensor(backbone.mean), torch.tensor(backbone.std)
    x = ((pixels / 255 - mean) / std).permute(0, 1, 4, 2, 3)
    with torch.no_grad():
        maps = backbone.maps(backbone.prepare(pixels), backbone.cuts())
        wanted = backbone.model.forward_features(x.flatten(0, 1))
        if wanted.dim() == 3:
            wanted = wanted[:, 1:].transpose(1, 2).unflatten(2, (10, 10))
    wanted = wanted.unflatten(0, (2, 2)).transpose(1, 2)
    torch.testing.assert_close(maps["last"], wanted, rtol=1e-5, atol=1e-5)
    for cut, found in maps.items():
        shape = backbone.channels(cut), backbone.steps(2, cut), *backbone.grid(cut, (160, 160))
        assert tuple(found.shape[1:]) == shape


def test_timm_weights_of_a_file_are_those_of_the_file(tmp_path):
    needs("timm")
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(3)
    model = timm.create_model("test_vit", num_classes=5)
    save_file(model.state_dict(), tmp_path / "w.safetensors")
    torch.save(model.state_dict(), tmp_path / "w.pt")
    for file in ("w.safetensors", "w.pt"):
        backbone = build_backbone("timm:test_vit", str(tmp_path / file))
        assert len(backbone.weights_sha256) == 64
        for key, tensor in backbone.model.state_dict().items():
            assert tensor.equal(model.state_dict()[key]), key
    with pytest.raises(ValueError, match="timm has no model 'vit_smal"):
        build_backbone("timm:vit_smal_patch16_224")


def test_the_last_map_of_torchvision_is_what_its_forward_reaches():
    from torchvision.models import get_model
    from torchvision.models.feature_extraction import create_feature_extractor

    torch.manual_seed(0)
    backbone = build_backbone("torchvision:resnet18").eval()
    own = get_model("resnet18", weights=None)
    own.load_state_dict(backbone.model.state_dict(), strict=False)
    own = create_feature_extractor(own.eval(), ["layer3", "layer4"])
    pixels = torch.randint(0, 256, (1, 2, 64, 64, 3), dtype=torch.uint8)
    with torch.no_grad():
        x = backbone.prepare(pixels)
        maps = backbone.maps(x, ("stage3", "last"))
        wanted = own(x.transpose(1, 2).flatten(0, 1))
    for cut, layer in (("stage3", "layer3"), ("last", "layer4")):
        off = (maps[cut][0].transpose(0, 1) - wanted[layer]).abs().max()
        assert off < 1e-5 * wanted[layer].abs().max()


def test_torchvision_weights_of_a_file_may_have_a_classifier_and_lack_counters(tmp_path):
    from torchvision.models import get_model

    own = get_model("resnet18", weights=None).state_dict()
    torch.save(
        {k: v for k, v in own.items() if not k.endswith("num_batches_tracked")}, tmp_path / "w.pt"
    )
    backbone = build_backbone("torchvision:resnet18", str(tmp_path / "w.pt"))
    for key, tensor in backbone.model.state_dict().items():
        assert tensor.equal(own[key]), key
    torch.save({k: v for k, v in own.items() if "layer3" not in k}, tmp_path / "less.pt")
    with pytest.raises(ValueError, match=r"the file misses layer3\."):
        build_backbone("torchvision:resnet18", str(tmp_path / "less.pt"))


# One real model per class, without its memory: T, C and grid at `last` are what the papers have.
REAL = {
    "torchvision:r3d_18": (16, 112, (512, 2, 7, 7)),
    "torchvision:s3d": (16, 224, (1024, 2, 7, 7)),
    "torchvision:mvit_v2_s": (16, 224, (768, 8, 7, 7)),
    "torchvision:swin3d_t": (16, 224, (768, 8, 7, 7)),
    "torchvision:vit_b_16": (2, 224, (768, 2, 14, 14)),
    "torchvision:convnext_tiny": (2, 224, (768, 2, 7, 7)),
    "timm:vit_small_patch14_reg4_dinov2": (2, 518, (384, 2, 37, 37)),
    "timm:hiera_tiny_224": (2, 224, (768, 2, 7, 7)),
    "timm:swin_tiny_patch4_window7_224": (2, 224, (768, 2, 7, 7)),
}


@pytest.mark.slow  # without memory, but not without time
@pytest.mark.parametrize("name", REAL)
def test_a_real_model_has_the_map_of_its_paper(name):
    if name.startswith("timm:"):
        needs("timm")
    frames, side, shape = REAL[name]
    with torch.device("meta"):
        backbone = build_backbone(name)
    last = backbone.channels(), backbone.steps(frames), *backbone.grid("last", (side, side))
    assert last == shape
