"""The names of tensors in other projects' checkpoints, turned into ours."""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.backbones._base import IMAGENET_MEAN, IMAGENET_STD
from pipeline.backbones._checkpoint_caffe2 import from_caffe2
from pipeline.backbones._checkpoint_ean import from_ean

KINETICS_MEAN = (0.45, 0.45, 0.45)
KINETICS_STD = (0.225, 0.225, 0.225)

_CLASSIFIER = re.compile(r"^(fc|classifier|head|blocks\.\d+\.(proj|output_pool))\.")
_ABC = {"a": "1", "b": "2", "c": "3"}


@dataclass(frozen=True)
class Project:
    """A project whose checkpoints can be read.

    Attributes:
        name: for messages.
        mark: a pattern that the project's names have and those of the projects below it lack.
        convert: turns a state dict of the project into one of ours, without the classifier.
        kinetics: whether its 3-D networks see pixels with the mean and deviation of the Kinetics
            models; else, and for 2-D networks, those of ImageNet.
    """

    name: str
    mark: str
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]
    kinetics: bool = False

    def made(self, names: Iterable[str]) -> bool:
        """Whether one of these names has the mark."""
        return any(re.search(self.mark, name) for name in names)


def project_of(state: dict[str, Tensor], expected: dict[str, Tensor]) -> Project:
    """Return whose names a state dict has.

    Args:
        state: a state dict.
        expected: the backbone's state dict.
    """
    if expected.keys() & state.keys():
        return OURS
    for project in PROJECTS:
        if project.made(state):
            return project
    return TORCHVISION


def rename(
    state: dict[str, Tensor], expected: dict[str, Tensor], project: Project
) -> dict[str, Tensor]:
    """Rename the tensors of a checkpoint as a backbone names them.

    The classifier is left out, and so are stages that the backbone does not have. Names that follow
    no known pattern stay as they are.

    Args:
        state: the checkpoint's state dict.
        expected: the backbone's state dict.
        project: whose names they are.

    Returns:
        A new state dict. One from another project gains `pixel_mean` and `pixel_std`.
    """
    renamed = project.convert(state)
    # A checkpoint of ours brings its normalisation with it.
    if project is not OURS:
        # Only image networks and those that share their kernels have 2-D ones.
        is_2d = renamed.get("stem.conv1.weight", torch.empty(0)).dim() == 4
        mean, std = IMAGENET_MEAN, IMAGENET_STD
        if project.kinetics and not is_2d:
            mean, std = KINETICS_MEAN, KINETICS_STD
        renamed["pixel_mean"] = torch.tensor(mean)
        renamed["pixel_std"] = torch.tensor(std)

    # A backbone may end before the checkpoint's last stage.
    stages = {key.split(".")[0] for key in expected}
    kept = {}
    for key, value in renamed.items():
        if key.split(".")[0] in stages or not re.match(r"res\d\.", key):
            kept[key] = value
    return kept


def _each(rename_one: Callable[[str], str]) -> Callable[[dict[str, Tensor]], dict[str, Tensor]]:
    """Make a function that renames every tensor but the classifier's."""

    def convert(state: dict[str, Tensor]) -> dict[str, Tensor]:
        renamed = {}
        for key, value in state.items():
            if not _CLASSIFIER.match(key):
                renamed[rename_one(key)] = value
        return renamed

    return convert


def _from_torchvision(key: str) -> str:
    """torchvision's names, and those of the video-nonlocal-net ports, which follow them."""
    if key.startswith(("conv1.", "bn1.")):
        return f"stem.{key}"
    key = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", key)
    key = re.sub(r"\.conv(\d)\.0\.", r".conv\1.", key)
    key = re.sub(r"\.conv(\d)\.1\.", r".bn\1.", key)
    return key.replace(".shortcut.", ".downsample.").replace(".nl.", ".non_local.")


def _from_tsm(key: str) -> str:
    """TSM's names: torchvision's, with the first convolution of a block inside its shift."""
    return _from_torchvision(re.sub(r"\.conv1\.net\.", ".conv1.", key))


def _from_mmaction2(key: str) -> str:
    """mmaction2's names: each convolution and its batch norm are one module."""
    key = re.sub(r"\.conv1\.conv\.net\.", ".conv1.conv.", key)
    key = re.sub(r"(^|\.)conv(\d)\.conv\.", r"\1conv\2.", key)
    key = re.sub(r"(^|\.)conv(\d)\.bn\.", r"\1bn\2.", key)
    key = key.replace(".downsample.conv.", ".downsample.0.")
    key = key.replace(".downsample.bn.", ".downsample.1.")
    return _from_torchvision(key)


def _from_pyslowfast(key: str) -> str:
    key = key.replace("s1.pathway0_stem.conv.", "stem.conv1.")
    key = key.replace("s1.pathway0_stem.bn.", "stem.bn1.")
    key = re.sub(r"^s(\d)\.pathway0_res(\d+)\.", r"res\1.\2.", key)
    key = re.sub(r"^s(\d)\.pathway0_nonlocal(\d+)\.(conv_)?", r"res\1.\2.non_local.", key)
    key = key.replace(".branch1.", ".downsample.0.").replace(".branch1_bn.", ".downsample.1.")
    key = re.sub(r"\.branch2\.([abc])\.", lambda match: f".conv{_ABC[match[1]]}.", key)
    return re.sub(r"\.branch2\.([abc])_bn\.", lambda match: f".bn{_ABC[match[1]]}.", key)


def _from_pytorchvideo(state: dict[str, Tensor]) -> dict[str, Tensor]:
    # A pool between two stages has a number too: stages are counted by the blocks that they hold.
    numbers = set()
    for key in state:
        match = re.match(r"blocks\.(\d+)\.res_blocks\.", key)
        if match:
            numbers.add(int(match[1]))
    order = sorted(numbers)

    def renamed(key: str) -> str:
        key = key.replace("blocks.0.conv.", "stem.conv1.").replace("blocks.0.norm.", "stem.bn1.")
        key = re.sub(
            r"^blocks\.(\d+)\.res_blocks\.",
            lambda match: f"res{2 + order.index(int(match[1]))}.",
            key,
        )
        key = key.replace(".branch1_conv.", ".downsample.0.")
        key = key.replace(".branch1_norm.", ".downsample.1.")
        key = re.sub(r"\.branch2\.conv_([abc])\.", lambda match: f".conv{_ABC[match[1]]}.", key)
        return re.sub(r"\.branch2\.norm_([abc])\.", lambda match: f".bn{_ABC[match[1]]}.", key)

    return _each(renamed)(state)


OURS = Project("vidgraph", "", dict)
TORCHVISION = Project("torchvision", "", _each(_from_torchvision), kinetics=True)
CAFFE2 = Project("Caffe2", r"^res\d_\d+_branch2a_w$", from_caffe2, kinetics=True)
PYSLOWFAST = Project("PySlowFast", r"^s\d\.pathway0_", _each(_from_pyslowfast), kinetics=True)
PYTORCHVIDEO = Project("pytorchvideo", r"^blocks\.\d+\.res_blocks\.", _from_pytorchvideo, True)
EAN = Project("EAN's release", r"^relation\d\.compress_c1\.", from_ean)
MMACTION2 = Project("mmaction2", r"^layer\d\.\d+\.conv\d\.conv\.", _each(_from_mmaction2))
TSM = Project("TSM's release", r"^layer\d\.\d+\.conv1\.net\.", _each(_from_tsm))
# In this order: EAN's names include torchvision's.
PROJECTS = (CAFFE2, PYSLOWFAST, PYTORCHVIDEO, EAN, MMACTION2, TSM)
