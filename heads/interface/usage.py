"""Which modules a mini-batch used, where only the device knows.

A weight that no view used has no gradient, and its optimiser leaves it alone, momentum and decay
included. A GPU that is never waited for computes every operation for every view instead, and an
unused weight has a gradient of 0. A module that may be unused keeps a `Usage` in an attribute
`usage`; heads/training/unused_weights.py then keeps its weights.
"""

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
