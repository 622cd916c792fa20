"""One head in training: its weights, its optimiser, its schedule, and how far it is.

A Learner takes mini-batches from whoever reads them, so that several can be given the same ones. Its randomness follows from
(seed, mini-batch) by reseeding torch's generators: there is no generator whose state would have to be saved or kept apart.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from heads.batch import Clips
from heads.recipe import Training

PRECISIONS = ("fp32", "bf16", "fp16")
INIT, DROPOUT = 0, 1  # streams of random numbers that one seed feeds

Loss = Callable[[Tensor, Tensor], Tensor]


class LossNotFinite(RuntimeError):
    """The loss became NaN or infinite: these weights are lost, the last checkpoint is not."""


def pick_device(name: str, precision: str) -> torch.device:
    """A device from "auto", "cpu" or "cuda"; ValueError when it is not there, or cannot compute in `precision`."""
    if precision not in PRECISIONS:
        raise ValueError(f"precision: expected one of {', '.join(PRECISIONS)}, got {precision!r}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    device = torch.device(name)
    if device.type == "cuda" and not torch.cuda.is_available():
        raise ValueError(f"device {name}: torch sees no GPU here; pass --device cpu")
    if precision == "fp16" and device.type == "cpu":
        raise ValueError(
            "precision fp16 needs a GPU (a CPU computes it 100 times slower than fp32); pass --precision bf16 or fp32"
        )
    return device


def reseed(device: torch.device, seed: int, stream: int, number: int = 0) -> None:
    """Puts torch's generators for the CPU and `device` into the state that (seed, stream, number) fixes."""
    value = int(np.random.SeedSequence([seed, stream, number]).generate_state(1, np.uint64)[0])
    torch.default_generator.manual_seed(value)  # torch.manual_seed also formats a stack trace per call where CUDA is not in use
    if device.type == "cuda":
        torch.cuda.manual_seed(value)


def loss_of(target: str) -> Loss:
    """(logits [B,K], targets) -> scalar: cross-entropy with class ids [B] for "single", the mean over classes of the binary
    cross-entropy of a sigmoid with targets [B,K] for "multi"."""
    return F.cross_entropy if target == "single" else F.binary_cross_entropy_with_logits


@dataclass
class Progress:
    """How far a run is. `factor` is what the plateau schedule multiplies the learning rate by, `stale` counts epochs without
    a new `lowest` validation loss; `best` and `best_loss` are the validation's figure and loss at `best_epoch` (counted from
    1)."""

    epoch: int = 0
    step: int = 0
    best: float = -math.inf
    best_loss: float = math.inf
    best_epoch: int = 0
    factor: float = 1.0
    lowest: float = math.inf
    stale: int = 0


class Learner:
    """`head` (already on `device`) with its optimiser. `steps_per_epoch` is what schedules count in."""

    def __init__(self, head: nn.Module, training: Training, target: str, steps_per_epoch: int, seed: int, precision: str):
        self.head, self.training, self.steps_per_epoch, self.seed = head, training, steps_per_epoch, seed
        self.device = next(head.parameters()).device
        self.precision = precision
        self.loss = loss_of(target)
        self.optimiser = _optimiser(head, training)
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=precision == "fp16")
        self.progress = Progress()

    @property
    def done(self) -> bool:
        """Whether the last mini-batch of the training was taken."""
        return self.progress.step >= self.training.total_steps(self.steps_per_epoch)

    @property
    def lr(self) -> float:
        """The learning rate of the next mini-batch."""
        return self.training.lr_at(self.progress.step, self.steps_per_epoch) * self.progress.factor

    def autocast(self) -> torch.autocast:
        """The context in which the head computes."""
        return autocast(self.device, self.precision)

    def step(self, clips: Clips, targets: Tensor) -> float:
        """One mini-batch: forward, backward, update. Returns the loss; LossNotFinite, before any update, when it is not
        finite."""
        progress = self.progress
        reseed(self.device, self.seed, DROPOUT, progress.step)
        for group in self.optimiser.param_groups:
            group["lr"] = self.lr
        with self.autocast():
            out = self.head(clips)
        loss = self.loss(out.logits.float(), targets)
        for extra in out.losses.values():
            loss = loss + extra
        value = loss.item()
        if not math.isfinite(value):
            parts = ", ".join(f"{name} {extra.item():.3g}" for name, extra in out.losses.items())
            raise LossNotFinite(
                f"the loss is {value} at mini-batch {progress.step + 1} of epoch {progress.epoch + 1} (lr {self.lr:.3g}"
                f"{', ' + parts if parts else ''}): lower train.lr, or set train.clip_norm; the last checkpoint is whole"
            )
        self.optimiser.zero_grad(set_to_none=True)
        self.scaler.scale(loss).backward()
        if self.training.clip_norm:
            self.scaler.unscale_(self.optimiser)
            nn.utils.clip_grad_norm_(self.head.parameters(), self.training.clip_norm)
        self.scaler.step(self.optimiser)
        self.scaler.update()
        progress.step += 1
        return value

    def end_epoch(self, figure: float, loss: float) -> bool:
        """Counts the epoch and moves the plateau schedule by the validation `loss`; whether `figure` is the best so far.

        Of equal figures the one with the lower loss is better: a small validation split has few steps. Without validation
        both are NaN: no epoch is the best then, and the plateau schedule waits.
        """
        progress = self.progress
        progress.epoch += 1
        if self.training.schedule == "plateau" and not math.isnan(loss):
            progress.stale = 0 if loss < progress.lowest else progress.stale + 1
            progress.lowest = min(loss, progress.lowest)
            if progress.stale >= self.training.patience:
                progress.factor, progress.stale = progress.factor * self.training.factor, 0
        if figure > progress.best or (figure == progress.best and loss < progress.best_loss):
            progress.best, progress.best_loss, progress.best_epoch = figure, loss, progress.epoch
            return True
        return False

    def state(self) -> dict[str, Any]:
        """Everything that continuing needs, as tensors and plain values."""
        return {
            "state": self.head.state_dict(),
            "optimiser": self.optimiser.state_dict(),
            "scaler": self.scaler.state_dict(),
            "progress": asdict(self.progress),
        }

    def load(self, state: dict[str, Any]) -> None:
        """Continues from `state`."""
        self.head.load_state_dict(state["state"])
        self.optimiser.load_state_dict(state["optimiser"])
        self.scaler.load_state_dict(state["scaler"])
        self.progress = Progress(**state["progress"])


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Mixed precision on `device`: nothing for fp32."""
    dtype = torch.float16 if precision == "fp16" else torch.bfloat16
    return torch.autocast(device.type, dtype, enabled=precision != "fp32")


def _optimiser(head: nn.Module, training: Training) -> torch.optim.Optimizer:
    parameters = [p for p in head.parameters() if p.requires_grad]
    if training.optimiser == "sgd":
        return torch.optim.SGD(
            parameters, training.lr, training.momentum, weight_decay=training.weight_decay, nesterov=training.nesterov
        )
    cls = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW}[training.optimiser]
    return cls(parameters, training.lr, weight_decay=training.weight_decay)
