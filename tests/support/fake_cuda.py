"""A pretended CUDA device, so that what only fails on a GPU fails on every machine.

    with fake_cuda() as device:
        x = torch.zeros(3, device="cuda")       # says cuda:0, holds its numbers in the memory of the CPU
        x + torch.ones(3)                        # RuntimeError, as on CUDA: two devices
        x.numpy()                                # TypeError, as on CUDA
        device.observers.append(print)           # every operator that reaches the device, as an `Operation`

Within it torch says that there is one GPU: in `torch.cuda`, in factories (`device="cuda"`), `.to` and `.cuda()`, modules,
autocast, optimisers, random numbers, `torch.save` and `torch.load`, pinned memory. Everything works in all threads.

How: a `CudaTensor` is a subclass over ordinary memory with the dispatch keys of CUDA. Every operator on one ends in
`Device.run`: it refuses a mixture of devices that CUDA would refuse, runs the CPU's kernel on the same memory, and tells the
observers. In C++ the tensor says that it is on the CPU, because torch's autograd engine has no thread for a device that the
machine lacks. What follows from that, and what else is not pretended:

- A C++ function that makes a helper tensor on its argument's device makes it on the CPU; none that the product calls does.
- Copies that need not wait (`non_blocking`) are made at once; but a pinned source must stay as it is, and what goes to the
  host holds rubbish, until the device is waited for. Work on several streams is not disordered.
- Kernels and their rounding are the CPU's: cuDNN, fused optimisers, memory limits and speed are not pretended.
"""

import copy
import functools
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, nullcontext
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import _device
from torch.utils._pytree import tree_map_only

from support.cuda_autocast import Autocast

NAME = "Pretended GPU"
HERE = torch.device("cuda", 0)
MEMORY = 16 << 30  # bytes that it says it has
LIKE = ("zeros_like", "ones_like", "empty_like", "full_like", "rand_like", "randn_like", "randint_like")
NEW = ("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided")
DRAWS = ("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "multinomial", "bernoulli")
# Operators beside the elementwise ones that take one number from a 0-dimensional tensor of the CPU.
SCALAR_TOO = {"fill", "fill_", "masked_fill", "masked_fill_", "index_fill", "index_fill_", "clamp", "clamp_", "pow"}
INDEXING = {"index", "index_put", "index_put_", "_index_put_impl_", "_unsafe_index", "_unsafe_index_put"}
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution"}  # CUDA has none of integers
BETWEEN = {"copy_", "_to_copy", "_copy_from", "_has_compatible_shallow_copy_type"}

_plain_to, _plain_save, _plain_load = torch.Tensor.to, torch.save, torch.load
_plain_apply, _plain_generator = torch.nn.Module._apply, torch.Generator


@dataclass(frozen=True)
class Operation:
    """One operator that reached the device. `kind`: "launch" (work for it), "view" (none), "h2d" or "d2h" (a copy from or to
    the host of `bytes`). `waits`: the host goes on only when the device has done all that it was given."""

    name: str
    kind: str
    waits: bool = False
    bytes: int = 0


class CudaTensor(torch.Tensor):
    """A tensor that says it is on cuda:0. Its memory is the CPU's."""

    __torch_function__ = torch._C._disabled_torch_function_impl

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return DEVICE.run(func, args, kwargs or {})

    device = property(lambda self: HERE)
    is_cuda = property(lambda self: True)
    is_cpu = property(lambda self: False)

    def get_device(self) -> int:
        return 0

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the tensor to host memory first."
        )

    def __array__(self, dtype=None):
        return self.numpy()

    def tolist(self) -> list:
        return self.detach().cpu().tolist()

    def pin_memory(self, *args):
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            out = self.detach().clone(memory_format=torch.preserve_format)
            parameter = isinstance(self, torch.nn.Parameter)
            out = torch.nn.Parameter(out, self.requires_grad) if parameter else out.requires_grad_(self.requires_grad)
            memo[id(self)] = out
            out.grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{memory_of(self)!r} on {HERE}"

    def __reduce_ex__(self, protocol):
        DEVICE.saved.add(self.untyped_storage()._cdata)
        data = memory_of(self).requires_grad_(self.requires_grad)
        return (torch.nn.Parameter(data) if isinstance(self, torch.nn.Parameter) else data).__reduce_ex__(protocol)


class CudaGenerator(torch.Generator):
    """A generator on the device."""

    device = property(lambda self: HERE)


class _AnyGenerator(type(torch.Generator)):
    """Makes `isinstance` of what stands for torch.Generator as true as of torch.Generator itself."""

    def __instancecheck__(cls, instance: Any) -> bool:
        return isinstance(instance, _plain_generator)


class _Generator(torch.Generator, metaclass=_AnyGenerator):
    """Stands for torch.Generator: one of the device where that is asked for."""

    def __new__(cls, device: Any = "cpu"):
        return CudaGenerator() if _is_cuda(device) else _plain_generator(device)


def memory_of(x: torch.Tensor) -> torch.Tensor:
    """The same memory as an ordinary tensor of the CPU."""
    return torch.empty(0, dtype=x.dtype).set_(x.untyped_storage(), x.storage_offset(), x.shape, x.stride())


def wrap(x: torch.Tensor) -> CudaTensor:
    """The same memory as a tensor of the device; never an inference tensor, which cannot be of a subclass."""
    if x.is_inference():
        with torch.inference_mode(False):
            x = memory_of(x)
    return torch.Tensor._make_subclass(CudaTensor, x, False, device_for_backend_keys=HERE)


class Device:
    """The one device of this process: who watches it, its random numbers, and copies that may still be on their way."""

    def __init__(self) -> None:
        self.active = False
        self.observers: list[Callable[[Operation], None]] = []
        self.generator = torch.Generator()
        self.saved: set[int] = set()  # storages of the device, by address, in a torch.save or torch.load
        self.pinned: set[int] = set()  # addresses of pinned memory
        self.reading: list[tuple[torch.Tensor, torch.Tensor]] = []  # pinned sources and what they held
        self.writing: list[tuple[torch.Tensor, torch.Tensor]] = []  # memory of the host and what will be there
        self.lock = threading.RLock()
        self.autocast = Autocast(CudaTensor)

    # --- every operator

    def run(self, func: torch._ops.OpOverload, args: Sequence[Any], kwargs: dict[str, Any]) -> Any:
        """What `func` gives, on the device."""
        name = func.overloadpacket.__name__
        tensors = list(_tensors_in((*args, *kwargs.values())))
        refuse_mixture(func, name, args, tensors)
        if name in PRODUCTS and not (tensors[0].is_floating_point() or tensors[0].is_complex()):
            raise RuntimeError(f"\"{name}_cuda\" not implemented for '{tensors[0].dtype}'")
        if name == "copy_":
            return self.copy(*args, **kwargs)
        if kwargs.get("device") is not None:  # by C++, which copies where its argument says that it is; `.to` comes not here
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if torch.Tag.inplace_view in func.tags:  # shape and strides alone, which are the same in both worlds
            with torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        own: dict[int, CudaTensor] = {}

        def unwrapped(x: torch.Tensor) -> torch.Tensor:
            if not isinstance(x, CudaTensor):
                return x
            data = memory_of(x)
            own[id(data)] = x
            return data

        inside = _mapped(unwrapped, tuple(args)), {key: _mapped(unwrapped, value) for key, value in kwargs.items()}
        with self.drawing() if torch.Tag.nondeterministic_seeded in func.tags else nullcontext():
            out = _on_the_cpu(func, name, *inside)
        self.tell(_operation(func, name, args))

        def wrapped(x: torch.Tensor) -> torch.Tensor:
            if id(x) in own:  # an operator in place returns its argument
                _refuse_new_shape(name, own[id(x)], x)
                return own[id(x)]
            return wrap(x)

        return _mapped(wrapped, out)

    def tell(self, operation: Operation) -> None:
        """Tells the observers; where the host waits, no copy is on its way any longer."""
        if operation.waits:
            self.synchronize()
        for observer in self.observers:
            observer(operation)

    # --- copies

    def upload(self, x: torch.Tensor, dtype: torch.dtype | None = None, non_blocking: bool = False, **how) -> CudaTensor:
        """A tensor of the host on the device."""
        data = _plain_to(x, dtype=dtype or x.dtype, copy=True, **how)
        self._sent("_to_copy", x, non_blocking)
        return wrap(data)

    def download(self, x: CudaTensor, non_blocking: bool = False, **how) -> torch.Tensor:
        """A tensor of the device on the host."""
        how.pop("device", None)
        how = {key: value for key, value in how.items() if key in ("dtype", "memory_format") and value is not None}
        data = _plain_to(memory_of(x), copy=True, **{"dtype": x.dtype, **how})
        self._received("_to_copy", data, non_blocking)
        return data

    def copy(self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False) -> torch.Tensor:
        """`to.copy_(source)`, of which at least one is of the device."""
        inside = [memory_of(x) if isinstance(x, CudaTensor) else x for x in (to, source)]
        inside[0].copy_(inside[1])
        if not isinstance(source, CudaTensor):
            self._sent("copy_", source, non_blocking)
        elif not isinstance(to, CudaTensor):
            self._received("copy_", to, non_blocking)
        else:
            self.tell(Operation("copy_", "launch"))
        return to

    def _sent(self, name: str, source: torch.Tensor, non_blocking: bool) -> None:
        late = non_blocking and self.is_pinned(source)  # from other memory, CUDA copies the source before it returns
        if late:
            with self.lock:
                self.reading.append((source.detach(), source.detach().clone()))
        self.tell(Operation(name, "h2d", not late, source.nbytes))

    def _received(self, name: str, there: torch.Tensor, non_blocking: bool) -> None:
        if non_blocking:
            with self.lock:
                self.writing.append((there.detach(), there.detach().clone()))
                there.detach().view(torch.uint8 if there.dim() else there.dtype).fill_(255 if there.dim() else -1)
        self.tell(Operation(name, "d2h", not non_blocking, there.nbytes))

    def synchronize(self, *_: Any) -> None:
        """Waits: copies to the host arrive. RuntimeError if the source of a copy was overwritten before."""
        with self.lock:
            reading, writing, self.reading, self.writing = self.reading, self.writing, [], []
        for there, value in writing:
            there.copy_(value)
        for source, before in reading:
            if not torch.equal(source.view(torch.uint8), before.view(torch.uint8)):
                raise RuntimeError(
                    "the source of a non_blocking copy to the device was overwritten before anybody waited for the copy"
                )

    def wait(self, *_: Any) -> None:
        """`torch.cuda.synchronize()`."""
        self.tell(Operation("synchronize", "wait", True))

    # --- pinned memory

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """A copy in pinned memory."""
        copy = x.detach().clone()
        self.pinned.add(copy.untyped_storage().data_ptr())
        return copy

    def is_pinned(self, x: torch.Tensor) -> bool:
        """Whether a tensor's memory is pinned."""
        return not isinstance(x, CudaTensor) and x.untyped_storage().data_ptr() in self.pinned

    # --- random numbers

    @contextmanager
    def drawing(self, generator: torch.Generator | None = None) -> Iterator[None]:
        """Within it the CPU's default generator goes on from the state of the device's."""
        mine, host = generator or self.generator, torch.default_generator
        before = host.get_state()
        host.set_state(mine.get_state())
        try:
            yield
            mine.set_state(host.get_state())
        finally:
            host.set_state(before)

    def seed(self, seed: int) -> None:
        """`torch.cuda.manual_seed`."""
        self.generator.manual_seed(int(seed) % 2**64)


DEVICE = Device()


def refuse_mixture(func: torch._ops.OpOverload, name: str, args: Sequence[Any], tensors: Sequence[torch.Tensor]) -> None:
    """RuntimeError for tensors of two devices, where CUDA would raise one.

    It takes numbers (0 dimensions) of the CPU in elementwise operators, and indices of the CPU.
    """
    others = [x for x in tensors if not isinstance(x, CudaTensor)]
    if not others or name in BETWEEN:
        return
    if name in INDEXING:
        if not isinstance(args[0], CudaTensor):
            raise RuntimeError("indices should be either on cpu or on the same device as the indexed tensor (cpu)")
        others = [x for x in others if not any(x is index for index in args[1])]
    scalars = torch.Tag.pointwise in func.tags or name in SCALAR_TOO | INDEXING or name.startswith("_foreach_")
    changed = func._schema.arguments and func._schema.arguments[0].is_write and isinstance(args[0], torch.Tensor)
    if changed and not isinstance(args[0], CudaTensor):
        scalars = False
    if [x for x in others if x.dim() or not scalars]:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, {HERE} and cpu! (in {func})"
        )


def _refuse_new_shape(name: str, mine: CudaTensor, data: torch.Tensor) -> None:
    if mine.shape != data.shape or mine.stride() != data.stride():
        raise NotImplementedError(f"{name}: the pretended device cannot change a tensor's shape in place")


def _operation(func: torch._ops.OpOverload, name: str, args: Sequence[Any]) -> Operation:
    aliases = [r.alias_info for r in func._schema.returns]
    if aliases and all(alias is not None and not alias.is_write for alias in aliases):
        return Operation(name, "view")
    if name == "_local_scalar_dense":
        return Operation(name, "d2h", True, args[0].itemsize)
    # The shape of what comes out depends on values: the host asks for it.
    waits = bool({torch.Tag.dynamic_output_shape, torch.Tag.data_dependent_output} & set(func.tags))
    if name in INDEXING:
        waits = any(x is not None and x.dtype in (torch.bool, torch.uint8) for x in args[1])
    return Operation(name, "launch", waits)


def _on_the_cpu(func: torch._ops.OpOverload, name: str, args: tuple, kwargs: dict) -> Any:
    """The CPU's kernel; in float32 where it has none for the dtype of half as many bits."""
    if name in ("convolution", "convolution_backward"):
        return _convolution(func, args, kwargs)
    try:
        return func(*args, **kwargs)
    except (RuntimeError, NotImplementedError) as error:
        if "not implemented for 'Half'" not in str(error) or func._schema.is_mutable:
            raise
    out = func(*_mapped(_widened, args), **{key: _mapped(_widened, value) for key, value in kwargs.items()})
    return _mapped(lambda x: x.half() if x.dtype == torch.float32 else x, out)


def _convolution(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Any:
    """Of few channels in contiguous memory, in float32: the CPU's channels-last kernels for them are not sound everywhere."""
    weight = next(x for x in args[1:] if isinstance(x, torch.Tensor) and x.dim() > 2) if len(args) > 1 else args[0]
    narrow = min(weight.shape[:2]) % 8 != 0
    half = weight.dtype == torch.float16

    def plain(x: torch.Tensor) -> torch.Tensor:
        x = x.contiguous() if narrow else x
        return x.float() if half and x.dtype == torch.float16 else x

    out = func(*_mapped(plain, args), **kwargs)
    return _mapped(torch.Tensor.half, out) if half else out


def _widened(x: torch.Tensor) -> torch.Tensor:
    return x.float() if x.dtype == torch.float16 else x


def _tensors_in(values: Any) -> Iterator[torch.Tensor]:
    """The tensors among an operator's arguments, which are nested in lists at most."""
    for value in values:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors_in(value)


def _mapped(change: Callable[[torch.Tensor], torch.Tensor], value: Any) -> Any:
    """`value` with the tensors in it changed."""
    if isinstance(value, torch.Tensor):
        return change(value)
    if isinstance(value, (list, tuple)):
        return type(value)(_mapped(change, one) for one in value)
    return value


# --- what the product calls


def _is_cuda(device: Any) -> bool:
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
        ctx.inside, ctx.outside, ctx.name, ctx.dtypes = inside, outside, name, [x.dtype for x in tensors]
        ctx.training = training
        return tuple(wrap(x.detach().to(tensors[0].dtype)) for x in outside)

    @staticmethod
    def backward(ctx, *grads):
        if not ctx.training:
            raise RuntimeError("cudnn RNN backward can only be called in training mode")
        grads = [memory_of(grad).to(x.dtype) for grad, x in zip(grads, ctx.outside, strict=True)]
        found = torch.autograd.grad(ctx.outside, ctx.inside, grads)
        DEVICE.tell(Operation(f"{ctx.name}_backward", "launch"))
        return None, None, None, *(wrap(grad.to(dtype)) for grad, dtype in zip(found, ctx.dtypes, strict=True))


def _recurrent(name: str, plain: Callable) -> Callable:
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


def _to(self: torch.Tensor, *args, **kwargs) -> torch.Tensor:
    copy = kwargs.pop("copy", False)
    other = kwargs.pop("other", None)
    if args and isinstance(args[0], torch.Tensor):
        other, args = args[0], args[1:]
    if other is not None:
        device, dtype = other.device, other.dtype
        non_blocking, memory_format = (args[0] if args else kwargs.get("non_blocking", False)), kwargs.get("memory_format")
    else:
        if args and isinstance(args[0], int) and not isinstance(args[0], bool):
            args = (torch.device("cuda", args[0]), *args[1:])
        if len(args) > 3 or (len(args) == 3 and isinstance(args[2], bool)):  # (device, dtype, non_blocking, copy)
            copy = args[3] if len(args) > 3 else copy
            args = args[:3]
        device, dtype, non_blocking, memory_format = torch._C._nn._parse_to(*args, **kwargs)
    how = {} if memory_format is None else {"memory_format": memory_format}
    mine, there = isinstance(self, CudaTensor), isinstance(self, CudaTensor) if device is None else _is_cuda(device)
    if mine == there:
        if device is not None and not mine and torch.device(device).type != "cpu":
            how["device"] = device
        return _plain_to(self, dtype=dtype or self.dtype, copy=copy, **how)
    if mine and torch.device(device).type != "cpu":
        return _plain_to(self, device=device, dtype=dtype or self.dtype, copy=copy, **how)
    cross, how = _Upload if there else _Download, {**how, "dtype": dtype, "non_blocking": non_blocking}
    if self.requires_grad and torch.is_grad_enabled():
        return cross.apply(self, how)
    with torch.no_grad():
        return (DEVICE.upload if there else DEVICE.download)(self, **how)


def _factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
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
        if not _is_cuda(device) and not (device is None and isinstance(kwargs.get("generator"), CudaGenerator)):
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
        DEVICE.tell(Operation(make.__name__, "h2d" if given else "launch", given, data.nbytes if given else 0))
        return wrap(data).requires_grad_(grad)

    return made


def _from_device(make: Callable, source: CudaTensor, device: Any, kwargs: dict) -> torch.Tensor:
    """torch.as_tensor and its like of a tensor that is on the device."""
    out = source.to(device=HERE if device is None else device, dtype=kwargs.get("dtype") or source.dtype)
    return out.detach().clone() if make is torch.tensor else out


def _pinning_factory(make: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    """As `make`, which knows nothing of pinned memory."""

    @functools.wraps(make)
    def made(*args, **kwargs):
        if not kwargs.get("pin_memory") or _is_cuda(kwargs.get("device")):
            return make(*args, **kwargs)
        return DEVICE.pin(make(*args, **{**kwargs, "pin_memory": False}))

    return made


def _refuse_generator(generator: torch.Generator | None, on_device: bool) -> None:
    if generator is not None and isinstance(generator, CudaGenerator) != on_device:
        wanted, found = ("cuda", "cpu") if on_device else ("cpu", "cuda")
        raise RuntimeError(f"Expected a '{wanted}' device type for generator but found '{found}'")


def _draw(make: Callable) -> Callable:
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


def _apply(self: torch.nn.Module, fn: Callable, recurse: bool = True) -> torch.nn.Module:
    """Parameters stay the same objects, as when CUDA's are put in their place."""
    before = torch.__future__.get_swap_module_params_on_conversion()
    torch.__future__.set_swap_module_params_on_conversion(True)
    try:
        return _plain_apply(self, fn, recurse)
    finally:
        torch.__future__.set_swap_module_params_on_conversion(before)


def _save(*args, **kwargs) -> None:
    DEVICE.saved.clear()
    try:
        _plain_save(*args, **kwargs)
    finally:
        DEVICE.saved.clear()


def _load(*args, **kwargs) -> Any:
    DEVICE.saved.clear()
    try:
        found = _plain_load(*args, **kwargs)
        return tree_map_only(torch.Tensor, lambda x: wrap(x) if x.untyped_storage()._cdata in DEVICE.saved else x, found)
    finally:
        DEVICE.saved.clear()


def _location(storage) -> str | None:
    """Where a storage is, as torch.save writes it down."""
    return "cuda:0" if DEVICE.active and storage._cdata in DEVICE.saved else None


def _restored(storage, location: str):
    if not DEVICE.active or not location.startswith("cuda"):
        return None
    _is_cuda(location)
    DEVICE.saved.add(getattr(storage, "_untyped_storage", storage)._cdata)
    return storage


torch.serialization.register_package(1, _location, _restored)  # before the CPU's and CUDA's own


class _Stream:
    """A stream, or an event; work is done at once, waiting for it is waiting for the device."""

    def __init__(self, *args, **kwargs):
        self.device = HERE

    def __enter__(self):
        return self

    def __exit__(self, *_):
        return None

    def synchronize(self) -> None:
        DEVICE.wait()

    def record(self, *_) -> None:
        """Marks a place in the work."""

    def record_event(self, event=None):
        return event or _Stream()

    def wait_event(self, *_) -> None:
        """Orders the work of streams, which is in order."""

    wait = wait_stream = wait_event

    def is_capturing(self) -> bool:
        return False

    def query(self) -> bool:
        return not DEVICE.reading and not DEVICE.writing

    def elapsed_time(self, other) -> float:
        return 0.0


def _torch_cuda() -> dict[str, Any]:
    """What `torch.cuda` says."""
    about = SimpleNamespace(
        name=NAME, total_memory=MEMORY, major=9, minor=0, multi_processor_count=1, max_threads_per_multi_processor=2048
    )
    stream = _Stream()
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": _is_cuda,
        "device_of": lambda tensor: nullcontext(),
        "is_current_stream_capturing": lambda: False,
        "device": lambda device: nullcontext(_is_cuda(device)),
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: about,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        **dict.fromkeys(
            ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"), lambda device=None: 0
        ),
        **dict.fromkeys(("empty_cache", "ipc_collect", "reset_peak_memory_stats", "init", "_lazy_init"), lambda *_: None),
        "synchronize": DEVICE.wait,
        "Stream": _Stream,
        "Event": _Stream,
        "stream": lambda stream: stream or nullcontext(),
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "manual_seed": DEVICE.seed,
        "manual_seed_all": DEVICE.seed,
        "initial_seed": lambda: DEVICE.generator.initial_seed(),
        "get_rng_state": lambda device="cuda": DEVICE.generator.get_state(),
        "get_rng_state_all": lambda: [DEVICE.generator.get_state()],
        "set_rng_state": lambda state, device="cuda": DEVICE.generator.set_state(state),
        "set_rng_state_all": lambda states: DEVICE.generator.set_state(states[0]),
    }


def _clear_autocast_cache(clear: Callable[[], None] = torch.clear_autocast_cache) -> None:
    DEVICE.autocast.clear()
    clear()


@contextmanager
def fake_cuda() -> Iterator[Device]:
    """Within it this process has a pretended GPU, in all threads; see the top of this file. Not to be nested."""
    constructors = {fn.__name__: fn for fn in _device._device_constructors()}
    with ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, make in constructors.items():
            if getattr(torch, name, None) is make:
                patch(torch, name, _pinning_factory(_factory(make)))
        for name in LIKE:
            patch(torch, name, _factory(getattr(torch, name)))
        for name in NEW:
            patch(torch.Tensor, name, _factory(getattr(torch.Tensor, name)))
        for name in DRAWS:
            patch(torch.Tensor, name, _draw(getattr(torch.Tensor, name)))
            if hasattr(torch, name):
                patch(torch, name, _draw(getattr(torch, name)))
        tensor = {
            "to": _to,
            "cpu": lambda self, memory_format=torch.preserve_format: _to(self, "cpu", memory_format=memory_format),
            "cuda": lambda self, device="cuda", non_blocking=False: _to(self, device or "cuda", non_blocking=non_blocking),
            "type_as": lambda self, other: _to(self, other),
            "pin_memory": lambda self, *_: DEVICE.pin(self),
            "is_pinned": lambda self, *_: DEVICE.is_pinned(self),
        }
        for name, value in tensor.items():
            patch(torch.Tensor, name, value)
        for name, value in _torch_cuda().items():
            patch(torch.cuda, name, value)
        for name in (
            "is_available",
            "device_count",
            "current_device_index",
            "current_stream",
            "synchronize",
            "memory_allocated",
        ):
            patch(torch.accelerator, name, getattr(torch.cuda, name.removesuffix("_index")))
        patch(torch.accelerator, "current_accelerator", lambda check_available=False: torch.device("cuda"))
        patch(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            patch(torch._VF, name, _recurrent(name, getattr(torch._VF, name)))
        patch(torch.nn.Module, "_apply", _apply)
        patch(torch, "Generator", _Generator)
        patch(torch, "save", _save)
        patch(torch, "load", _load)
        patch(torch, "clear_autocast_cache", _clear_autocast_cache)
        # With it optimisers take the same way as on CUDA: all weights in one operator.
        _foreach_supported_types.append(CudaTensor)
        stack.callback(_foreach_supported_types.remove, CudaTensor)
        stack.enter_context(DEVICE.autocast.registered())
        patch(DEVICE, "active", True)
        patch(DEVICE, "observers", [])
        patch(DEVICE, "generator", _plain_generator())
        stack.callback(_forget)
        yield DEVICE


def _forget() -> None:
    DEVICE.reading, DEVICE.writing = [], []
    DEVICE.pinned.clear()
    DEVICE.autocast.clear()
