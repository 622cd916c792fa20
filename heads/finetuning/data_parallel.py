"""Data parallelism: processes that train one network, each on its part of every mini-batch.

torchrun starts the processes. Gradients are summed in one exchange after the backward pass, not
by DistributedDataParallel during it, for three reasons:

- some weights of a head are not reached by every mini-batch;
- the last mini-batch of an epoch may have fewer clips than there are processes;
- where two optimisers alternate, only some gradients are computed.

The sum does not depend on the number of processes, apart from the order of rounding.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn

from heads.interface.votes import votes_in
from heads.training.loss_watch import Number


@dataclass(frozen=True)
class ProcessGroup:
    """This process among all that train.

    Attributes:
        rank: its number, from 0.
        size: how many processes there are.
        local_size: how many of them run on this machine.
    """

    rank: int = 0
    size: int = 1
    local_size: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes files and prints."""
        return self.rank == 0

    def part_of(self, items: np.ndarray) -> np.ndarray:
        """Return this process's part of `items`.

        Parts are consecutive and differ in length by at most one. A part may be empty.
        """
        return np.array_split(items, self.size)[self.rank]

    def sum_gradients(self, value: Number, parameters: Sequence[Tensor]) -> Number:
        """Replace gradients by their sums over all processes.

        Several processes wait for their devices here, at every mini-batch.

        Args:
            value: a loss to sum as well.
            parameters: tensors on one device. A parameter without a gradient in every process
                keeps none.

        Returns:
            The sum of `value`.
        """
        if self.size == 1:
            return value

        # Which parameters have a gradient in any process is summed as well, in float64 so that
        # the loss keeps its precision.
        device = parameters[0].device
        has_gradient = [float(p.grad is not None) for p in parameters]
        counts = torch.tensor([*has_gradient, 0.0], dtype=torch.float64, device=device)
        counts[-1] += value
        grads = []
        for parameter in parameters:
            grad = parameter.grad
            # Every process must send the same sizes, also where its part reached no such weight.
            grads.append(torch.zeros_like(parameter) if grad is None else grad)
        # One exchange of all gradients is faster than one per parameter.
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        distributed.all_reduce(counts)
        distributed.all_reduce(flat)

        pieces = flat.split([p.numel() for p in parameters])
        *totals, total_value = counts.tolist()
        for parameter, grad, piece, total in zip(parameters, grads, pieces, totals, strict=True):
            # Without a gradient anywhere it stays None, so that the optimiser skips the weight.
            if total:
                parameter.grad = grad.copy_(piece.view_as(grad))
        return total_value if device.type == "cpu" else counts[-1]

    def average_statistics(self, network: nn.Module) -> None:
        """Average the running statistics of the network's batch norms in training mode."""
        if self.size == 1:
            return

        buffers = []
        for module in network.modules():
            if isinstance(module, nn.modules.batchnorm._BatchNorm) and module.training:
                statistics = (module.running_mean, module.running_var)
                buffers += [buffer for buffer in statistics if buffer is not None]
        if not buffers:
            return

        flat = torch.cat(buffers)
        distributed.all_reduce(flat)
        pieces = (flat / self.size).split([buffer.numel() for buffer in buffers])
        for buffer, piece in zip(buffers, pieces, strict=True):
            buffer.copy_(piece)

    def share_votes(self, network: nn.Module) -> None:
        """Give every process the votes that the views of all cast since the last call."""
        votes = votes_in(network)
        if self.size == 1 or not votes:
            return

        found: list[dict[str, dict]] = [{}] * self.size
        own = {name: one.take_unshared() for name, one in votes.items()}
        distributed.all_gather_object(found, own)
        # In the order of the processes, so that equal numbers of votes end alike everywhere.
        for shared in found:
            for name, one in votes.items():
                one.add(shared[name])

    def sum(self, table: np.ndarray, device: torch.device) -> np.ndarray:
        """Return the sum of all processes' arrays, in their dtype."""
        if self.size == 1:
            return table

        # Not every back end of torch.distributed adds every integer type.
        wide = table if table.dtype.kind == "f" else table.astype(np.int64)
        tensor = torch.from_numpy(wide).to(device)
        distributed.all_reduce(tensor)
        return tensor.cpu().numpy().astype(table.dtype)

    def merge(self, values: Mapping[str, Any]) -> dict[str, Any]:
        """Merge the dictionaries of all processes.

        Args:
            values: plain values by name. Processes that share a name have the same value.

        Returns:
            All names with their values.
        """
        found: list[Mapping[str, Any]] = [values] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, dict(values))
        merged: dict[str, Any] = {}
        for one in found:
            merged.update(one)
        return merged

    def barrier(self) -> None:
        """Wait until every process has called this."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def join_processes(device: torch.device) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """Join the processes that torchrun started; without torchrun there is one process.

    Args:
        device: the device that was asked for. Each process gets a GPU of its own.

    Yields:
        (this process, its device).

    Raises:
        ValueError: more processes on this machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(), device
        return

    local_rank = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        gpus = torch.cuda.device_count()
        if local_rank >= gpus:
            raise ValueError(
                f"torchrun started process {local_rank} of this machine, which has {gpus} GPUs: "
                f"pass --nproc-per-node {gpus} to torchrun, or --device cpu to vidgraph"
            )
        device = torch.device("cuda", local_rank)
        torch.cuda.set_device(device)

    # torchrun's environment variables hold the address of the others.
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        local_size = int(os.environ.get("LOCAL_WORLD_SIZE", size))
        yield ProcessGroup(distributed.get_rank(), size, local_size), device
    finally:
        distributed.destroy_process_group()
