"""Frozen backbones: the fastest form of a trained network whose features are to be computed
once.
"""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.backbones._base import Backbone, Conv
from pipeline.networks.memory_format import lay_out
from pipeline.networks.precision import dtype_of, refuse_fp16_on_cpu


def freeze(
    backbone: Backbone,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> Backbone:
    """A copy of `backbone` for inference, with the same `maps`, `prepare` and cuts; the original is
    left as it is.

    The copy is in evaluation mode for good (`train()` does not change it), needs no gradient and
    runs in inference mode. Its batch norms are folded into the convolutions before them, and its
    kernels have the fastest memory format that is safe on the device
    (`pipeline.networks.memory_format`). It computes in `precision` ("fp32", "bf16", "fp16") on
    `device`: `prepare` returns that dtype, `maps` takes any and returns that one. The results are
    inference tensors: clone them before autograd has to save them. compile: `torch.compile` block
    by block, on the first call for every new shape. ValueError for an unknown precision, and for
    fp16 on a CPU.
    """
    dtype = dtype_of(precision)
    refuse_fp16_on_cpu(precision, device)
    frozen = copy.deepcopy(backbone).eval().requires_grad_(False)
    for module in list(frozen.modules()):
        _fold(module)
    pixels = frozen.pixel_mean, frozen.pixel_std
    lay_out(frozen.to(device, dtype), device)
    frozen.pixel_mean, frozen.pixel_std = (
        buffer.to(device) for buffer in pixels
    )  # pixels are normalised in float32
    frozen.frozen = True
    if compile:
        for _, module in frozen.units():
            module.compile()
    return frozen


def _fold(module: nn.Module) -> None:
    """Folds every batch norm that `module` registers right after a convolution into it: blocks list
    them in that order.

    Where something was put between the two (`Backbone.insert`, or a convolution that is no `Conv`
    any more) the norm stays.
    """
    for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(layer, Conv) and layer.after is None and isinstance(norm, nn.BatchNorm3d):
            setattr(module, name, fuse_conv_bn_eval(layer, norm))
            setattr(module, norm_name, nn.Identity())
