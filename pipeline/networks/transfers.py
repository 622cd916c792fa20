"""Arrays to a device and back, while it computes.

On CUDA, copies in, kernels and copies out have a stream each: the next batch is copied in and the
last one out while the device computes this one. Nobody waits here except in `Arriving.wait`. On a
CPU nothing is copied that need not be.
"""

import time
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor


class Arriving:
    """Tensors on their way from the device to the host.

    Attributes:
        bytes: of all of them.
    """

    def __init__(self, tensors: Mapping[str, Tensor], arrived: "torch.cuda.Event | None" = None):
        """Remember what arrives.

        Args:
            tensors: of the host.
            arrived: the event after the copies; None where they are there.
        """
        self._tensors, self._arrived = dict(tensors), arrived
        self.bytes = sum(tensor.nbytes for tensor in self._tensors.values())

    def wait(self) -> dict[str, np.ndarray]:
        """Wait until all of them are there, in any thread.

        Returns:
            Name -> array.
        """
        if self._arrived is not None:
            self._arrived.synchronize()
        return {name: tensor.numpy() for name, tensor in self._tensors.items()}


class Transfers:
    """Copies between the host and one device.

    Args:
        device: the device.
    """

    def __init__(self, device: torch.device):
        self.device = device
        self.asynchronous = device.type == "cuda"
        if self.asynchronous:
            self._inwards, self._outwards = torch.cuda.Stream(device), torch.cuda.Stream(device)
        # Sources of copies that may not be finished, with the event after them.
        self._reading: deque[tuple[torch.cuda.Event, list[Tensor]]] = deque()
        # Where memory starts whose pages are locked.
        self._locked: list[int] = []

    def lock_pages(self, address: int, size: int) -> str:
        """Keep memory in its place, so that the device copies from it while this process goes on.

        Where the system refuses, copies are made all the same, and waited for.

        Args:
            address: where it starts.
            size: bytes.

        Returns:
            Why the system refuses it; "" if it does not.
        """
        if not self.asynchronous:
            return ""
        runtime = torch.cuda.cudart()
        error = runtime.cudaHostRegister(address, size, 0)
        if int(error) == 0:
            self._locked.append(address)
            return ""
        # torch would raise the error at the next kernel: let it do so here.
        with suppress(RuntimeError):
            torch.zeros(1, device=self.device)
        return str(runtime.cudaGetErrorString(error))

    def unlock_pages(self) -> None:
        """Give up what `lock_pages` has kept in its place, once the device has read it.

        Memory that is unmapped before would stay taken until the process ends.
        """
        if self._locked:
            torch.cuda.synchronize(self.device)
        while self._locked:
            torch.cuda.cudart().cudaHostUnregister(self._locked.pop())

    def rows(self, arrays: Sequence[np.ndarray | None], shape: tuple[int, ...]) -> Tensor:
        """Put arrays of one batch on the device, each in its row.

        Args:
            arrays: uint8 of this shape; None leaves a row of zeros. From page-locked memory they
                are copied while this process goes on.
            shape: of each row.

        Returns:
            uint8 [B, *shape] on the device.
        """
        if not self.asynchronous:
            batch = np.zeros((len(arrays), *shape), np.uint8)
            for row, array in enumerate(arrays):
                if array is not None:
                    batch[row] = array
            return torch.from_numpy(batch)

        sources = []
        with torch.cuda.stream(self._inwards):
            batch = torch.zeros((len(arrays), *shape), dtype=torch.uint8, device=self.device)
            for row, array in enumerate(arrays):
                if array is not None:
                    source = torch.from_numpy(array)
                    batch[row].copy_(source, non_blocking=True)
                    sources.append(source)
        self._after_copies_in(batch, sources)
        return batch

    def whole(self, array: np.ndarray) -> Tensor:
        """Put one array on the device, while this process goes on.

        Args:
            array: of any dtype.

        Returns:
            The same values on the device.
        """
        source = torch.from_numpy(array)
        if not self.asynchronous:
            return source
        with torch.cuda.stream(self._inwards):
            # From memory that is not page-locked, the device would be waited for.
            if not source.is_pinned():
                source = source.pin_memory()
            there = source.to(self.device, non_blocking=True)
        self._after_copies_in(there, [source])
        return there

    def _after_copies_in(self, there: Tensor, sources: list[Tensor]) -> None:
        """Let the kernels wait for copies, and keep their sources until they are finished."""
        computing = torch.cuda.current_stream(self.device)
        copied = self._inwards.record_event()
        computing.wait_event(copied)
        # The allocator must not give the memory away while the other stream uses it.
        there.record_stream(computing)
        self._reading.append((copied, sources))
        self.forget_what_was_read()

    def forget_what_was_read(self) -> None:
        """Let go of arrays that the device has read."""
        while self._reading and self._reading[0][0].query():
            self._reading.popleft()

    def out(self, tensors: Mapping[str, Tensor]) -> Arriving:
        """Copy tensors to the host, while the device and this process go on.

        Args:
            tensors: of the device, contiguous.

        Returns:
            What arrives.
        """
        if not self.asynchronous:
            return Arriving(tensors)
        there = {}
        self._outwards.wait_stream(torch.cuda.current_stream(self.device))
        with torch.cuda.stream(self._outwards):
            for name, tensor in tensors.items():
                host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
                there[name] = host.copy_(tensor, non_blocking=True)
                tensor.record_stream(self._outwards)
        return Arriving(there, self._outwards.record_event())


class Stopwatch:
    """Seconds that a device spends, between marks that are set without waiting for it."""

    def __init__(self, device: torch.device):
        """Set the first mark.

        Args:
            device: the device.
        """
        self._cuda = device.type == "cuda"
        self._marks: list = []
        self.mark()

    def mark(self) -> None:
        """Set a mark behind all work so far."""
        if not self._cuda:
            self._marks.append(time.perf_counter())
            return
        event = torch.cuda.Event(enable_timing=True)
        event.record()
        self._marks.append(event)

    def seconds(self) -> list[float]:
        """Return the seconds from each mark to the next. The device must have passed the last."""
        spans = []
        for first, second in pairwise(self._marks):
            spans.append(first.elapsed_time(second) / 1000 if self._cuda else second - first)
        return spans
