"""docs/backbones.md: its table is what the backbones compute."""

import json
import re
import shlex
from math import prod
from pathlib import Path

import pytest
import torch

from pipeline.backbones import backbone_names, build_backbone
from tests.support.tiny_encoders import CONFIGS, PIXELS

PAGE = (Path(__file__).parents[1] / "docs" / "backbones.md").read_text()
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")]
    for line in PAGE.splitlines()
    if line.startswith("| `--backbone")
]
BY_NAME = {shlex.split(row[0].strip("`"))[1]: row for row in ROWS}
# Options of the published models that are not their classes' defaults.
LARGE = {"hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16}
PUBLISHED = {
    "VJEPA2": LARGE,
    "Dinov2": {**LARGE, "image_size": 518, "patch_size": 14},
    "DINOv3ViT": {"num_register_tokens": 4},
    "CLIPVision": {"patch_size": 16},
}


def fields(row: list[str]) -> tuple[str, int, int, str, tuple[int, ...]]:
    """(name, frames, side, cut, (C, T, h, w)) of a row."""
    words = shlex.split(row[0].strip("`"))
    assert words[::2] == ["--backbone", "--frames", "--size"]
    shape = tuple(int(number) for number in row[3].split(" × "))
    return words[1], int(words[3]), int(words[5]), row[2].strip("`"), shape


def test_bytes_are_those_of_the_maps_in_float16():
    for row in ROWS:
        shape = fields(row)[-1]
        assert row[4] == f"{2 * prod(shape) / 1e6:.2f} MB", row


def test_every_backbone_of_ours_and_every_tested_class_has_a_row():
    ours = {name for name in backbone_names() if not name.startswith("digit_")}
    assert ours <= set(BY_NAME)
    classes = {row[1].strip("`") for name, row in BY_NAME.items() if name.startswith("hf:")}
    assert classes == set(CONFIGS)


@pytest.mark.parametrize("name", [name for name in BY_NAME if ":" not in name])
def test_a_row_of_ours_is_what_is_computed(name):
    for row in ROWS:
        found, frames, side, cut, shape = fields(row)
        if found == name:
            with torch.device("meta"):
                backbone = build_backbone(name)
            grid = backbone.grid(cut, (side, side))
            assert (backbone.channels(cut), backbone.steps(frames, cut), *grid) == shape


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in BY_NAME if ":" in name])
def test_a_row_of_an_encoder_is_what_its_library_computes(name, tmp_path):
    _, frames, side, cut, shape = fields(BY_NAME[name])
    if name.startswith("timm:"):
        pytest.importorskip("timm", reason="pip install 'vidgraph[timm]'")
    if name.startswith("hf:"):
        transformers = pytest.importorskip(
            "transformers", reason="pip install 'vidgraph[transformers]'"
        )
        kind = re.sub("`", "", BY_NAME[name][1])
        config = getattr(transformers, f"{kind}Config")(**PUBLISHED.get(kind, {}))
        config.save_pretrained(tmp_path)
        (tmp_path / "preprocessor_config.json").write_text(json.dumps(PIXELS))
        name = f"hf:{tmp_path}"
    with torch.device("meta"):
        backbone = build_backbone(name)
    grid = backbone.grid(cut, (side, side))
    assert (backbone.channels(cut), backbone.steps(frames, cut), *grid) == shape
