"""What training from frames works on: where frames come from, the network, and how its weights
move.

`FrameSource` hands out views as frames; heads/finetuning/video_views.py decodes them, a test or a
generator may make them. `new_network` puts a head behind a backbone; `FramesLearner` trains it, in
one process or several. The run around them: heads/finetuning/end_to_end.py.
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
from heads.training.learner import INIT, Learner, in_parts, reseed
from heads.zoo import build_head
from pipeline.backbones import Backbone

Piece = tuple[Clips, np.ndarray]


class FrameSource(Protocol):
    """Views as frames. `parts`: the splits train, val and test as far as there are, whose rows
    number the views.
    """

    parts: Mapping[str, SplitViews]

    def batches(
        self, split: str, batches: Sequence[np.ndarray], epoch: int
    ) -> Iterator[list[Piece]]:
        """For each array of rows of a split: their views as (Clips with frames, and boxes where it
        has them, on the device; their places in the array), in several pieces where sizes differ. A
        row in no piece could not be had.
        """


@dataclass
class FrameRows:
    """The views of a split that is in no cache, as `SplitViews.group`: view number r % per_clip of clip r
    // per_clip.
    """

    clips: list[str]
    views: np.ndarray
    per_clip: int


def part_of_clips(
    split: str, clips: Sequence[str], targets: np.ndarray | None, per_clip: int = 1
) -> SplitViews:
    """A split of clips with so many views each; targets [V] class ids or [V,K], None without
    labels.
    """
    ids, count = tuple(clips), len(clips)
    rows = np.arange(count * per_clip).reshape(count, per_clip)
    group = FrameRows(
        [clip for clip in ids for _ in range(per_clip)],
        np.tile(np.arange(per_clip), count),
        per_clip,
    )
    return SplitViews(
        split,
        group,
        ids,
        rows,
        np.full(count, per_clip),
        targets,
        (),
        (),
        (),
        count,
        np.arange(count),
    )


@dataclass(frozen=True)
class FrameRunOptions:
    """How a run works, of which only `seed`, `order_seed` (None: `seed`), `precision` and, by
    rounding, `accumulate` and the number of processes change what it computes.

    `accumulate`: parts of a mini-batch, per process (0: the recipe's). `checkpointing`: activations
    of the backbone are computed twice in place of being kept. `checkpoint_every` mini-batches, and
    after every epoch, last.pt is written.
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
    """A Learner of a `JointNetwork` network, one of several in as many processes: each takes its share of
    every mini-batch.
    """

    def __init__(
        self,
        network: JointNetwork,
        training: Training,
        data: DataOptions,
        steps: int,
        how: FrameRunOptions,
        world: ProcessGroup,
        weights: Tensor | None,
    ):
        seed = (
            how.seed
            if world.first
            else int(np.random.SeedSequence([how.seed, world.rank]).generate_state(1)[0])
        )
        super().__init__(network, training, data.target, steps, seed, how.precision, weights)
        self.world = world

    def step_share(self, pieces: Sequence[tuple[Clips, Tensor]], whole: int) -> float:
        """One mini-batch of `whole` clips, of which these pieces (maybe none) are this process's;
        returns the loss of all.
        """
        optimiser, moved = self.begin_step()
        value = 0.0
        for clips, targets in pieces:
            for part, wanted in in_parts(clips, targets, self.training.accumulate):
                value += self.backward(part, wanted, part.size / whole, moved)
        value = self.world.add_up(value, moved)
        self.end_step(optimiser, moved)
        self.world.average_statistics(self.head)
        return value


def new_network(
    recipe: Recipe,
    backbone: Backbone,
    dims: Dims,
    classes: int,
    seed: int,
    frames: FrameOptions,
    **live: Any,
) -> JointNetwork:
    """The head of a recipe of one phase behind `backbone`, initialised by the seed alone; `live`
    are options of `JointNetwork`.

    The part of a backbone that the head holds starts with the weights of `backbone`, unless the
    head's option `weights` names others.
    """
    reseed(torch.device("cpu"), seed, INIT)
    network = JointNetwork(
        backbone, build_head(recipe.head.name, dims, classes, **recipe.head.options), frames, **live
    )
    if network.upper is not None and recipe.head.options.get("weights", "none") == "none":
        own = network.upper.state_dict()
        network.upper.load_state_dict(
            {name: t for name, t in backbone.state_dict().items() if name in own}, strict=False
        )
    return network


def training_of_all_weights(training: Training, frames: FrameOptions) -> Training:
    """`training` with the names of the head's parameters as `JointNetwork` has them, and the backbone's
    factor.
    """
    groups, other = training.groups, training.alternate
    groups = replace(
        groups, last=f"head.{groups.last}", first=f"head.{groups.first}" if groups.first else ""
    )
    if frames.backbone_lr != 1 and not groups.first and frames.train_from != "none":
        groups = replace(groups, first="backbone", first_lr=frames.backbone_lr)
    if other.parameters:
        other = replace(other, parameters=f"head.{other.parameters}")
    return replace(training, groups=groups, alternate=other)
