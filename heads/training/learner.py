"""One head in training: its weights, its optimisers, its schedule, and how far it is.

A Learner takes mini-batches from whoever reads them, so that several can be given the same ones.
Its randomness follows from (seed, mini-batch) by reseeding torch's generators: there is no
generator whose state would have to be saved or kept apart.
"""

import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn

from heads.config.training_options import Training
from heads.interface.clips import Clips, HeadOutput, clips_of
from heads.interface.loss import LossNotFinite, loss_of
from heads.training.optimisers import Optimisers, WeightAverage, parameters_of
from pipeline.networks.precision import autocast

if TYPE_CHECKING:
    from heads.papers.dyreg.distillation import Teachers

INIT, DROPOUT = 0, 1  # streams of random numbers that one seed feeds


def reseed(device: torch.device, seed: int, stream: int, number: int = 0) -> None:
    """Puts torch's generators for the CPU and `device` into the state that (seed, stream, number)
    fixes.
    """
    value = int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(
        value
    )  # torch.manual_seed also formats a stack trace per call where CUDA is not in use
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


@dataclass
class Progress:
    """How far a run is. `factor` is what the plateau schedule multiplies the learning rate by,
    `stale` counts epochs without a new `lowest` validation loss; `best` and `best_loss` are the
    validation's figure and loss at `best_epoch` (counted from 1); `stopped`: a stop rule ended the
    training.
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
    """`head` (already on `device`) with its optimisers. `steps_per_epoch` is what schedules count
    in; `weights` [K] are the loss's by class; `teachers` add the loss "distillation".

    ValueError when `training` names parameters that the head does not have.
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
        self.head, self.training, self.steps_per_epoch, self.seed = (
            head,
            training,
            steps_per_epoch,
            seed,
        )
        self.device = next(head.parameters()).device
        self.precision, self.teachers = precision, teachers
        self.loss = loss_of(target, None if weights is None else weights.to(self.device))
        self.optimisers = Optimisers(head, training)
        self.average = WeightAverage(head, training.ema) if training.ema else None
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.scaler.scale(
            torch.zeros((), device=self.device)
        )  # makes its state: a process's first share may have no clip
        self.progress = Progress()

    @property
    def total_steps(self) -> int:
        """Mini-batches in the whole training, unless a stop rule ends it."""
        return self.training.total_steps(self.steps_per_epoch)

    @property
    def done(self) -> bool:
        """Whether the last mini-batch of the training was taken, or a stop rule ended it."""
        return self.progress.stopped or self.progress.step >= self.total_steps

    @property
    def lr(self) -> float:
        """The learning rate of the next mini-batch."""
        return self.training.lr_at(self.progress.step, self.steps_per_epoch) * self.progress.factor

    def autocast(self) -> AbstractContextManager[None]:
        """The context in which the head computes."""
        return autocast(self.device, self.precision)

    def step(self, clips: Clips, targets: Tensor) -> float:
        """One mini-batch: forward, backward, update. Returns the loss; LossNotFinite, before any
        update, when it is not finite."""
        optimiser, moved = self.begin_step()
        value = 0.0
        for part, wanted in in_parts(clips, targets, self.training.accumulate):
            value += self.backward(part, wanted, part.size / len(targets), moved)
        self.end_step(optimiser, moved)
        return value

    def begin_step(self) -> tuple[torch.optim.Optimizer, list[Tensor]]:
        """Makes ready for a mini-batch: whose turn it is, and the weights that are its own, without
        gradients.
        """
        reseed(self.device, self.seed, DROPOUT, self.progress.step)
        self.optimisers.set_lr(self.lr)
        for one in self.optimisers.both:
            one.zero_grad(set_to_none=True)
        optimiser = self.optimisers.turn(self.progress.step % self.steps_per_epoch)
        return optimiser, parameters_of(optimiser)

    def end_step(self, optimiser: torch.optim.Optimizer, moved: list[Tensor]) -> None:
        """Moves the weights by their gradients and counts the mini-batch."""
        if any(
            weight.grad is not None for weight in moved
        ):  # there is none where no clip could be had
            if self.training.clip_norm:
                self.scaler.unscale_(optimiser)
                nn.utils.clip_grad_norm_(moved, self.training.clip_norm)
            self.scaler.step(optimiser)
            self.scaler.update()
        self.progress.step += 1
        if self.average is not None:
            self.average.update()

    def backward(self, clips: Clips, targets: Tensor, share: float, moved: list[Tensor]) -> float:
        """Adds the gradients of `share` times the loss of these clips to the weights that are
        `moved`; returns that loss.
        """
        with self.autocast():
            out = self._forward(clips)
        loss = self.loss(out.logits.float(), targets)
        extras = self._extras(out)
        for extra in extras.values():
            loss = loss + extra
        if share != 1:
            loss = loss * share
        value = loss.item()
        if not math.isfinite(value):
            parts = ", ".join(f"{name} {extra.item():.3g}" for name, extra in extras.items())
            raise LossNotFinite(
                f"the loss is {value} at mini-batch {self.progress.step + 1} of epoch "
                f"{self.progress.epoch + 1} (lr "
                f"{self.lr:.3g}{', ' + parts if parts else ''}): lower train.lr, or set "
                f"train.clip_norm; the last checkpoint "
                "is whole"
            )
        # Where two optimisers take turns, only the gradients that this one needs are computed.
        self.scaler.scale(loss).backward(
            inputs=moved if self.optimisers.second is not None else None
        )
        return value

    def _forward(self, clips: Clips) -> HeadOutput:
        if self.teachers is not None and self._early(self.training.distil.until):
            return self.teachers.teach(self.head, clips, self.training.distil.weight)
        return self.head(clips)

    def _early(self, until: float) -> bool:
        """Whether the next mini-batch is in the first share `until` of the training."""
        return self.progress.step < until * self.total_steps

    def _extras(self, out: HeadOutput) -> dict[str, Tensor]:
        """The auxiliary losses that count now, weighted. ValueError for a loss in the recipe that
        the head does not have.
        """
        shares = self.training.losses
        if unknown := [name for name in shares if name not in out.losses]:
            there = ", ".join(out.losses) or "none"
            raise ValueError(
                f"train.losses.{unknown[0]}: head {type(self.head).__name__} has no such loss; it "
                f"has {there}"
            )
        found = {}
        for name, extra in out.losses.items():
            share = shares.get(name)
            if share is None:
                found[name] = extra
            elif self._early(share.until):
                found[name] = share.weight * extra
        return found

    def end_epoch(self, figure: float, loss: float) -> bool:
        """Counts the epoch, moves the plateau schedule by the validation `loss`, and applies the
        stop rules; whether `figure` is the best so far.

        Of equal figures the one with the lower loss is better: a small validation split has few
        steps. Without validation both are NaN: no epoch is the best then, and neither the plateau
        schedule nor the stop rules do anything.
        """
        progress, training = self.progress, self.training
        progress.epoch += 1
        if training.schedule == "plateau" and not math.isnan(loss):
            self._plateau(loss)
        better = figure > progress.best or (figure == progress.best and loss < progress.best_loss)
        if better:
            progress.best, progress.best_loss, progress.best_epoch = figure, loss, progress.epoch
        elif (
            training.early_stop
            and progress.best_epoch
            and progress.epoch - progress.best_epoch >= training.early_stop
        ):
            progress.stopped = True
        return better

    def _plateau(self, loss: float) -> None:
        progress, training = self.progress, self.training
        progress.stale = 0 if loss < progress.lowest else progress.stale + 1
        progress.lowest = min(loss, progress.lowest)
        if progress.stale < training.patience:
            return
        factor = progress.factor * training.factor
        if training.lr * factor < training.stop_below * (
            1 - 1e-6
        ):  # 0.001 / 10 is not below 0.0001
            progress.stopped = True
        else:
            progress.factor, progress.stale = factor, 0

    @contextmanager
    def averaged(self) -> Iterator[nn.Module]:
        """The head with the weights that are validated and kept: their moving average where there
        is one.
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
        """The weights that are validated and kept: their moving average where there is one. Not
        copies.
        """
        return self.head.state_dict() if self.average is None else self.average.state

    def state(self) -> dict[str, Any]:
        """Everything that continuing needs, as tensors and plain values; "state" are the weights
        that are evaluated, "raw" those that move where they are others (a moving average is
        kept).
        """
        second = self.optimisers.second
        return {
            "state": self.weights(),
            **({} if self.average is None else {"raw": self.head.state_dict()}),
            "optimiser": self.optimisers.first.state_dict(),
            **({} if second is None else {"alternate": second.state_dict()}),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continues from `state`."""
        self.head.load_state_dict(state.get("raw", state["state"]))
        if self.average is not None:
            for name, tensor in state["state"].items():
                self.average.state[name].copy_(tensor)
        self.optimisers.first.load_state_dict(state["optimiser"])
        if self.optimisers.second is not None:
            self.optimisers.second.load_state_dict(state["alternate"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])


def in_parts(clips: Clips, targets: Tensor, count: int) -> Iterator[tuple[Clips, Tensor]]:
    """A mini-batch in `count` parts of nearly equal size, at most one per clip."""
    if count == 1:
        yield clips, targets
        return
    for rows in torch.arange(len(targets)).tensor_split(min(count, len(targets))):
        first, last = int(rows[0]), int(rows[-1]) + 1
        part = {name: tensor[first:last] for name, tensor in clips.tensors().items()}
        yield clips_of(part, dtype=None), targets[first:last]
