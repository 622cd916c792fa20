"""What many clips cost the client.

dry run   `extract` as it is, with a manifest of a million rows, 100 clips to a shard and workers that claim a shard and return
          statistics without computing anything: memory of the client, which is also the scheduler; seconds from the start of
          its process until the first shard is back (and until Dask is started); and seconds per shard from then on, which is
          what claiming, sending, collecting and counting cost, and how much of that is the client's own time on a core. On
          Dask, and in one process without it.
"""

import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from _report import arguments, report

from pipeline.claims import take
from pipeline.cluster import Dask, Here
from pipeline.config import ExtractConfig
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
        self.opened = self.first = self.last = self.cpu = 0.0

    @contextmanager
    def open(self) -> Iterator:
        self.opened = time.time()
        with self.engine.open() as run:

            def run_simulated(_function, jobs):
                for result in run(simulate, jobs):
                    if not self.first:
                        self.first, self.cpu = time.time(), -time.process_time()
                    yield result
                self.last, self.cpu = time.time(), self.cpu + time.process_time()

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
        "of the client": engine.cpu / summary.shards,
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
        for workers in (0, 2):
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
                        "client's CPU, ms": found["of the client"] * 1e3,
                        "client, MB": found["memory"] / 1e6,
                    }
                )
    return table


def main() -> None:
    if sys.argv[1:2] == ["--dry"]:
        manifest, cache, workers, begun = sys.argv[2:]
        print(json.dumps(dry_run(Path(manifest), Path(cache), int(workers), float(begun))))
        return
    parser = arguments(__doc__)
    parser.add_argument("--rows", type=int, default=1_000_000, help="of the manifest of the dry run (default 1,000,000)")
    parser.add_argument("--rounds", type=int, default=2, help="of each measurement (default 2)")
    given = parser.parse_args()
    report("dry run", measure_dry_runs(given.rows, given.rounds), given.json)


if __name__ == "__main__":
    main()
