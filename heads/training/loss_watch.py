"""Find losses that are NaN or infinite, without waiting for a GPU at every mini-batch.

A CPU looks at a loss before the weights move. To look at one on a GPU is to wait for all that the
device was given to do. There the losses stay on the device until `read`, once an epoch. From the
first bad one on, `bad` keeps the optimiser from moving the weights.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from heads.interface.loss import LossNotFinite

# A loss: a number on a CPU; a float64 [] that may not be computed yet on a GPU.
Number = float | Tensor


@dataclass(frozen=True)
class Place:
    """A mini-batch of a training.

    Attributes:
        batch: its number, from 1.
        epoch: its epoch, from 1.
        lr: its learning rate.
    """

    batch: int
    epoch: int
    lr: float


def not_finite(value: float, place: Place, extras: Mapping[str, float]) -> LossNotFinite:
    """Return the error of a loss that is NaN or infinite.

    Args:
        value: the loss.
        place: its mini-batch.
        extras: the auxiliary losses in it, by name.
    """
    parts = "".join(f", {name} {extra:.3g}" for name, extra in extras.items())
    return LossNotFinite(
        f"the loss is {value} at mini-batch {place.batch} of epoch {place.epoch} (lr "
        f"{place.lr:.3g}{parts}): lower train.lr, or set train.clip_norm; the last checkpoint is "
        f"not affected"
    )


class LossWatch:
    """The losses of one training that nobody has looked at yet.

    Args:
        device: where they are computed.

    Attributes:
        late: whether losses are looked at in `read` only.
        bad: float32 [], 1 once a mini-batch's loss was not finite; None unless `late`. Optimisers
            that are given it as `found_inf` then leave the weights alone.
    """

    def __init__(self, device: torch.device):
        self.late = device.type != "cpu"
        self.bad = torch.zeros((), device=device) if self.late else None
        self._kept: list[tuple[Tensor, tuple[str, ...], Place]] = []

    def add(self, loss: Tensor, extras: Mapping[str, Tensor], place: Place) -> Number:
        """Take the loss of a part of a mini-batch.

        Args:
            loss: [], with the auxiliary losses.
            extras: the auxiliary losses in it, by name.
            place: the mini-batch.

        Returns:
            The loss.

        Raises:
            LossNotFinite: it is NaN or infinite; on a CPU only.
        """
        if not self.late:
            value = loss.item()
            if not math.isfinite(value):
                raise not_finite(value, place, {k: extra.item() for k, extra in extras.items()})
            return value

        values = torch.stack([loss, *extras.values()]).detach().double()
        self._kept.append((values, tuple(extras), place))
        return values[0]

    def settle(self, total: Number, place: Place) -> None:
        """Take the loss of a whole mini-batch, before the optimiser's step.

        Args:
            total: the sum over its parts, of all processes.
            place: the mini-batch.
        """
        if isinstance(total, Tensor):
            # Another process's part may be the bad one.
            self._kept.append((total[None], (), place))
            self.bad = torch.maximum(self.bad, (~torch.isfinite(total)).float())

    def read(self) -> None:
        """Look at all losses since the last call; waits for the device once.

        Raises:
            LossNotFinite: one of them is NaN or infinite.
        """
        kept, self._kept = self._kept, []
        if not kept:
            return
        table: Sequence[float] = torch.cat([values for values, _, _ in kept]).tolist()
        start = 0
        for values, names, place in kept:
            loss, *extras = table[start : start + len(values)]
            start += len(values)
            if not math.isfinite(loss):
                raise not_finite(loss, place, dict(zip(names, extras, strict=True)))

    def forget(self) -> None:
        """Forget the losses since the last `read`."""
        self._kept.clear()
