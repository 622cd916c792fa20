"""What training from frames works with: a source of frames, the network, its learner.

`FrameSource` hands out views as frames. heads/finetuning/video_views.py decodes them from videos;
a test or a generator may make them. `new_network` puts a head behind a backbone, `FramesLearner`
trains it, in one process or in several. The loop is in heads/finetuning/end_to_end.py.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from heads.config.recipe import Recipe
from heads.config.recipe_tables import DataOptions, FrameOptions
from heads.config.training_options import Training
from heads.data.splits import SplitViews
from heads.finetuning.data_parallel import ProcessGroup
from heads.finetuning.joint_network import JointNetwork
from heads.interface.clips import Clips, Dims
from heads.interface.random_streams import INIT, reseed
from heads.training.learner import Learner, in_parts
from heads.training.loss_watch import Number
from heads.zoo import build_head
from pipeline.backbones import Backbone

# Views of one size, and their positions in the batch that was asked for.
Piece = tuple[Clips, np.ndarray]


class FrameSource(Protocol):
    """Views as frames.

    Attributes:
        parts: the splits by name ("train", "val", "test"); a split's rows number its views.
    """

    parts: Mapping[str, SplitViews]

    def batches(
        self, split: str, batches: Sequence[np.ndarray], epoch: int
    ) -> Iterator[list[Piece]]:
        """Yield the views of each batch.

        Args:
            split: a name of `parts`.
            batches: arrays of rows of the split.
            epoch: whole epochs trained so far; a source may draw other views in each.

        Yields:
            For each array a list of (clips, positions): `Clips` with frames on the device, and
            boxes where the source has them, and their positions in the array. There are several
            pieces where views differ in size. A row in no piece could not be decoded.
        """


@dataclass
class FrameRows:
    """The group of views that are in no cache, as `SplitViews.group` wants it.

    Attributes:
        clips: each row's clip; row r is view r % per_clip of clip r // per_clip.
        views: each row's view number.
        per_clip: views per clip.
    """

    clips: list[str]
    views: np.ndarray
    per_clip: int


def part_of_clips(
    split: str, clips: Sequence[str], targets: np.ndarray | None, per_clip: int = 1
) -> SplitViews:
    """Make a split of clips that are in no cache.

    Args:
        split: its name.
        clips: V ids.
        targets: class ids [V], or [V,K] for several labels; None without labels.
        per_clip: views per clip.

    Returns:
        The split.
    """
    ids, count = tuple(clips), len(clips)
    clip_of_row = np.repeat(np.array(ids, object), per_clip).tolist()
    group = FrameRows(clip_of_row, np.tile(np.arange(per_clip), count), per_clip)
    rows = np.arange(count * per_clip).reshape(count, per_clip)
    counts, order = np.full(count, per_clip), np.arange(count)

    # No clip is left out: none failed, is absent, or has another label.
    return SplitViews(split, group, ids, rows, counts, targets, (), (), (), count, order)


@dataclass(frozen=True)
class FrameRunOptions:
    """How a run on frames works.

    Only `seed`, `order_seed`, `precision` and, by rounding, `accumulate` and the number of
    processes change what it computes.

    Attributes:
        seed: of weights and dropout.
        order_seed: of the clips' order; None for `seed`.
        precision: "fp32", "tf32", "bf16" or "fp16".
        accumulate: parts of a mini-batch per process, whose gradients are added; 0 for the
            recipe's number.
        checkpointing: recompute the backbone's activations in the backward pass instead of
            keeping them.
        checkpoint_every: mini-batches between writes of last.pt; it is also written after
            every epoch.
        resume: continue from last.pt, or read back a finished run.
        tensorboard: whether to write TensorBoard's files.
    """

    seed: int = 0
    order_seed: int | None = None
    precision: str = "fp32"
    accumulate: int = 0
    checkpointing: bool = False
    checkpoint_every: int = 500
    resume: bool = True
    tensorboard: bool = True


class FramesLearner(Learner):
    """A `Learner` of a `JointNetwork`, in one of several processes.

    Args:
        network: on its device.
        training: options with the network's parameter names (see `training_of_all_weights`).
        data: the recipe's data options.
        steps: mini-batches per epoch.
        options: of the run.
        processes: those that train; each takes its part of every mini-batch.
        weights: loss weights [K] of the classes; None for equal ones.
    """

    def __init__(
        self,
        network: JointNetwork,
        training: Training,
        data: DataOptions,
        steps: int,
        options: FrameRunOptions,
        processes: ProcessGroup,
        weights: Tensor | None,
    ):
        # Processes draw different dropout masks; the first draws those of a run on its own.
        seed = options.seed
        if not processes.first:
            sequence = np.random.SeedSequence([options.seed, processes.rank])
            seed = int(sequence.generate_state(1)[0])
        super().__init__(network, training, data.target, steps, seed, options.precision, weights)
        self.processes = processes

    def step_part(self, pieces: Sequence[tuple[Clips, Tensor]], whole: int) -> Number:
        """Take one step on a mini-batch.

        Args:
            pieces: this process's (clips, targets); may be empty.
            whole: the number of clips in the mini-batch of all processes.

        Returns:
            The loss of the whole mini-batch. On a GPU a tensor, which nobody waits for.

        Raises:
            LossNotFinite: as `step` does.
        """
        optimiser, parameters = self.begin_step()
        value: Number = 0.0
        for clips, targets in pieces:
            for part, wanted in in_parts(clips, targets, self.training.accumulate):
                value += self.backward(part, wanted, part.size / whole, parameters)
        if self.processes.size > 1:
            # The exchange waits for the device in any case, and looks for missing gradients.
            self.unused.drop_gradients()
        value = self.processes.sum_gradients(value, parameters)
        self.losses.settle(value, self.place)
        self.end_step(optimiser, parameters)
        self.processes.average_statistics(self.head)
        return value

    def settle(self) -> None:
        """Wait for what was trained, and share votes: before a checkpoint or an epoch's end.

        All processes call it together.

        Raises:
            LossNotFinite: a loss since the last call is NaN or infinite.
        """
        self.losses.read()
        self.processes.share_votes(self.head)


def new_network(
    recipe: Recipe,
    backbone: Backbone,
    dims: Dims,
    classes: int,
    seed: int,
    frames: FrameOptions,
    **options: Any,
) -> JointNetwork:
    """Put a new head behind a backbone.

    The head's weights depend on the seed alone. The part of a backbone that the head holds
    starts with the weights of `backbone`, unless the head's option `weights` names others.

    Args:
        recipe: of one phase; it names the head.
        backbone: with its weights.
        dims: sizes that the head reads.
        classes: K, the number of classes.
        seed: of the head's weights.
        frames: which weights are trained.
        **options: further options of `JointNetwork`.

    Returns:
        The network, on the CPU.
    """
    reseed(torch.device("cpu"), seed, INIT)
    head = build_head(recipe.head.name, dims, classes, **recipe.head.options)
    network = JointNetwork(backbone, head, frames, **options)

    upper = network.backbone_in_head
    if upper is not None and recipe.head.options.get("weights", "none") == "none":
        # Modules that the head inserted are in no backbone: they keep their fresh weights.
        shared = {}
        for name, tensor in backbone.state_dict().items():
            if name in upper.state_dict():
                shared[name] = tensor
        upper.load_state_dict(shared, strict=False)
    return network


def training_of_all_weights(training: Training, frames: FrameOptions) -> Training:
    """Adapt a recipe's training options to a `JointNetwork`.

    Args:
        training: options that name the head's parameters.
        frames: the phase's `frames` table, with the backbone's learning rate.

    Returns:
        The options with the parameter names of the whole network, and the backbone's factor.
    """
    groups, alternate = training.groups, training.alternate
    first = f"head.{groups.first}" if groups.first else ""
    groups = replace(groups, last=f"head.{groups.last}", first=first)
    # There is one prefix with a factor, and a recipe's own comes first.
    if frames.backbone_lr != 1 and not first and frames.train_from != "none":
        groups = replace(groups, first="backbone", first_lr=frames.backbone_lr)
    if alternate.parameters:
        alternate = replace(alternate, parameters=f"head.{alternate.parameters}")
    return replace(training, groups=groups, alternate=alternate)
