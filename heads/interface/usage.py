"""Weights that no view of a mini-batch used, where only the device knows which ones those are.

An optimiser skips a weight without a gradient. A GPU that is never waited for computes every
operation for every view, and an unused weight has a gradient of 0 instead. Decay and momentum would
move it, so what the optimiser did to it is undone, on the device.

A module that may be unused keeps a `Usage` in an attribute `usage`.
"""

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


class Usage:
    """Whether the present mini-batch used a module; nobody waits for the answer."""

    def __init__(self):
        self._notes: list[Tensor] = []

    def note(self, used: Tensor) -> None:
        """Take a note of a forward pass.

        Args:
            used: bool [], on the device.
        """
        self._notes.append(used.detach())

    def take(self) -> Tensor | None:
        """Return whether any forward pass since the last call used it, bool [].

        None where no pass took a note: then gradients say it themselves.
        """
        notes, self._notes = self._notes, []
        return torch.stack(notes).any() if notes else None


def usages_in(network: nn.Module) -> list[tuple[nn.Module, Usage]]:
    """Return the modules of a network that keep a `Usage`, each with its own."""
    found = []
    for module in network.modules():
        usage = getattr(module, "usage", None)
        if isinstance(usage, Usage):
            found.append((module, usage))
    return found


class UnusedWeights:
    """The weights of a head that a mini-batch may leave unused.

    Args:
        head: its modules with a `usage` are watched.
    """

    def __init__(self, head: nn.Module):
        self._watched = []
        for module, usage in usages_in(head):
            weights = [weight for weight in module.parameters() if weight.requires_grad]
            if weights:
                self._watched.append((usage, weights))

    def forget(self) -> None:
        """Begin a mini-batch: forget passes that no optimiser's step followed."""
        for usage, _ in self._watched:
            usage.take()

    def drop_gradients(self) -> None:
        """Take the gradients of unused weights away; waits for the device."""
        for usage, weights in self._watched:
            used = usage.take()
            if used is not None and not bool(used):
                for weight in weights:
                    weight.grad = None

    @contextmanager
    def kept(self, optimiser: torch.optim.Optimizer) -> Iterator[None]:
        """Within it the optimiser takes a step; unused weights and their state stay.

        Args:
            optimiser: the mini-batch's own.
        """
        watched = []
        for usage, weights in self._watched:
            used = usage.take()
            if used is not None:
                watched.append((used.float(), weights, _copies(optimiser, weights)))
        yield
        for used, weights, before in watched:
            _restore(_tensors_of(optimiser, weights), before, used)


def _tensors_of(
    optimiser: torch.optim.Optimizer, weights: list[Tensor]
) -> dict[tuple[int, str], Tensor]:
    """Return weights and what an optimiser keeps of them, by the weight's number and a name."""
    found = {}
    for number, weight in enumerate(weights):
        found[number, ""] = weight.detach()
        for name, value in optimiser.state.get(weight, {}).items():
            if isinstance(value, Tensor):
                found[number, name] = value
    return found


def _copies(
    optimiser: torch.optim.Optimizer, weights: list[Tensor]
) -> dict[tuple[int, str], Tensor]:
    present = _tensors_of(optimiser, weights)
    copies = {key: torch.empty_like(tensor) for key, tensor in present.items()}
    # A few kernels for all tensors, here and below.
    torch._foreach_copy_(list(copies.values()), list(present.values()))
    return copies


@torch.no_grad()
def _restore(
    present: dict[tuple[int, str], Tensor], before: dict[tuple[int, str], Tensor], used: Tensor
) -> None:
    """Put back the old values where `used`, float32 [], is 0; state that is new becomes 0."""
    torch._foreach_mul_(list(present.values()), used)
    old = list(before.values())
    torch._foreach_mul_(old, 1 - used)
    torch._foreach_add_([present[key] for key in before], old)
