"""How weights move: the tables [train] and [phases.train] of a recipe. Which optimiser they become:
heads/training/optimisers.py.
"""

import math
from dataclasses import dataclass, field
from typing import Annotated, Literal

from pydantic import Field

Count = Annotated[int, Field(ge=0)]
Positive = Annotated[int, Field(ge=1)]
Real = Annotated[float, Field(ge=0, allow_inf_nan=False)]
Rate = Annotated[float, Field(gt=0, allow_inf_nan=False)]
Fraction = Annotated[float, Field(gt=0, le=1)]
Momentum = Annotated[float, Field(ge=0, lt=1)]
Optimiser = Literal["sgd", "adam", "adamw"]


@dataclass(frozen=True)
class AlternatingOptimiser:
    """A second optimiser that takes turns: of the mini-batches of an epoch it gets the second, the
    fourth, ... and the first one the others (GOS's search). `parameters`: the weights that are its
    own, by the start of their name ("" for none: no second optimiser). Its learning rate is
    constant; its parameters are nobody else's. `momentum` is SGD's.
    """

    parameters: str = ""
    optimiser: Optimiser = "adam"
    lr: Rate = 1e-4
    weight_decay: Real = 1e-3
    momentum: Momentum = 0.9


@dataclass(frozen=True)
class ParameterGroups:
    """Factors of the learning rate and of the weight decay for some of the weights.

    `bias_lr`, `bias_decay`: every bias, norms' too; `norm_lr`, `norm_decay`: the scales of norms.
    `last_lr`, `last_bias_lr`: the weight and the bias of the classifier, the module whose name is
    `last`, in place of the factors above. `first`: `first_lr` is the rate's factor for parameters
    whose name starts so, times the others (a backbone's; "" for none).
    """

    bias_lr: Real = 1.0
    bias_decay: Real = 1.0
    norm_lr: Real = 1.0
    norm_decay: Real = 1.0
    last: str = "fc"
    last_lr: Real = 1.0
    last_bias_lr: Real = 1.0
    first: str = ""
    first_lr: Real = 1.0


@dataclass(frozen=True)
class LossShare:
    """An auxiliary loss of the head: its factor `weight`, and the share of the mini-batches, from
    the first on, in which it counts (`until`)."""

    weight: Real = 1.0
    until: Fraction = 1.0


@dataclass(frozen=True)
class Distillation:
    """DyReg's distillation: regions of single-module networks teach those of a head with several
    (heads/papers/dyreg/distillation.py).

    `teachers`: the names of earlier phases of this recipe, or folders of runs; none: no
    distillation. `weight` of the loss; `until`: the share of the mini-batches, from the first on,
    in which it counts.
    """

    teachers: tuple[str, ...] = ()
    weight: Real = 1.0
    until: Fraction = 0.1


@dataclass(frozen=True)
class Training:
    """How the weights move. Exactly one of `epochs` and `iterations` (mini-batches) is the length,
    and the unit of `drop_at`.

    `schedule`: "constant"; "steps", `lr` times `factor` from each point of `drop_at` on; "cosine"
    to 0 at the end; "plateau", times `factor` when the validation loss has not declined for
    `patience` epochs, until it would fall below `stop_below`: then the training ends (0: it goes on
    to its length). `early_stop`: the training ends when the validation's figure has no new best for
    so many epochs (0: never). `momentum` and `nesterov` are SGD's. `clip_norm`: limit of the
    gradient's norm (0: none). `accumulate`: a mini-batch goes through the head in so many parts
    whose gradients are added: the memory of one part; the same step, but for batch norms and for
    the numbers that dropout draws. `ema`: decay per mini-batch of the moving average of the weights
    that is validated and kept in place of the last ones (0: none). `losses`: the head's auxiliary
    losses by name.
    """

    epochs: Count = 0
    iterations: Count = 0
    batch: Positive = 64
    optimiser: Optimiser = "sgd"
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    nesterov: bool = False
    weight_decay: Real = 1e-4
    schedule: Literal["constant", "steps", "cosine", "plateau"] = "constant"
    drop_at: tuple[Positive, ...] = ()
    factor: Fraction = 0.1
    patience: Positive = 5
    stop_below: Real = 0.0
    early_stop: Count = 0
    clip_norm: Real = 0.0
    accumulate: Positive = 1
    ema: Momentum = 0.0
    groups: ParameterGroups = ParameterGroups()
    alternate: AlternatingOptimiser = AlternatingOptimiser()
    losses: dict[str, LossShare] = field(default_factory=dict)
    distil: Distillation = Distillation()

    def __post_init__(self) -> None:
        if (self.epochs > 0) == (self.iterations > 0):
            raise ValueError(
                f"expected either epochs or iterations, got epochs = {self.epochs}, iterations = "
                f"{self.iterations}; "
                "set the other to 0 (--set train.iterations=0)"
            )
        if (self.schedule == "steps") != bool(self.drop_at):
            raise ValueError(
                f"drop_at belongs to schedule 'steps', got schedule {self.schedule!r} with "
                f"drop_at = {list(self.drop_at)}"
            )
        if self.nesterov and (self.optimiser != "sgd" or self.momentum == 0):
            raise ValueError("nesterov needs optimiser 'sgd' and a momentum above 0")
        if self.stop_below and self.schedule != "plateau":
            raise ValueError(
                f"stop_below belongs to schedule 'plateau', got schedule {self.schedule!r}; or "
                f"use early_stop"
            )
        if self.accumulate > self.batch:
            raise ValueError(
                f"accumulate: expected at most batch = {self.batch} parts, got {self.accumulate}"
            )

    @property
    def length(self) -> int:
        """Epochs or iterations, whichever was given."""
        return self.epochs or self.iterations

    def total_steps(self, steps_per_epoch: int) -> int:
        """Mini-batches in the whole training, unless it stops early."""
        return self.iterations or self.epochs * steps_per_epoch

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Epochs, the last one possibly cut short by `iterations`."""
        return math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Learning rate of mini-batch `step`, from 0; "plateau" multiplies this constant by what
        the validation loss did so far."""
        if self.schedule == "cosine":
            return (
                self.lr * 0.5 * (1 + math.cos(math.pi * step / self.total_steps(steps_per_epoch)))
            )
        unit = 1 if self.iterations else steps_per_epoch
        return self.lr * self.factor ** sum(step >= point * unit for point in self.drop_at)
