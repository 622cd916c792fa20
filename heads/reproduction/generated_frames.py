"""Digit videos as a source of frames for `heads.finetuning`."""

from collections.abc import Iterator, Mapping, Sequence

import numpy as np

from heads.data.splits import SplitViews
from heads.finetuning.frame_training import Piece, part_of_clips
from heads.interface.clips import Clips
from pipeline.digits.batches import DigitVideos
from pipeline.digits.images import Images
from pipeline.digits.scenes import Task
from pipeline.manifests.manifest import SPLITS


class FreshViews(SplitViews):
    """A split of V videos that are others in every epoch: epoch e has the videos from e V on.

    `targets` has the labels of all epochs.
    """

    def draw(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw the videos of an epoch in random order; see `SplitViews.draw`."""
        order = np.random.default_rng([seed, epoch]).permutation(len(self))
        videos = order + epoch * len(self)
        return videos, videos, np.arange(len(self))


class GeneratedFrames:
    """Digit videos as a `heads.finetuning.frame_training.FrameSource`.

    View k of a split is its video k, which is made when it is asked for.

    Args:
        task: what can happen in a video.
        images: the images of each split.
        videos: split -> number of videos.
        device: where videos are made.
        seed: of the videos.
        fresh_epochs: each of so many epochs has training videos of its own; 0: all epochs have
            the same ones.
    """

    def __init__(
        self,
        task: Task,
        images: Mapping[str, Images],
        videos: Mapping[str, int],
        device: str,
        seed: int = 0,
        fresh_epochs: int = 0,
    ):
        self.videos = {}
        for split in SPLITS:
            self.videos[split] = DigitVideos(task, images[split], seed, split, device)
        self.parts: dict[str, SplitViews] = {}
        for split, count in videos.items():
            fresh = fresh_epochs if split == "train" else 0
            # Labels follow from the seed; no frame is drawn for them.
            numbers = np.arange(count * max(fresh, 1))
            labels = task.scenes(self.videos[split].images, seed, split, numbers).labels
            clips = [f"{split}-{k:06d}" for k in range(count)]
            part = part_of_clips(split, clips, labels)
            if fresh:
                part = FreshViews(**vars(part))
            self.parts[split] = part

    def batches(
        self, split: str, batches: Sequence[np.ndarray], epoch: int
    ) -> Iterator[list[Piece]]:
        """Yield the frames of each batch; see `FrameSource.batches`."""
        for rows in batches:
            pieces = []
            if len(rows):
                clips = Clips(frames=self.videos[split][rows].rgb)
                pieces.append((clips, np.arange(len(rows))))
            yield pieces
