"""Several learners in one: their heads have the same shapes, and one call computes all of them.

`torch.func.vmap` maps the head over weights [M,...] that are stacked from M members. Every member
keeps its own seed, learning rate, decay, schedule, clipping and moving average. The learners hold
the state between two epochs: `StackedLearner` takes it at the start of a pass over the cache and
gives it back at the end, so that checkpoints and stop rules know nothing of it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.func import functional_call, vmap

from heads.interface.clips import Clips
from heads.interface.loss import LossNotFinite
from heads.interface.members import as_members
from heads.interface.random_streams import DROPOUT, reseed
from heads.interface.votes import votes_in
from heads.training.learner import Learner, in_parts
from heads.training.loss_watch import Place, not_finite
from heads.training.stacked_dropout import DropoutCall, GivenMasks, NotStackable, dropouts_of
from heads.training.stacked_optimiser import StackedOptimiser

# By how much losses and gradients of the two ways may differ, relative to the largest value of the
# gradient. Both round, in another order.
TOLERANCE = {"fp32": 1e-4, "tf32": 1e-2, "bf16": 5e-2}
# A gradient below this share of the member's largest one is all rounding.
FLOOR = 1e-3


def why_alone(learner: Learner) -> str:
    """Return why a learner cannot be computed together with others, in words; "" if it may.

    Heads that `vmap` refuses are not found here but by trying.
    """
    if learner.precision not in TOLERANCE:
        return f"{learner.precision} scales the loss of each member by itself"
    if learner.teachers is not None:
        return "teachers run beside it"
    if learner.optimisers.second is not None:
        return "two optimisers take turns"
    if votes_in(learner.head):
        return "its views choose structures"
    for module in learner.head.modules():
        if isinstance(module, nn.RNNBase):
            return "it has a recurrent layer"
        if isinstance(module, nn.modules.batchnorm._BatchNorm):
            return "its batch norms gather statistics"
    return ""


@dataclass(frozen=True)
class _Trained:
    """A mini-batch that was trained.

    Attributes:
        values: float64 [1+n,M], the losses and the auxiliary losses in them.
        names: of the n auxiliary losses.
        step: the number of the mini-batch in the training, from 0.
        clips: how many there were.
    """

    values: Tensor
    names: tuple[str, ...]
    step: int
    clips: int


@dataclass
class MemberLosses:
    """What became of one member in a pass.

    Attributes:
        total: the sum over clips of the loss.
        clips: how many there were.
        error: the first loss that was not finite.
    """

    total: float = 0.0
    clips: int = 0
    error: LossNotFinite | None = None


class StackedLearner:
    """M learners as one, for a pass over the cache.

    Args:
        learners: of one kind of head and training (see `heads.training.stacked_runs`), in training
            mode, at the same mini-batch.

    Raises:
        ValueError: their heads or optimisers differ in more than values.
    """

    def __init__(self, learners: Sequence[Learner]):
        self.learners = list(learners)
        first = self.learners[0]
        self.base, self.device = first.head, first.device
        self._stack_weights()
        self.optimiser = StackedOptimiser(
            [one.optimisers.first for one in self.learners], self._by_group(self.trained)
        )
        self.averages = self._stack_averages()
        self.bad = torch.zeros(len(self.learners), dtype=torch.bool, device=self.device)
        self._dropouts: dict[int, list[DropoutCall]] = {}
        self._done: list[_Trained] = []

    # --- taking and giving back

    def _stack_weights(self) -> None:
        """Stack what differs from member to member; what is equal is shared."""
        heads = [one.head for one in self.learners]
        self.trained: dict[str, Tensor] = {}
        self.fixed: dict[str, Tensor] = {}
        self.shared: dict[str, Tensor] = {}
        owns = [dict([*head.named_parameters(), *head.named_buffers()]) for head in heads]
        for name, tensor in owns[0].items():
            stacked = torch.stack([own[name].detach() for own in owns])
            if tensor.requires_grad:
                self.trained[name] = stacked.requires_grad_()
            elif bool((stacked == stacked[:1]).all()):
                self.shared[name] = tensor
            else:
                self.fixed[name] = stacked

    def _by_group(self, found: dict[str, Tensor]) -> list[list[Tensor]]:
        """Order tensors by name as the weights are in the first member's optimiser."""
        names = {id(weight): name for name, weight in self.base.named_parameters()}
        groups = []
        for group in self.learners[0].optimisers.first.param_groups:
            groups.append([found[names[id(weight)]] for weight in group["params"]])
        return groups

    def _stack_averages(self) -> dict[str, Tensor]:
        """Stack the moving averages of the trained weights; none without them."""
        if self.learners[0].average is None:
            return {}
        stacked = {}
        for name in self.trained:
            stacked[name] = torch.stack([one.average.state[name] for one in self.learners])
        return stacked

    @torch.no_grad()
    def give_back(self) -> list[MemberLosses]:
        """Hand weights, averages and the optimisers' states over to the learners.

        Returns:
            What became of each member since the start, or the last call. It waits for the device.
        """
        for member, learner in enumerate(self.learners):
            weights = dict(learner.head.named_parameters())
            for name, stacked in self.trained.items():
                weights[name].copy_(stacked[member])
            for name, stacked in self.averages.items():
                learner.average.state[name].copy_(stacked[member])
        self.optimiser.give_back()
        return self._read()

    def _read(self) -> list[MemberLosses]:
        found = [MemberLosses() for _ in self.learners]
        if not self._done:
            return found
        # One copy for all mini-batches.
        table = torch.cat([one.values for one in self._done]).tolist()
        start = 0
        for one in self._done:
            losses, *extras = table[start : start + len(one.values)]
            start += len(one.values)
            for member, loss in enumerate(losses):
                own = found[member]
                own.total += loss * one.clips
                own.clips += one.clips
                if own.error is None and not math.isfinite(loss):
                    parts = [row[member] for row in extras]
                    named = dict(zip(one.names, parts, strict=True))
                    own.error = not_finite(loss, self._place(member, one.step), named)
        self._done = []
        return found

    def _place(self, member: int, step: int) -> Place:
        learner = self.learners[member]
        lr = learner.training.lr_at(step, learner.steps_per_epoch) * learner.progress.factor
        return Place(step + 1, learner.progress.epoch + 1, lr)

    # --- one mini-batch

    def step(self, clips: Clips, targets: Tensor) -> None:
        """Train every member on one mini-batch; nobody waits for the device.

        Args:
            clips: B views.
            targets: class ids [B], or 0 and 1 [B,K].

        Raises:
            NotStackable: the heads cannot be computed in one call; no weight has moved.
            RuntimeError: as above, from torch.
        """
        values, names = self.backward(clips, targets)
        self.move(values, names, len(targets))

    def move(self, values: Tensor, names: tuple[str, ...], clips: int) -> None:
        """Move the weights of every member by their gradients, and count the mini-batch.

        From the first loss on that is not finite, a member's weights stay.

        Args:
            values, names: what `backward` returned.
            clips: how many the mini-batch had.
        """
        self.bad = self.bad | ~torch.isfinite(values[0])
        self._done.append(_Trained(values, names, self.learners[0].progress.step, clips))
        self._clip()
        grads = {name: weight.grad for name, weight in self.trained.items()}
        for learner in self.learners:
            learner.optimisers.set_lr(learner.lr)
        self.optimiser.step(self._by_group(grads), self.bad)
        self._average()
        for learner in self.learners:
            learner.progress.step += 1

    def backward(self, clips: Clips, targets: Tensor) -> tuple[Tensor, tuple[str, ...]]:
        """Compute the gradients of every member; they are in `trained`.

        Args:
            clips: B views.
            targets: class ids [B], or 0 and 1 [B,K].

        Returns:
            float64 [1+n,M], the losses and the n auxiliary losses in them, and the names of these.

        Raises:
            NotStackable, RuntimeError: as `step`.
        """
        for weight in self.trained.values():
            weight.grad = None
        parts = list(in_parts(clips, targets, self.learners[0].training.accumulate))
        masks = self._draw([part for part, _ in parts])

        total, names = None, ()
        for (part, wanted), drawn in zip(parts, masks, strict=True):
            losses, extras = self._losses(part, wanted, drawn)
            share = part.size / len(targets)
            losses = losses * share
            losses.sum().backward()
            names = tuple(extras)
            more = [extra.detach() * share for extra in extras.values()]
            values = torch.stack([losses.detach(), *more]).double()
            total = values if total is None else total + values
        return total, names

    def _losses(
        self, clips: Clips, targets: Tensor, masks: Sequence[Tensor]
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the losses [M] and the auxiliary losses in them, each [M], by name."""
        learner = self.learners[0]

        def one(trained: dict, fixed: dict, drawn: Sequence[Tensor]) -> tuple[Tensor, dict]:
            weights = {**self.shared, **fixed, **trained}
            with GivenMasks(drawn), learner.autocast():
                out = functional_call(self.base, weights, (clips,))
            return learner.loss_in(out, targets)

        with as_members():
            return vmap(one, randomness="error")(self.trained, self.fixed, list(masks))

    def _draw(self, parts: Sequence[Clips]) -> list[list[Tensor]]:
        """Draw every member's masks of a mini-batch, as its own learner would.

        Returns:
            part -> dropout -> [M,...].
        """
        calls = [self._dropouts_in(part) for part in parts]
        if not any(calls):
            return [[] for _ in parts]
        drawn: list[list[list[Tensor]]] = [[[] for _ in some] for some in calls]
        for learner in self.learners:
            reseed(self.device, learner.seed, DROPOUT, learner.progress.step)
            for k, some in enumerate(calls):
                for n, call in enumerate(some):
                    drawn[k][n].append(call.draw())
        return [[torch.stack(masks) for masks in some] for some in drawn]

    def _dropouts_in(self, clips: Clips) -> list[DropoutCall]:
        """Find the dropouts of a mini-batch of this size, with the first member's head."""
        if clips.size not in self._dropouts:

            def run() -> None:
                with self.learners[0].autocast():
                    self.base(clips)

            self._dropouts[clips.size] = dropouts_of(run)
        return self._dropouts[clips.size]

    def _clip(self) -> None:
        """Limit the norm of every member's gradient, as `clip_grad_norm_` does."""
        limits = [one.training.clip_norm for one in self.learners]
        grads = [weight.grad for weight in self.trained.values() if weight.grad is not None]
        if not any(limits) or not grads:
            return
        norms = [torch.linalg.vector_norm(grad.flatten(1), dim=1) for grad in grads]
        norm = torch.linalg.vector_norm(torch.stack(norms), dim=0)  # [M]
        most = torch.tensor([limit or math.inf for limit in limits])
        factor = (self.optimiser.lane.put(most.numpy()) / (norm + 1e-6)).clamp(max=1)
        for grad in grads:
            grad.mul_(factor.view(-1, *[1] * (grad.dim() - 1)))

    @torch.no_grad()
    def _average(self) -> None:
        """Move every member's average towards its weights."""
        if not self.averages:
            return
        shares = torch.tensor([1 - one.average.decay for one in self.learners])
        there = self.optimiser.lane.put(shares.numpy())
        for name, average in self.averages.items():
            share = there.view(-1, *[1] * (average.dim() - 1))
            average.lerp_(self.trained[name], share.expand_as(average))

    # --- the check

    def compare(self, clips: Clips, targets: Tensor) -> float:
        """Compute the losses and gradients of every member both ways.

        No weight moves. Members whose loss is not finite are left out.

        Args:
            clips: B views.
            targets: class ids [B], or 0 and 1 [B,K].

        Returns:
            The largest difference, relative to the largest value of the member's gradient of the
            same weight.

        Raises:
            NotStackable: a weight has a gradient in one way only.
            RuntimeError: the heads cannot be computed in one call.
        """
        values, _ = self.backward(clips, targets)
        worst = 0.0
        for member, learner in enumerate(self.learners):
            _, moved = learner.begin_step()
            loss: float | Tensor = 0.0
            try:
                for part, wanted in in_parts(clips, targets, learner.training.accumulate):
                    loss += learner.backward(part, wanted, part.size / len(targets), moved)
            except LossNotFinite:
                continue
            finally:
                # Training looks at the losses of its own mini-batches only.
                learner.losses.forget()
            if math.isfinite(float(loss)):
                worst = max(worst, self._difference(member, float(loss), float(values[0, member])))
            for optimiser in learner.optimisers.both:
                optimiser.zero_grad(set_to_none=True)
        return worst

    def _difference(self, member: int, loss: float, stacked_loss: float) -> float:
        pairs = []
        for name, weight in self.learners[member].head.named_parameters():
            if not weight.requires_grad:
                continue
            stacked = self.trained[name].grad
            if (weight.grad is None) != (stacked is None):
                raise NotStackable(f"{name} has a gradient in one way only")
            if weight.grad is not None:
                pairs.append((weight.grad, stacked[member]))

        largest = torch.stack([alone.abs().max() for alone, _ in pairs])
        apart = torch.stack([(alone - other).abs().max() for alone, other in pairs])
        scale = largest.maximum(FLOOR * largest.max()).clamp(min=torch.finfo(largest.dtype).tiny)
        gradient = float((apart / scale).max())
        return max(gradient, abs(loss - stacked_loss) / max(abs(loss), 1e-12))


def weights_that_learn(learner: Learner) -> tuple[tuple[str, ...], ...]:
    """Return the names of the weights in each group of a learner's optimiser."""
    names = {id(weight): name for name, weight in learner.head.named_parameters()}
    groups = []
    for group in learner.optimisers.first.param_groups:
        groups.append(tuple([names[id(weight)] for weight in group["params"]]))
    return tuple(groups)
