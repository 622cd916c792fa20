"""Weights of other projects: they compute here what they compute there, or are refused by name.

The networks of `tests.support.other_networks` are written anew from the projects' model files. The
projects' own code was run beside them, outside of these tests: docs/weights.md says which, and how
far the results were apart.
"""

import importlib
import pickle
import re
from pathlib import Path

import pytest
import torch
import torchvision
from torch import nn

from pipeline.backbones import build_backbone
from pipeline.backbones._checkpoints import load
from tests.support.other_networks import (
    C2D_TAPS,
    HEAVY_TAPS,
    I3D_TAPS,
    Shifted,
    caffe2_blobs,
    caffe2_file,
    caffe2_maps,
    mmaction2_maps,
    mmaction2_state,
    shifted,
)
from tests.support.python2_pickles import write_as_python2
from tests.support.tiny_backbone import frames, lively, relative, tiny

PARITY = Path(__file__).parents[2] / "parity"
NON_LOCAL = ("3_1", "3_3", "4_1", "4_3", "4_5")
# Options of docs/weights.md.
EIGHT = {"pool1_time": 1, "pool1_pad": 0, "pool2_time": 2}
THIRTY_TWO = {**EIGHT, "conv1_stride": 2, "pool1_time": 2, "pool1_stride": 2}
ZOO = {"pool1_time": 1, "pool2_time": 2}
NO_POOL = {"pool1_time": 1, "pool2_time": 1}


@pytest.fixture
def read_parity(monkeypatch):
    """The function that reads a case of tests/parity."""
    monkeypatch.syspath_prepend(PARITY)
    return importlib.import_module("check_parity").read


@torch.no_grad()
def assert_same_maps(backbone, expected, given):
    """Every stage computes these maps from frames uint8 [B,F,H,W,3]."""
    maps = backbone.eval().maps(backbone.prepare(given), tuple(expected))
    for cut, map_there in expected.items():
        assert maps[cut].shape == map_there.shape, cut
        assert relative(maps[cut], map_there) < 1e-4, cut


def refused(path, name, **options):
    """The message of a refusal."""
    with pytest.raises(ValueError, match="do not fit") as caught:
        build_backbone(name, path, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


# Caffe2: video-nonlocal-net and PySlowFast's model zoo.

CAFFE2 = {
    "video-nonlocal-net, I3D 8x8": (
        *("i3d_r50", {"temporal": "alternating", **EIGHT}),
        *({"taps": I3D_TAPS}, {"pool1": (1, 1, 0)}),
    ),
    "video-nonlocal-net, I3D 32x2": (
        *("i3d_r50", {"temporal": "alternating", **THIRTY_TWO}),
        *({"taps": I3D_TAPS}, {"conv1_stride": 2, "pool1": (2, 2, 0)}),
    ),
    "video-nonlocal-net, I3D NL 8x8": (
        *("i3d_r50_nl", EIGHT),
        *({"taps": I3D_TAPS, "non_local": NON_LOCAL}, {"pool1": (1, 1, 0)}),
    ),
    "video-nonlocal-net, C2D 8x8": (
        *("c2d_r50", EIGHT),
        *({"taps": C2D_TAPS}, {"pool1": (1, 1, 0)}),
    ),
    "video-nonlocal-net, frozen norms": (
        *("i3d_r50", {"temporal": "alternating", **EIGHT}),
        *({"taps": I3D_TAPS, "affine": True}, {"pool1": (1, 1, 0)}),
    ),
    "PySlowFast, I3D_8x8_R50": (
        *("i3d_r50", {"temporal": "alternating", **ZOO}),
        *({"taps": I3D_TAPS}, {"pool1": (1, 1, 1)}),
    ),
    "PySlowFast, I3D_NLN_8x8_R50": (
        *("i3d_r50_nl", ZOO),
        *({"taps": I3D_TAPS, "non_local": NON_LOCAL}, {"pool1": (1, 1, 1)}),
    ),
    "PySlowFast, C2D_NOPOOL_8x8_R50": (
        *("c2d_r50", NO_POOL),
        *({"taps": C2D_TAPS}, {"pool1": (1, 1, 1), "pool2": 1}),
    ),
}


@pytest.mark.parametrize("file", CAFFE2)
def test_a_network_of_caffe2_computes_what_it_computed_there(file, tmp_path):
    name, options, made, run = CAFFE2[file]
    blobs = caffe2_blobs(8, **made)
    write_as_python2(tmp_path / "model.pkl", caffe2_file(blobs))
    backbone = build_backbone(name, tmp_path / "model.pkl", width=8, **options)
    given = frames(1, 8, 64, 48)
    with torch.no_grad():
        expected = caffe2_maps(blobs, given, **run)
    assert_same_maps(backbone, expected, given)


def test_caffe2s_running_inverse_variance_is_the_variance(tmp_path):
    """lib/utils/bn_helper.py of video-nonlocal-net: "riv is acutally running var"."""
    blobs = caffe2_blobs(8, I3D_TAPS)
    write_as_python2(tmp_path / "model.pkl", caffe2_file(blobs))
    backbone = build_backbone("i3d_r50", tmp_path / "model.pkl", width=8, temporal="alternating")
    norm = backbone.res4[5].bn3
    assert torch.equal(norm.running_var, blobs["res4_5_branch2c_bn_riv"])
    assert torch.equal(norm.running_mean, blobs["res4_5_branch2c_bn_rm"])
    assert torch.equal(norm.weight, blobs["res4_5_branch2c_bn_s"])
    assert norm.eps == 1e-5


def test_names_of_published_blobs_have_the_published_shapes():
    """At width 64, as `lib/models/resnet_helper.py` builds them for ResNet-50."""
    blobs = {name: tuple(b.shape) for name, b in caffe2_blobs(8, I3D_TAPS).items()}
    assert blobs["conv1_w"] == (8, 3, 5, 7, 7)
    assert blobs["res2_0_branch2a_w"] == (8, 8, 3, 1, 1)
    assert blobs["res5_0_branch2a_w"] == (64, 128, 1, 1, 1)
    assert blobs["res5_1_branch2a_w"] == (64, 256, 3, 1, 1)
    assert len([name for name in blobs if name.endswith("branch2b_w")]) == 16


def write_blobs(path, blobs):
    path.write_bytes(pickle.dumps(caffe2_file(blobs), protocol=2))
    return path


def test_blobs_without_statistics_whose_scales_may_mean_two_things_are_refused(tmp_path):
    blobs = caffe2_blobs(8, I3D_TAPS, affine=True)
    arrays = {name: value.numpy() for name, value in blobs.items()}
    (tmp_path / "model.pkl").write_bytes(pickle.dumps({**arrays, "lr": 0.01}, protocol=0))
    message = refused(tmp_path / "model.pkl", "i3d_r50", width=8, temporal="alternating")
    assert "its norms have scales and no statistics" in message
    assert "modify_blob_rm.py" in message
    assert "take the file that it was made from" in message


def test_non_local_blocks_that_look_at_groups_of_steps_are_refused(tmp_path):
    blobs = caffe2_blobs(8, I3D_TAPS, non_local=NON_LOCAL, affine=True)
    for name in list(blobs):
        if name.startswith("nonlocal") and "_bn_" in name:
            del blobs[name]
    path = write_blobs(tmp_path / "model.pkl", blobs)
    message = refused(path, "i3d_r50_nl", width=8)
    assert "its non-local blocks of res3 look at 4 steps at a time" in message
    assert "take the 32x2 or 8x8 file" in message


def test_an_image_network_of_caffe2_is_refused(tmp_path):
    blobs = caffe2_blobs(8, C2D_TAPS)
    flat = {name: value.squeeze(2) if value.dim() == 5 else value for name, value in blobs.items()}
    path = write_blobs(tmp_path / "model.pkl", flat)
    assert "it is an image network of Caffe2" in refused(path, "c2d_r50", width=8)
    assert "pass imagenet" in refused(path, "i3d_r50", width=8)


# mmaction2.

MMACTION2 = {
    "I3D": (
        *("i3d_r50", {"temporal": "alternating", **ZOO, "conv1_stride": 2, "pool1_stride": 2}),
        *({"taps": I3D_TAPS}, {"stem_steps": 2, "pool2": 2}),
    ),
    "I3D heavy": (
        *("i3d_r50", {"temporal": "every", **ZOO}),
        *({"taps": HEAVY_TAPS}, {"pool2": 2}),
    ),
    "C2D": ("c2d_r50", EIGHT, {"taps": C2D_TAPS, "flat": True}, {"pool1_pad": 0, "pool2": 2}),
    "C2D without pool": (
        *("c2d_r50", {**NO_POOL, "pool1_pad": 0}),
        *({"taps": C2D_TAPS, "flat": True}, {"pool1_pad": 0}),
    ),
    "TSM": ("tsm_r50", {}, {"taps": C2D_TAPS, "flat": True, "net": "net."}, {"shift": 8}),
    "TSN": ("tsm_r50", {"shift": 0}, {"taps": C2D_TAPS, "flat": True}, {}),
}


@pytest.mark.parametrize("wrapper", ["", "module."])
@pytest.mark.parametrize("kind", MMACTION2)
def test_a_network_of_mmaction2_computes_what_it_computed_there(kind, wrapper, tmp_path):
    name, options, made, run = MMACTION2[kind]
    state = mmaction2_state(8, **made)
    meta = {"mmaction_version": "1.2.0", "cfg": "model = dict(type='Recognizer3D')"}
    wrapped = {wrapper + key: value for key, value in state.items()}
    torch.save({"meta": meta, "state_dict": wrapped}, tmp_path / "mmaction2.pth")
    backbone = build_backbone(name, tmp_path / "mmaction2.pth", width=8, **options)
    given = frames(1, 8, 64, 48)
    with torch.no_grad():
        expected = mmaction2_maps(state, given, **run)
    assert_same_maps(backbone, expected, given)


# TSM's release.


def tsm_of_the_release(depth, segments, wrap=True):
    """A torchvision ResNet with `Shifted` first convolutions, inside what TSM's programs save."""
    torch.manual_seed(0)
    network = lively(getattr(torchvision.models, f"resnet{depth}")(weights=None)).eval()
    network.fc = nn.Dropout(0.5)
    if wrap:
        for stage in (network.layer1, network.layer2, network.layer3, network.layer4):
            for block in stage:
                block.conv1 = Shifted(block.conv1, segments)
    model = nn.ModuleDict({"base_model": network, "new_fc": nn.Linear(8, 174)})
    return network, nn.DataParallel(model).state_dict()


@pytest.mark.parametrize(("depth", "name"), [(18, "tsm_r18"), (50, "tsm_r50")])
@torch.no_grad()
def test_tsms_own_files_compute_what_they_computed_there(depth, name, tmp_path):
    network, state = tsm_of_the_release(depth, segments=4)
    assert "module.base_model.layer1.0.conv1.net.weight" in state
    saved = {"epoch": 45, "arch": "resnet50", "state_dict": state, "best_prec1": torch.tensor(61.2)}
    torch.save(saved, tmp_path / "TSM.pth")
    backbone = build_backbone(name, tmp_path / "TSM.pth")

    given = frames(1, 4, 64, 48)
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    x = ((given[0] / 255 - mean) / std).permute(0, 3, 1, 2)
    x = network.maxpool(network.relu(network.bn1(network.conv1(x))))
    expected = {}
    for number in (1, 2, 3, 4):
        x = getattr(network, f"layer{number}")(x)
        expected[f"res{number + 1}"] = x.transpose(0, 1)[None]
    assert_same_maps(backbone, expected, given)


def test_the_reference_shift_is_the_one_of_tsms_paper():
    """Fig. 1: an eighth of the channels from the next frame, an eighth from the one before."""
    x = torch.arange(1.0, 4)[None, :, None, None, None].expand(1, 3, 16, 1, 1)
    found = shifted(x, 8)[0, :, :, 0, 0]
    assert found[:, 0].tolist() == [2, 3, 0]
    assert found[:, 2].tolist() == [0, 1, 2]
    assert found[:, 4].tolist() == [1, 2, 3]


@pytest.mark.parametrize(
    ("wrap", "name", "options", "said"),
    [
        (True, "tsm_r18", {"shift": 0}, "it is a TSM network; pass --set backbone_options.shift=8"),
        (True, "resnet18", {}, "it is a TSM network, .*use the backbone tsm_r50 or tsm_r18"),
        (False, "tsm_r18", {}, r"2-D network \(TSN\).*pass --set backbone_options.shift=0"),
    ],
)
def test_a_shift_that_the_weights_had_must_be_there_and_no_other(
    wrap, name, options, said, tmp_path
):
    torch.save({"state_dict": tsm_of_the_release(18, 4, wrap)[1]}, tmp_path / "TSM.pth")
    with pytest.raises(ValueError, match=said):
        build_backbone(name, tmp_path / "TSM.pth", **options)


def test_advice_names_the_backbone_with_the_shift(tmp_path):
    torch.save({"state_dict": tsm_of_the_release(18, 4)[1]}, tmp_path / "TSM.pth")
    message = refused(tmp_path / "TSM.pth", "i3d_r50")
    assert message.endswith("they fit the backbone tsm_r18")


# EAN's release.


@pytest.mark.parametrize("segments", [8, 16])
@torch.no_grad()
def test_eans_own_file_computes_what_it_computed_there(segments, read_parity, tmp_path):
    """The outputs are those of the released code (tests/parity), its weights in its own names."""
    options = {"variant": "released", "lmc": True, "segments": segments}
    backbone = build_backbone("ean_r50", **options)
    if segments == 16 and "stem.lmc.leave.0.weight" not in backbone.state_dict():
        pytest.skip("the release's motion layers for 16 segments are not built")
    about, groups = read_parity(PARITY / f"ean_whole_{segments}.npz")
    state = {}
    for name, value in groups["release_state"].items():
        place = name if name.startswith("new_fc.") else f"base_model.{name}"
        state[f"module.{place}"] = torch.as_tensor(value)
    # The release declares these and never uses them.
    for name in ("bn2.weight", "stm_proj2.0.weight", "relation1.bn2.running_mean"):
        state[f"module.base_model.{name}"] = torch.ones(3)
    torch.save({"epoch": 45, "best_prec1": 53.4, "state_dict": state}, tmp_path / "EAN.pth.tar")

    load(backbone, tmp_path / "EAN.pth.tar")
    backbone.double().eval()
    assert backbone.mean == pytest.approx((0.485, 0.456, 0.406))
    x = torch.as_tensor(groups["input"]["frames"]).double()
    maps = backbone.maps(x, about["cuts"])
    for cut in about["cuts"]:
        expected = torch.as_tensor(groups["output"][f"means/{cut}"])
        found = maps[cut].mean((2, 3, 4))
        # Weights of the file are float64 here, those of a backbone float32.
        assert relative(found, expected) < 1e-5, cut


def test_eans_file_needs_the_choices_of_the_release(read_parity, tmp_path):
    _, groups = read_parity(PARITY / "ean_whole_8.npz")
    state = {key: torch.as_tensor(value) for key, value in groups["release_state"].items()}
    torch.save({"state_dict": state}, tmp_path / "EAN.pth")
    options = {"variant": "released", "lmc": True}
    message = refused(tmp_path / "EAN.pth", "ean_r50", **options, pool="avg")
    assert message.endswith("EAN's release has pool=max; pass --set backbone_options.pool=max")


# PySlowFast's own files: the settings beside the weights.


def as_pyslowfast(state):
    """Our state dict under PySlowFast's names, as in test_checkpoints.py, read off blobs."""
    from tests.pipeline.backbones.test_checkpoints import as_pyslowfast as renamed

    return renamed(state)


SETTINGS = """\
DATA:
  MEAN:
  - 0.1
  - 0.2
  - 0.3
  STD: [0.4, 0.5,
    0.6]
  REVERSE_INPUT_CHANNEL: {reverse}
MODEL:
  ARCH: i3d
NONLOCAL:
  GROUP:
  - - {group}
  - - 1
  INSTANTIATION: {kind}
  POOL:
  - - - 1
      - {pool}
      - {pool}
RESNET:
  SPATIAL_DILATIONS: [[1], [1], [1], [{dilation}]]
  STRIDE_1X1: {stride}
TRAIN:
  DATASET: {dataset}
"""
USUAL = {
    **{"reverse": "false", "group": 1, "kind": "softmax", "pool": 2, "dilation": 1},
    **{"stride": "false", "dataset": "kinetics"},
}


def pyslowfast_file(path, name="i3d_r50", **settings):
    trained = tiny(name, seed=1, temporal="alternating")
    text = SETTINGS.format(**{**USUAL, **settings})
    state = as_pyslowfast(trained.state_dict())
    torch.save({"epoch": 1, "model_state": state, "cfg": text}, path)
    return trained


@pytest.mark.parametrize(
    ("dataset", "reverse", "blue_first", "turned_mean"),
    [
        ("kinetics", "false", False, False),
        ("kinetics", "true", True, False),
        # OpenCV reads these, blue first.
        ("ssv2", "true", False, True),
        ("charades", "false", True, True),
        ("ptvssv2", "true", False, False),
    ],
)
@torch.no_grad()
def test_pixels_are_those_of_the_settings_in_pyslowfasts_files(
    dataset, reverse, blue_first, turned_mean, tmp_path
):
    path = tmp_path / "checkpoint_epoch_00196.pyth"
    trained = pyslowfast_file(path, dataset=dataset, reverse=reverse)
    loaded = build_backbone("i3d_r50", path, width=8, temporal="alternating").eval()

    given = frames()
    mean, std = torch.tensor([0.1, 0.2, 0.3]), torch.tensor([0.4, 0.5, 0.6])
    read = given.flip(-1) if turned_mean else given
    pixels = (read / 255 - mean) / std
    # In the order of the file, whatever was read.
    if turned_mean != blue_first:
        pixels = pixels.flip(-1)
    x = pixels.permute(0, 4, 1, 2, 3)
    assert relative(loaded(loaded.prepare(given)), trained(x)) < 1e-5


def test_settings_that_change_pixels_are_a_part_of_the_checksum(tmp_path):
    """A cache that was made without them is another one."""
    path = tmp_path / "w.pyth"
    pyslowfast_file(path)
    changed = build_backbone("i3d_r50", path, width=8, temporal="alternating").weights_sha256
    state = torch.load(path, weights_only=True)
    state["cfg"] = state["cfg"].replace("MEAN", "MIDDLE").replace("STD:", "SPREAD:")
    torch.save(state, path)
    from pipeline.files.atomic_files import sha256_of

    plain = build_backbone("i3d_r50", path, width=8, temporal="alternating")
    assert plain.weights_sha256 == sha256_of(path) != changed
    assert plain.mean == pytest.approx((0.45,) * 3)


@pytest.mark.parametrize(
    ("name", "settings", "said"),
    [
        ("i3d_r50", {"stride": "true"}, "STRIDE_1X1 puts strides into the 1×1 convolutions"),
        ("i3d_r50", {"dilation": 2}, "SPATIAL_DILATIONS dilates a stage"),
        ("i3d_r50_nl", {"group": 4}, "NONLOCAL.GROUP cuts time into pieces"),
        ("i3d_r50_nl", {"kind": "dot_product"}, "backbone_options.non_local=dot_product"),
        ("i3d_r50_nl", {"pool": 1}, "backbone_options.non_local_pool=false"),
    ],
)
def test_settings_of_another_network_are_refused(name, settings, said, tmp_path):
    pyslowfast_file(tmp_path / "w.pyth", name, **settings)
    message = refused(tmp_path / "w.pyth", name, width=8, temporal="alternating")
    assert said in message


def test_settings_that_fit_load(tmp_path):
    pyslowfast_file(tmp_path / "w.pyth", "i3d_r50_nl", kind="dot_product", pool=1)
    options = {"non_local": "dot_product", "non_local_pool": False}
    assert build_backbone("i3d_r50_nl", tmp_path / "w.pyth", width=8, **options).weights_sha256


# Networks that no backbone computes, by their names.


def of_torchvision(name):
    with torch.device("meta"):
        state = getattr(torchvision.models.video, name)(weights=None).state_dict()
    return {key: torch.zeros(value.shape) for key, value in state.items() if value.numel() < 1e5}


def named(*names):
    return lambda: {name: torch.zeros(2, 3, 1, 1, 1) for name in names}


def hara():
    """kenshohara/3D-ResNets-PyTorch: torchvision's names with 3×3×3 kernels."""
    state = mmaction2_state(8, C2D_TAPS)
    renamed = {}
    for key, value in state.items():
        key = key.removeprefix("backbone.").replace(".conv.weight", ".weight")
        if key.endswith("conv2.weight"):
            value = torch.zeros(*value.shape[:2], 3, 3, 3)
        renamed[key] = value
    return renamed


def slow():
    late = ((1,) * 3, (1,) * 4, (3,) * 6, (3,) * 3)
    return caffe2_blobs(8, late)


def flow():
    state = tsm_of_the_release(18, 4)[1]
    return {**state, "module.base_model.conv1.weight": torch.zeros(64, 10, 7, 7)}


STRANGERS = {
    "torchvision r3d_18": (lambda: of_torchvision("r3d_18"), "r3d_18 or mc3_18"),
    "torchvision mc3_18": (lambda: of_torchvision("mc3_18"), "r3d_18 or mc3_18"),
    "torchvision r2plus1d_18": (lambda: of_torchvision("r2plus1d_18"), r"R\(2\+1\)D"),
    "torchvision s3d": (lambda: of_torchvision("s3d"), "torchvision's S3D"),
    "torchvision mvit_v2_s": (lambda: of_torchvision("mvit_v2_s"), "a transformer"),
    "torchvision swin3d_t": (lambda: of_torchvision("swin3d_t"), "a transformer"),
    "SlowFast": (named("s2.pathway1_res0.branch2.a.weight"), "SlowFast network"),
    "SlowFast, Caffe2": (named("conv1_w", "t_res2_0_branch2a_w"), "SlowFast network"),
    "SlowFast, mmaction2": (named("backbone.fast_path.conv1.conv.weight"), "SlowFast network"),
    "X3D": (named("s1.pathway0_stem.conv_xy.weight"), "an X3D network"),
    "Inception": (named("module.Mixed_3b.b0.conv3d.weight"), "Inception-v1"),
    "TSM tpool": (named("module.base_model.layer2.net.0.conv1.net.weight"), "maximum over time"),
    "TSM block": (named("module.base_model.layer2.0.net.conv1.weight"), "shortcut included"),
    "TSM on 101": (named("module.base_model.layer3.22.conv1.net.weight"), "TSM on ResNet-101"),
    "TSM nl": (named("module.base_model.layer2.0.block.conv1.net.weight"), "no _nl in its name"),
    "TSM MobileNet": (named("module.base_model.features.2.conv.0.net.weight"), "a MobileNet"),
    "TSM BNInception": (named("module.base_model.conv1_7x7_s2.weight"), "BNInception"),
    "mmaction2 nl": (named("backbone.layer2.1.non_local_block.g.0.conv.weight"), "mmaction2"),
    "detectron2": (named("res2.0.conv1.norm.weight", "stem.conv1.weight"), "it sees BGR"),
    "Detectron": (named("conv_rpn_fpn2_w"), "--proposals detectron2"),
    "C3D": (named("conv3a.weight"), "a C3D network"),
    "3x3x3": (hara, "3×3×3 convolutions"),
    "Slow": (slow, "it is a Slow network"),
    "flow": (flow, "takes 10 channels.*take the RGB file"),
}


@pytest.mark.parametrize("kind", STRANGERS)
def test_a_network_that_no_backbone_computes_is_named_with_what_would_help(kind, tmp_path):
    make, said = STRANGERS[kind]
    torch.save({"state_dict": make()}, tmp_path / "weights.pth")
    name = "tsm_r18" if kind == "flow" else "c2d_r50"
    with pytest.raises(ValueError, match=f"do not fit {name}: .*{said}") as caught:
        build_backbone(name, tmp_path / "weights.pth", width=64 if kind == "flow" else 8)
    message = str(caught.value)
    assert "\n" not in message
    helps = ("I3D_8x8_R50.pkl", "TSM_", "pass imagenet", "take ", "model zoo")
    assert any(word in message for word in helps), message


@pytest.mark.parametrize("name", ["i3d_r50", "i3d_r50_nl", "tsm_r50", "ean_r50", "digit_cnn"])
def test_our_own_weights_are_no_strangers(name, tmp_path):
    torch.save({"backbone": tiny(name, seed=1).state_dict()}, tmp_path / "ours.pth")
    assert build_backbone(name, tmp_path / "ours.pth", width=8).weights_sha256


@pytest.mark.parametrize("prefix", ["base_model.", "module.base_model.", "layer1.0.conv1.net."])
def test_our_own_weights_load_below_prefixes_that_tsm_uses(prefix, tmp_path):
    state = tiny("tsm_r18", seed=1).state_dict()
    torch.save({prefix + key: value for key, value in state.items()}, tmp_path / "ours.pth")
    assert build_backbone("tsm_r18", tmp_path / "ours.pth", width=8).weights_sha256


# Prefixes.


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.module.", "model._orig_mod.", "net."])
def test_released_files_load_below_the_prefixes_of_wrappers(prefix, tmp_path):
    state = mmaction2_state(8, I3D_TAPS)
    wrapped = {prefix + key: value for key, value in state.items()}
    # As Lightning keeps it, with its own tables beside the weights.
    lightning = {"pytorch-lightning_version": "2.2.0", "epoch": 3, "loops": {}, "callbacks": {}}
    torch.save({**lightning, "state_dict": wrapped}, tmp_path / "last.ckpt")
    loaded = build_backbone("i3d_r50", tmp_path / "last.ckpt", width=8, temporal="alternating")
    key = "backbone.layer3.2.conv1.conv.weight"
    assert torch.equal(loaded.res4[2].conv1.weight, state[key])


def test_a_file_of_caffe2_that_would_run_code_is_refused(tmp_path):
    class Runs:
        def __reduce__(self):
            return open, (str(tmp_path / "ran"), "w")

    saved = caffe2_file(caffe2_blobs(8, C2D_TAPS))
    saved["blobs"]["conv1_w"] = Runs()
    (tmp_path / "model.pkl").write_bytes(pickle.dumps(saved))
    with pytest.raises(ValueError, match=r"loading it would execute \w+\.open: refused"):
        build_backbone("c2d_r50", tmp_path / "model.pkl", width=8)
    assert not (tmp_path / "ran").exists()


# docs/weights.md.


def value_of(text):
    """An option's value as the command line reads it."""
    if text in ("true", "false"):
        return text == "true"
    return int(text) if text.isdigit() else text


def test_the_options_in_the_table_of_files_are_those_that_the_tests_use():
    page = (PARITY.parents[1] / "docs" / "weights.md").read_text()
    table = page.split("## Files that load")[1].split("\n## ")[0]
    found = []
    for line in table.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) != 3 or "=" not in cells[2] or ";" in cells[2]:
            continue
        pairs = re.findall(r"`(\w+)=(\w+)`", cells[2])
        options = {name: value_of(value) for name, value in pairs}
        found.append((cells[1].strip("`"), options))

    used = [(name, options) for name, options, _, _ in (*CAFFE2.values(), *MMACTION2.values())]
    used += [("c2d_r50", ZOO), ("ean_r50", {"variant": "released", "lmc": True, "segments": 8})]
    for name, options in found:
        # What is the backbone's default need not be passed.
        with torch.device("meta"):
            given = build_backbone(name, **options).options
            same = [build_backbone(name, **other).options for n, other in used if n == name]
        assert given in same, f"{name} with {options} is in the table and in no test"
