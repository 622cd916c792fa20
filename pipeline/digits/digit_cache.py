"""Digit videos through a frozen network into a cache, without a video file, decoder or boxes.

The cache holds what `vidgraph extract` stores for the written videos, without the losses of video
compression. Each video has one view: in the group `train` for the split train, else in `test`.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline.backbones import Backbone
from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.digits.batches import DigitVideos
from pipeline.digits.images import Images
from pipeline.digits.scenes import Task
from pipeline.files.atomic_files import sha256_of
from pipeline.manifests.manifest import SPLITS, write_manifest

# Videos in a shard: at most so many are lost when a run is killed.
PER_SHARD = 500
# Videos in one forward pass: on a CPU, what fits its cache.
AT_ONCE = {"cpu": 8, "cuda": 500}


def cache_digits(
    path: Path,
    task: Task,
    images: Mapping[str, Images],
    videos: Mapping[str, int],
    backbone: Backbone,
    weights: Path,
    seed: int = 0,
    device: str | torch.device = "cpu",
) -> Cache:
    """Store the features of digit videos.

    For each view, the cache holds the map of the backbone's last stage and its mean, `pooled`,
    both in float16. Shards that exist are kept.

    Args:
        path: the folder of the cache.
        task: what can happen in a video.
        images: the images of each split.
        videos: split -> number of videos.
        backbone: a frozen network on `device`.
        weights: the checkpoint of `backbone`; its hash tells caches apart.
        seed: of the videos.
        device: where to compute.

    Returns:
        The complete cache.

    Raises:
        CacheError: `path` holds another cache.
        ValueError: a split is unknown.
    """
    unknown = [split for split in videos if split not in SPLITS]
    if unknown:
        raise ValueError(f"split {unknown[0]!r}: expected {', '.join(SPLITS)}")
    generators = {split: DigitVideos(task, images[split], seed, split, device) for split in videos}
    path.parent.mkdir(parents=True, exist_ok=True)

    # Row k of the manifest is video `numbers[k][1]` of the split `numbers[k][0]`.
    rows, numbers = [], []
    for split, count in videos.items():
        labels = task.scenes(generators[split].images, seed, split, np.arange(count)).labels
        for k, label in enumerate(labels):
            clip = f"{split}-{k:06d}"
            name = task.labels[label]
            rows.append({"clip": clip, "path": f"{clip}.mp4", "split": split, "label": name})
            numbers.append((split, k))

    config = {
        "backbone": {"name": backbone.name, **backbone.options},
        "weights": sha256_of(weights),
        "seed": seed,
        "task": {"name": task.name, **asdict(task)},
        "images": images["train"].name,
    }
    plan = create_cache(path, config, write_manifest(path.with_suffix(".csv"), rows), PER_SHARD)
    for shard, clips in enumerate(plan.ranges):
        if not plan.done(shard):
            _write_shard(plan, shard, [numbers[k] for k in clips], generators, backbone)
    return Cache(path)


def _write_shard(
    plan,
    shard: int,
    videos: list[tuple[str, int]],
    generators: Mapping[str, DigitVideos],
    backbone: Backbone,
) -> None:
    """Write one shard. A video has a row in both groups; the row of the other group is empty."""
    task = generators[videos[0][0]].task
    channels, cut = backbone.channels(), backbone.last
    steps = backbone.steps(task.frames, cut)
    grid = backbone.grid(cut, (task.size, task.size))
    fields = {
        "pooled": ((steps, channels), "float16"),
        cut: ((steps, channels, *grid), "float16"),
        "grid": ((2,), "int16"),
    }
    table = GroupPlan([clip.clip for clip in plan.clips(shard)], [0] * len(videos), fields)
    groups = {"train": table, "test": table}
    with ShardWriter(plan.path(shard), groups, attrs=plan.attrs(shard)) as writer:
        # Splits in the order of the manifest.
        for split in dict.fromkeys(split for split, _ in videos):
            group = "train" if split == "train" else "test"
            rows = [row for row, video in enumerate(videos) if video[0] == split]
            at_once = AT_ONCE[generators[split].device.type]
            for first in range(0, len(rows), at_once):
                batch = rows[first : first + at_once]
                indices = [videos[row][1] for row in batch]
                features = _features(backbone, generators[split], indices)
                for row, pooled, fmap in zip(batch, *features, strict=True):
                    values = {"pooled": pooled, cut: fmap, "grid": np.array(grid, np.int16)}
                    writer.write(group, row, values)
        writer.finish({"failures": []})


@torch.inference_mode()
def _features(
    backbone: Backbone, videos: DigitVideos, indices: list[int]
) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled [B,T,C] and the last map [B,T,C,h,w] of some videos."""
    # [B,C,T,h,w] -> [B,T,C,h,w], as a cache stores maps
    fmap = backbone(backbone.prepare(videos[indices].rgb)).transpose(1, 2)
    # The mean is taken before float16 rounds the map.
    return fmap.mean((-1, -2)).half().cpu().numpy(), fmap.half().cpu().numpy()
