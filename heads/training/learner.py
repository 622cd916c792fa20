"""One head in training: its weights, optimisers, schedule and progress.

A Learner receives mini-batches and does not read them itself, so that several learners can share
one reading. Its randomness follows from (seed, mini-batch): it reseeds torch's generators before
each mini-batch, so no generator state has to be saved.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from heads.config.training_options import Training
from heads.interface.clips import Clips, HeadOutput, clips_of
from heads.interface.loss import loss_of
from heads.interface.random_streams import DROPOUT, reseed
from heads.interface.usage import UnusedWeights
from heads.interface.votes import votes_in
from heads.training.loss_watch import LossWatch, Number, Place
from heads.training.optimisers import (
    Optimisers,
    WeightAverage,
    load_into,
    parameters_of,
    state_of,
)
from pipeline.networks.precision import autocast

if TYPE_CHECKING:
    from heads.papers.dyreg.distillation import Teachers

# How much lower a validation loss must be to count, as a share; ReduceLROnPlateau's `threshold`.
LOWER = 1e-4
# A smaller step of the rate is none; ReduceLROnPlateau's `eps`.
SMALLEST_STEP = 1e-8
# How the plateau schedule counts. 1, which states without this number have, lowered the rate one
# epoch earlier, and any lower loss counted.
PLATEAU = 2


@dataclass
class Progress:
    """How far a training is.

    Attributes:
        epoch: whole epochs that were trained.
        step: mini-batches that were trained.
        best: the best validation figure so far.
        best_loss: the validation loss at `best_epoch`.
        best_epoch: the epoch of `best`, counted from 1; 0 without any.
        factor: what the plateau schedule multiplies the learning rate by.
        lowest: the lowest validation loss so far.
        stale: epochs in a row without a new `lowest`.
        stopped: whether a stop rule ended the training.
    """

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    best_loss: float = math.inf
    best_epoch: int = 0
    factor: float = 1.0
    lowest: float = math.inf
    stale: int = 0
    stopped: bool = False


class Learner:
    """A head with its optimisers.

    Args:
        head: already on its device.
        training: the recipe's table `train`.
        target: "single" or "multi", which decides the loss.
        steps_per_epoch: mini-batches per epoch; schedules count in them.
        seed: fixes dropout.
        precision: "fp32", "tf32", "bf16" or "fp16".
        weights: [K] weights of the classes in the loss; None: all 1.
        teachers: networks that add the loss "distillation"; None: none.

    Raises:
        ValueError: `training` names parameters that the head does not have.
    """

    def __init__(
        self,
        head: nn.Module,
        training: Training,
        target: str,
        steps_per_epoch: int,
        seed: int,
        precision: str,
        weights: Tensor | None = None,
        teachers: "Teachers | None" = None,
    ):
        self.head, self.training, self.seed = head, training, seed
        self.steps_per_epoch = steps_per_epoch
        self.precision, self.teachers = precision, teachers
        self.device = next(head.parameters()).device
        self.loss = loss_of(target, None if weights is None else weights.to(self.device))
        self.losses = LossWatch(self.device)
        self.optimisers = Optimisers(head, training)
        self.unused = UnusedWeights(head)
        self.average = WeightAverage(head, training.ema) if training.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        # The scaler makes its state on its first use, and `load` needs the state. With several
        # processes, one process's part of the first mini-batch may hold no clip.
        self.scaler.scale(torch.zeros((), device=self.device))
        self.progress = Progress()

    @property
    def total_steps(self) -> int:
        """Mini-batches of the whole training, unless a stop rule ends it."""
        return self.training.total_steps(self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the training is over, by its length or by a stop rule."""
        return self.progress.stopped or self.progress.step >= self.total_steps

    @property
    def lr(self) -> float:
        """The learning rate of the next mini-batch."""
        return self.training.lr_at(self.progress.step, self.steps_per_epoch) * self.progress.factor

    def autocast(self) -> AbstractContextManager[None]:
        """Return the context in which the head computes."""
        return autocast(self.device, self.precision)

    @property
    def place(self) -> Place:
        """The next mini-batch."""
        return Place(self.progress.step + 1, self.progress.epoch + 1, self.lr)

    def step(self, clips: Clips, targets: Tensor) -> Number:
        """Train on one mini-batch: forward, backward, update.

        Args:
            clips: B views.
            targets: class ids [B], or 0 and 1 [B,K].

        Returns:
            The loss, with the auxiliary losses. On a GPU a tensor, which nobody waits for.

        Raises:
            LossNotFinite: the loss is NaN or infinite; raised before any update. On a GPU
                `losses.read()` raises it, and no weight has moved since that mini-batch.
        """
        optimiser, moved = self.begin_step()
        value: Number = 0.0
        for part, wanted in in_parts(clips, targets, self.training.accumulate):
            value += self.backward(part, wanted, part.size / len(targets), moved)
        self.losses.settle(value, self.place)
        self.end_step(optimiser, moved)
        return value

    def begin_step(self) -> tuple[torch.optim.Optimizer, list[Tensor]]:
        """Prepare a mini-batch: seed dropout, set the learning rate, clear the gradients.

        Returns:
            The optimiser of this mini-batch, and the weights that it moves.
        """
        reseed(self.device, self.seed, DROPOUT, self.progress.step)
        self.unused.forget()
        self.optimisers.set_lr(self.lr)
        # Of both, so that no gradient of the other one's last turn is left.
        for optimiser in self.optimisers.both:
            optimiser.zero_grad(set_to_none=True)
        optimiser = self.optimisers.for_batch(self.progress.step % self.steps_per_epoch)
        return optimiser, parameters_of(optimiser)

    def end_step(self, optimiser: torch.optim.Optimizer, moved: list[Tensor]) -> None:
        """Move the weights by their gradients and count the mini-batch.

        Args:
            optimiser, moved: what `begin_step` returned.
        """
        # No weight has a gradient if no clip of the mini-batch could be decoded.
        if any(weight.grad is not None for weight in moved):
            if self.training.clip_norm:
                # The limit is for true gradients, not for those that fp16 scales up.
                self.scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(moved, self.training.clip_norm)
            if self.losses.late and not self.scaler.is_enabled():
                # Fused optimisers look at it on the device. The scaler brings its own.
                optimiser.found_inf = self.losses.bad
            with self.unused.kept(optimiser):
                self.scaler.step(optimiser)
            self.scaler.update()
        self.progress.step += 1
        if self.average is not None:
            self.average.update()

    def backward(self, clips: Clips, targets: Tensor, share: float, moved: list[Tensor]) -> Number:
        """Add the gradients of a part of a mini-batch.

        Args:
            clips: the views of the part.
            targets: their targets.
            share: the part's share of the mini-batch; the loss is multiplied by it.
            moved: the weights that the optimiser of this mini-batch moves.

        Returns:
            The loss, times `share`.

        Raises:
            LossNotFinite: the loss is NaN or infinite; on a CPU only.
        """
        with self.autocast():
            out = self._forward(clips)
        loss, extras = self.loss_in(out, targets)
        if share != 1:
            loss = loss * share
        value = self.losses.add(loss, extras, self.place)

        # With two optimisers, compute only the gradients that this mini-batch's one needs.
        inputs = moved if self.optimisers.second is not None else None
        self.scaler.scale(loss).backward(inputs=inputs)
        return value

    def loss_in(self, out: HeadOutput, targets: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute the loss of what the head returned for the next mini-batch.

        Args:
            out: what the head returned.
            targets: class ids [B], or 0 and 1 [B,K].

        Returns:
            The loss [], and the auxiliary losses in it, by name.

        Raises:
            ValueError: the recipe weighs a loss that the head does not have.
        """
        # The loss in float32, whatever the head computes in: half precision may overflow.
        loss = self.loss(out.logits.float(), targets)
        for branch in out.branches:
            loss = loss + self.loss(branch.float(), targets)
        loss = loss / (1 + len(out.branches)) if out.branches else loss
        extras = self._extra_losses(out)
        for extra in extras.values():
            loss = loss + extra
        return loss, extras

    def _forward(self, clips: Clips) -> HeadOutput:
        if self.teachers is not None and self._before(self.training.distil.until):
            return self.teachers.teach(self.head, clips, self.training.distil.weight)
        return self.head(clips)

    def _before(self, until: float) -> bool:
        """Return whether the next mini-batch is in the first fraction `until` of the training."""
        return self.progress.step < until * self.total_steps

    def _extra_losses(self, out: HeadOutput) -> dict[str, Tensor]:
        """Return the head's auxiliary losses that count now, weighted as the recipe says."""
        shares = self.training.losses
        for name in shares:
            if name not in out.losses:
                available = ", ".join(out.losses) or "none"
                raise ValueError(
                    f"train.losses.{name}: head {type(self.head).__name__} has no such loss; it "
                    f"has {available}"
                )

        losses = {}
        for name, loss in out.losses.items():
            share = shares.get(name)
            if share is None:
                losses[name] = loss
            elif self._before(share.until):
                losses[name] = share.weight * loss
        return losses

    def end_epoch(self, figure: float, loss: float) -> bool:
        """Count an epoch, and apply the plateau schedule and the stop rules.

        Of two equal figures, the one with the lower loss is better: a small validation split has
        few distinct figures. Without validation pass NaN for both: then no epoch is the best, and
        neither the plateau schedule nor a stop rule does anything.

        Args:
            figure: the validation figure; higher is better.
            loss: the validation loss.

        Returns:
            Whether this epoch is the best so far.
        """
        progress, training = self.progress, self.training
        progress.epoch += 1
        if training.schedule == "plateau" and not math.isnan(loss):
            self._plateau(loss)

        better = figure > progress.best or (figure == progress.best and loss < progress.best_loss)
        if better:
            progress.best, progress.best_loss, progress.best_epoch = figure, loss, progress.epoch
        elif training.early_stop and progress.best_epoch:
            epochs_since = progress.epoch - progress.best_epoch
            progress.stopped = progress.stopped or epochs_since >= training.early_stop
        return better

    def _plateau(self, loss: float) -> None:
        """Lower the learning rate, or stop, after more than `patience` epochs without a lower loss.

        torch's ReduceLROnPlateau does the same. It cannot be used itself: the rate here also
        follows a schedule of steps, and training may stop.
        """
        progress, training = self.progress, self.training
        if loss < progress.lowest * (1 - LOWER):
            progress.lowest, progress.stale = loss, 0
        else:
            progress.stale += 1
        if progress.stale <= training.patience:
            return

        factor = progress.factor * training.factor
        # The tolerance is for rounding: 0.001 * 0.1 must not count as below 0.0001.
        if training.lr * factor < training.stop_below * (1 - 1e-6):
            progress.stopped = True
            return
        progress.stale = 0
        if training.lr * (progress.factor - factor) > SMALLEST_STEP:
            progress.factor = factor

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """Put the weights that are validated into the head while the context is open.

        They are the moving average of the weights where the recipe asks for one.
        """
        if self.average is None:
            yield self.head
            return
        self.average.swap()
        try:
            yield self.head
        finally:
            self.average.swap()

    def weights(self) -> dict[str, Tensor]:
        """Return the weights that are validated and kept, not copied.

        They are the moving average of the weights where the recipe asks for one.
        """
        return self.head.state_dict() if self.average is None else self.average.weights()

    def state(self) -> dict[str, Any]:
        """Return all that `load` needs, as tensors and plain values.

        Key "state" holds the weights that are evaluated. With a moving average, key "raw" holds
        the weights that the optimiser moves.
        """
        state: dict[str, Any] = {"state": self.weights()}
        if self.average is not None:
            state["raw"] = self.head.state_dict()
        state["optimiser"] = state_of(self.optimisers.first)
        if self.optimisers.second is not None:
            state["alternate"] = state_of(self.optimisers.second)
        state["scaler"] = self.scaler.state_dict()
        state["progress"] = asdict(self.progress)
        if self.training.schedule == "plateau":
            state["plateau"] = PLATEAU
        # A new epoch starts without votes.
        votes = votes_in(self.head)
        if votes and self.progress.step > self.progress.epoch * self.steps_per_epoch:
            state["votes"] = {name: one.state() for name, one in votes.items()}
        return state

    def load(self, state: dict[str, Any]) -> None:
        """Continue from what `state` returned.

        Raises:
            ValueError: an earlier version trained with a plateau schedule that counted otherwise.
        """
        if self.training.schedule == "plateau" and state.get("plateau", 1) != PLATEAU:
            raise ValueError(
                "this run began when schedule 'plateau' lowered the rate after `patience` epochs "
                "without a lower loss; now it is after one more, as torch's ReduceLROnPlateau: "
                "start over with --no-resume, or choose another folder (--name)"
            )
        self.head.load_state_dict(state.get("raw", state["state"]))
        if self.average is not None:
            for name, tensor in state["state"].items():
                self.average.state[name].copy_(tensor)
        load_into(self.optimisers.first, state["optimiser"])
        if self.optimisers.second is not None:
            load_into(self.optimisers.second, state["alternate"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])
        for name, votes in votes_in(self.head).items():
            # Absent between two epochs, and in checkpoints of earlier versions.
            votes.restore(state.get("votes", {}).get(name, []))


def in_parts(clips: Clips, targets: Tensor, count: int) -> Iterator[tuple[Clips, Tensor]]:
    """Split a mini-batch into parts of nearly equal size, at most one per clip.

    Args:
        clips: B views.
        targets: [B] or [B,K].
        count: the number of parts.

    Yields:
        The clips and targets of each part.
    """
    if count == 1:
        yield clips, targets
        return
    for rows in torch.arange(len(targets)).tensor_split(min(count, len(targets))):
        first, last = int(rows[0]), int(rows[-1]) + 1
        part = {name: tensor[first:last] for name, tensor in clips.tensors().items()}
        cut = clips_of(part, dtype=None)
        yield replace(cut, one_grid=clips.one_grid), targets[first:last]
