"""Digit videos from the generator through a frozen network into a cache, without a video file, a
decoder or boxes.

What `vidgraph extract` would store of the written videos, but for the losses of their encoding: one
view of every video, in the group `train` for the split train, in `test` for the others.
"""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from pipeline.backbones import Backbone
from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.digits import DigitVideos, Images, Task
from pipeline.files.atomic_files import sha256_of
from pipeline.manifests.manifest import SPLITS, write_manifest

PER_SHARD = 500  # videos; what a run that is killed loses at most
AT_ONCE = {"cpu": 25, "cuda": 500}  # videos in a forward pass


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
    """The cache at `path` of so many `videos` of each split: the map of the last stage of
    `backbone` and its mean, `pooled`, both in float16. `weights`: the checkpoint that the frozen
    `backbone` has, which tells caches apart.

    Shards that are there are kept. CacheError if `path` holds another cache; ValueError for a split
    that is none.
    """
    if unknown := [split for split in videos if split not in SPLITS]:
        raise ValueError(f"split {unknown[0]!r}: expected {', '.join(SPLITS)}")
    generators = {split: DigitVideos(task, images[split], seed, split, device) for split in videos}
    path.parent.mkdir(parents=True, exist_ok=True)
    rows, places = [], []
    for split, count in videos.items():
        labels = task.scenes(generators[split].images, seed, split, np.arange(count)).labels
        for k, label in enumerate(labels):
            clip = f"{split}-{k:06d}"
            rows.append(
                {"clip": clip, "path": f"{clip}.mp4", "split": split, "label": task.labels[label]}
            )
            places.append((split, k))
    config = {
        "backbone": {"name": backbone.name, **backbone.options},
        "weights": sha256_of(weights),
        "seed": seed,
    }
    config |= {"task": {"name": task.name, **asdict(task)}, "images": images["train"].name}
    plan = create_cache(path, config, write_manifest(path.with_suffix(".csv"), rows), PER_SHARD)
    for shard, some in enumerate(plan.ranges):
        if not plan.done(shard):
            _write(plan, shard, [places[k] for k in some], generators, backbone)
    return Cache(path)


def _write(
    plan,
    shard: int,
    places: list[tuple[str, int]],
    generators: Mapping[str, DigitVideos],
    backbone: Backbone,
) -> None:
    """One shard: of each group the rows of its splits, the others stay empty."""
    frames, size = generators[places[0][0]].task.frames, generators[places[0][0]].task.size
    channels, cut = backbone.channels(), backbone.last
    grid = backbone.grid(cut, (size, size))
    fields = {
        "pooled": ((backbone.steps(frames, cut), channels), "float16"),
        cut: ((backbone.steps(frames, cut), channels, *grid), "float16"),
        "grid": ((2,), "int16"),
    }
    table = GroupPlan([clip.clip for clip in plan.clips(shard)], [0] * len(places), fields)
    with ShardWriter(
        plan.path(shard), {"train": table, "test": table}, attrs=plan.attrs(shard)
    ) as writer:
        for split in dict.fromkeys(split for split, _ in places):
            mine = [(row, k) for row, (other, k) in enumerate(places) if other == split]
            at_once = AT_ONCE[generators[split].device.type]
            for first in range(0, len(mine), at_once):
                rows, numbers = zip(*mine[first : first + at_once], strict=True)
                for row, pooled, fmap in zip(
                    rows, *_maps(backbone, generators[split], numbers), strict=True
                ):
                    values = {"pooled": pooled, cut: fmap, "grid": np.array(grid, np.int16)}
                    writer.write("train" if split == "train" else "test", row, values)
        writer.finish({"failures": []})


@torch.inference_mode()
def _maps(
    backbone: Backbone, videos: DigitVideos, numbers: tuple[int, ...]
) -> tuple[np.ndarray, np.ndarray]:
    """pooled [B,T,C] and the last map [B,T,C,h,w] of the videos of these numbers."""
    fmap = backbone(backbone.prepare(videos[numbers].rgb)).transpose(1, 2)
    return fmap.mean((-1, -2)).half().cpu().numpy(), fmap.half().cpu().numpy()
