"""Dist on generated digits: how far DyReg-GNN's regions are from digits, whose places are known.

The figures are those of `heads.interface.region_distance`, with digits' tiles as boxes.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn

from heads.data.splits import require_split_views
from heads.evaluation.head_predictor import open_store
from heads.evaluation.region_figures import region_figures
from heads.evaluation.saved_heads import load_run
from heads.interface.clips import Clips
from heads.interface.region_distance import RegionDistance
from pipeline.cache.reader import Cache
from pipeline.digits import DigitVideos, Images, Task
from pipeline.digits.scenes import boxes_of

# Videos in one forward pass.
BATCH = 50


def digit_boxes(
    task: Task, images: Images, seed: int, split: str, numbers: Sequence[int] | np.ndarray
) -> np.ndarray:
    """Return where the digits of some videos are; no frame is drawn.

    Args:
        task: what can happen in a video.
        images: the images of the split.
        seed: of the videos.
        split: "train", "val" or "test".
        numbers: [V] numbers of the videos in the split.

    Returns:
        float32 [V,F,n,4], xyxy in [0,1] of the frame.
    """
    scenes = task.scenes(images, seed, split, np.asarray(numbers))
    return boxes_of(task, scenes.corners) / np.float32(task.size)


class DigitBoxes:
    """The digits' boxes of the views of a cache that `cache_digits` made.

    Args:
        cache: the cache.
        task, images, seed: what `cache_digits` made it from.
    """

    def __init__(self, cache: Cache, task: Task, images: Mapping[str, Images], seed: int):
        self.cache, self.task, self.images, self.seed = cache, task, images, seed

    def of(self, rows: np.ndarray, steps: int) -> tuple[Tensor, Tensor]:
        """Return boxes [B,T,n,4] in [0,1] and valid [B,T,n] of rows [B] of either group."""
        found = []
        for row in rows:
            # A video has one row in both groups; its clip is called "SPLIT-NUMBER".
            split, _, number = self.cache.manifest.clips[int(row)].clip.rpartition("-")
            images = self.images[split]
            found.append(digit_boxes(self.task, images, self.seed, split, [int(number)]))
        boxes = torch.from_numpy(np.concatenate(found))
        frames = [t * boxes.shape[1] // steps for t in range(steps)]
        boxes = boxes[:, frames]
        return boxes, torch.ones(boxes.shape[:-1], dtype=torch.bool)


def distance_of_run(
    folder: Path,
    cache: Cache,
    task: Task,
    images: Mapping[str, Images],
    seed: int = 0,
    split: str = "test",
    device: str = "cpu",
) -> dict[str, float]:
    """Compute Dist of a finished run on cached digits, after and before training.

    Args:
        folder: the run, of head dyreg.
        cache: the cache that it was trained on.
        task, images, seed: what `cache_digits` made it from.
        split: the split's name.
        device: where to compute.

    Returns:
        dist, dist_regions and both with "_start" behind their names.
    """
    trained = load_run(folder, cache)
    classes, data = trained.classes, trained.recipe.data
    part = require_split_views(cache, "test", split, cache.manifest, classes, data)
    head = trained.head.to(device)
    store = open_store([head], cache, [part], trained.recipe, "disk", torch.device(device))
    boxes = DigitBoxes(cache, task, images, seed)
    return region_figures(trained, part, store, boxes)[0]


def distance_of_network(
    network: nn.Module, videos: DigitVideos, count: int, batch: int = BATCH
) -> dict[str, float]:
    """Compute Dist of a network that reads frames, with its present weights.

    Call it before and after training for both figures.

    Args:
        network: of `heads.finetuning`, with head dyreg, on the device of the videos.
        videos: of one split.
        count: how many videos to look at, from the first.
        batch: videos in one forward pass.

    Returns:
        dist and dist_regions. The network is left in the mode in which it was.
    """
    found, mode = RegionDistance(), network.training
    network.eval()
    with torch.inference_mode():
        for first in range(0, count, batch):
            made = videos[np.arange(first, min(first + batch, count))]
            maps = network(Clips(frames=made.rgb), want_maps=True).maps
            found.add(maps, made.boxes / videos.task.size)
    network.train(mode)
    return found.figures()
