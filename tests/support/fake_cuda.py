"""A pretended CUDA device, so that what only fails on a GPU fails on every machine.

    with fake_cuda() as device:
        x = torch.zeros(3, device="cuda")       # says cuda:0, holds its numbers in the memory of
        the CPU
        x + torch.ones(3)                        # RuntimeError, as on CUDA: two devices
        x.numpy()                                # TypeError, as on CUDA
        device.observers.append(print)           # every operator that reaches the device, as an
        `Operation`

Within it torch says that there is one GPU: in `torch.cuda`, in factories (`device="cuda"`), `.to`
and `.cuda()`, modules, autocast, optimisers, random numbers, `torch.save` and `torch.load`, pinned
memory. Everything works in all threads.

How: a `CudaTensor` is a subclass over ordinary memory with the dispatch keys of CUDA. Every
operator on one ends in `Device.run` (cuda_device.py): it refuses a mixture of devices that CUDA
would refuse, runs the CPU's kernel on the same memory, and tells the observers. In C++ the tensor
says that it is on the CPU, because torch's autograd engine has no thread for a device that the
machine lacks. What follows from that, and what else is not pretended:

- A C++ function that makes a helper tensor on its argument's device makes it on the CPU; none that
  the product calls does.
- Copies that need not wait (`non_blocking`) are made at once; but a pinned source must stay as it
  is, and what goes to the host holds rubbish, until an event behind the copy is waited for. Work on
  several streams is not disordered, but a kernel must not read what another stream wrote unless an
  event orders the two (cuda_streams.py).
- Kernels and their rounding are the CPU's, in float32 where it has none for float16: cuDNN's
  algorithms, memory limits and speed are not pretended. An LSTM or GRU is one operator, computed in
  float32. `torch.compile` cannot see the device.
- Its tensors are never inference tensors, which a subclass cannot be.
"""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any
from unittest import mock

import torch
from torch.optim.optimizer import _foreach_supported_types
from torch.utils import _device

from tests.support import cuda_calls as calls
from tests.support.cuda_device import DEVICE, CudaTensor, Device, Operation
from tests.support.cuda_streams import STREAMS, Event, Stream

__all__ = ["CudaTensor", "Device", "Operation", "fake_cuda"]

NAME = "Pretended GPU"
MEMORY = 16 << 30  # bytes that it says it has
LIKE = (
    "zeros_like",
    "ones_like",
    "empty_like",
    "full_like",
    "rand_like",
    "randn_like",
    "randint_like",
)
NEW = ("new_zeros", "new_ones", "new_empty", "new_full", "new_tensor", "new_empty_strided")
DRAWS = ("uniform_", "normal_", "random_", "bernoulli_", "exponential_", "multinomial", "bernoulli")


def _torch_cuda() -> dict[str, Any]:
    """What `torch.cuda` says."""
    about = SimpleNamespace(
        name=NAME,
        total_memory=MEMORY,
        major=9,
        minor=0,
        multi_processor_count=1,
        max_threads_per_multi_processor=2048,
    )
    return {
        "is_available": lambda: True,
        "is_initialized": lambda: True,
        "device_count": lambda: 1,
        "current_device": lambda: 0,
        "set_device": calls.is_cuda,
        "device_of": lambda tensor: nullcontext(),
        "is_current_stream_capturing": lambda: False,
        "device": lambda device: nullcontext(calls.is_cuda(device)),
        "get_device_name": lambda device=None: NAME,
        "get_device_properties": lambda device=None: about,
        "get_device_capability": lambda device=None: (9, 0),
        "is_bf16_supported": lambda including_emulation=True: True,
        "mem_get_info": lambda device=None: (MEMORY, MEMORY),
        **dict.fromkeys(
            ("memory_allocated", "max_memory_allocated", "memory_reserved", "max_memory_reserved"),
            lambda device=None: 0,
        ),
        **dict.fromkeys(
            ("empty_cache", "ipc_collect", "reset_peak_memory_stats", "init", "_lazy_init"),
            lambda *_: None,
        ),
        "synchronize": DEVICE.wait,
        "Stream": Stream,
        "Event": Event,
        "stream": lambda stream: stream or nullcontext(),
        "current_stream": lambda device=None: STREAMS.current(),
        "default_stream": lambda device=None: STREAMS.default,
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
    """Within it this process has a pretended GPU, in all threads; see the top of this file. Not to
    be nested.
    """
    constructors = {fn.__name__: fn for fn in _device._device_constructors()}
    with ExitStack() as stack:

        def patch(owner: Any, name: str, value: Any) -> None:
            stack.enter_context(mock.patch.object(owner, name, value))

        for name, make in constructors.items():
            if getattr(torch, name, None) is make:
                patch(torch, name, calls.pinning_factory(calls.factory(make)))
        for name in LIKE:
            patch(torch, name, calls.factory(getattr(torch, name)))
        for name in NEW:
            patch(torch.Tensor, name, calls.factory(getattr(torch.Tensor, name)))
        for name in DRAWS:
            patch(torch.Tensor, name, calls.draw(getattr(torch.Tensor, name)))
            if hasattr(torch, name):
                patch(torch, name, calls.draw(getattr(torch, name)))
        tensor = {
            "to": calls.to,
            "cpu": lambda self, memory_format=torch.preserve_format: calls.to(
                self, "cpu", memory_format=memory_format
            ),
            "cuda": lambda self, device="cuda", non_blocking=False: calls.to(
                self, device or "cuda", non_blocking=non_blocking
            ),
            "type_as": lambda self, other: calls.to(self, other),
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
        patch(
            torch.accelerator,
            "current_accelerator",
            lambda check_available=False: torch.device("cuda"),
        )
        patch(torch.backends.cudnn, "is_acceptable", lambda tensor: False)
        for name in ("lstm", "gru", "rnn_tanh", "rnn_relu"):
            patch(torch._VF, name, calls.recurrent(name, getattr(torch._VF, name)))
        patch(torch.nn.Module, "_apply", calls.apply)
        patch(torch, "Generator", calls.AnyGenerator)
        patch(torch, "save", calls.save)
        patch(torch, "load", calls.load)
        patch(torch, "clear_autocast_cache", _clear_autocast_cache)
        patch(
            torch.optim.Optimizer,
            "_group_tensors_by_device_and_dtype",
            staticmethod(calls.grouped(torch.optim.Optimizer._group_tensors_by_device_and_dtype)),
        )
        patch(
            torch.nn.utils.clip_grad,
            "_group_tensors_by_device_and_dtype",
            calls.grouped(torch.nn.utils.clip_grad._group_tensors_by_device_and_dtype),
        )
        # With it optimisers take the same way as on CUDA: all weights in one operator.
        _foreach_supported_types.append(CudaTensor)
        stack.callback(_foreach_supported_types.remove, CudaTensor)
        stack.enter_context(DEVICE.autocast.registered())
        patch(DEVICE, "active", True)
        patch(DEVICE, "observers", [])
        patch(DEVICE, "generator", torch.Generator())
        stack.callback(_forget)
        yield DEVICE


def _forget() -> None:
    DEVICE.reading, DEVICE.writing = [], []
    STREAMS.forget()
    DEVICE.pinned.clear()
    DEVICE.autocast.clear()
