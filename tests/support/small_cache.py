"""A cache of a few small views, written with the real writer.

Every value follows from (group, clip, view), so that a test can tell which view it got.
"""

import zlib
from pathlib import Path

import numpy as np

from pipeline.cache.reader import create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.manifests.manifest import write_manifest

T, N, C, F = 4, 5, 6, 8
FIELDS = {
    "frames": ((F,), "int32"),
    "crop": ((6,), "float32"),
    "flip": ((), "bool"),
    "grid": ((2,), "int16"),
    "pooled": ((T, C), "float16"),
    "boxes": ((T, N, 4), "float32"),
    "scores": ((T, N), "float32"),
    "valid": ((T, N), "bool"),
    "nodes": ((T, N, C), "float16"),
    "res5": ((T, C, 3, 3), "float16"),
}

# Views per clip.
VIEWS = {"train": 2, "test": 1}


def tensors_of(group: str, clip: str, view: int, width: int = 3) -> dict[str, np.ndarray]:
    """Return what a view holds. `width` is that of its map."""
    rng = np.random.default_rng(zlib.crc32(f"{group} {clip} {view}".encode()))
    valid = np.sort(rng.random((T, N)) < 0.7, axis=-1)[..., ::-1].copy()
    corners = np.sort(rng.random((T, N, 2, 2)), axis=-2).reshape(T, N, 4)
    return {
        "frames": np.sort(rng.integers(0, 90, F)).astype(np.int32),
        "crop": np.array([0, 0, 64, 64, 96, 64], np.float32),
        "flip": np.bool_(view % 2),
        "grid": np.array([3, width], np.int16),
        "pooled": rng.standard_normal((T, C)).astype(np.float16),
        "boxes": (corners * valid[..., None]).astype(np.float32),
        "scores": (rng.random((T, N)) * valid).astype(np.float32),
        "valid": valid,
        "nodes": (rng.standard_normal((T, N, C)) * valid[..., None]).astype(np.float16),
        "res5": rng.standard_normal((T, C, 3, width)).astype(np.float16),
    }


def manifest_of(folder: Path, clips: int = 7, **columns: str):
    """Write a manifest of clips "clip0", "clip1", … to folder/clips.csv."""
    rows = []
    for k in range(clips):
        row = {"clip": f"clip{k}", "path": f"{k}.mp4", "split": "train", "label": "a"}
        rows.append(row | columns)
    return write_manifest(folder / "clips.csv", rows)


def make_cache(
    folder: Path,
    clips: int = 7,
    failed: tuple[str, ...] = (),
    compression: str = "none",
    widths=(3, 3, 3),
) -> Path:
    """Make a cache at folder/cache, with 3 clips per shard.

    Args:
        folder: gets the cache and the manifest.
        clips: how many clips.
        failed: ids of clips that are never written.
        compression: of all shards.
        widths: of the maps of each shard.

    Returns:
        The cache's folder.
    """
    config = {"backbone": {"name": "tiny", "depth": 3}}
    plan = create_cache(folder / "cache", config, manifest_of(folder, clips), 3)
    for shard in range(len(plan)):
        write_shard(plan, shard, failed, compression, widths[shard])
    return folder / "cache"


def write_shard(
    plan,
    shard: int,
    failed: tuple[str, ...] = (),
    compression: str = "none",
    width: int = 3,
    salt: str = "",
) -> dict:
    """Write one shard and return its statistics. Another `salt` gives other values."""
    clips = [clip.clip for clip in plan.clips(shard)]
    fields = {**FIELDS, "res5": ((T, C, 3, width), "float16")}
    plans = {}
    for group, count in VIEWS.items():
        names = np.repeat(clips, count).tolist()
        plans[group] = GroupPlan(names, list(range(count)) * len(clips), fields)

    failures = []
    for clip in clips:
        if clip in failed:
            error = {"error": "DecodeError", "message": "no video stream", "seconds": 0.1}
            failures.append({"clip": clip, **error})

    with ShardWriter(
        plan.path(shard), plans, attrs=plan.attrs(shard), compression=compression
    ) as writer:
        for group, table in plans.items():
            for row, (clip, view) in enumerate(zip(table.clips, table.views, strict=True)):
                if clip not in failed:
                    writer.write(group, row, tensors_of(group + salt, clip, view, width))
        return writer.finish({"failures": failures})
