"""How weights are trained: the tables [train] and [phases.train] of a recipe.

heads/training/optimisers.py builds the optimisers, heads/training/learner.py does the rest.
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
    """A second optimiser that takes turns with the first one (GOS's search).

    It gets the second, the fourth, ... mini-batch of an epoch. Its learning rate is constant, and
    its parameters belong to it alone.

    Attributes:
        parameters: the start of its parameters' names; "": no second optimiser.
        optimiser: "sgd", "adam" or "adamw".
        lr: learning rate.
        weight_decay: weight decay.
        momentum: of SGD.
    """

    parameters: str = ""
    optimiser: Optimiser = "adam"
    lr: Rate = 1e-4
    weight_decay: Real = 1e-3
    momentum: Momentum = 0.9


@dataclass(frozen=True)
class ParameterGroups:
    """Factors of the learning rate and of the weight decay for some of the weights.

    Attributes:
        bias_lr, bias_decay: every bias, also those of norms.
        norm_lr, norm_decay: the scales of norms.
        norm_bias_lr: the biases of norms, in place of `bias_lr`; None: `bias_lr`. Their decay is
            `bias_decay`.
        last: the name of the classifier's module.
        last_lr, last_bias_lr: the classifier's weight and bias, in place of the factors above.
        first: the start of the names of parameters, such as a backbone's; "": none.
        first_lr: a further factor of the learning rate of the parameters `first`.
    """

    bias_lr: Real = 1.0
    bias_decay: Real = 1.0
    norm_lr: Real = 1.0
    norm_bias_lr: Real | None = None
    norm_decay: Real = 1.0
    last: str = "fc"
    last_lr: Real = 1.0
    last_bias_lr: Real = 1.0
    first: str = ""
    first_lr: Real = 1.0


@dataclass(frozen=True)
class LossShare:
    """An auxiliary loss of the head.

    Attributes:
        weight: its factor.
        until: the fraction of the training, from its start, in which the loss counts.
    """

    weight: Real = 1.0
    until: Fraction = 1.0


@dataclass(frozen=True)
class Distillation:
    """DyReg's distillation: networks with one module teach the regions of one with several.

    See heads/papers/dyreg/distillation.py.

    Attributes:
        teachers: earlier phases of this recipe, or run folders; none: no distillation.
        weight: the factor of the loss.
        until: the fraction of the training, from its start, in which the loss counts.
    """

    teachers: tuple[str, ...] = ()
    weight: Real = 1.0
    until: Fraction = 0.1


@dataclass(frozen=True)
class Training:
    """How weights are trained.

    Attributes:
        epochs, iterations: the length, in epochs or in mini-batches; exactly one is given.
        batch: views per mini-batch.
        optimiser: "sgd", "adam" or "adamw".
        lr: learning rate.
        momentum, nesterov: of SGD.
        weight_decay: weight decay.
        schedule: of the learning rate. "constant" changes nothing. "steps": times `factor` at each
            point of `drop_at`. "cosine" and "linear": to 0 at the end, the latter
            in a straight line from the end of the warm-up. "plateau": times `factor` when the
            validation loss has had no new minimum for more than `patience` epochs. A minimum is
            lower by a ten-thousandth, as torch's ReduceLROnPlateau(patience=...) counts.
        drop_at: points of "steps", in the unit of the length.
        warm_up: in the first so many mini-batches, the rate rises linearly to the schedule's.
        factor: factor of "steps" and "plateau".
        patience: epochs without a new minimum that "plateau" bears; the next one lowers the rate.
        stop_below: "plateau" ends the training when the rate would fall below this; 0: never.
        early_stop: the training ends when the validation figure has had no new best for so many
            epochs; 0: never.
        clip_norm: the largest norm of the gradient; 0: any.
        accumulate: a mini-batch goes through the head in so many parts, whose gradients are added.
            It takes the memory of one part. Batch norms and dropout see the parts.
        ema: decay per mini-batch of a moving average of the weights, which is validated and kept
            in place of the last weights; 0: none.
        groups: factors of the learning rate and weight decay for some of the weights.
        alternate: a second optimiser.
        losses: the head's auxiliary losses, by name.
        distil: DyReg's distillation.
    """

    epochs: Count = 0
    iterations: Count = 0
    batch: Positive = 64
    optimiser: Optimiser = "sgd"
    lr: Rate = 0.01
    momentum: Momentum = 0.9
    nesterov: bool = False
    weight_decay: Real = 1e-4
    schedule: Literal["constant", "steps", "cosine", "linear", "plateau"] = "constant"
    drop_at: tuple[Positive, ...] = ()
    warm_up: Count = 0
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
                f"{self.iterations}; set the other to 0 (--set train.iterations=0)"
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
        """The number of epochs or iterations, whichever is given."""
        return self.epochs or self.iterations

    def total_steps(self, steps_per_epoch: int) -> int:
        """Return the mini-batches of the whole training, unless it stops early."""
        return self.iterations or self.epochs * steps_per_epoch

    def total_epochs(self, steps_per_epoch: int) -> int:
        """Return the epochs of the whole training; `iterations` may cut the last one short."""
        return math.ceil(self.total_steps(steps_per_epoch) / steps_per_epoch)

    def lr_at(self, step: int, steps_per_epoch: int) -> float:
        """Return the learning rate of a mini-batch.

        For "plateau" it is constant: the learner multiplies it by what the validation loss asks
        for.

        Args:
            step: the number of the mini-batch, from 0.
            steps_per_epoch: mini-batches per epoch.
        """
        # The first mini-batch has a part of the rate, too: at 0 it would teach nothing.
        lr = self.lr * min(1.0, (step + 1) / (self.warm_up + 1))
        if self.schedule == "cosine":
            # Half a period of a cosine: lr at the first step, 0 after the last.
            angle = math.pi * step / self.total_steps(steps_per_epoch)
            return lr * 0.5 * (1 + math.cos(angle))
        if self.schedule == "linear":
            total = self.total_steps(steps_per_epoch)
            return lr * min(1.0, (total - step) / max(1, total - self.warm_up))
        unit = 1 if self.iterations else steps_per_epoch
        drops = sum(step >= point * unit for point in self.drop_at)
        return lr * self.factor**drops
