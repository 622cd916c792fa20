"""SGD, Adam and AdamW for several members at once, each with its own rate, decay and momentum.

    optimiser = StackedOptimiser([torch.optim.AdamW(...), torch.optim.AdamW(...)], weights)
    optimiser.step(grads)
    optimiser.give_back()

The weights of M members are stacked in tensors [M,...]. A step computes what the members' own
optimisers would, to rounding. `give_back` hands the state over to them, so that a checkpoint of a
member is that of a member that was trained alone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from heads.data.device_lane import DeviceLane

# What the members of one stack must agree on; the rest may differ from member to member.
SHARED = ("betas", "eps", "amsgrad", "maximize", "nesterov", "dampening")


@dataclass
class _Weight:
    """A stacked weight with its state.

    Attributes:
        value: [M,...].
        steps: how many steps each member has taken with it (Adam).
        moments: the momentum of SGD, or the two averages of Adam, [M,...]; none before the first
            step.
    """

    value: Tensor
    steps: list[int]
    moments: list[Tensor]


class StackedOptimiser:
    """One optimiser of M members.

    Args:
        optimisers: the members' own; of one class, with groups of the same weights.
        weights: group -> weight -> the stacked weight [M,...], in the order of the groups.

    Raises:
        ValueError: the optimisers differ in more than rate, decay and momentum.
    """

    def __init__(
        self,
        optimisers: Sequence[torch.optim.Optimizer],
        weights: Sequence[Sequence[Tensor]],
    ):
        self.optimisers = list(optimisers)
        kinds = {type(one) for one in optimisers}
        if len(kinds) > 1:
            names = ", ".join(sorted(kind.__name__ for kind in kinds))
            raise ValueError(f"expected optimisers of one class, got {names}")
        self.kind = kinds.pop()
        for groups in zip(*(one.param_groups for one in optimisers), strict=True):
            for name in SHARED:
                if len({group.get(name) for group in groups}) > 1:
                    raise ValueError(f"expected optimisers of one {name}")
        self.lane = DeviceLane(weights[0][0].device)
        self.groups: list[list[_Weight]] = []
        for number, group in enumerate(weights):
            self.groups.append([self._take(number, k, one) for k, one in enumerate(group)])

    def _own(self, member: int, group: int, k: int) -> tuple[dict, Tensor]:
        """Return the states of a member's own optimiser, and its weight."""
        optimiser = self.optimisers[member]
        return optimiser.state, optimiser.param_groups[group]["params"][k]

    @property
    def _moment_names(self) -> tuple[str, ...]:
        if self.kind is torch.optim.SGD:
            return ("momentum_buffer",)
        return ("exp_avg", "exp_avg_sq")

    def _take(self, group: int, k: int, value: Tensor) -> _Weight:
        """Stack the members' states of one weight."""
        states = []
        for member in range(len(self.optimisers)):
            own, weight = self._own(member, group, k)
            # Looking it up would make one.
            states.append(own.get(weight, {}))
        steps = [int(state.get("step", 0)) for state in states]
        moments: list[Tensor] = []
        names = self._moment_names
        if any(state.get(names[0]) is not None for state in states):
            for name in names:
                # Without a state a moment is 0.
                rows = [state.get(name) for state in states]
                zeros = torch.zeros_like(value[0])
                moments.append(torch.stack([zeros if row is None else row for row in rows]))
        return _Weight(value, steps, moments)

    @torch.no_grad()
    def step(
        self,
        grads: Sequence[Sequence[Tensor | None]],
        still: Tensor | None = None,
    ) -> None:
        """Take a step with every member, at the rates that its own optimiser has now.

        Args:
            grads: group -> weight -> the gradient [M,...]; None where the weight has none.
            still: [M] bool, members whose weights stay as they are, whatever their gradient.
        """
        for number, (weights, found) in enumerate(zip(self.groups, grads, strict=True)):
            for steps, same in self._by_steps(weights, found).items():
                rows = self.lane.put(self._rows(number, steps))
                if still is not None:
                    # The step size and the shrinking of AdamW.
                    rows[:2] = rows[:2].masked_fill(still, 0)
                for weight, grad in same:
                    if still is not None:
                        # A gradient that is not finite times a step of 0 is not 0.
                        grad = grad.masked_fill(_along(still, grad), 0)
                    self._move(number, weight, grad, rows)

    def _by_steps(
        self, weights: Sequence[_Weight], grads: Sequence[Tensor | None]
    ) -> dict[tuple[int, ...], list[tuple[_Weight, Tensor]]]:
        """Count a step of every weight that has a gradient, and join those of equal counts."""
        found: dict[tuple[int, ...], list[tuple[_Weight, Tensor]]] = {}
        for weight, grad in zip(weights, grads, strict=True):
            if grad is None:
                continue
            weight.steps = [steps + 1 for steps in weight.steps]
            found.setdefault(tuple(weight.steps), []).append((weight, grad))
        return found

    def _rows(self, number: int, steps: Sequence[int]) -> np.ndarray:
        """Compute the numbers of a step on the host, in double precision.

        Returns:
            float32 [5,M]: step size, shrinking of the weight, decay that joins the gradient,
            momentum, root of Adam's second correction.
        """
        table = np.zeros((5, len(self.optimisers)))
        for member, optimiser in enumerate(self.optimisers):
            group = optimiser.param_groups[number]
            lr, decay = group["lr"], group["weight_decay"]
            if self.kind is torch.optim.SGD:
                table[:, member] = lr, 0, decay, group["momentum"], 1
                continue
            first, second = group["betas"]
            size = lr / (1 - first ** steps[member])
            root = math.sqrt(1 - second ** steps[member])
            if self.kind is torch.optim.AdamW:
                table[:, member] = size, lr * decay, 0, 0, root
            else:
                table[:, member] = size, 0, decay, 0, root
        return table.astype(np.float32)

    def _move(self, number: int, weight: _Weight, grad: Tensor, rows: Tensor) -> None:
        """Move one stacked weight."""
        value = weight.value
        size, shrink, decay, momentum, root = [_along(row, value) for row in rows]
        own = [optimiser.param_groups[number] for optimiser in self.optimisers]
        if self.kind is torch.optim.AdamW:
            value.mul_(1 - shrink)
        elif any(group["weight_decay"] for group in own):
            grad = grad + decay * value

        if self.kind is torch.optim.SGD:
            if any(group["momentum"] for group in own):
                if not weight.moments:
                    weight.moments = [torch.zeros_like(value)]
                buffer = weight.moments[0].mul_(momentum).add_(grad)
                grad = torch.addcmul(grad, momentum, buffer) if own[0]["nesterov"] else buffer
            value.addcmul_(size, grad, value=-1)
            return

        if not weight.moments:
            weight.moments = [torch.zeros_like(value), torch.zeros_like(value)]
        first, second = own[0]["betas"]
        average, squares = weight.moments
        average.lerp_(grad, 1 - first)
        squares.mul_(second).addcmul_(grad, grad, value=1 - second)
        divisor = (squares.sqrt() / root).add_(own[0]["eps"])
        value.addcmul_(size, average / divisor, value=-1)

    @torch.no_grad()
    def give_back(self) -> None:
        """Hand the state over to the members' own optimisers."""
        for number, weights in enumerate(self.groups):
            for k, weight in enumerate(weights):
                for member in range(len(self.optimisers)):
                    self._give_back(number, k, weight, member)

    def _give_back(self, number: int, k: int, weight: _Weight, member: int) -> None:
        group = self.optimisers[member].param_groups[number]
        if not weight.moments:
            return
        # SGD without momentum keeps none.
        if self.kind is torch.optim.SGD and not group["momentum"]:
            return
        own, own_weight = self._own(member, number, k)
        state = own[own_weight]
        for name, moment in zip(self._moment_names, weight.moments, strict=True):
            # A copy, because a checkpoint of a slice would hold all members.
            state[name] = moment[member].clone()
        if self.kind is not torch.optim.SGD:
            # Fused optimisers keep the count where the weight is.
            place = weight.value.device if group["fused"] else "cpu"
            state["step"] = torch.full((), float(weight.steps[member]), device=place)


def _along(row: Tensor, value: Tensor) -> Tensor:
    """Return a number per member in the shape that broadcasts with a stacked tensor."""
    return row.view(-1, *[1] * (value.dim() - 1))
