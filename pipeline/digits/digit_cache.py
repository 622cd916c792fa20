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
from pipeline.cache.fields import FIELDS
from pipeline.cache.folder import read_cache_json
from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.digits.batches import Batch, DigitVideos
from pipeline.digits.images import Images
from pipeline.digits.scenes import Task
from pipeline.files.atomic_files import sha256_of
from pipeline.manifests.manifest import SPLITS, write_manifest

# The names of the digits' classes.
DIGITS = tuple(map(str, range(10)))
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
    both in float16, and the digits' boxes with their classes: row i is digit i throughout, which is
    its track. Shards that exist are kept, and a cache that was begun without boxes goes on so.

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
    with_boxes = _has_boxes(path)
    if with_boxes:
        config |= {"box_classes": list(DIGITS), "box_tracks": True}
    plan = create_cache(path, config, write_manifest(path.with_suffix(".csv"), rows), PER_SHARD)
    for shard, clips in enumerate(plan.ranges):
        if not plan.done(shard):
            videos_here = [numbers[k] for k in clips]
            _write_shard(plan, shard, videos_here, generators, backbone, with_boxes)
    return Cache(path)


def _has_boxes(path: Path) -> bool:
    """Whether a cache gets boxes: a new one does, one that was begun goes on as it began."""
    if not (path / "cache.json").is_file():
        return True
    return "box_classes" in read_cache_json(path)["config"]


def _write_shard(
    plan,
    shard: int,
    videos: list[tuple[str, int]],
    generators: Mapping[str, DigitVideos],
    backbone: Backbone,
    with_boxes: bool,
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
    if with_boxes:
        for name, shape in _box_shapes(steps, task.digits).items():
            fields[name] = (shape, FIELDS[name].dtype)
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
                made = generators[split][indices]
                features = _features(backbone, made.rgb)
                boxes = _box_fields(made, task, steps) if with_boxes else {}
                for k, (row, pooled, fmap) in enumerate(zip(batch, *features, strict=True)):
                    values = {"pooled": pooled, cut: fmap, "grid": np.array(grid, np.int16)}
                    values |= {name: array[k] for name, array in boxes.items()}
                    writer.write(group, row, values)
        writer.finish({"failures": []})


def _box_shapes(steps: int, digits: int) -> dict[str, tuple[int, ...]]:
    """The shapes of a view's boxes and of what is said of them."""
    rows = (steps, digits)
    return {
        "boxes": (*rows, 4),
        "scores": rows,
        "valid": rows,
        "box_class": rows,
        "track": rows,
    }


def _box_fields(made: Batch, task: Task, steps: int) -> dict[str, np.ndarray]:
    """The boxes of B videos at every step, by field: [B,T,n,4] and [B,T,n]."""
    frames = made.boxes.shape[1]
    chosen = [t * frames // steps for t in range(steps)]
    boxes = made.boxes[:, chosen].cpu().numpy() / np.float32(task.size)
    shape = boxes.shape[:-1]
    classes = made.classes.cpu().numpy()[:, None]
    return {
        "boxes": boxes,
        "scores": np.ones(shape, np.float32),
        "valid": np.ones(shape, bool),
        "box_class": np.broadcast_to(classes, shape).astype(np.int16),
        "track": np.broadcast_to(np.arange(shape[-1], dtype=np.int32), shape),
    }


@torch.inference_mode()
def _features(backbone: Backbone, frames: torch.Tensor) -> tuple[np.ndarray, np.ndarray]:
    """Return pooled [B,T,C] and the last map [B,T,C,h,w] of frames [B,F,S,S,3]."""
    # [B,C,T,h,w] -> [B,T,C,h,w], as a cache stores maps
    fmap = backbone(backbone.prepare(frames)).transpose(1, 2)
    # The mean is taken before float16 rounds the map.
    return fmap.mean((-1, -2)).half().cpu().numpy(), fmap.half().cpu().numpy()
