"""Folders of transformers that are incomplete or damaged, and what the messages say of them."""

import json
import shutil

import pytest

from pipeline.backbones import build_backbone
from tests.pipeline.encoders.test_encoders import folder  # noqa: F401 (a fixture)
from tests.support.tiny_encoders import save_encoder


@pytest.fixture
def broken(folder, tmp_path):  # noqa: F811
    """A copy of a whole folder, to damage."""
    return shutil.copytree(folder("ViT"), tmp_path / "broken")


@pytest.mark.parametrize("whose", ["its own", "given"])
def test_a_damaged_file_of_safetensors_in_a_folder_is_named_in_one_line(whose, folder, broken):  # noqa: F811
    file = broken / "model.safetensors"
    file.write_bytes(file.read_bytes()[:3000])
    name, weights = f"hf:{broken}", "pretrained"
    if whose == "given":
        name, weights = f"hf:{folder('ViT')}", str(broken)
    with pytest.raises(ValueError, match=r"broken: a damaged file of safetensors .*again") as error:
        build_backbone(name, weights)
    assert "\n" not in str(error.value)


def test_weights_of_another_shape_are_named_with_both_shapes(folder, tmp_path):  # noqa: F811
    wide = save_encoder(tmp_path / "wide", "ViT", intermediate_size=48)
    expected = r"weights .*wide: do not fit .*has the shape \[48\], expected \[64\]"
    with pytest.raises(ValueError, match=expected):
        build_backbone(f"hf:{folder('ViT')}", str(wide))


def test_a_classifier_of_other_classes_is_no_obstacle(folder, tmp_path):  # noqa: F811
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder("ViT"), num_labels=7)
    transformers.ViTForImageClassification(config).save_pretrained(tmp_path / "seven")
    assert build_backbone(f"hf:{folder('ViT')}", str(tmp_path / "seven")).weights_sha256


def test_a_folder_without_a_configuration_or_weights_says_what_it_lacks(broken):
    (broken / "model.safetensors").unlink()
    with pytest.raises(ValueError, match=r"weights .*broken: .*no file named model\.safetensors"):
        build_backbone(f"hf:{broken}", "pretrained")
    (broken / "config.json").write_text("{")
    with pytest.raises(ValueError, match=r"broken: its config\.json cannot be read"):
        build_backbone(f"hf:{broken}", "none")
    (broken / "config.json").unlink()
    with pytest.raises(ValueError, match=r"broken: expected a config\.json in this folder"):
        build_backbone(f"hf:{broken}", "none")


def test_a_name_that_is_neither_folder_nor_repository_is_not_called_weights(monkeypatch):
    transformers = pytest.importorskip("transformers")

    def no_network(*args, **kwargs):
        raise OSError("We couldn't connect")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", no_network)
    with pytest.raises(OSError, match=r"hf:tinny: there is no such folder, and .*couldn't connect"):
        build_backbone("hf:tinny", "none")


@pytest.mark.parametrize(
    "options", [{"mean": [0.5, 0.5, 0.5]}, {"std": [0.5, 0.5, 0.5]}, {"mean": [0.5], "std": [0.5]}]
)
def test_half_a_normalisation_is_refused_and_not_replaced_by_the_folder_s(options, broken):
    assert json.loads((broken / "preprocessor_config.json").read_text())["image_mean"]
    with pytest.raises(ValueError, match="expected mean and std of three numbers each"):
        build_backbone(f"hf:{broken}", "none", **options)
