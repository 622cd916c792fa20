"""The tables of a recipe: the head, the data, the evaluation, and the phases. [train] is in
heads/config/training_options.py.
"""

from dataclasses import dataclass, field
from typing import Any, Literal

from heads.config.training_options import Count, Real, Training
from heads.zoo import check_options


@dataclass(frozen=True)
class HeadChoice:
    """The table [head].

    Attributes:
        name: a name of `heads.zoo.head_names`, or that of a plug-in's file.
        options: its options by name; in a TOML file they stand beside the name.
    """

    name: str
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        check_options(self.name, self.options)


@dataclass(frozen=True)
class DataOptions:
    """The table [data]: what is learned from the cached views.

    Attributes:
        target: "single" (one label per clip: softmax, cross-entropy) or "multi" (any number of
            labels: a sigmoid per class).
        num_classes: 0 takes the manifest's classes; more leaves room for classes it does not have.
        class_list: a text file with one class name per line, in the order of their ids. "" keeps
            whole numbers as they are, and numbers names in alphabetical order. It lies beside the
            recipe, or where `--set` names it in the working directory.
        train_views: how many of a clip's cached training views an epoch draws from; 0 is all.
        swap_on_flip: pairs of classes that change places where a view is mirrored.
        labels: only these classes, by name, in the order of their ids. Videos of others are left
            out and counted.
        first_labels: only the first so many classes by id; 0 is all. Not together with `labels`.
        balance: makes rare classes count as much as frequent ones. "sampling": an epoch draws as
            many clips as there are, with replacement, every class equally often. "loss": a clip
            weighs more the rarer its class is, 1 on average. "none": neither.
        no_label: labels that stand for none, such as "-1" in test splits without labels.
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
                f"balance {self.balance!r} needs target 'single': a clip of several classes has no "
                f"one frequency"
            )


@dataclass(frozen=True)
class EvaluationOptions:
    """The table [evaluate]: how a video's test views become one score.

    Attributes:
        aggregate: "mean" or "max" over the views.
        scores: of what: "softmax", "sigmoid" or "logits". "" is the softmax, or the sigmoid where
            `data.target` is "multi".
        checkpoint: "best" on the validation split by top-1 or mAP, or "last".
        batch: views per batch; 0 is that of the training.
    """

    aggregate: Literal["mean", "max"] = "mean"
    scores: Literal["", "softmax", "sigmoid", "logits"] = ""
    checkpoint: Literal["best", "last"] = "best"
    batch: Count = 0


# A recipe without phases was written for a head alone: its learning rate would undo what a trained
# backbone has learned.
PLAIN_BACKBONE_LR = 0.1


@dataclass(frozen=True)
class FrameOptions:
    """The table [phases.frames]: what a phase that reads frames trains beside the head
    (`vidgraph finetune`).

    Attributes:
        train_from: the first stage or block of the backbone that is trained. "stem" trains all of
            it, "none" nothing.
        frozen_bn: the backbone's batch norms keep their statistics and their affine weights. The
            affine weights in a non-local block that is still the identity are trained: with a
            scale of 0 nothing in the block has a gradient.
        backbone_lr: factor of the learning rate for the backbone's weights. A recipe without
            phases that is trained from frames has PLAIN_BACKBONE_LR in its place.
    """

    train_from: str = "none"
    frozen_bn: bool = True
    backbone_lr: Real = 1.0


@dataclass(frozen=True)
class Phase:
    """One table [[phases]]: one phase of a training.

    Attributes:
        name: also that of its checkpoint, NAME.pt.
        train: how weights move.
        reads: "cache" (`vidgraph train`) or "frames" (`vidgraph finetune`).
        start: "fresh" weights, or those that the "previous" phase ended with, of every parameter
            whose name both heads have.
        take: with `start = "previous"`, only parameters whose names start with one of these.
        checkpoint: which of its weights it ends with, "best" or "last"; "" is what the table
            `evaluate` says. A search (GOS) goes on with those that it had at its end.
        head: options that differ from the recipe's head. With a `name` it is another head, with
            these options alone.
        frames: what is trained beside the head, where `reads` is "frames".
    """

    name: str
    train: Training
    reads: Literal["cache", "frames"] = "cache"
    start: Literal["fresh", "previous"] = "fresh"
    take: tuple[str, ...] = ()
    checkpoint: Literal["", "best", "last"] = ""
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
    """Raise ValueError unless `name` can name a folder or a file."""
    # A first dot would hide the folder, a first dash would make it an option of a command.
    plain = all(c.isalnum() or c in "_-." for c in name)
    if not name or not plain or not name[0].isalnum():
        raise ValueError(
            f"name: expected letters, digits, '_', '-' or '.', since it names a folder or file; "
            f"got {name!r}"
        )
