"""The pretended device of fake_cuda.py: its tensors, and what happens to every operator on one
(`Device.run`).
"""

import copy
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef

from tests.support.cuda_autocast import Autocast
from tests.support.cuda_streams import STREAMS, Clock

HERE = torch.device("cuda", 0)
# Operators beside the elementwise ones that take one number from a 0-dimensional tensor of the CPU.
SCALAR_TOO = {
    "fill",
    "fill_",
    "masked_fill",
    "masked_fill_",
    "index_fill",
    "index_fill_",
    "clamp",
    "clamp_",
    "pow",
}
INDEXING = {
    "index",
    "index_put",
    "index_put_",
    "_index_put_impl_",
    "_unsafe_index",
    "_unsafe_index_put",
}
# Products that CUDA does not have for integers.
PRODUCTS = {"mm", "bmm", "addmm", "baddbmm", "addbmm", "mv", "addmv", "dot", "convolution"}
BETWEEN = {"copy_", "_to_copy", "_copy_from", "_has_compatible_shallow_copy_type"}

plain_to = torch.Tensor.to


@dataclass(frozen=True)
class Operation:
    """One operator that reached the device.

    `kind`: "launch" (work for it), "view" (none), "h2d" or "d2h" (a copy of `bytes` from or to the
    host), "wait" (the host asked for nothing else). `waits`: the host goes on only when the device
    has done all that it was given. `pinned`: the host's side of a copy is page-locked.
    """

    name: str
    kind: str
    waits: bool = False
    bytes: int = 0
    pinned: bool = False


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

    def record_stream(self, stream) -> None:
        """Keeps its memory until a stream has used it: here nothing is used late."""

    def numpy(self, *, force: bool = False):
        if force:
            return self.detach().cpu().numpy()
        raise TypeError(
            "can't convert cuda:0 device type tensor to numpy. Use Tensor.cpu() to copy the "
            "tensor to host memory first."
        )

    def __array__(self, dtype=None, copy=None):
        return self.numpy()

    def tolist(self) -> list:
        return self.detach().cpu().tolist()

    def pin_memory(self, *args):
        raise RuntimeError(f"cannot pin '{self.type()}' only dense CPU tensors can be pinned")

    def __deepcopy__(self, memo):
        if id(self) not in memo:
            out = self.detach().clone(memory_format=torch.preserve_format)
            parameter = isinstance(self, torch.nn.Parameter)
            out = (
                torch.nn.Parameter(out, self.requires_grad)
                if parameter
                else out.requires_grad_(self.requires_grad)
            )
            memo[id(self)] = out
            out.grad = copy.deepcopy(self.grad, memo)
        return memo[id(self)]

    def __repr__(self, *, tensor_contents=None) -> str:
        return f"{memory_of(self)!r} on {HERE}"

    def __reduce_ex__(self, protocol):
        DEVICE.saved.add(self.untyped_storage()._cdata)
        data = memory_of(self).requires_grad_(self.requires_grad)
        return (
            torch.nn.Parameter(data) if isinstance(self, torch.nn.Parameter) else data
        ).__reduce_ex__(protocol)


class CudaGenerator(torch.Generator):
    """A generator on the device."""

    device = property(lambda self: HERE)


def memory_of(x: torch.Tensor) -> torch.Tensor:
    """The same memory as an ordinary tensor of the CPU."""
    return torch.empty(0, dtype=x.dtype).set_(
        x.untyped_storage(), x.storage_offset(), x.shape, x.stride()
    )


def address_of(x: torch.Tensor) -> int:
    """Where a tensor's storage starts."""
    return x.untyped_storage().data_ptr()


def wrap(x: torch.Tensor, fresh: bool = True) -> CudaTensor:
    """The same memory as a tensor of the device; never an inference tensor, which cannot be of a
    subclass. `fresh`: the current stream has written it.
    """
    if fresh:
        STREAMS.step((), [address_of(x)], "a new tensor")
    if x.is_inference():
        with torch.inference_mode(False):
            x = memory_of(x)
    return torch.Tensor._make_subclass(CudaTensor, x, False, device_for_backend_keys=HERE)


class Device:
    """The one device of this process: who watches it, its random numbers, and copies that may still
    be on their way.
    """

    def __init__(self) -> None:
        self.active = False
        self.observers: list[Callable[[Operation], None]] = []
        self.generator = torch.Generator()
        # Storages of the device, by address, in a torch.save or torch.load.
        self.saved: set[int] = set()
        # Address of pinned memory -> its storage: once that is gone, others may lie there.
        self.pinned: dict[int, StorageWeakRef] = {}
        # Pinned sources, what they held, and the copy's stream and count.
        self.reading: list[tuple[torch.Tensor, torch.Tensor, tuple[int, int]]] = []
        # Memory of the host, what will be there, and the copy's stream and count.
        self.writing: list[tuple[torch.Tensor, torch.Tensor, tuple[int, int]]] = []
        STREAMS.on_wait = self._event_waited
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
        # C++ calls this and copies to the device that its argument names; `.to` does not come here.
        if kwargs.get("device") is not None:
            kwargs = {**kwargs, "device": torch.device("cpu")}
        # These change shape and strides alone, which are the same on both sides.
        if torch.Tag.inplace_view in func.tags:
            with torch._C._DisableTorchDispatch():
                return func(*args, **kwargs)
        own: dict[int, CudaTensor] = {}

        def unwrapped(x: torch.Tensor) -> torch.Tensor:
            if not isinstance(x, CudaTensor):
                return x
            data = memory_of(x)
            own[id(data)] = x
            return data

        inside = (
            _mapped(unwrapped, tuple(args)),
            {key: _mapped(unwrapped, value) for key, value in kwargs.items()},
        )
        with self.drawing() if torch.Tag.nondeterministic_seeded in func.tags else nullcontext():
            out = _on_the_cpu(func, name, *inside)
        operation = _operation(func, name, args)
        inputs = {address_of(x) for x in tensors if isinstance(x, CudaTensor)}
        if operation.kind != "view":
            written = [address_of(x) for x in _tensors_in([out]) if id(x) in own]
            STREAMS.step(inputs, written, name)
        self.tell(operation)

        def wrapped(x: torch.Tensor) -> torch.Tensor:
            if id(x) in own:  # an operator in place returns its argument
                _refuse_new_shape(name, own[id(x)], x)
                return own[id(x)]
            return wrap(x, fresh=address_of(x) not in inputs)

        return _mapped(wrapped, out)

    def tell(self, operation: Operation) -> None:
        """Tells the observers; where the host waits, it waits for the current stream."""
        if operation.waits:
            self.complete(STREAMS.current().clock())
        for observer in self.observers:
            observer(operation)

    # --- copies

    def upload(
        self, x: torch.Tensor, dtype: torch.dtype | None = None, non_blocking: bool = False, **how
    ) -> CudaTensor:
        """A tensor of the host on the device."""
        data = plain_to(x, dtype=dtype or x.dtype, copy=True, **how)
        there = wrap(data)
        self._sent("_to_copy", x, non_blocking, there)
        return there

    def download(self, x: CudaTensor, non_blocking: bool = False, **how) -> torch.Tensor:
        """A tensor of the device on the host."""
        how.pop("device", None)
        how = {
            key: value
            for key, value in how.items()
            if key in ("dtype", "memory_format") and value is not None
        }
        data = plain_to(memory_of(x), copy=True, **{"dtype": x.dtype, **how})
        if non_blocking:  # torch then makes page-locked memory
            self._remember_pinned(data)
        self._received("_to_copy", data, non_blocking, x)
        return data

    def copy(
        self, to: torch.Tensor, source: torch.Tensor, non_blocking: bool = False
    ) -> torch.Tensor:
        """`to.copy_(source)`, of which at least one is of the device."""
        inside = [memory_of(x) if isinstance(x, CudaTensor) else x for x in (to, source)]
        inside[0].copy_(inside[1])
        if not isinstance(source, CudaTensor):
            self._sent("copy_", source, non_blocking, to)
        elif not isinstance(to, CudaTensor):
            self._received("copy_", to, non_blocking, source)
        else:
            STREAMS.step([address_of(source)], [address_of(to)], "copy_")
            self.tell(Operation("copy_", "launch"))
        return to

    def _sent(
        self, name: str, source: torch.Tensor, non_blocking: bool, there: torch.Tensor
    ) -> None:
        mark = STREAMS.step((), [address_of(there)], name)
        # From other memory, CUDA copies the source before it returns.
        pinned = self.is_pinned(source)
        late = non_blocking and pinned
        if late:
            with self.lock:
                self.reading.append((source.detach(), source.detach().clone(), mark))
        self.tell(Operation(name, "h2d", not late, source.nbytes, pinned))

    def _received(
        self, name: str, there: torch.Tensor, non_blocking: bool, source: torch.Tensor
    ) -> None:
        mark = STREAMS.step([address_of(source)], (), name)
        # To other memory, CUDA copies before it returns.
        pinned = self.is_pinned(there)
        late = non_blocking and pinned
        if late:
            with self.lock:
                self.writing.append((there.detach(), there.detach().clone(), mark))
                there.detach().view(torch.uint8 if there.dim() else there.dtype).fill_(
                    255 if there.dim() else -1
                )
        self.tell(Operation(name, "d2h", not late, there.nbytes, pinned))

    def complete(self, clock: Clock) -> None:
        """Waits for this work: its copies to the host arrive. RuntimeError if the source of a copy
        was overwritten before.
        """
        with self.lock:
            for stream, count in clock.items():
                STREAMS.done[stream] = max(STREAMS.done.get(stream, 0), count)
            reading, self.reading = _divided(self.reading)
            writing, self.writing = _divided(self.writing)
        # Memory that a copy in inference mode writes may be waited for outside of it.
        with torch.inference_mode():
            for there, value, _ in writing:
                there.copy_(value)
        for source, before, _ in reading:
            if not torch.equal(source.view(torch.uint8), before.view(torch.uint8)):
                raise RuntimeError(
                    "the source of a non_blocking copy to the device was overwritten before "
                    "anybody waited for the copy"
                )

    def wait(self, *_: Any) -> None:
        """`torch.cuda.synchronize()`."""
        self._event_waited(STREAMS.everything())

    def _event_waited(self, clock: Clock) -> None:
        self.complete(clock)
        for observer in self.observers:
            observer(Operation("synchronize", "wait", True))

    # --- pinned memory

    def pin(self, x: torch.Tensor) -> torch.Tensor:
        """A copy in pinned memory."""
        copy = x.detach().clone()
        self._remember_pinned(copy)
        return copy

    def _remember_pinned(self, x: torch.Tensor) -> None:
        self.pinned[address_of(x)] = StorageWeakRef(x.untyped_storage())

    def is_pinned(self, x: torch.Tensor) -> bool:
        """Whether a tensor's memory is pinned."""
        if isinstance(x, CudaTensor):
            return False
        storage = self.pinned.get(address_of(x))
        return storage is not None and not storage.expired()

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


def _divided(copies: list[tuple]) -> tuple[list[tuple], list[tuple]]:
    """Copies that are done, and those that may still be on their way."""
    done, left = [], []
    for copy_ in copies:
        stream, count = copy_[2]
        (done if STREAMS.done.get(stream, 0) >= count else left).append(copy_)
    return done, left


DEVICE = Device()


def refuse_mixture(
    func: torch._ops.OpOverload, name: str, args: Sequence[Any], tensors: Sequence[torch.Tensor]
) -> None:
    """RuntimeError for tensors of two devices, where CUDA would raise one.

    It takes numbers (0 dimensions) of the CPU in elementwise operators, and indices of the CPU.
    """
    others = [x for x in tensors if not isinstance(x, CudaTensor)]
    if not others or name in BETWEEN:
        return
    if name in INDEXING:
        if not isinstance(args[0], CudaTensor):
            raise RuntimeError(
                "indices should be either on cpu or on the same device as the indexed tensor (cpu)"
            )
        others = [x for x in others if not any(x is index for index in args[1])]
    scalars = (
        torch.Tag.pointwise in func.tags
        or name in SCALAR_TOO | INDEXING
        or name.startswith("_foreach_")
    )
    changed = (
        func._schema.arguments
        and func._schema.arguments[0].is_write
        and isinstance(args[0], torch.Tensor)
    )
    if changed and not isinstance(args[0], CudaTensor):
        scalars = False
    if [x for x in others if x.dim() or not scalars]:
        raise RuntimeError(
            f"Expected all tensors to be on the same device, but found at least two devices, "
            f"{HERE} and cpu! (in {func})"
        )


def _refuse_new_shape(name: str, mine: CudaTensor, data: torch.Tensor) -> None:
    if mine.shape != data.shape or mine.stride() != data.stride():
        raise NotImplementedError(
            f"{name}: the pretended device cannot change a tensor's shape in place"
        )


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
    out = func(
        *_mapped(_widened, args), **{key: _mapped(_widened, value) for key, value in kwargs.items()}
    )
    return _mapped(lambda x: x.half() if x.dtype == torch.float32 else x, out)


def _convolution(func: torch._ops.OpOverload, args: tuple, kwargs: dict) -> Any:
    """Of few channels in contiguous memory, in float32: the CPU's channels-last kernels for them
    are not sound everywhere.
    """
    weight = (
        next(x for x in args[1:] if isinstance(x, torch.Tensor) and x.dim() > 2)
        if len(args) > 1
        else args[0]
    )
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
