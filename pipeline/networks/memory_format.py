"""The memory format of every convolution, channels last or contiguous. Only this module decides it.

Channels last is faster. On a CPU it is used only if the numbers of input and output channels are
both multiples of 8. With fewer than 8, oneDNN's backward pass of a strided 1×1 convolution for AVX2
writes beyond the end of its buffer (`Conv2d(4, 8, 1, stride=2)`, torch 2.14.1). Then the process
ends in `free(): invalid pointer`, at once or later.

A stem of one or two channels gets zeros as further channels, so that it may stay in channels last.
Every other narrow convolution runs contiguous. A stem of three colours is slower that way: 327 ms
against 204 ms for the first convolution of `i3d_r50` on a view of 32 frames (2 cores of an AMD
EPYC, torch 2.14.1).

torch uses channels last if the strides of the input or of the weight do: both are made
contiguous.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

LANES = 8  # channels are a multiple of this where a convolution runs in channels last on a CPU

# Up to so many input channels, zeros for the rest of LANES cost less than leaving channels last: 37
# against 104 ms for one channel of 64x64 pixels to 64 (3x3, 64 frames, 2 cores of an AMD EPYC,
# torch 2.14.1). Three channels cost more (516 against
# 327 ms for the stem of i3d_r50).
FEW = 2

FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}  # by the number of axes


def channels_last_is_safe(device: torch.device | str, channels_in: int, channels_out: int) -> bool:
    """Whether a convolution from `channels_in` to `channels_out` channels may run in channels last
    on `device`.
    """
    return torch.device(device).type != "cpu" or (
        channels_in % LANES == 0 and channels_out % LANES == 0
    )


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
) -> Tensor:
    """`F.conv2d` of [B,C,h,w] or `F.conv3d` of [B,C,T,h,w], in a memory format that is safe.

    The other arguments are those of torch's functions. The result is in channels last where x is.
    """
    run = F.conv2d if x.dim() == 4 else F.conv3d
    if channels_last_is_safe(x.device, x.shape[1], weight.shape[0]):
        return run(x, weight, bias, stride, padding, dilation, groups)
    last = FORMATS[x.dim()]
    if (
        x.shape[1] <= FEW
        and weight.shape[0] % LANES == 0
        and groups == 1
        and x.is_contiguous(memory_format=last)
    ):
        return run(_widened(x), _widened(weight), bias, stride, padding, dilation)
    y = run(plain(x), plain(weight), bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=last) if x.is_contiguous(memory_format=last) else y


def _widened(x: Tensor) -> Tensor:
    """x with zeros as further channels, LANES in all, in channels last: a convolution of it gives
    the same.
    """
    missing = LANES - x.shape[1]
    return F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing)).to(
        memory_format=FORMATS[x.dim()]
    )  # strides of one place too


def plain(x: Tensor) -> Tensor:
    """x, contiguous in its strides too.

    `contiguous` alone keeps the strides of channels last where there is one channel or one place:
    the order in memory is the same, but torch goes by the strides.
    """
    return x.contiguous().flatten().view(x.shape)


def lay_out(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a network to `device`, in place, its convolutions in channels last where that is safe
    there; returns it.
    """
    guard(module.to(device))
    for layer in _convolutions(module):
        last = FORMATS.get(layer.weight.dim())
        if last and channels_last_is_safe(device, layer.in_channels, layer.out_channels):
            layer.weight.data = layer.weight.data.to(
                memory_format=last
            )  # strides too, where `contiguous` keeps them
        if last and _is_narrow(layer) and layer.out_channels % LANES == 0:
            _hook_once(layer._forward_hooks, layer.register_forward_hook, _channels_last)
    return module


def guard(module: nn.Module) -> nn.Module:
    """Make the convolutions in `module` that do not call `convolve` safe for input of any memory
    format; returns it.

    Only those from or to a number of channels that is no multiple of 8 are changed.
    """
    for layer in _convolutions(module):
        if not channels_last_is_safe("cpu", layer.in_channels, layer.out_channels):
            layer.weight.data = plain(layer.weight.data)
        if _is_narrow(layer):
            _hook_once(layer._forward_pre_hooks, layer.register_forward_pre_hook, _contiguous)
    return module


def _convolutions(module: nn.Module) -> list[nn.Module]:
    """The convolutions in `module` that have weights: a backbone has freed those below its first
    cut.
    """
    layers = (
        layer for layer in module.modules() if isinstance(layer, _ConvNd) or _calls_convolve(layer)
    )
    return [layer for layer in layers if layer.weight is not None]


def _calls_convolve(layer: nn.Module) -> bool:
    return getattr(layer, "calls_convolve", False)


def _is_narrow(layer: nn.Module) -> bool:
    """Whether a convolution needs help: channels last is not safe on a CPU, and it does not call
    `convolve`.
    """
    return not _calls_convolve(layer) and not channels_last_is_safe(
        "cpu", layer.in_channels, layer.out_channels
    )


def _hook_once(there: dict, register: Callable, hook: Callable) -> None:
    if hook not in there.values():
        register(hook)


def _contiguous(layer: nn.Module, args: tuple) -> tuple | None:
    """Hook before the forward pass of a narrow convolution: makes its input contiguous on a CPU."""
    x, *others = args
    return (plain(x), *others) if x.device.type == "cpu" else None


def _channels_last(layer: nn.Module, args: tuple, y: Tensor) -> Tensor:
    """Hook after it: the layers that follow a stem of three colours are faster in channels last."""
    return y.contiguous(memory_format=FORMATS[y.dim()])
