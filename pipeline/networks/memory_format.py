"""The memory format of every convolution: channels last or contiguous. Only this module decides it.

Channels last is faster. On a CPU it is used only if the numbers of input and output channels are
both multiples of 8. With fewer than 8, oneDNN's backward pass of a strided 1×1 convolution for
AVX2 writes beyond the end of its buffer (`Conv2d(4, 8, 1, stride=2)`, torch 2.14.1). Then the
process ends in `free(): invalid pointer`, at once or later.

A stem of one or two channels gets zeros as further channels, so that it may stay in channels
last. Every other narrow convolution runs contiguous. A stem of three colours is slower that way:
327 ms against 204 ms for the first convolution of `i3d_r50` on a view of 32 frames (2 cores of an
AMD EPYC, torch 2.14.1).

torch uses channels last if the strides of the input or of the weight do, so both are made
contiguous.
"""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

# On a CPU, a convolution runs in channels last if its channels are multiples of this.
LANES = 8

# Up to so many input channels, zeros for the rest of LANES cost less than leaving channels last.
# One channel of 64×64 pixels to 64 channels takes 37 ms against 104 ms (3×3, 64 frames, 2 cores of
# an AMD EPYC, torch 2.14.1). Three channels cost more: 516 against 327 ms for the stem of i3d_r50.
FEW = 2

# By the number of axes.
FORMATS = {4: torch.channels_last, 5: torch.channels_last_3d}


def channels_last_is_safe(device: torch.device | str, channels_in: int, channels_out: int) -> bool:
    """Return whether a convolution may run in channels last.

    Args:
        device: where it runs.
        channels_in: its input channels.
        channels_out: its output channels.
    """
    if torch.device(device).type != "cpu":
        return True
    return channels_in % LANES == 0 and channels_out % LANES == 0


def convolve(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    stride=1,
    padding=0,
    dilation=1,
    groups: int = 1,
) -> Tensor:
    """Convolve like `F.conv2d` or `F.conv3d`, in a memory format that is safe.

    Args:
        x: [B,C,h,w] or [B,C,T,h,w].
        weight: as for torch's functions, and so are all further arguments.

    Returns:
        What torch returns, in channels last if x is.
    """
    run = F.conv2d if x.dim() == 4 else F.conv3d
    if channels_last_is_safe(x.device, x.shape[1], weight.shape[0]):
        return run(x, weight, bias, stride, padding, dilation, groups)

    last = FORMATS[x.dim()]
    is_last = x.is_contiguous(memory_format=last)
    can_widen = x.shape[1] <= FEW and weight.shape[0] % LANES == 0 and groups == 1
    if can_widen and is_last:
        return run(_widened(x), _widened(weight), bias, stride, padding, dilation)

    y = run(plain(x), plain(weight), bias, stride, padding, dilation, groups)
    return y.contiguous(memory_format=last) if is_last else y


def _widened(x: Tensor) -> Tensor:
    """Append zeros as further channels, LANES in all; a convolution gives the same values."""
    missing = LANES - x.shape[1]
    padded = F.pad(x, (0, 0) * (x.dim() - 2) + (0, missing))
    # `to` also changes the strides of an axis of length one, which `contiguous` keeps.
    return padded.to(memory_format=FORMATS[x.dim()])


def plain(x: Tensor) -> Tensor:
    """Return x, contiguous in its strides too.

    With one channel or one place, `contiguous` alone keeps the strides of channels last. The
    order in memory is the same, but torch chooses by the strides.
    """
    return x.contiguous().flatten().view(x.shape)


def lay_out(module: nn.Module, device: torch.device | str) -> nn.Module:
    """Move a network to a device, with its convolutions in channels last where that is safe.

    Args:
        module: the network; it is changed in place.
        device: where it will run.

    Returns:
        The network.
    """
    guard(module.to(device))
    for layer in _convolutions(module):
        last = FORMATS.get(layer.weight.dim())
        if last is None:
            continue
        if channels_last_is_safe(device, layer.in_channels, layer.out_channels):
            # `to` also changes the strides of an axis of length one, which `contiguous` keeps.
            layer.weight.data = layer.weight.data.to(memory_format=last)
        if _is_narrow(layer) and layer.out_channels % LANES == 0:
            _hook_once(layer._forward_hooks, layer.register_forward_hook, _channels_last)
    return module


def guard(module: nn.Module) -> nn.Module:
    """Make torch's own convolutions in a network safe for input of any memory format.

    Only convolutions from or to a number of channels that is no multiple of 8 are changed.
    Layers that call `convolve` are safe already.

    Args:
        module: the network; it is changed in place.

    Returns:
        The network.
    """
    for layer in _convolutions(module):
        if not channels_last_is_safe("cpu", layer.in_channels, layer.out_channels):
            layer.weight.data = plain(layer.weight.data)
        if _is_narrow(layer):
            _hook_once(layer._forward_pre_hooks, layer.register_forward_pre_hook, _contiguous)
    return module


def _convolutions(module: nn.Module) -> list[nn.Module]:
    """Return the convolutions that have weights."""
    found = []
    for layer in module.modules():
        is_convolution = isinstance(layer, _ConvNd) or _calls_convolve(layer)
        # A frozen backbone has freed the weights below its first cut.
        if is_convolution and layer.weight is not None:
            found.append(layer)
    return found


def _calls_convolve(layer: nn.Module) -> bool:
    return getattr(layer, "calls_convolve", False)


def _is_narrow(layer: nn.Module) -> bool:
    """Return whether a convolution needs a hook: unsafe on a CPU, and it does not `convolve`."""
    is_safe = channels_last_is_safe("cpu", layer.in_channels, layer.out_channels)
    return not is_safe and not _calls_convolve(layer)


def _hook_once(hooks: dict, register: Callable, hook: Callable) -> None:
    if hook not in hooks.values():
        register(hook)


def _contiguous(layer: nn.Module, args: tuple) -> tuple | None:
    """Hook before a narrow convolution: make its input contiguous on a CPU."""
    x, *others = args
    if x.device.type != "cpu":
        return None
    return plain(x), *others


def _channels_last(layer: nn.Module, args: tuple, y: Tensor) -> Tensor:
    """Hook after a narrow convolution: the layers after a stem of three colours are faster so."""
    return y.contiguous(memory_format=FORMATS[y.dim()])
