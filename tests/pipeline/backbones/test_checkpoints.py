"""Checkpoints: inflation, other projects' names, what must fit, and what is refused."""

import hashlib
import pickle
import re
from argparse import Namespace

import pytest
import torch
import torchvision
from torch import nn

from pipeline.backbones import build_backbone
from tests.support.tiny_backbone import frames, lively, relative, tiny

# Options with which the public Kinetics checkpoints were trained.
KINETICS = {"temporal": "alternating", "pool1_time": 1, "pool2_time": 2}
# No pool looks across time, so that only the kernels do.
NO_TEMPORAL_POOLS = {"pool1_time": 1, "pool2_time": 1}


@pytest.fixture(scope="module")
def resnet50():
    torch.manual_seed(0)
    return lively(torchvision.models.resnet50(weights=None)).eval()


@pytest.fixture
def imagenet(monkeypatch, resnet50):
    """torchvision's ImageNet weights without a network: those of `resnet50`."""
    weights = torchvision.models.ResNet50_Weights

    def fetched(self, **options):
        assert self is weights.IMAGENET1K_V1
        return resnet50.state_dict()

    monkeypatch.setattr(weights, "get_state_dict", fetched)
    return resnet50


def stages_of_images(network, images):
    """The maps of a torchvision ResNet at our cuts; images [B,3,H,W]."""
    maps = {"stem": network.maxpool(network.relu(network.bn1(network.conv1(images))))}
    for number in (1, 2, 3, 4):
        maps[f"res{number + 1}"] = getattr(network, f"layer{number}")(list(maps.values())[-1])
    return maps


# Inflation.


@pytest.mark.parametrize("name", ["i3d_r50", "i3d_r50_nl", "c2d_r50"])
@torch.no_grad()
def test_centre_inflation_gives_every_frame_what_the_image_network_gives(name, imagenet):
    backbone = build_backbone(name, "imagenet", inflate="centre", **NO_TEMPORAL_POOLS).eval()
    x = backbone.prepare(frames(1, 3, 64, 48))
    for cut, expected in stages_of_images(imagenet, x[0].transpose(0, 1)).items():
        assert relative(backbone(x, upto=cut)[0].transpose(0, 1), expected) < 1e-4, cut


@torch.no_grad()
def test_mean_inflation_gives_a_still_clip_what_the_image_gives_away_from_its_ends(imagenet):
    backbone = build_backbone("i3d_r50", "imagenet", inflate="mean", **NO_TEMPORAL_POOLS).eval()
    still = frames(1, 1, 32, 32).expand(-1, 13, -1, -1, -1)
    x = backbone.prepare(still)
    expected = stages_of_images(imagenet, x[0, :, :1].transpose(0, 1))["res2"][0]
    found = backbone(x, upto="res2")[0]
    # Five taps and three times three: what lies five steps from an end sees no padding.
    for step in range(5, 8):
        assert relative(found[:, step], expected) < 1e-4
    assert relative(found[:, 0], expected) > 1e-2


def test_inflation_keeps_the_sum_over_time_and_centre_keeps_one_tap(imagenet):
    image = imagenet.conv1.weight
    mean = build_backbone("i3d_r50", "imagenet").stem.conv1.weight
    centre = build_backbone("i3d_r50", "imagenet", inflate="centre").stem.conv1.weight
    assert torch.allclose(mean.sum(2), image, atol=1e-6)
    assert torch.equal(mean[:, :, 0], mean[:, :, 4])
    assert torch.equal(centre[:, :, 2], image)
    assert not centre[:, :, [0, 1, 3, 4]].any()


@torch.no_grad()
def test_resnet18_with_image_weights_equals_torchvision_frame_by_frame(tmp_path):
    torch.manual_seed(0)
    images = lively(torchvision.models.resnet18(weights=None)).eval()
    torch.save(images.state_dict(), tmp_path / "resnet18.pth")
    backbone = build_backbone("resnet18", tmp_path / "resnet18.pth").eval()
    x = backbone.prepare(frames(1, 2, 64, 48))
    for cut, expected in stages_of_images(images, x[0].transpose(0, 1)).items():
        assert relative(backbone(x, upto=cut)[0].transpose(0, 1), expected) < 1e-4, cut
    shorter = build_backbone("resnet18", tmp_path / "resnet18.pth", stages=3).eval()
    assert torch.equal(shorter(x), backbone(x, upto="res4"))


@pytest.mark.parametrize("name", ["tsm_r50", "ean_r50"])
def test_image_weights_reach_every_convolution_that_image_networks_have(name, imagenet):
    backbone = build_backbone(name, "imagenet")
    assert torch.equal(backbone.stem.conv1.weight[:, :, 0], imagenet.conv1.weight)
    assert torch.equal(backbone.res4[5].conv2.weight[:, :, 0], imagenet.layer3[5].conv2.weight)
    assert torch.equal(backbone.res5[2].bn3.running_var, imagenet.layer4[2].bn3.running_var)


def test_imagenet_weights_are_identified_by_their_values(imagenet):
    first = build_backbone("i3d_r50", "imagenet")
    assert first.mean == pytest.approx((0.485, 0.456, 0.406))
    assert re.fullmatch("[0-9a-f]{64}", first.weights_sha256)
    assert build_backbone("c2d_r50", "imagenet").weights_sha256 == first.weights_sha256
    with torch.no_grad():
        imagenet.fc.bias[0] += 1
    assert build_backbone("c2d_r50", "imagenet").weights_sha256 != first.weights_sha256


def test_imagenet_weights_that_cannot_be_had_say_what_to_do(monkeypatch):
    def offline(self, **options):
        raise OSError("no route to host")

    monkeypatch.setattr(torchvision.models.ResNet50_Weights, "get_state_dict", offline)
    expected = r"could not fetch https://.*no route to host.*download it and give its path"
    with pytest.raises(OSError, match=expected):
        build_backbone("i3d_r50", "imagenet")
    with pytest.raises(ValueError, match="there are none for digit_cnn"):
        build_backbone("digit_cnn", "imagenet")


# Other projects' names. Each function gives our state dict under the names that a project writes.


def blocks(state):
    """(stage number, block, rest, value) of every tensor; the stem is stage 1, block None."""
    for key, value in state.items():
        if match := re.match(r"res(\d)\.(\d+)\.(.*)", key):
            yield int(match[1]), int(match[2]), match[3], value
        elif key.startswith("stem."):
            yield 1, None, key.removeprefix("stem."), value


def as_pytorchvideo(state):
    rows, place = {}, {2: 1, 3: 3, 4: 4, 5: 5}  # blocks.2 is the pool
    names = {
        "downsample.0": "branch1_conv",
        "downsample.1": "branch1_norm",
        "conv1": "conv",
        "bn1": "norm",
    }
    for i, letter in enumerate("abc", 1):
        names |= {f"res.conv{i}": f"branch2.conv_{letter}", f"res.bn{i}": f"branch2.norm_{letter}"}
    for stage, block, rest, value in blocks(state):
        layer, leaf = rest.rsplit(".", 1)
        if stage == 1:
            rows[f"blocks.0.{names[layer]}.{leaf}"] = value
        else:
            name = names.get(f"res.{layer}") or names[layer]
            rows[f"blocks.{place[stage]}.res_blocks.{block}.{name}.{leaf}"] = value
    return {**rows, "blocks.6.proj.weight": torch.zeros(4, 5), "blocks.6.proj.bias": torch.zeros(4)}


def as_pyslowfast(state):
    rows = {}
    names = {"downsample.0": "branch1", "downsample.1": "branch1_bn", "conv1": "conv", "bn1": "bn"}
    for i, letter in enumerate("abc", 1):
        names |= {f"res.conv{i}": f"branch2.{letter}", f"res.bn{i}": f"branch2.{letter}_bn"}
    for stage, block, rest, value in blocks(state):
        layer, leaf = rest.rsplit(".", 1)
        if stage == 1:
            rows[f"s1.pathway0_stem.{names[layer]}.{leaf}"] = value
        elif layer.startswith("non_local."):
            name = layer.removeprefix("non_local.")
            if name != "bn":
                name = f"conv_{name}"
            rows[f"s{stage}.pathway0_nonlocal{block}.{name}.{leaf}"] = value
        else:
            name = names.get(f"res.{layer}") or names[layer]
            rows[f"s{stage}.pathway0_res{block}.{name}.{leaf}"] = value
    return {
        **rows,
        "head.projection.weight": torch.zeros(4, 5),
        "head.projection.bias": torch.zeros(4),
    }


def as_port(state):
    """i3d_r50_kinetics.pth: converted from Caffe2, hence without batch counters."""
    rows = {}
    for stage, block, rest, value in blocks(state):
        if not rest.endswith("num_batches_tracked"):
            rows[
                rest
                if stage == 1
                else f"layer{stage - 1}.{block}.{rest.replace('non_local', 'nl')}"
            ] = value
    return {**rows, "fc.weight": torch.zeros(4, 5), "fc.bias": torch.zeros(4)}


def as_something_else(state):
    """kinetics-res50.pth: each convolution and its batch norm in a sequence, saved from a
    data-parallel module.
    """
    rows = {}
    for stage, block, rest, value in blocks(state):
        layer, leaf = rest.rsplit(".", 1)
        layer = layer.replace("downsample", "shortcut")
        if stage > 1:
            layer = re.sub(r"^conv(\d)$", r"conv\1.0", re.sub(r"^bn(\d)$", r"conv\1.1", layer))
        rows[f"module.{layer if stage == 1 else f'layer{stage - 1}.{block}.{layer}'}.{leaf}"] = (
            value
        )
    return {**rows, "module.fc.weight": torch.zeros(4, 5), "module.fc.bias": torch.zeros(4)}


FOREIGN = [
    (as_pytorchvideo, "i3d_r50", "blocks.3.res_blocks.0.branch2.conv_a.weight", (16, 32, 3, 1, 1)),
    (as_pytorchvideo, "c2d_r50", "blocks.5.res_blocks.2.branch2.norm_c.running_var", (256,)),
    (as_pyslowfast, "i3d_r50", "s4.pathway0_res0.branch1_bn.weight", (128,)),
    (as_pyslowfast, "i3d_r50_nl", "s4.pathway0_nonlocal5.conv_theta.weight", (64, 128, 1, 1, 1)),
    (as_port, "i3d_r50", "layer1.0.conv1.weight", (8, 8, 3, 1, 1)),
    (as_port, "i3d_r50_nl", "layer2.3.nl.g.bias", (32,)),
    (as_something_else, "i3d_r50", "module.layer4.1.conv1.1.running_mean", (64,)),
    (as_something_else, "i3d_r50", "module.layer2.0.shortcut.0.weight", (64, 32, 1, 1, 1)),
]


@pytest.mark.parametrize(("rename", "name", "sample", "shape"), FOREIGN)
@torch.no_grad()
def test_foreign_checkpoints_load_as_what_they_are(rename, name, sample, shape, tmp_path):
    options = {} if name == "c2d_r50" else {"temporal": "alternating"}
    trained = tiny(name, seed=1, **options)
    foreign = rename(trained.state_dict())
    assert tuple(foreign[sample].shape) == shape
    torch.save(
        {"epoch": 196, "cfg": "MODEL: {}", "model_state": foreign}, tmp_path / "kinetics.pyth"
    )
    loaded = build_backbone(name, tmp_path / "kinetics.pyth", width=8, **options).eval()
    x = trained.prepare(frames())
    assert torch.equal(loaded(x), trained(x))
    assert loaded.mean == pytest.approx((0.45,) * 3)
    assert loaded.std == pytest.approx((0.225,) * 3)


@torch.no_grad()
def test_pytorchvideos_own_i3d_gives_the_same_maps_here(tmp_path):
    hub = pytest.importorskip(
        "pytorchvideo.models.hub.resnet", reason="pytorchvideo is not installed"
    )
    torch.manual_seed(0)
    theirs = lively(hub.i3d_r50()).eval()
    torch.save({"model_state": theirs.state_dict()}, tmp_path / "I3D_8x8_R50.pyth")
    ours = build_backbone("i3d_r50", tmp_path / "I3D_8x8_R50.pyth", **KINETICS).eval()
    x = ours.prepare(frames(1, 8, 64, 64))
    maps, y = ours.maps(x, ours.stages), x
    for cut, stage in zip(
        ("stem", "res2", None, "res3", "res4", "res5"), theirs.blocks, strict=False
    ):
        y = stage(y)
        if cut:
            assert relative(maps[cut], y) < 1e-4, cut


# Our own.


@pytest.mark.parametrize("holder", [None, "backbone"])
@torch.no_grad()
def test_our_own_checkpoints_load_with_their_normalisation(holder, tmp_path):
    trained = tiny("i3d_r50", seed=1, reduce=4)
    trained.pixel_mean.fill_(0.45)
    state = trained.state_dict()
    torch.save({holder: state, "epoch": 3} if holder else state, tmp_path / "ours.pth")
    loaded = build_backbone("i3d_r50", str(tmp_path / "ours.pth"), width=8, reduce=4).eval()
    assert torch.equal(loaded(loaded.prepare(frames())), trained(trained.prepare(frames())))
    assert loaded.weights_sha256 == hashlib.sha256((tmp_path / "ours.pth").read_bytes()).hexdigest()


def test_digit_network_is_restored_with_the_pixels_it_was_trained_on(tmp_path):
    trained = tiny("digit_cnn", pixels="unit")
    torch.save(trained.state_dict(), tmp_path / "digits.pth")
    loaded = build_backbone("digit_cnn", tmp_path / "digits.pth", width=8)
    assert torch.equal(loaded.prepare(frames()), trained.prepare(frames()))


def test_no_weights_leave_the_random_start():
    torch.manual_seed(0)
    first = build_backbone("digit_cnn", width=8)
    torch.manual_seed(0)
    second = build_backbone("digit_cnn", "none", width=8)
    assert torch.equal(first.conv1.conv.weight, second.conv1.conv.weight)


# What does not fit.


def refused(state, tmp_path, name="i3d_r50", **options):
    torch.save(state, tmp_path / "weights.pth")
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the callers look at the message
        build_backbone(name, tmp_path / "weights.pth", width=8, **options)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_missing_unexpected_and_mis_shaped_keys_are_counted_and_named(tmp_path):
    state = tiny("i3d_r50").state_dict()
    del state["res2.0.conv1.weight"], state["res5.2.bn3.running_var"]
    state |= {"res3.9.conv1.weight": torch.zeros(1)}
    state["stem.conv1.weight"] = state["stem.conv1.weight"][:, :, :1]
    message = refused(state, tmp_path)
    assert "2 missing (res2.0.conv1.weight, res5.2.bn3.running_var)" in message
    assert "1 unexpected (res3.9.conv1.weight)" in message
    assert "1 mis-shaped (stem.conv1.weight [8, 3, 1, 7, 7] instead of [8, 3, 5, 7, 7])" in message


def test_one_key_too_many_is_enough_to_refuse(tmp_path):
    state = tiny("i3d_r50").state_dict() | {"attention.weight": torch.zeros(1)}
    assert "do not fit i3d_r50: 1 unexpected (attention.weight);" in refused(state, tmp_path)


def test_kernels_of_another_temporal_pattern_are_refused(tmp_path):
    message = refused(
        as_pytorchvideo(tiny("i3d_r50", temporal="alternating").state_dict()), tmp_path
    )
    assert (
        "7 mis-shaped (res3.1.conv1.weight [16, 64, 1, 1, 1] instead of [16, 64, 3, 1, 1]"
        in message
    )


def test_a_refused_checkpoint_changes_nothing(tmp_path):
    state = tiny("digit_cnn", seed=1).state_dict()
    del state["conv3.conv.bias"]
    torch.save(state, tmp_path / "weights.pth")
    from pipeline.backbones._checkpoints import load

    backbone = tiny("digit_cnn")
    before = {key: value.clone() for key, value in backbone.state_dict().items()}
    with pytest.raises(ValueError, match="1 missing"):
        load(backbone, tmp_path / "weights.pth")
    assert all(torch.equal(value, before[key]) for key, value in backbone.state_dict().items())
    assert backbone.weights_sha256 == ""


def test_the_classifier_may_be_absent(tmp_path):
    state = {
        key: value
        for key, value in as_port(tiny("i3d_r50", seed=1).state_dict()).items()
        if not key.startswith("fc.")
    }
    torch.save(state, tmp_path / "port.pth")
    assert build_backbone("i3d_r50", tmp_path / "port.pth", width=8).weights_sha256


@pytest.mark.parametrize(
    ("part", "name", "options"),
    [("reduced", "i3d_r50", {"reduce": 4}), ("non_local", "i3d_r50_nl", {})],
)
def test_a_new_part_is_left_fresh_only_when_asked(part, name, options, tmp_path):
    state = as_pyslowfast(tiny("i3d_r50", temporal="alternating").state_dict())
    options = {"temporal": "alternating", **options}
    assert f"fresh={part} leaves those at their start" in refused(state, tmp_path, name, **options)
    for fresh in ((part,), part, "reduced,non_local"):
        assert build_backbone(
            name, tmp_path / "weights.pth", width=8, fresh=fresh, **options
        ).weights_sha256


def test_unknown_words_for_inflation_and_fresh_parts_are_refused(tmp_path):
    with pytest.raises(ValueError, match="inflate='middle': expected one of mean, centre"):
        build_backbone("digit_cnn", tmp_path / "x", inflate="middle")
    with pytest.raises(ValueError, match="fresh='res5': expected names among reduced, non_local"):
        build_backbone("digit_cnn", tmp_path / "x", fresh=("res5",))


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (self.path, "w")


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"not a checkpoint",
        b"PK\x03\x04 broken zip",
        pickle.dumps({"a": 1}, protocol=2),
        bytes(range(256)),
    ],
)
def test_files_that_are_no_checkpoints_are_refused_in_one_line(content, tmp_path):
    (tmp_path / "weights.pth").write_bytes(content)
    with pytest.raises(
        ValueError, match=r"weights.pth: (not a checkpoint of plain tensors|expected a state dict)"
    ) as caught:
        build_backbone("digit_cnn", tmp_path / "weights.pth", width=8)
    assert "\n" not in str(caught.value)


def test_code_in_a_checkpoint_is_never_run(tmp_path):
    torch.save({"state_dict": Malicious(str(tmp_path / "ran"))}, tmp_path / "weights.pth")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        build_backbone("digit_cnn", tmp_path / "weights.pth", width=8)
    assert not (tmp_path / "ran").exists()


def test_a_file_that_is_absent_or_holds_something_else_says_so(tmp_path):
    with pytest.raises(
        ValueError, match=r"absent.pth: no such file; expected none, imagenet, or the path"
    ):
        build_backbone("digit_cnn", tmp_path / "absent.pth")
    with pytest.raises(ValueError, match="no such file"):
        build_backbone("digit_cnn", tmp_path)
    assert "got dict with keys epoch" in refused({"epoch": 3}, tmp_path, "digit_cnn")
    assert "got dict with keys 1" in refused({1: torch.zeros(2)}, tmp_path, "digit_cnn")
    assert "got list" in refused([torch.zeros(2)], tmp_path, "digit_cnn")
    torch.save(nn.Linear(2, 2), tmp_path / "module.pth")
    with pytest.raises(ValueError, match="not a checkpoint of plain tensors"):
        build_backbone("digit_cnn", tmp_path / "module.pth")


# What wrappers put around the names.

WRAPPED = {
    "compiled": "_orig_mod.",
    "data-parallel": "module.",
    "twice": "module.module.",
    "compiled and data-parallel": "module._orig_mod.",
    "the other way": "_orig_mod.module.",
    "a framework": "model.",
    "part of a model": "backbone.",
    "in any order": "module.encoder._orig_mod.",
    "sharded": "_fsdp_wrapped_module.encoder.",
    "any name": "student.net.",
    "deeper than any": "a.b.c.d.e.f.g.h.",
    "no dot": "student_",
}


@pytest.mark.parametrize(
    "holder",
    [
        (),
        ("state_dict",),
        ("model",),
        ("state_dict", "model"),
        ("state_dict", "module"),
        ("ema",),
        ("last", "params_ema"),
    ],
)
@pytest.mark.parametrize("kind", WRAPPED)
def test_prefixes_that_all_names_share_are_taken_off(kind, holder, tmp_path):
    trained = tiny("digit_cnn", seed=1)
    saved = {WRAPPED[kind] + key: value for key, value in trained.state_dict().items()}
    for key in reversed(holder):
        saved = {key: saved, "epoch": 3, "optimizer": {"state": {}, "param_groups": []}}
    torch.save(saved, tmp_path / "w.pth")
    loaded = build_backbone("digit_cnn", tmp_path / "w.pth", width=8)
    assert all(
        torch.equal(value, trained.state_dict()[key]) for key, value in loaded.state_dict().items()
    )


def test_what_torch_itself_saves_of_wrapped_modules_loads(tmp_path):
    """torch.compile of the whole and of a part, an average over steps, and a Sequential; names as
    torch gives them.
    """
    trained = tiny("digit_cnn", seed=1)
    state = trained.state_dict()
    part = tiny("digit_cnn", seed=1)
    part.conv2 = torch.compile(part.conv2)
    made = {
        "compiled": torch.compile(trained),
        "compiled part": part,
        "average": torch.optim.swa_utils.AveragedModel(trained),
        "in a sequence": nn.Sequential(nn.Identity(), trained),
        "beside its head": nn.ModuleDict({"backbone": trained, "head": nn.Linear(8, 3)}),
    }
    for name, module in made.items():
        torch.save(module.state_dict(), tmp_path / "w.pth")
        loaded = build_backbone("digit_cnn", tmp_path / "w.pth", width=8).state_dict()
        assert all(torch.equal(value, state[key]) for key, value in loaded.items()), name


@pytest.mark.parametrize("prefix", ["module.", "_orig_mod.", "backbone.", "model.module."])
def test_other_projects_names_load_below_prefixes_too(prefix, tmp_path):
    trained = tiny("i3d_r50", seed=1)
    for write in (as_pytorchvideo, as_pyslowfast, as_port):
        state = {prefix + key: value for key, value in write(trained.state_dict()).items()}
        torch.save({"state_dict": state}, tmp_path / "w.pth")
        loaded = build_backbone("i3d_r50", tmp_path / "w.pth", width=8)
        assert torch.equal(loaded.res5[2].conv3.weight, trained.res5[2].conv3.weight)
        assert loaded.mean == pytest.approx((0.45,) * 3)


def test_a_prefix_never_loads_a_half(tmp_path):
    """A name missing below the prefix, one of another shape, or another network beside it: refused,
    and said what was tried.
    """
    good = {
        f"module.net.{key}": value for key, value in tiny("digit_cnn", seed=1).state_dict().items()
    }
    without = {key: value for key, value in good.items() if not key.endswith("conv2.conv.bias")}
    shaped = {**good, "module.net.conv1.conv.bias": torch.zeros(9)}
    for bad, fault in (
        (without, r"1 missing \(conv2.conv.bias\)"),
        (shaped, r"1 mis-shaped \(conv1.conv.bias \[9\]"),
    ):
        torch.save(bad, tmp_path / "w.pth")
        with pytest.raises(
            ValueError,
            match=rf"do not fit digit_cnn: {fault}.*tried without the prefixes module\., net\.",
        ):
            build_backbone("digit_cnn", tmp_path / "w.pth", width=8)


def test_two_networks_in_one_file_are_refused_with_both_prefixes(tmp_path):
    states = {
        "encoder_q": tiny("digit_cnn", seed=1).state_dict(),
        "encoder_k": tiny("digit_cnn", seed=2).state_dict(),
    }
    flat = {
        f"module.{part}.{key}": value
        for part, state in states.items()
        for key, value in state.items()
    }
    message = refused(flat | {"module.queue": torch.zeros(8, 4)}, tmp_path, "digit_cnn")
    assert "the names below 'encoder_q.' or 'encoder_k.' would fit" in message
    message = refused(
        {"student": states["encoder_q"], "teacher": states["encoder_k"]}, tmp_path, "digit_cnn"
    )
    assert "holds several such networks, under 'student', 'teacher'" in message
    message = refused(
        {"nets": {"a": states["encoder_q"], "b": states["encoder_k"]}, "epoch": 3},
        tmp_path,
        "digit_cnn",
    )
    assert "holds several such networks, under 'nets a', 'nets b'" in message


def test_what_is_no_second_network_may_stand_beside_the_names(tmp_path):
    """What training programs keep in the same table: losses and metrics; and in the same file:
    their options.
    """
    state = tiny("digit_cnn", seed=1).state_dict()
    beside = {"criterion.weight": torch.ones(3), "train_acc.correct": torch.ones(1)}
    saved = {
        "state_dict": {f"model.{key}": value for key, value in state.items()} | beside,
        "args": Namespace(lr=0.1),
    }
    torch.save(saved, tmp_path / "w.pth")
    loaded = build_backbone("digit_cnn", tmp_path / "w.pth", width=8).state_dict()
    assert all(torch.equal(value, state[key]) for key, value in loaded.items())


@pytest.mark.parametrize(
    ("saved", "asked", "advice"),
    [
        (("tsm_r50", {"width": 8}), ("i3d_r50", {"width": 8}), "or the backbone tsm_r50"),
        (
            ("resnet18", {"width": 8}),
            ("i3d_r50", {"width": 8}),
            "the backbone resnet18 or the backbone tsm_r18",
        ),
        (
            ("digit_cnn", {"width": 16}),
            ("digit_cnn", {"width": 8}),
            "digit_cnn with --set backbone_options.width=16",
        ),
        (
            ("i3d_r50", {"width": 8, "temporal": "alternating"}),
            ("i3d_r50", {"width": 8}),
            "backbone_options.temporal=alternating",
        ),
        (
            ("i3d_r50", {"width": 8, "reduce": 4}),
            ("i3d_r50", {"width": 8}),
            "choose the options that the weights had (temporal, ",
        ),
    ],
)
def test_the_advice_of_a_refusal_fits_its_cause(saved, asked, advice, tmp_path):
    torch.save(build_backbone(saved[0], **saved[1]).state_dict(), tmp_path / "w.pth")
    with pytest.raises(ValueError, match="do not fit") as caught:
        build_backbone(asked[0], tmp_path / "w.pth", **asked[1])
    assert advice in str(caught.value)
    assert "\n" not in str(caught.value)
