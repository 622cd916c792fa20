"""Batches on their way to a device, while it computes.

On CUDA the copies have a stream of their own and start from page-locked memory, so that neither
this process nor the kernels of an earlier batch wait for them. On a CPU nothing is copied.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

Tensors = dict[str, Tensor]


@dataclass(frozen=True)
class Sent:
    """A batch that was sent to a device.

    Attributes:
        tensors: on the device; a copy into them may not be over.
        copied: the event after the copies; None where there is nothing to wait for.
    """

    tensors: Tensors
    copied: "torch.cuda.Event | None" = None

    def receive(self) -> Tensors:
        """Let the kernels of this thread's stream wait for the copies; this process goes on.

        Returns:
            The tensors, floats as float32.
        """
        if self.copied is not None:
            device = next(iter(self.tensors.values())).device
            computing = torch.cuda.current_stream(device)
            computing.wait_event(self.copied)
            for tensor in self.tensors.values():
                # The allocator must not give the memory away while this stream reads it.
                tensor.record_stream(computing)
        return as_float32(self.tensors)


class DeviceLane:
    """The way from this process's memory to a device.

    Args:
        device: where batches go.
    """

    def __init__(self, device: torch.device | str):
        self.device = torch.device(device)
        self._copying = None
        if self.device.type == "cuda":
            self._copying = torch.cuda.Stream(self.device)

    def gather(self, table: Tensor, rows: Tensor) -> Tensor:
        """Copy rows of a table of this process, into page-locked memory where the device is a GPU.

        Args:
            table: [n,...].
            rows: [B], row numbers.

        Returns:
            [B,...]
        """
        if self._copying is None:
            return table.index_select(0, rows)
        shape = (len(rows), *table.shape[1:])
        pinned = torch.empty(shape, dtype=table.dtype, pin_memory=True)
        return torch.index_select(table, 0, rows, out=pinned)

    def send(self, tensors: Mapping[str, Tensor]) -> Sent:
        """Start to copy tensors of this process to the device.

        Args:
            tensors: by name.

        Returns:
            The batch; on a CPU the tensors themselves, floats as float32.
        """
        if self._copying is None:
            return Sent(as_float32(tensors))
        sent = {}
        with torch.cuda.stream(self._copying):
            for name, tensor in tensors.items():
                # From other memory this process would wait for the copy.
                pinned = tensor if tensor.is_pinned() else tensor.pin_memory()
                # Half precision crosses as such: it is half as many bytes.
                sent[name] = pinned.to(self.device, non_blocking=True)
            return Sent(sent, self._copying.record_event())

    def put(self, array: np.ndarray) -> Tensor:
        """Put one array on the device; this process does not wait for the copy.

        Args:
            array: of any dtype that torch has.

        Returns:
            The same values on the device, in the array's dtype.
        """
        tensor = torch.from_numpy(array)
        if self._copying is None:
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    def fetch(self, tensor: Tensor) -> Tensor:
        """Start to copy a tensor of the device to this process.

        Args:
            tensor: of the device.

        Returns:
            The copy, whose values are there after `wait`; on a CPU the tensor itself.
        """
        if self._copying is None:
            return tensor
        host = torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
        return host.copy_(tensor, non_blocking=True)

    def wait(self) -> None:
        """Wait until the device has done all that this thread gave it."""
        if self._copying is not None:
            torch.cuda.current_stream(self.device).synchronize()


def as_float32(tensors: Mapping[str, Tensor]) -> Tensors:
    """Return tensors with those that are floating as float32."""
    found = {}
    for name, tensor in tensors.items():
        found[name] = tensor.float() if tensor.is_floating_point() else tensor
    return found
