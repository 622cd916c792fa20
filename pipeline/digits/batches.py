"""Digit videos in memory, a batch at a time, drawn on the device that trains on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.digits.images import INK, Images
from pipeline.digits.resize import Shrink
from pipeline.digits.scenes import Task, boxes_of

AT_ONCE = {
    "cpu": 8,
    "cuda": 256,
}  # videos that are drawn together: on a CPU about what fits its cache, 1 GB on a GPU


@dataclass(frozen=True)
class Batch:
    """B videos, on one device. `frames` uint8 [B,F,S,S], grey; `rgb` the same as [B,F,S,S,3], as
    backbones prepare them.

    labels int64 [B], into the task's `labels`. boxes float32 [B,F,n,4], the digits' tiles as xyxy
    in pixels of the frame; corners int64 [B,F,n,2], their (x,y) in pixels of the canvas. classes
    int64 [B,n]. chosen bool [B,n]: the digits that the label is about.
    """

    frames: Tensor
    labels: Tensor
    boxes: Tensor
    corners: Tensor
    classes: Tensor
    chosen: Tensor

    @property
    def rgb(self) -> Tensor:
        """A view: no memory is copied."""
        return self.frames[..., None].expand(*self.frames.shape, 3)


class DigitVideos:
    """The videos of one split of a task, without end: `videos[3, 1, 2]` are a `Batch`, `batches`
    many of them.

    Frames are those that `write_dataset` writes, bit for bit, on any device. images: those of the
    split, at any size.
    """

    def __init__(
        self,
        task: Task,
        images: Images,
        seed: int = 0,
        split: str = "train",
        device: str | torch.device = "cpu",
    ):
        self.task, self.seed, self.split, self.device = task, seed, split, torch.device(device)
        self.images = images.resized(task.tile)
        self._tiles = torch.from_numpy(self.images.pixels).to(device).flatten(1)  # [images,tile²]
        self._shrink = (
            Shrink(task.canvas, task.size, task.tile, device) if task.size != task.canvas else None
        )
        side = torch.arange(task.tile, device=device)
        self._tile = (
            side[:, None] * task.canvas + side
        ).flatten()  # a tile's pixels, counted from its corner

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """The videos of these numbers, in this order. ValueError for a number below 0, or none at
        all.
        """
        indices = np.asarray(indices, np.int64)
        if indices.ndim != 1 or not len(indices):
            raise ValueError(
                f"videos: expected a list of one or more numbers, got {indices.tolist()}"
            )
        scenes = self.task.scenes(self.images, self.seed, self.split, indices)
        boxes = torch.from_numpy(boxes_of(self.task, scenes.corners))
        parts = (scenes.labels, boxes, scenes.corners, scenes.classes, scenes.chosen, scenes.rows)
        labels, boxes, corners, classes, chosen, rows = (
            torch.as_tensor(part).to(self.device) for part in parts
        )
        at_once = AT_ONCE.get(self.device.type, AT_ONCE["cuda"])
        parts = zip(corners.split(at_once), rows.split(at_once), strict=True)
        frames = torch.cat([self._draw(*part) for part in parts])
        return Batch(frames, labels, boxes, corners, classes, chosen)

    def batches(
        self, indices: Sequence[int] | np.ndarray, size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """(RGB frames uint8 [B,F,S,S,3], labels int64 [B]) of `size` videos at a time, the last
        time of what is left.
        """
        for first in range(0, len(indices), size):
            batch = self[indices[first : first + size]]
            yield batch.rgb, batch.labels

    def _draw(self, corners: Tensor, rows: Tensor) -> Tensor:
        """corners [b,F,n,2], rows [b,n] -> uint8 [b,F,S,S]; as `draw`, `stretch` and `shrink` of
        scenes.py do it.
        """
        (videos, length, _, _), canvas = corners.shape, self.task.canvas
        flat = torch.zeros(videos * length * canvas**2, dtype=torch.uint8, device=self.device)
        frame = torch.arange(videos * length, device=self.device).view(videos, length) * canvas**2
        for k in range(corners.shape[2]):
            start = frame + corners[:, :, k, 1] * canvas + corners[:, :, k, 0]  # [b,F]
            places = (start[..., None] + self._tile).flatten()
            tiles = self._tiles[rows[:, k], None].expand(-1, length, -1).flatten()
            flat.scatter_(0, places, torch.where(tiles >= INK, tiles, flat.gather(0, places)))
        frames = flat.view(-1, canvas, canvas)
        if self.task.stretch:
            stretch_(frames)
        if self._shrink is not None:
            frames = self._shrink(frames, corners.flatten(0, 1))
        return frames.unflatten(0, (videos, length))


def stretch_(frames: Tensor) -> None:
    """`scenes.stretch` in place, uint8 [N,S,S]."""
    low, high = frames.flatten(1).aminmax(dim=1)
    todo = (
        ((low > 0) | (high < 255)).nonzero().squeeze(1)
    )  # few: nearly every frame shows black and white
    if len(todo):
        low, high = (side[todo].double()[:, None, None] for side in (low, high))
        scaled = (frames[todo].double() - low) * (255 / (high - low).clamp(min=1))
        frames[todo] = (scaled + 0.5).floor().to(torch.uint8)


def generate(
    task: Task,
    images: Images,
    indices: Sequence[int] | np.ndarray,
    seed: int = 0,
    split: str = "train",
    device: str | torch.device = "cpu",
) -> Batch:
    """Some videos of a split, once; `DigitVideos` keeps its digits on the device where more are
    wanted.
    """
    return DigitVideos(task, images, seed, split, device)[indices]
