"""What stands for torch's own functions while the pretended device of fake_cuda.py is there.

Only those whose C++ would look for a real GPU: factories, copies between devices, recurrent layers,
generators, checkpoints.
"""

import functools
from collections.abc import Callable
from typing import Any
from unittest import mock

import torch
from torch.utils._pytree import tree_map_only

from tests.support.cuda_device import (
    DEVICE,
    HERE,
    CudaGenerator,
    CudaTensor,
    Operation,
    memory_of,
    plain_to,
    refuse_mixture,
    wrap,
)

_plain_save, _plain_load = torch.save, torch.load
_plain_apply, _plain_generator = torch.nn.Module._apply, torch.Generator


class _Kind(type(torch.Generator)):
    """Makes `isinstance` of what stands for torch.Generator as true as of torch.Generator
    itself.
    """

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _plain_generator)


class AnyGenerator(torch.Generator, metaclass=_Kind):
    """Stands for torch.Generator: one of the device where that is asked for."""

    def __new__(cls, device: Any = "cpu"):
        return CudaGenerator() if is_cuda(device) else _plain_generator(device)


def is_cuda(device: Any) -> bool:
    """Whether a device that somebody names is the pretended one. RuntimeError for a second one."""
    if device is None:
        return False
    device = torch.device("cuda", device) if isinstance(device, int) else torch.device(device)
    if device.type == "cuda" and (device.index or 0) > 0:
        raise RuntimeError("CUDA error: invalid device ordinal")
    return device.type == "cuda"


class _Upload(torch.autograd.Function):
    """`.to("cuda")` through which gradients flow."""

    @staticmethod
    def forward(ctx, x, how):
        return DEVICE.upload(x, **how)

    @staticmethod
    def backward(ctx, grad):
        return DEVICE.download(grad), None


class _Download(torch.autograd.Function):
    """`.cpu()` through which gradients flow."""

    @staticmethod
    def forward(ctx, x, how):
        return DEVICE.download(x, **how)

    @staticmethod
    def backward(ctx, grad):
        return DEVICE.upload(grad), None


class _Recurrent(torch.autograd.Function):
    """An LSTM or GRU as one operator, as cuDNN computes it; in float32."""

    @staticmethod
    def forward(ctx, run, name, training, *tensors):
        refuse_mixture(torch.ops.aten.addmm.default, name, (), tensors)
        with torch.enable_grad(), DEVICE.drawing():
            inside = [memory_of(x).detach().float().requires_grad_() for x in tensors]
            outside = run(inside)
        DEVICE.tell(Operation(name, "launch"))
        ctx.inside, ctx.outside, ctx.name, ctx.dtypes = (
            inside,
            outside,
            name,
            [x.dtype for x in tensors],
        )
        ctx.training = training
        return tuple(wrap(x.detach().to(tensors[0].dtype)) for x in outside)

    @staticmethod
    def backward(ctx, *grads):
        if not ctx.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        grads = [memory_of(grad).to(x.dtype) for grad, x in zip(grads, ctx.outside, strict=True)]
        found = torch.autograd.grad(ctx.outside, ctx.inside, grads)
        DEVICE.tell(Operation(f"{ctx.name}_backward", "launch"))
        return (
            None,
            None,
            None,
            *(wrap(grad.to(dtype)) for grad, dtype in zip(found, ctx.dtypes, strict=True)),
        )


def recurrent(name: str, plain: Callable) -> Callable:
    """`torch._VF.lstm` or one of its like, which the layers of torch.nn call."""

    @functools.wraps(plain)
    def call(x, hidden, weights, *options):
        if not isinstance(x, CudaTensor) or isinstance(hidden, torch.Tensor) != (name != "lstm"):
            return plain(x, hidden, weights, *options)
        states = list(hidden) if name == "lstm" else [hidden]
        tensors = [x, *states, *weights]
        if torch.is_autocast_enabled("cuda"):
            tensors = [one.to(torch.get_autocast_dtype("cuda")) for one in tensors]

        def run(inside: list[torch.Tensor]) -> tuple[torch.Tensor, ...]:
            first, rest = inside[1 : 1 + len(states)], inside[1 + len(states) :]
            return plain(inside[0], first if name == "lstm" else first[0], rest, *options)

        with torch.autocast("cuda", enabled=False):
            return _Recurrent.apply(run, f"_cudnn_rnn_{name}", options[3], *tensors)

    return call


def _place_of(x: torch.Tensor) -> torch.device:
    """The device of a tensor, also of one that torch.func has wrapped."""
    while torch._C._functorch.is_functorch_wrapped_tensor(x):
        x = torch._C._functorch.get_unwrapped(x)
    return x.device


def to(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    copy = kwargs.pop("copy", False)
    other = kwargs.pop("other", None)
    if args and isinstance(args[0], torch.Tensor):
        other, args = args[0], args[1:]
    if other is not None:
        device, dtype = _place_of(other), other.dtype
        non_blocking, memory_format = (
            (args[0] if args else kwargs.get("non_blocking", False)),
            kwargs.get("memory_format"),
        )
    else:
        if args and isinstance(args[0], int) and not isinstance(args[0], bool):
            args = (torch.device("cuda", args[0]), *args[1:])
        # The positional form is (device, dtype, non_blocking, copy).
        if len(args) > 3 or (len(args) == 3 and isinstance(args[2], bool)):
            copy = args[3] if len(args) > 3 else copy
            args = args[:3]
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    how = {} if memory_format is None else {"memory_format": memory_format}
    mine, there = (
        isinstance(self, CudaTensor),
        isinstance(self, CudaTensor) if device is None else is_cuda(device),
    )
    if mine == there:
        if device is not None and not mine and torch.device(device).type != "cpu":
            how["device"] = device
        return plain_to(self, dtype=dtype or self.dtype, copy=copy, **how)
    if mine and torch.device(device).type != "cpu":
        return plain_to(self, device=device, dtype=dtype or self.dtype, copy=copy, **how)
    cross, how = (
        _Upload if there else _Download,
        {**how, "dtype": dtype, "non_blocking": non_blocking},
    )
    if self.requires_grad and torch.is_grad_enabled():
        return cross.apply(self, how)
    with torch.no_grad():
        return (DEVICE.upload if there else DEVICE.download)(self, **how)


def factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """A function that makes a tensor on a device."""
    copies = make in (torch.as_tensor, torch.asarray, torch.tensor)

    @functools.wraps(make)
    def made(*args, **kwargs):
        source = args[0] if args and isinstance(args[0], CudaTensor) else None
        device = kwargs.get("device")
        if copies and source is not None:
            return _from_device(make, source, device, kwargs)
        if source is not None and device is None:
            kwargs["device"] = device = HERE
        if source is not None:  # a tensor like it
            args = (memory_of(source), *args[1:])
        if not is_cuda(device) and not (
            device is None and isinstance(kwargs.get("generator"), CudaGenerator)
        ):
            return make(*args, **kwargs)
        kwargs.pop("device", None)
        generator = kwargs.pop("generator", None)
        _refuse_generator(generator, True)
        if kwargs.pop("pin_memory", False):
            raise RuntimeError("Only dense CPU tensors can be pinned")
        grad = kwargs.pop("requires_grad", False)
        with DEVICE.drawing(generator):
            data = make(*args, **kwargs)
        if isinstance(data, CudaTensor):
            return data
        given = copies or make.__name__ == "new_tensor"
        DEVICE.tell(
            Operation(
                make.__name__, "h2d" if given else "launch", given, data.nbytes if given else 0
            )
        )
        out = wrap(data)
        # Only where it is asked for: torch.func refuses the call.
        return out.requires_grad_() if grad else out

    return made


def _from_device(make: Callable, source: CudaTensor, device: Any, kwargs: dict) -> torch.Tensor:
    """torch.as_tensor and its like of a tensor that is on the device."""
    out = source.to(
        device=HERE if device is None else device, dtype=kwargs.get("dtype") or source.dtype
    )
    return out.detach().clone() if make is torch.tensor else out


def pinning_factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """As `make`, which knows nothing of pinned memory."""

    @functools.wraps(make)
    def made(*args, **kwargs):
        if not kwargs.get("pin_memory") or is_cuda(kwargs.get("device")):
            return make(*args, **kwargs)
        return DEVICE.pin(make(*args, **{**kwargs, "pin_memory": False}))

    return made


def _refuse_generator(generator: torch.Generator | None, on_device: bool) -> None:
    if generator is not None and isinstance(generator, CudaGenerator) != on_device:
        wanted, found = ("cuda", "cpu") if on_device else ("cpu", "cuda")
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


def draw(make: Callable) -> Callable:
    """A method that may be given a generator."""

    @functools.wraps(make)
    def drawn(self, *args, generator=None, **kwargs):
        _refuse_generator(generator, isinstance(self, CudaTensor))
        if generator is None:
            return make(self, *args, **kwargs)
        if not isinstance(self, CudaTensor):
            return make(self, *args, generator=generator, **kwargs)
        with mock.patch.object(DEVICE, "generator", generator):
            return make(self, *args, **kwargs)

    return drawn


def apply(self: torch.nn.Module, fn: Callable, recurse: bool = True) -> torch.nn.Module:
    """Parameters stay the same objects, as when CUDA's are put in their place."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _plain_apply(self, fn, recurse)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def save(*args, **kwargs) -> None:
    DEVICE.saved.clear()
    try:
        _plain_save(*args, **kwargs)
    finally:
        DEVICE.saved.clear()


def load(*args, **kwargs) -> Any:
    DEVICE.saved.clear()
    try:
        found = _plain_load(*args, **kwargs)
        return tree_map_only(
            torch.Tensor,
            lambda x: wrap(x) if x.untyped_storage()._cdata in DEVICE.saved else x,
            found,
        )
    finally:
        DEVICE.saved.clear()


def grouped(plain: Callable) -> Callable:
    """Optimisers group tensors by device in C++, where those of the device are the CPU's."""

    def group(lists: list, with_indices: bool = False) -> dict:
        found = plain(lists, with_indices)
        if not any(isinstance(x, CudaTensor) for one in lists for x in one):
            return found
        return {(HERE, dtype): tensors for (_, dtype), tensors in found.items()}

    return group


def _location(storage) -> str | None:
    """Where a storage is, as torch.save writes it down."""
    return "cuda:0" if DEVICE.active and storage._cdata in DEVICE.saved else None


def _restored(storage, location: str):
    if not DEVICE.active or not location.startswith("cuda"):
        return None
    is_cuda(location)
    DEVICE.saved.add(getattr(storage, "_untyped_storage", storage)._cdata)
    return storage


torch.serialization.register_package(1, _location, _restored)  # before the CPU's and CUDA's own
