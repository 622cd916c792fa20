"""Digit videos in memory, one batch at a time, drawn on the device that trains on them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from pipeline.digits.images import INK, Images
from pipeline.digits.resize import Shrink
from pipeline.digits.scenes import Task, boxes_of

# Videos that are drawn together: about what fits the cache of a CPU, or 1 GB on a GPU.
AT_ONCE = {"cpu": 8, "cuda": 256}


@dataclass(frozen=True)
class Batch:
    """B videos of F frames and n digits, on one device.

    Attributes:
        frames: uint8 [B,F,S,S], grey.
        labels: int64 [B], positions in the task's `labels`.
        boxes: float32 [B,F,n,4], the digits' tiles as xyxy in pixels of the frame.
        corners: int64 [B,F,n,2], their top left corners (x,y) in pixels of the canvas.
        classes: int64 [B,n].
        chosen: bool [B,n], the digits that the label is about.
    """

    frames: Tensor
    labels: Tensor
    boxes: Tensor
    corners: Tensor
    classes: Tensor
    chosen: Tensor

    @property
    def rgb(self) -> Tensor:
        """The frames as [B,F,S,S,3], as backbones prepare them; a view, not a copy."""
        return self.frames[..., None].expand(*self.frames.shape, 3)


class DigitVideos:
    """The endless videos of one split of a task; `videos[3, 1, 2]` is a `Batch` of three.

    Frames are those that `write_dataset` writes, bit for bit, on any device.

    Args:
        task: what can happen in a video.
        images: the images of the split, at any size.
        seed: with the split and an index, it determines a video.
        split: "train", "val" or "test".
        device: where to draw.
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
        self._shrink = None
        if task.size != task.canvas:
            self._shrink = Shrink(task.canvas, task.size, task.tile, device)
        # The positions of a tile's pixels in a flattened canvas, relative to its corner.
        side = torch.arange(task.tile, device=device)
        self._tile = (side[:, None] * task.canvas + side).flatten()

    def __getitem__(self, indices: Sequence[int] | np.ndarray) -> Batch:
        """Make videos.

        Args:
            indices: numbers of the videos, from 0, in any order.

        Raises:
            ValueError: no number, or one below 0.
        """
        indices = np.asarray(indices, np.int64)
        if indices.ndim != 1 or not len(indices):
            raise ValueError(
                f"videos: expected a list of one or more numbers, got {indices.tolist()}"
            )
        scenes = self.task.scenes(self.images, self.seed, self.split, indices)
        boxes = boxes_of(self.task, scenes.corners)
        parts = (scenes.labels, boxes, scenes.corners, scenes.classes, scenes.chosen, scenes.rows)
        labels, boxes, corners, classes, chosen, rows = (
            torch.as_tensor(part).to(self.device) for part in parts
        )

        at_once = AT_ONCE.get(self.device.type, AT_ONCE["cuda"])
        groups = zip(corners.split(at_once), rows.split(at_once), strict=True)
        frames = torch.cat([self._draw(*group) for group in groups])
        return Batch(frames, labels, boxes, corners, classes, chosen)

    def batches(
        self, indices: Sequence[int] | np.ndarray, size: int
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Make batches of videos.

        Args:
            indices: numbers of the videos.
            size: videos per batch; the last batch may be smaller.

        Yields:
            RGB frames uint8 [B,F,S,S,3], labels int64 [B].
        """
        for first in range(0, len(indices), size):
            batch = self[indices[first : first + size]]
            yield batch.rgb, batch.labels

    def _draw(self, corners: Tensor, rows: Tensor) -> Tensor:
        """Draw, stretch and shrink as the functions of `scenes.py` do.

        Args:
            corners: int64 [b,F,n,2].
            rows: int64 [b,n].

        Returns:
            uint8 [b,F,S,S].
        """
        (videos, length, digits, _), canvas = corners.shape, self.task.canvas
        # All frames in one row, so that digit k of all of them is a single scatter.
        flat = torch.zeros(videos * length * canvas**2, dtype=torch.uint8, device=self.device)
        frame = torch.arange(videos * length, device=self.device).view(videos, length) * canvas**2
        # Later digits cover earlier ones.
        for k in range(digits):
            start = frame + corners[:, :, k, 1] * canvas + corners[:, :, k, 0]  # [b,F]
            positions = (start[..., None] + self._tile).flatten()
            tiles = self._tiles[rows[:, k], None].expand(-1, length, -1).flatten()
            below = flat.gather(0, positions)
            flat.scatter_(0, positions, torch.where(tiles >= INK, tiles, below))

        frames = flat.view(-1, canvas, canvas)
        if self.task.stretch:
            stretch_(frames)
        if self._shrink is not None:
            frames = self._shrink(frames, corners.flatten(0, 1))
        return frames.unflatten(0, (videos, length))


def stretch_(frames: Tensor) -> None:
    """Stretch the contrast of uint8 [N,S,S] in place, as `scenes.stretch` does."""
    low, high = frames.flatten(1).aminmax(dim=1)
    # Few frames: nearly every one has black and white pixels already.
    rows = ((low > 0) | (high < 255)).nonzero().squeeze(1)
    if len(rows):
        # float64 as in `scenes.stretch`, so that both give the same bits.
        low = low[rows].double()[:, None, None]
        high = high[rows].double()[:, None, None]
        scaled = (frames[rows].double() - low) * (255 / (high - low).clamp(min=1))
        frames[rows] = (scaled + 0.5).floor().to(torch.uint8)


def generate(
    task: Task,
    images: Images,
    indices: Sequence[int] | np.ndarray,
    seed: int = 0,
    split: str = "train",
    device: str | torch.device = "cpu",
) -> Batch:
    """Make some videos of a split once.

    For many batches, keep a `DigitVideos`: it keeps the digits on the device.

    Args:
        task: what can happen in a video.
        images: the images of the split, at any size.
        indices: numbers of the videos, from 0.
        seed: with the split and an index, it determines a video.
        split: "train", "val" or "test".
        device: where to draw.
    """
    return DigitVideos(task, images, seed, split, device)[indices]
