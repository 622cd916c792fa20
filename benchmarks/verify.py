"""`verify` against plain reading of the same files, one after the other, in large pieces.

read     every file of the cache from its start to its end, 4 MiB at a time, into the same memory:
         what the disk gives.
sha256   the same, with the hash of each file.
verify   everything: hash, checksums, shapes, values. `N workers` processes, each of which hashes in
         one thread and looks at what is in the file in another, behind it; 0: in this process. The
         start of the processes is counted: some tenths of a second, which is why the cache should
         not be small.

Before every turn the files' pages are dropped from memory (`cold`). All ways take turns; figures
are medians over the rounds, `ratio` is to plain reading.
"""

import os
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
from _report import arguments, report

from pipeline.cache.reader import create_cache
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.files.atomic_files import sha256_of
from pipeline.manifests.manifest import write_manifest
from pipeline.stages.verify import inspect

PIECE = 4 << 20  # bytes


def make_cache(folder: Path, shape: tuple[int, ...], views: int, shards: int) -> Path:
    """A cache of float16 maps [T,C,h,w], with the small tensors that stand beside them."""
    T, C = shape[:2]
    rows = (
        {"clip": f"{k}", "path": f"{k}.mp4", "split": "train", "label": "a"}
        for k in range(views * shards)
    )
    plan = create_cache(folder / "cache", {}, write_manifest(folder / "clips.csv", rows), views)
    values = np.random.default_rng(0).standard_normal(shape).astype(np.float16)
    boxes = np.broadcast_to(np.array([0.1, 0.2, 0.5, 0.9], np.float32), (T, 10, 4))
    rest = {
        "pooled": values.reshape(T, C, -1)[..., 0],
        "boxes": boxes,
        "valid": np.ones((T, 10), bool),
    }
    for shard in range(shards):
        clips = [clip.clip for clip in plan.clips(shard)]
        tensors = {"res5": values, **rest}
        fields = {name: (value.shape, value.dtype.name) for name, value in tensors.items()}
        plans = {"train": GroupPlan(clips, [0] * views, fields)}
        with ShardWriter(plan.path(shard), plans, attrs=plan.attrs(shard)) as writer:
            for row in range(views):
                # No two views have the same bytes, in case a disk stores duplicates once.
                values.reshape(-1)[row] = shard
                writer.write("train", row, tensors)
            writer.finish({"failures": []})
    return folder / "cache"


def drop_from_memory(files: list[Path]) -> None:
    """Only clean pages can be dropped: everything was synced when written."""
    for path in files:
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def read(files: list[Path]) -> None:
    memory = memoryview(bytearray(PIECE))
    for path in files:
        with open(path, "rb", buffering=0) as file:
            while file.readinto(memory):
                pass


def ways(cache: Path, files: list[Path], workers: list[int]) -> dict[str, Callable[[], float]]:
    """name -> a function that reads everything and returns the seconds it took."""

    def timed(work: Callable[[], object]) -> Callable[[], float]:
        def run() -> float:
            begun = time.perf_counter()
            work()
            return time.perf_counter() - begun

        return run

    def verify(count: int) -> None:
        if findings := inspect(cache, count).findings:
            raise RuntimeError(f"{findings[0].where}: {findings[0].what}")

    found = {
        "read": timed(lambda: read(files)),
        "sha256": timed(lambda: [sha256_of(path) for path in files]),
    }
    return found | {
        f"verify, {count} workers": timed(lambda count=count: verify(count)) for count in workers
    }


def main() -> None:
    parser = arguments(__doc__)
    parser.add_argument("--shape", default="16,2048,7,7", help="of a view's map, float16")
    parser.add_argument("--views", type=int, default=128, help="per shard")
    parser.add_argument("--shards", type=int, default=16)
    parser.add_argument("--workers", default="0,2,4", help="numbers of processes")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--folder",
        type=Path,
        help="on the disk to be measured (default: the system's temporary folder)",
    )
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as name:
        cache = make_cache(
            Path(name), tuple(map(int, given.shape.split(","))), given.views, given.shards
        )
        files = sorted(cache.rglob("*.h5"))
        size = sum(path.stat().st_size for path in files)
        found = ways(cache, files, list(map(int, given.workers.split(","))))
        rates: dict[str, list[float]] = {way: [] for way in found}
        for _ in range(given.rounds):
            for way, run in found.items():
                drop_from_memory(files)
                rates[way].append(size / 1e6 / run())
    plain = statistics.median(rates["read"])
    rows = [
        {
            "way": way,
            "MB/s": statistics.median(rate),
            "lowest": min(rate),
            "highest": max(rate),
            "ratio": statistics.median(rate) / plain,
        }
        for way, rate in rates.items()
    ]
    report(f"verify, {len(files)} shards, {size / 1e9:,.2f} GB, cold", rows, given.json)


if __name__ == "__main__":
    main()
