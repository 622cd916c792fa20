"""Caches of random features for benchmarks of training: the sizes are real, the values mean
nothing.
"""

import os
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from pipeline.cache.reader import Cache, create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.manifests.manifest import write_manifest

VALIDATION = 8  # clips of split val: enough for a run, too few to take time
SHARD = 256  # clips


def node_fields(steps: int, boxes: int, channels: int) -> dict[str, tuple[tuple[int, ...], str]]:
    """What heads on regions read: pooled and node features in float16, boxes in float32."""
    return {
        "pooled": ((steps, channels), "float16"),
        "nodes": ((steps, boxes, channels), "float16"),
        "boxes": ((steps, boxes, 4), "float32"),
        "scores": ((steps, boxes), "float32"),
        "valid": ((steps, boxes), "bool"),
        "flip": ((), "bool"),
        "grid": ((2,), "int16"),
    }


def random_cache(
    folder: Path, fields: Mapping[str, tuple[tuple[int, ...], str]], clips: int
) -> Cache:
    """`clips` training clips with one view each, and a few of validation; two classes; every box
    valid.
    """
    rng = np.random.default_rng(0)
    rows = [
        {
            "clip": str(k),
            "path": f"{k}.mp4",
            "split": "train" if k < clips else "val",
            "label": str(k % 2),
        }
        for k in range(clips + VALIDATION)
    ]
    plan = create_cache(
        folder / "cache", {"backbone": "i3d_r50"}, write_manifest(folder / "clips.csv", rows), SHARD
    )
    for shard in range(len(plan)):
        names = [clip.clip for clip in plan.clips(shard)]
        table = GroupPlan(names, [0] * len(names), dict(fields))
        with ShardWriter(
            plan.path(shard), {"train": table, "test": table}, attrs=plan.attrs(shard)
        ) as writer:
            for row, name in enumerate(names):
                writer.write("train" if int(name) < clips else "test", row, _view(fields, rng))
            writer.finish({"failures": [], "clips": len(names)})
    return Cache(folder / "cache")


def _view(
    fields: Mapping[str, tuple[tuple[int, ...], str]], rng: np.random.Generator
) -> dict[str, np.ndarray]:
    view = {
        name: rng.standard_normal(shape, np.float32).astype(dtype)
        for name, (shape, dtype) in fields.items()
    }
    corner = rng.random((*view["boxes"].shape[:-1], 2), np.float32) * 0.5
    return view | {
        "boxes": np.concatenate([corner, corner + 0.5], -1),
        "scores": np.ones(fields["scores"][0], np.float32),
        "valid": np.ones(fields["valid"][0], bool),
        "flip": np.array(False),
        "grid": np.array([7, 7], np.int16),
    }


def drop_pages(cache: Path) -> None:
    """Lets the system forget what it has read of a cache: the next pass reads the disk."""
    for path in cache.rglob("*.h5"):
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)  # pages that are not on the disk yet cannot be dropped
            os.posix_fadvise(handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(handle)
