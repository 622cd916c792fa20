"""A cache of a few tiny views, written through the real writer; every value follows from (group,
clip, view).
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
VIEWS = {"train": 2, "test": 1}


def tensors_of(group: str, clip: str, view: int, width: int = 3) -> dict[str, np.ndarray]:
    """What a view holds; `width` of its map."""
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
    rows = (
        {"clip": f"clip{k}", "path": f"{k}.mp4", "split": "train", "label": "a", **columns}
        for k in range(clips)
    )
    return write_manifest(folder / "clips.csv", rows)


def make_cache(
    folder: Path,
    clips: int = 7,
    failed: tuple[str, ...] = (),
    compression: str = "none",
    widths=(3, 3, 3),
) -> Path:
    """A cache at folder/cache with 3 clips per shard; shard s has maps of widths[s]. Clips in
    `failed` have no rows.
    """
    plan = create_cache(
        folder / "cache", {"backbone": {"name": "tiny", "depth": 3}}, manifest_of(folder, clips), 3
    )
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
    """Writes one shard of the plan; another `salt`, other values."""
    clips = [clip.clip for clip in plan.clips(shard)]
    fields = {**FIELDS, "res5": ((T, C, 3, width), "float16")}
    plans = {
        group: GroupPlan(
            [clip for clip in clips for _ in range(count)], list(range(count)) * len(clips), fields
        )
        for group, count in VIEWS.items()
    }
    failures = [
        {"clip": c, "error": "DecodeError", "message": "no video stream", "seconds": 0.1}
        for c in clips
        if c in failed
    ]
    with ShardWriter(
        plan.path(shard), plans, attrs=plan.attrs(shard), compression=compression
    ) as writer:
        for group, table in plans.items():
            for row, (clip, view) in enumerate(zip(table.clips, table.views, strict=True)):
                if clip not in failed:
                    writer.write(group, row, tensors_of(group + salt, clip, view, width))
        return writer.finish({"failures": failures})
