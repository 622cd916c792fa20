"""Weights of encoders: every class from a folder and from a file, with one checksum."""

import json
import logging

import numpy as np
import pytest
import torch

from pipeline.backbones import build_backbone
from pipeline.stages.config import ExtractConfig
from pipeline.stages.frozen_networks import FrozenNetworks
from pipeline.views.sampling import Sampling
from tests.pipeline.encoders.test_encoders import (
    VIDEO,
    folder,  # noqa: F401 (a fixture)
    needs,
)
from tests.support.tiny_encoders import CONFIGS, PIXELS


@pytest.mark.parametrize("kind", CONFIGS)
def test_folders_and_files_of_both_formats_have_one_checksum(kind, folder, tmp_path):  # noqa: F811
    from safetensors.torch import load_file

    name, safe = f"hf:{folder(kind)}", folder(kind) / "model.safetensors"
    (tmp_path / "bin").mkdir()
    for file in folder(kind).glob("*.json"):
        (tmp_path / "bin" / file.name).write_text(file.read_text())
    torch.save(load_file(safe), tmp_path / "bin" / "pytorch_model.bin")

    whole = build_backbone(name, "pretrained")
    assert len(whole.weights_sha256) == 64
    others = [
        build_backbone(name, str(safe)),
        build_backbone(name, str(folder(kind))),
        build_backbone(name, str(tmp_path / "bin" / "pytorch_model.bin")),
        build_backbone(name, str(tmp_path / "bin")),
        build_backbone(f"hf:{tmp_path / 'bin'}", "pretrained"),
    ]
    for other in others:
        assert other.weights_sha256 == whole.weights_sha256


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_fingerprint_has_the_checksum_of_what_was_loaded(kind, folder, tmp_path):  # noqa: F811
    from safetensors.torch import load_file, save_file

    side = 64 if kind == "Hiera" else 32
    sampling = Sampling(frames=VIDEO.get(kind, 2), size=side)
    changed = load_file(folder(kind) / "model.safetensors")
    for tensor in changed.values():
        if tensor.is_floating_point():
            tensor += 0.01
    save_file(changed, tmp_path / "changed.safetensors")

    found = []
    for weights in ("pretrained", str(folder(kind)), str(tmp_path / "changed.safetensors"), "none"):
        config = ExtractConfig(
            backbone=f"hf:{folder(kind)}", weights=weights, keep=("last",), sampling=sampling
        )
        record = FrozenNetworks(config).record()
        found.append(record["weights"])
        assert str(tmp_path) not in json.dumps(record)
    assert found[0] == found[1]
    assert len({*found}) == 3
    assert found[3] == "none"


def test_timm_refuses_a_file_that_lacks_weights(tmp_path):
    needs("timm")
    import timm
    from safetensors.torch import save_file

    state = timm.create_model("test_vit", num_classes=5).state_dict()
    less = {name: tensor for name, tensor in state.items() if "blocks.1.mlp" not in name}
    torch.save(less, tmp_path / "less.pth")
    save_file({"other": torch.zeros(2)}, tmp_path / "other.safetensors")
    with pytest.raises(ValueError, match=r"the file misses blocks\.1\.mlp\.fc1\.bias"):
        build_backbone("timm:test_vit", str(tmp_path / "less.pth"))
    with pytest.raises(ValueError, match="do not fit: the file misses"):
        build_backbone("timm:test_vit", str(tmp_path / "other.safetensors"))


@pytest.mark.parametrize("model", ["test_convnext", "test_resnet", "test_efficientnet"])
def test_timm_takes_a_folder_and_files_of_both_formats(model, tmp_path):
    needs("timm")
    import timm
    from safetensors.torch import save_file

    torch.manual_seed(1)
    state = timm.create_model(model, num_classes=3).state_dict()
    save_file(state, tmp_path / "model.safetensors")
    torch.save({"state_dict": state}, tmp_path / "weights.pth")
    checksums = set()
    for source in (tmp_path, tmp_path / "model.safetensors", tmp_path / "weights.pth"):
        backbone = build_backbone(f"timm:{model}", str(source))
        checksums.add(backbone.weights_sha256)
        for key, tensor in backbone.model.state_dict().items():
            assert tensor.equal(state[key]), key
    assert len(checksums) == 1


def test_unknown_names_of_timm_come_with_a_handful_of_near_ones():
    needs("timm")
    with pytest.raises(ValueError, match=r"no model 'resnett': did you mean") as error:
        build_backbone("timm:resnett")
    assert len(str(error.value)) < 200
    # Nothing is like it; there are more than a thousand names.
    with pytest.raises(ValueError, match="no model 'qqqq'") as error:
        build_backbone("timm:qqqq")
    assert str(error.value).count(",") <= 6  # five names and a count of all
    with pytest.raises(ValueError, match=r"no weights .*: did you mean resnet18\.a1_in1k"):
        build_backbone("timm:resnet18.a1_in1kk")


def test_code_of_a_folder_whose_type_is_known_is_not_run_either(folder, tmp_path):  # noqa: F811
    import shutil

    shutil.copytree(folder("ViT"), tmp_path / "m")
    (tmp_path / "m" / "own.py").write_text("raise SystemExit('executed')")
    config = json.loads((tmp_path / "m" / "config.json").read_text())
    config["auto_map"] = {"AutoConfig": "own.C", "AutoModel": "own.M"}
    (tmp_path / "m" / "config.json").write_text(json.dumps(config))
    found = build_backbone(f"hf:{tmp_path / 'm'}", "pretrained")
    assert type(found.model).__name__ == "ViTModel"


@pytest.mark.parametrize("kind", ["CLIP", "InternVL"])
def test_of_a_model_of_two_towers_the_one_that_sees_pixels_is_taken(kind, tmp_path):
    needs("transformers")
    import transformers

    vision = CONFIGS[f"{kind}Vision"]
    text = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "vocab_size": 50}
    text |= {"intermediate_size": 16}
    if kind == "InternVL":
        text |= {"model_type": "qwen2", "num_key_value_heads": 2}
    config = getattr(transformers, f"{kind}Config")(vision_config=vision, text_config=text)
    whole = getattr(transformers, f"{kind}Model")(config).eval()
    whole.save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    backbone = build_backbone(f"hf:{tmp_path}", "pretrained").eval()
    frame = torch.randn(1, 3, 1, 32, 32, generator=torch.Generator().manual_seed(0))
    tower = whole.vision_model if kind == "CLIP" else whole.vision_tower
    with torch.no_grad():
        wanted = tower(pixel_values=frame[:, :, 0]).last_hidden_state[0, 1:].T.unflatten(1, (4, 4))
        torch.testing.assert_close(backbone(frame)[0, :, 0], wanted, rtol=1e-5, atol=1e-5)


# What the libraries say


@pytest.mark.parametrize("kind", ["VideoMAE", "ViT"])
def test_what_a_library_says_of_layers_that_are_not_used_stays_off_the_terminal(
    kind, tmp_path, capfd, caplog
):
    needs("transformers")
    import transformers

    sizes = {"decoder_hidden_size": 16, "decoder_num_attention_heads": 2}
    classes = {"VideoMAE": "VideoMAEForPreTraining", "ViT": "ViTForImageClassification"}
    config = getattr(transformers, f"{kind}Config")(**CONFIGS[kind], **sizes)
    getattr(transformers, classes[kind])(config).save_pretrained(tmp_path)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
    logger = logging.getLogger("transformers")
    level = logger.level
    capfd.readouterr()
    backbone = build_backbone(f"hf:{tmp_path}", "pretrained").eval()
    with torch.no_grad():
        backbone(torch.zeros(1, 3, 8, 32, 32))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records
    assert logger.level == level

    # The library would have said something.
    transformers.AutoModel.from_pretrained(tmp_path)
    assert "UNEXPECTED" in caplog.text


def test_what_timm_says_of_a_file_stays_off_the_terminal(tmp_path, capfd, caplog):
    needs("timm")
    import timm

    state = timm.create_model("test_vit", num_classes=5).state_dict()
    torch.save({**state, "extra": torch.zeros(1)}, tmp_path / "w.pth")
    build_backbone("timm:test_vit", str(tmp_path / "w.pth"))
    assert capfd.readouterr() == ("", "")
    assert not caplog.records


# VideoMAE V2


def release_state(seed: int, width: int = 32, layers: int = 3, hidden: int = 64) -> dict:
    """A state dict with the names of VideoMAE V2's release, without a classifier."""
    generator = torch.Generator().manual_seed(seed)

    def random(*shape: int) -> torch.Tensor:
        return 0.1 * torch.randn(shape, generator=generator)

    state = {"patch_embed.proj.weight": random(width, 3, 2, 8, 8)}
    state["patch_embed.proj.bias"] = random(width)
    for number in range(layers):
        block = f"blocks.{number}"
        for norm in ("norm1", "norm2"):
            state[f"{block}.{norm}.weight"] = random(width) + 1
            state[f"{block}.{norm}.bias"] = random(width)
        state[f"{block}.attn.q_bias"] = random(width)
        state[f"{block}.attn.v_bias"] = random(width)
        state[f"{block}.attn.qkv.weight"] = random(3 * width, width)
        for layer, ins, outs in (
            ("attn.proj", width, width),
            ("mlp.fc1", width, hidden),
            ("mlp.fc2", hidden, width),
        ):
            state[f"{block}.{layer}.weight"] = random(outs, ins)
            state[f"{block}.{layer}.bias"] = random(outs)
    return state


def release_tokens(state: dict, clip: torch.Tensor, heads: int = 2, layers: int = 3):
    """The tokens [n,D] of one clip [3,F,H,W] behind the blocks, by the paper's layers in numpy."""
    from math import erf

    state = {name: tensor.double().numpy() for name, tensor in state.items()}
    kernel, bias = state["patch_embed.proj.weight"], state["patch_embed.proj.bias"]
    pixels, width, tokens = clip.double().numpy(), len(bias), []
    _, F, H, W = pixels.shape
    for t in range(F // 2):
        for i in range(H // 8):
            for j in range(W // 8):
                cube = pixels[:, 2 * t : 2 * t + 2, 8 * i : 8 * i + 8, 8 * j : 8 * j + 8]
                tokens.append((kernel * cube).sum((1, 2, 3, 4)) + bias)
    x = np.array(tokens)
    for place in range(len(x)):
        for channel in range(width):
            angle = place / 10000 ** (2 * (channel // 2) / width)
            x[place, channel] += np.sin(angle) if channel % 2 == 0 else np.cos(angle)

    def norm(y, name):
        y = y - y.mean(-1, keepdims=True)
        y = y / np.sqrt((y**2).mean(-1, keepdims=True) + 1e-6)
        return y * state[f"{name}.weight"] + state[f"{name}.bias"]

    def linear(y, name):
        return y @ state[f"{name}.weight"].T + state[f"{name}.bias"]

    for number in range(layers):
        block, each = f"blocks.{number}", width // heads
        y = norm(x, f"{block}.norm1") @ state[f"{block}.attn.qkv.weight"].T
        q, k, v = y[:, :width], y[:, width : 2 * width], y[:, 2 * width :]
        q, v = q + state[f"{block}.attn.q_bias"], v + state[f"{block}.attn.v_bias"]
        parts = []
        for head in range(heads):
            own = slice(head * each, (head + 1) * each)
            scores = np.exp(q[:, own] @ k[:, own].T / each**0.5)
            parts.append(scores / scores.sum(-1, keepdims=True) @ v[:, own])
        x = x + linear(np.concatenate(parts, -1), f"{block}.attn.proj")
        y = linear(norm(x, f"{block}.norm2"), f"{block}.mlp.fc1")
        y = y * 0.5 * (1 + np.vectorize(erf)(y / 2**0.5))
        x = x + linear(y, f"{block}.mlp.fc2")
    return torch.from_numpy(x)


@pytest.mark.parametrize("kind", ["classifier", "masking"])
def test_weights_of_videomae_v2_as_released_give_its_features(kind, folder, tmp_path):  # noqa: F811
    state = release_state(0)
    clip = torch.randn(1, 3, 8, 32, 32, generator=torch.Generator().manual_seed(2))
    wanted = release_tokens(state, clip[0])
    if kind == "classifier":  # norms the mean of tokens: a map has no norm
        extra = {"fc_norm.weight": torch.ones(32), "fc_norm.bias": torch.zeros(32)}
        extra |= {"head.weight": torch.zeros(5, 32), "head.bias": torch.zeros(5)}
        torch.save({"module": {**state, **extra}}, tmp_path / "v2.pth")
    else:
        named = {f"encoder.{name}": tensor for name, tensor in state.items()}
        named |= {"encoder.norm.weight": torch.ones(32), "encoder.norm.bias": torch.zeros(32)}
        named |= {"mask_token": torch.zeros(1, 1, 16), "decoder.head.weight": torch.zeros(4, 16)}
        torch.save({"model": named}, tmp_path / "v2.pth")
        mean = wanted.mean(-1, keepdim=True)
        wanted = (wanted - mean) / (wanted.var(-1, unbiased=False, keepdim=True) + 1e-6).sqrt()

    backbone = build_backbone(f"hf:{folder('VideoMAE')}", str(tmp_path / "v2.pth")).eval()
    with torch.no_grad():
        found = backbone(clip)[0].flatten(1).T  # [n,D], T before h and w
    torch.testing.assert_close(found.double(), wanted, rtol=1e-5, atol=1e-5)


def test_weights_of_videomae_v2_that_lack_a_block_are_refused(folder, tmp_path):  # noqa: F811
    torch.save(release_state(0, layers=2), tmp_path / "v2.pth")
    with pytest.raises(ValueError, match=r"the file misses encoder\.layer\.2"):
        build_backbone(f"hf:{folder('VideoMAE')}", str(tmp_path / "v2.pth"))
