"""The names of tensors in other projects' checkpoints, turned into ours."""

import re

import torch
from torch import Tensor

from pipeline.backbones._base import IMAGENET_MEAN, IMAGENET_STD

KINETICS_MEAN = (0.45, 0.45, 0.45)
KINETICS_STD = (0.225, 0.225, 0.225)

_CLASSIFIER = re.compile(r"^(fc|classifier|head|blocks\.\d+\.(proj|output_pool))\.")
_ABC = {"a": "1", "b": "2", "c": "3"}


def rename(state: dict[str, Tensor], expected: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename the tensors of a checkpoint as a backbone names them.

    The classifier is left out, and so are stages that the backbone does not have. Names that follow
    no known pattern stay as they are.

    Args:
        state: the checkpoint's state dict.
        expected: the backbone's state dict.

    Returns:
        A new state dict. One from another project gains `pixel_mean` and `pixel_std`: ImageNet's
        where its kernels are 2-D, else those of the Kinetics models.
    """
    # Our own names, in a checkpoint of ours: they bring their normalisation with them.
    if expected.keys() & state.keys():
        renamed = dict(state)
    else:
        renamed = {}
        for key, value in state.items():
            if not _CLASSIFIER.match(key):
                renamed[_our_name(key, state)] = value
        mean, std = KINETICS_MEAN, KINETICS_STD
        # Only image networks have 2-D kernels.
        if renamed.get("stem.conv1.weight", torch.empty(0)).dim() == 4:
            mean, std = IMAGENET_MEAN, IMAGENET_STD
        renamed["pixel_mean"] = torch.tensor(mean)
        renamed["pixel_std"] = torch.tensor(std)

    # A backbone may end before the checkpoint's last stage.
    stages = {key.split(".")[0] for key in expected}
    kept = {}
    for key, value in renamed.items():
        if key.split(".")[0] in stages or not re.match(r"res\d\.", key):
            kept[key] = value
    return kept


def _our_name(key: str, state: dict[str, Tensor]) -> str:
    if key.startswith("blocks."):
        return _from_pytorchvideo(key, state)
    if re.match(r"s\d\.pathway0_", key):
        return _from_pyslowfast(key)
    return _from_torchvision(key)


def _from_torchvision(key: str) -> str:
    """torchvision's names, and those of the video-nonlocal-net ports, which follow them."""
    if key.startswith(("conv1.", "bn1.")):
        return f"stem.{key}"
    key = re.sub(r"^layer(\d)\.", lambda match: f"res{int(match[1]) + 1}.", key)
    key = re.sub(r"\.conv(\d)\.0\.", r".conv\1.", key)
    key = re.sub(r"\.conv(\d)\.1\.", r".bn\1.", key)
    return key.replace(".shortcut.", ".downsample.").replace(".nl.", ".non_local.")


def _from_pyslowfast(key: str) -> str:
    key = key.replace("s1.pathway0_stem.conv.", "stem.conv1.")
    key = key.replace("s1.pathway0_stem.bn.", "stem.bn1.")
    key = re.sub(r"^s(\d)\.pathway0_res(\d+)\.", r"res\1.\2.", key)
    key = re.sub(r"^s(\d)\.pathway0_nonlocal(\d+)\.(conv_)?", r"res\1.\2.non_local.", key)
    key = key.replace(".branch1.", ".downsample.0.").replace(".branch1_bn.", ".downsample.1.")
    key = re.sub(r"\.branch2\.([abc])\.", lambda match: f".conv{_ABC[match[1]]}.", key)
    return re.sub(r"\.branch2\.([abc])_bn\.", lambda match: f".bn{_ABC[match[1]]}.", key)


def _from_pytorchvideo(key: str, state: dict[str, Tensor]) -> str:
    key = key.replace("blocks.0.conv.", "stem.conv1.").replace("blocks.0.norm.", "stem.bn1.")

    # A pool between two stages has a number too: stages are counted by the blocks that they hold.
    numbers = set()
    for other in state:
        match = re.match(r"blocks\.(\d+)\.res_blocks\.", other)
        if match:
            numbers.add(int(match[1]))
    order = sorted(numbers)
    key = re.sub(
        r"^blocks\.(\d+)\.res_blocks\.",
        lambda match: f"res{2 + order.index(int(match[1]))}.",
        key,
    )

    key = key.replace(".branch1_conv.", ".downsample.0.")
    key = key.replace(".branch1_norm.", ".downsample.1.")
    key = re.sub(r"\.branch2\.conv_([abc])\.", lambda match: f".conv{_ABC[match[1]]}.", key)
    return re.sub(r"\.branch2\.norm_([abc])\.", lambda match: f".bn{_ABC[match[1]]}.", key)
