"""The tables of a recipe but for [train] (heads/config/training_options.py): the head, the data,
the evaluation, and the phases.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from heads.config.training_options import Count, Real, Training
from heads.zoo import check_options


@dataclass(frozen=True)
class HeadChoice:
    """Which head: its name in heads/zoo, and its options by name."""

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.name, self.options)


@dataclass(frozen=True)
class DataOptions:
    """What is learned from the cached views.

    `target`: "single" (softmax, cross-entropy; one label per clip) or "multi" (a sigmoid per class;
    any number of labels). `num_classes`: 0 takes the manifest's classes; more leaves room for
    classes it does not have. `class_list`: a text file with one class name per line, in the order
    of their ids ("": whole numbers keep theirs, names count up alphabetically); beside the recipe,
    or where `--set` names it in the working directory. `train_views`: how many of the cached
    training views of a clip an epoch draws from (0: all). `swap_on_flip`: pairs of classes that a
    mirrored view exchanges. `labels` or `first_labels`: only these classes, by name or the first so
    many by id, in the order of their ids; videos of others are left out and counted. `balance`:
    rare classes as heavy as frequent ones, by "sampling" (an epoch draws as many clips as there
    are, with replacement, every class alike often) or by the "loss" (a clip's weighs as much as its
    class is rare, 1 on average). `no_label`: labels that stand for none, such as "-1" in test
    splits whose labels are withheld.
    """

    target: Literal["single", "multi"] = "single"
    num_classes: Count = 0
    class_list: str = ""
    train_views: Count = 0
    swap_on_flip: tuple[tuple[str, str], ...] = ()
    labels: tuple[str, ...] = ()
    first_labels: Count = 0
    balance: Literal["none", "sampling", "loss"] = "none"
    no_label: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.labels and self.first_labels:
            raise ValueError(
                f"expected labels or first_labels, got both: {list(self.labels)} and "
                f"{self.first_labels}"
            )
        if self.target == "multi" and self.balance != "none":
            raise ValueError(
                f"balance {self.balance!r} needs target 'single': a clip of several classes is "
                f"not of one rarity"
            )


@dataclass(frozen=True)
class EvaluationOptions:
    """How a video's test views become one score: `aggregate` ("mean", "max") over the views of
    `scores` ("softmax", "sigmoid", "logits"; "": the softmax, or the sigmoid where `data.target` is
    "multi"). `checkpoint`: "best" on the validation split by top-1 or mAP, or the "last". `batch`:
    views per batch (0: the training's).
    """

    aggregate: Literal["mean", "max"] = "mean"
    scores: Literal["", "softmax", "sigmoid", "logits"] = ""
    checkpoint: Literal["best", "last"] = "best"
    batch: Count = 0


@dataclass(frozen=True)
class FrameOptions:
    """What a phase that reads frames trains beside the head (`vidgraph finetune`).

    `train_from`: the first stage or block of the backbone that is unfrozen; "stem": all of it,
    "none": nothing. `frozen_bn`: its batch norms keep their statistics and their affine weights.
    `backbone_lr`: the factor of the learning rate for the backbone's weights.
    """

    train_from: str = "none"
    frozen_bn: bool = True
    backbone_lr: Real = 1.0


@dataclass(frozen=True)
class Phase:
    """One phase of a training.

    `reads`: "cache" (`vidgraph train`) or "frames" (`vidgraph finetune`, with the table `frames`).
    `head`: options that differ from the recipe's head; with a `name` it is another head, with these
    options alone. `start`: "fresh" weights, or those that the "previous" phase ended with, of every
    parameter whose name both heads have; `take`: only those whose names start so.
    """

    name: str
    train: Training
    reads: Literal["cache", "frames"] = "cache"
    start: Literal["fresh", "previous"] = "fresh"
    take: tuple[str, ...] = ()
    head: dict[str, Any] = field(default_factory=dict)
    frames: FrameOptions = FrameOptions()

    def __post_init__(self) -> None:
        check_name(self.name)
        if self.take and self.start != "previous":
            raise ValueError(
                f"phase {self.name}: take names weights of the previous phase, but start is "
                f"{self.start!r}"
            )
        if self.reads == "cache" and self.frames != FrameOptions():
            raise ValueError(
                f"phase {self.name}: the table frames belongs to a phase with reads = 'frames'"
            )


def check_name(name: str) -> None:
    """ValueError unless `name` can name a folder or a file."""
    if not name or not all(c.isalnum() or c in "_-." for c in name) or not name[0].isalnum():
        raise ValueError(
            f"name: expected letters, digits, '_', '-' or '.', since it names a folder or file; "
            f"got {name!r}"
        )
