"""Train a digit network on whole frames, for the class *and* the place of every digit.

Pre-training on single digits (heads/reproduction/pretraining.py) asks what is in a picture, not
where, and never shows digits that hide each other. This training shows frames of the tasks
themselves, with several digits. A linear layer must make the ideal maps
(heads/reproduction/ideal_maps.py) from the network's last map, cell by cell:

    loss = mean over frames of the sum over classes and cells of (W x + b - ideal)^2

It is our stand-in for what the papers do: they train the network on, together with the graph.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from heads.interface.random_streams import INIT, reseed
from heads.reproduction.ideal_maps import centres_of, digit_cnn_geometry, ideal_maps
from heads.reproduction.pretraining import initialise
from heads.runs.run_files import write_atomically
from pipeline.backbones import Backbone, build_backbone
from pipeline.digits.batches import Batch, DigitVideos
from pipeline.digits.images import Images
from pipeline.digits.scenes import Task
from pipeline.networks.memory_format import lay_out

# Frames of each task on which the error is measured, and how many at a time.
CHECKED, CHECK_BATCH = 500, 100
# How often the error is measured.
CHECKS = 6


@dataclass(frozen=True)
class PlaceTraining:
    """How the digit network is trained on whole frames.

    Adam's learning rate rises to `lr` and falls to 0 in one cycle.

    Attributes:
        width: of `digit_cnn`.
        options: its other options.
        steps: mini-batches; the tasks take turns.
        batch: frames in a mini-batch.
        lr: highest learning rate.
        seed: of the weights and the frames.
    """

    width: int
    options: Mapping[str, object]
    steps: int
    batch: int = 32
    lr: float = 4e-3
    seed: int = 0


@dataclass(frozen=True)
class PlaceTrained:
    """A digit network trained on whole frames.

    Attributes:
        path: its checkpoint.
        error: the loss on validation frames, as a fraction of that of empty maps.
        seconds: how long training took.
    """

    path: Path
    error: float
    seconds: float


def train_places(
    path: str | Path,
    tasks: Sequence[Task],
    images: Mapping[str, Images],
    options: PlaceTraining,
    say: Callable[[str], None] = print,
) -> PlaceTrained:
    """Train `digit_cnn` on whole frames, and write its state dict.

    Args:
        path: where to write.
        tasks: whose frames are shown; they share their classes, canvas and size.
        images: the images of the splits train and val.
        options: how to train.
        say: prints a line.

    Returns:
        The path, the error and the cost.

    Raises:
        ValueError: there is no task, or the tasks' frames differ in size or classes.
    """
    kinds = {(task.size, task.classes) for task in tasks}
    if len(kinds) != 1:
        raise ValueError(
            f"digit network: expected tasks of one frame size and number of classes, got {kinds}"
        )
    started = time.monotonic()
    # One frame a video: neighbouring frames would teach less.
    tasks = [replace(task, frames=1) for task in tasks]
    shown = {}
    for split in ("train", "val"):
        shown[split] = [DigitVideos(task, images[split], options.seed, split) for task in tasks]

    device = torch.device("cpu")
    reseed(device, options.seed, INIT)
    backbone = lay_out(build_backbone("digit_cnn", width=options.width, **options.options), device)
    initialise(backbone)
    reader = MapReader(backbone.channels(), tasks[0])
    optimiser = torch.optim.Adam([*backbone.parameters(), *reader.parameters()], options.lr)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimiser, options.lr, total_steps=options.steps)

    error = float("nan")
    check_every = max(options.steps // CHECKS, 1)
    for step in range(options.steps):
        videos = shown["train"][step % len(tasks)]
        first = step // len(tasks) * options.batch
        batch = videos[np.arange(first, first + options.batch)]
        loss = reader.squares(last_map(backbone, batch), batch).mean()
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        optimiser.step()
        schedule.step()
        if (step + 1) % check_every == 0 or step + 1 == options.steps:
            error = _error(backbone, reader, shown["val"])
            say(f"step {step + 1}: {100 * error:.1f} % of the ideal maps' squares are missed")

    write_atomically(Path(path), lambda file: torch.save(backbone.state_dict(), file))
    return PlaceTrained(Path(path), error, time.monotonic() - started)


class MapReader(nn.Module):
    """A linear layer from the cells of a map to those of the ideal maps.

    Args:
        channels: C of the map.
        task: of the frames.
    """

    def __init__(self, channels: int, task: Task):
        super().__init__()
        self.task, self.geometry = task, digit_cnn_geometry(task.size)
        self.layer = nn.Conv2d(channels, task.classes, 1)

    def wanted(self, batch: Batch) -> Tensor:
        """Return the ideal maps of the frames of a batch: [B*T,K,h,w]."""
        centres = centres_of(self.task, batch.corners)
        maps = ideal_maps(centres, batch.classes, self.task.classes, self.geometry)
        return maps.flatten(0, 1)

    def squares(self, maps: Tensor, batch: Batch) -> Tensor:
        """Return the squared error of each frame: maps [B*T,C,h,w] -> [B*T]."""
        return ((self.layer(maps) - self.wanted(batch)) ** 2).sum((1, 2, 3))


def last_map(backbone: Backbone, batch: Batch) -> Tensor:
    """Return the backbone's last map of every frame of a batch: [B*T,C,h,w]."""
    # [B,C,T,h,w] -> [B*T,C,h,w]
    return backbone(backbone.prepare(batch.rgb)).transpose(1, 2).flatten(0, 1)


@torch.inference_mode()
def _error(backbone: Backbone, reader: MapReader, shown: Sequence[DigitVideos]) -> float:
    backbone.eval()
    missed = total = 0.0
    for videos in shown:
        for first in range(0, CHECKED, CHECK_BATCH):
            batch = videos[np.arange(first, first + CHECK_BATCH)]
            missed += reader.squares(last_map(backbone, batch), batch).sum().item()
            total += (reader.wanted(batch) ** 2).sum().item()
    backbone.train()
    return missed / total
