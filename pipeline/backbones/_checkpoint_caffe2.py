"""The blobs of Caffe2, in which video-nonlocal-net and PySlowFast's model zoo are published.

The blobs of one residual block, "res4_0" (`lib/models/resnet_helper.py` of video-nonlocal-net):

    res4_0_branch1_w, res4_0_branch1_bn_s, _b, _rm, _riv             the shortcut, if there is one
    res4_0_branch2a_w, res4_0_branch2a_bn_s, ..., 2b, 2c             the three convolutions
    nonlocal_conv4_1_theta_w, _theta_b, _phi_, _g_, _out_, _bn_s     the block behind res4_1

The stem is conv1_w and res_conv1_bn_s, the classifier pred_w and pred_b. `riv`, "running inverse
variance", is the running variance (`lib/utils/bn_helper.py`). The norms' epsilon is 1e-5, the
spatial stride lies in branch2b, pixels are RGB with mean 114.75 and deviation 57.375 of 0 .. 255
(`lib/core/config.py`): 0.45 and 0.225 of 0 .. 1.
"""

import re

import torch
from torch import Tensor

EPS = 1e-5  # of our norms, and of Caffe2's

_PARTS = {"s": "weight", "b": "bias", "rm": "running_mean", "riv": "running_var", "w": "weight"}
# What training keeps beside the weights.
_NO_WEIGHT = re.compile(
    r"(_momentum$|^(lr|model_iter|epoch|weight_decay|weight_decay_bn|ONE|pred_[wb])$)"
)
_SCALE = re.compile(r"^(.*_bn)_s$")


def from_caffe2(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """Rename Caffe2's blobs as our tensors.

    Networks that were trained further with frozen statistics have none: their norms are y = s·x + b
    (`MODEL.USE_AFFINE`). They become norms with mean 0 and variance 1 − eps, which compute the
    same.

    Args:
        state: blob -> tensor.

    Returns:
        A new state dict. A blob that follows no pattern keeps its name.
    """
    renamed = {}
    for blob, value in state.items():
        if not _NO_WEIGHT.search(blob):
            renamed[_our_name(blob)] = value
    if is_trained_affine(state):
        for name, scale in list(renamed.items()):
            layer = name.removesuffix(".weight")
            if scale.dim() == 1 and name.endswith(".weight"):
                renamed.setdefault(f"{layer}.running_mean", torch.zeros_like(scale))
                renamed.setdefault(f"{layer}.running_var", torch.full_like(scale, 1 - EPS))
    return renamed


def is_affine(state: dict[str, Tensor]) -> bool:
    """Whether the norms have scales, but none has a running mean."""
    has_scale = any(_SCALE.match(blob) for blob in state)
    return has_scale and not any(blob.endswith("_bn_rm") for blob in state)


def is_trained_affine(state: dict[str, Tensor]) -> bool:
    """Whether the network was trained with y = s·x + b in place of its norms.

    A file that lacks the momenta too may be one whose statistics were taken away
    (`modify_blob_rm.py`): its scales mean something else, and nothing tells them apart.
    """
    return is_affine(state) and any(blob.endswith("_momentum") for blob in state)


def _our_name(blob: str) -> str:
    layer, _, part = blob.rpartition("_")
    if part not in _PARTS:
        return blob
    leaf = _PARTS[part]

    if layer == "conv1":
        return f"stem.conv1.{leaf}"
    if layer == "res_conv1_bn":
        return f"stem.bn1.{leaf}"

    match = re.fullmatch(r"res(\d)_(\d+)_branch1(_bn)?", layer)
    if match:
        place = "1" if match[3] else "0"
        return f"res{match[1]}.{match[2]}.downsample.{place}.{leaf}"

    match = re.fullmatch(r"res(\d)_(\d+)_branch2([abc])(_bn)?", layer)
    if match:
        kind = "bn" if match[4] else "conv"
        return f"res{match[1]}.{match[2]}.{kind}{'abc'.index(match[3]) + 1}.{leaf}"

    match = re.fullmatch(r"nonlocal_conv(\d)_(\d+)_(theta|phi|g|out|bn)", layer)
    if match:
        return f"res{match[1]}.{match[2]}.non_local.{match[3]}.{leaf}"
    return blob
