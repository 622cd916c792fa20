"""What many clips and many workers cost.

dry run   `extract` as it is, with a manifest of a million rows, 100 clips to a shard and workers that claim a shard and return
          statistics without computing anything: memory of the client (all of it, torch too), seconds from the start of its
          process until the first shard is handed out (with and without Dask's own start), and seconds per shard from then on,
          which is what reading, claiming, sending, collecting and counting cost. On Dask, and in this process.
workers   generated clips through a small backbone on Dask, by one worker that uses one core, and by two: shards per second
          while all workers are at work.
"""

import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from _report import arguments, report

from pipeline.claims import take
from pipeline.cluster import Dask, Here
from pipeline.config import ExtractConfig
from pipeline.decode import write_video
from pipeline.extract import RunOptions, ShardJob, extract
from pipeline.manifest import read_manifest, write_manifest
from pipeline.sample import Sampling

PER_SHARD = 100
SMALL = ExtractConfig(
    backbone="digit_cnn",
    keep=("pooled",),
    sampling=Sampling(frames=16, size=96, train_views=4, train_crop="multiscale", test_clips=0),
)


def simulate(job: ShardJob) -> dict:
    """Claims a shard and gives it back."""
    with take(job.path):
        return {"clips": len(job.clips), "views": len(job.clips), "failures": []}


class Simulated:
    """An engine that runs `simulate` in place of what it is given, and notes when."""

    def __init__(self, engine: Dask | Here):
        self.engine = engine
        self.opened = self.first = 0.0

    @contextmanager
    def open(self) -> Iterator:
        self.opened = time.time()
        with self.engine.open() as run:

            def run_simulated(_function, jobs):
                self.first = time.time()
                yield from run(simulate, jobs)
                self.last = time.time()

            yield run_simulated


def dry_run(manifest: Path, cache: Path, workers: int, begun: float) -> dict[str, float]:
    """In a process of its own, which began at `begun`."""
    engine = Simulated(Dask(workers=workers, dashboard="127.0.0.1:0") if workers else Here())
    summary = extract(SMALL, read_manifest(manifest), cache, RunOptions(shard_size=PER_SHARD, workers=0), engine=engine)
    return {
        "shards": summary.shards,
        "start": engine.first - begun,
        "start without Dask": engine.opened - begun,
        "per shard": (engine.last - engine.first) / summary.shards,
        "memory": peak_memory(),
    }


def peak_memory() -> int:
    """Bytes; getrusage would count what the parent had before this program replaced it."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measure_dry_runs(rows: int, rounds: int) -> list[dict[str, object]]:
    table = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        paths = (f"{k % 1000:03d}/clip{k:07d}.mp4" for k in range(rows))
        many = ({"clip": path[4:-4], "path": path, "split": "train", "label": f"class {path[:2]}"} for path in paths)
        write_manifest(manifest, many)
        for workers in (0, 1, 2):
            for number in range(rounds):
                cache = Path(folder) / f"cache-{workers}-{number}"
                asked = [sys.executable, __file__, "--dry", str(manifest), str(cache), str(workers), str(time.time())]
                done = subprocess.run(asked, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                table.append(
                    {
                        "engine": f"Dask, {workers}" if workers else "here",
                        "rows": rows,
                        "shards": found["shards"],
                        "start, s": found["start"],
                        "of it before Dask, s": found["start without Dask"],
                        "per shard, ms": found["per shard"] * 1e3,
                        "client, MB": found["memory"] / 1e6,
                    }
                )
    return table


def make_videos(folder: Path, count: int) -> Path:
    """Videos of 32 noisy frames, 120×160."""
    rng = np.random.default_rng(0)
    for k in range(count):
        blocks = rng.integers(0, 255, (32, 15, 20, 3), np.uint8)
        write_video(folder / f"{k}.mp4", blocks.repeat(8, 1).repeat(8, 2), fps=12)
    rows = [{"clip": str(k), "path": f"{k}.mp4", "split": "train", "label": "0"} for k in range(count)]
    write_manifest(folder / "manifest.csv", rows)
    return folder / "manifest.csv"


def rate(manifest: Path, cache: Path, workers: int) -> float:
    """Clips per second between the first and the last shard, of which each worker has had two before: they are warm then."""
    stamps: list[tuple[float, int]] = []

    def announce(_todo: int, _total: int):
        return lambda done, failed: stamps.append((time.perf_counter(), done))

    options = RunOptions(device="cpu", workers=0, batch=4, shard_size=4)
    extract(SMALL, read_manifest(manifest), cache, options, announce=announce, engine=Pinned(workers))
    begin, end = 2 * workers, len(stamps) - workers  # the last ones may leave a worker without work
    return sum(done for _, done in stamps[begin + 1 : end]) / (stamps[end - 1][0] - stamps[begin][0])


class Pinned:
    """Dask processes that use one core each, however many the machine has."""

    def __init__(self, workers: int):
        self.workers = workers

    @contextmanager
    def open(self) -> Iterator:
        import torch

        with Dask(workers=self.workers, dashboard="127.0.0.1:0").open() as run:
            list(run(torch.set_num_threads, [1] * 8 * self.workers))
            yield run


def measure_workers(clips: int, rounds: int) -> list[dict[str, object]]:
    found: dict[int, list[float]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_videos(Path(folder), clips)
        for number in range(rounds):
            for workers, rates in found.items():
                rates.append(rate(manifest, Path(folder) / f"cache-{workers}-{number}", workers))
    one, two = (statistics.median(rates) for rates in found.values())
    rows = [
        {"workers": k, "clips/s": statistics.median(rates), "times": statistics.median(rates) / one}
        for k, rates in found.items()
    ]
    return rows if two else []


def main() -> None:
    if sys.argv[1:2] == ["--dry"]:
        manifest, cache, workers, begun = sys.argv[2:]
        print(json.dumps(dry_run(Path(manifest), Path(cache), int(workers), float(begun))))
        return
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the manifest of the dry run (default 1,000,000)")
    parser.add_argument("--clips", type=int, default=160, help="generated videos for the two rates (default 160)")
    parser.add_argument("--rounds", type=int, default=2, help="of each measurement (default 2)")
    parser.add_argument("--only", choices=("dry", "workers"), help="one of the two parts")
    given = parser.parse_args()
    beside = given.json and given.json.with_name(f"{given.json.stem}-workers.json")
    if given.only != "workers":
        report("dry run", measure_dry_runs(given.rows, given.rounds), given.json)
    if given.only != "dry":
        report("workers of one core each", measure_workers(given.clips, given.rounds), beside)


if __name__ == "__main__":
    main()
