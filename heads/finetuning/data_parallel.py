"""Several processes that train one network, each on its share of every mini-batch (torchrun starts
them).

Gradients are added up after the backward pass in one exchange rather than by
DistributedDataParallel during it: a head may have weights that some mini-batches do not reach, the
last mini-batch of an epoch may have fewer clips than there are processes, and where two optimisers
take turns only some gradients are computed. What the sum is then does not depend on how many
processes there are, beyond the rounding of its order.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed, nn


@dataclass(frozen=True)
class ProcessGroup:
    """This process among `size` of them, `local` on its own machine; process 0 writes and talks."""

    rank: int = 0
    size: int = 1
    local: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that writes."""
        return self.rank == 0

    def share(self, items: np.ndarray) -> np.ndarray:
        """This process's part of `items`: consecutive, as long as the others' or one longer; may be
        empty.
        """
        return np.array_split(items, self.size)[self.rank]

    def add_up(self, value: float, parameters: Sequence[Tensor]) -> float:
        """Replaces the gradients of `parameters` by their sums over the processes; returns the sum
        of `value`.

        A parameter that no process has a gradient of keeps none.
        """
        if self.size == 1:
            return value
        device = parameters[0].device
        there = torch.tensor(
            [float(p.grad is not None) for p in parameters] + [value],
            dtype=torch.float64,
            device=device,
        )
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in parameters]
        flat = torch.cat([grad.reshape(-1) for grad in grads])
        distributed.all_reduce(there)
        distributed.all_reduce(flat)
        for parameter, grad, piece, known in zip(
            parameters,
            grads,
            flat.split([p.numel() for p in parameters]),
            there[:-1].tolist(),
            strict=True,
        ):
            if known:
                parameter.grad = grad.copy_(piece.view_as(grad))
        return float(there[-1])

    def average_statistics(self, network: nn.Module) -> None:
        """Gives the batch norms that gather statistics the mean of all processes'."""
        norms = [
            m
            for m in network.modules()
            if isinstance(m, nn.modules.batchnorm._BatchNorm) and m.training
        ]
        buffers = [
            b for norm in norms for b in (norm.running_mean, norm.running_var) if b is not None
        ]
        if self.size == 1 or not buffers:
            return
        flat = torch.cat(buffers)
        distributed.all_reduce(flat)
        for buffer, piece in zip(
            buffers, (flat / self.size).split([b.numel() for b in buffers]), strict=True
        ):
            buffer.copy_(piece)

    def sum(self, table: np.ndarray, device: torch.device) -> np.ndarray:
        """The sum of all processes' arrays, in their dtype."""
        if self.size == 1:
            return table
        wide = (
            table if table.dtype.kind == "f" else table.astype(np.int64)
        )  # not every back end adds every integer
        tensor = torch.from_numpy(wide).to(device)
        distributed.all_reduce(tensor)
        return tensor.cpu().numpy().astype(table.dtype)

    def union(self, known: Mapping[str, Any]) -> dict[str, Any]:
        """What any process knows by name, plain values; where several know a name, it is the same
        value.
        """
        found: list[Mapping[str, Any]] = [known] * self.size
        if self.size > 1:
            distributed.all_gather_object(found, dict(known))
        return {name: value for one in found for name, value in one.items()}

    def wait(self) -> None:
        """Returns once every process has come here."""
        if self.size > 1:
            distributed.barrier()


@contextmanager
def joined(device: torch.device) -> Iterator[tuple[ProcessGroup, torch.device]]:
    """(this process among those that torchrun started, its device); alone without torchrun.

    One GPU per process. ValueError for more processes on a machine than it has GPUs.
    """
    size = int(os.environ.get("WORLD_SIZE", "1"))
    if size == 1:
        yield ProcessGroup(), device
        return
    local = int(os.environ["LOCAL_RANK"])
    if device.type == "cuda":
        if local >= torch.cuda.device_count():
            raise ValueError(
                f"torchrun started process {local} of this machine, which has "
                f"{torch.cuda.device_count()} GPUs: pass "
                f"--nproc-per-node {torch.cuda.device_count()} to torchrun, or --device cpu to "
                f"vidgraph"
            )
        device = torch.device("cuda", local)
        torch.cuda.set_device(device)
    distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
    try:
        yield (
            ProcessGroup(
                distributed.get_rank(), size, int(os.environ.get("LOCAL_WORLD_SIZE", size))
            ),
            device,
        )
    finally:
        distributed.destroy_process_group()
