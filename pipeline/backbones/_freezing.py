"""Frozen backbones: the fastest form of a trained network whose features are computed once."""

import copy
from itertools import pairwise

import torch
from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from pipeline.backbones._base import Backbone
from pipeline.backbones._layers import Conv
from pipeline.networks.memory_format import lay_out
from pipeline.networks.precision import dtype_of, refuse_on_cpu

# Sizes of views that a compiled backbone may meet in one process: those of training, and of test
# views that have their clip's own size.
SHAPES = 16


def freeze(
    backbone: Backbone,
    precision: str = "fp32",
    device: str | torch.device = "cpu",
    compile: bool = False,
) -> Backbone:
    """Make a copy of a backbone for inference; the original stays as it is.

    The copy is in evaluation mode for good (`train()` does not change it), needs no gradient and
    runs in inference mode. Its batch norms are folded into the convolutions before them. Its
    kernels have the fastest memory format that is safe on the device
    (`pipeline.networks.memory_format`).

    Args:
        backbone: a trained backbone.
        precision: "fp32", "tf32", "bf16" or "fp16". `prepare` returns that dtype; `maps` takes any
            dtype and returns that one.
        device: where the copy runs.
        compile: run `torch.compile` block by block, on the first call for every new shape.

    Returns:
        The copy, with the same `maps`, `prepare` and cuts. Its results are inference tensors: clone
        them before autograd has to save them.

    Raises:
        ValueError: an unknown precision, or tf32 or fp16 on a CPU.
    """
    dtype = dtype_of(precision)
    refuse_on_cpu(precision, device)
    # Evaluation mode first: only then does a batch norm fold into a convolution.
    frozen = copy.deepcopy(backbone).eval().requires_grad_(False)
    # A list: folding replaces modules while they are visited.
    for module in list(frozen.modules()):
        _fold(module)

    # Pixels are normalised in float32, whatever the network computes in.
    mean, std = frozen.pixel_mean, frozen.pixel_std
    lay_out(frozen.to(device, dtype), device)
    frozen.pixel_mean, frozen.pixel_std = mean.to(device), std.to(device)
    frozen.frozen = True
    if compile:
        # All blocks of a kind share one function, which torch compiles anew for each of them and
        # each shape. Beyond its limit of 8 it would run them uncompiled, without a word.
        units = len(frozen.units())
        torch._dynamo.config.recompile_limit = max(
            SHAPES * units, torch._dynamo.config.recompile_limit
        )
        frozen.compile_units()
    return frozen


def _fold(module: nn.Module) -> None:
    """Fold every batch norm that `module` registers right after a convolution into it.

    Blocks list them in that order. Where something comes between the two (`Backbone.insert`, or a
    convolution that is no `Conv` any more), the norm stays.
    """
    for (name, layer), (norm_name, norm) in pairwise(list(module.named_children())):
        if isinstance(layer, Conv) and layer.after is None and isinstance(norm, nn.BatchNorm3d):
            setattr(module, name, fuse_conv_bn_eval(layer, norm))
            setattr(module, norm_name, nn.Identity())
