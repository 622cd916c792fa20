"""What many clips cost the client, and what a second worker brings.

dry run   `extract` as it is, with a manifest of a million rows, 100 clips to a shard and workers
          that claim a shard and return statistics without computing anything: memory of the client,
          which is also the scheduler; seconds from the start of its process until the first shard
          is back (and until Dask is started); and seconds per shard from then on, which is what
          claiming, sending, collecting and counting cost, and how much of that is the client's own
          time on a core. On Dask, and in one process without it.
workers   two Dask workers of one thread each beside one, in turn, on generated videos: clips/s, the
          median of the rounds' ratios, and the cores that the workers, the client and everybody
          else kept busy. A second worker can bring no more than the machine's cores divided by what
          the first one takes; a round in which others took more than a twentieth of a core measures
          them, and is repeated.
calls     real extractions of small videos in this process, one clip to a shard, in a folder that
          already holds many shards: calls per shard that reach the file system, by name. Shards are
          new, finished before the run, or finished by another run after this one has begun. Runs
          are one process; a task of a job array (`--stop-after`), which reports nothing about the
          shards of others; and a worker of `--gpus`, `--dask`, `--scheduler` or `--slurm`, with its
          client. `metadata` are the calls that ask a network file system's server for
          names and attributes.
"""

import json
import os
import pickle
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from _report import arguments, report

from pipeline.manifests.manifest import read_manifest, write_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import ExtractSummary, extract
from pipeline.stages.jobs import RunOptions, ShardJob
from pipeline.views.sampling import Sampling
from pipeline.workers.claims import take_claim
from pipeline.workers.engines import DaskEngine, LocalEngine

PER_SHARD = 100
QUIET = 0.05  # cores that others may keep busy while workers are measured
TRIES = 3  # per round, until it is quiet; the last ones count as they are
SMALL = ExtractConfig(
    backbone="digit_cnn",
    keep=("pooled",),
    sampling=Sampling(frames=16, size=96, train_views=4, train_crop="multiscale", test_clips=0),
)

TIMED = ExtractConfig(
    backbone="i3d_r50",
    weights="none",
    keep=("pooled",),
    sampling=Sampling(frames=16, size=112, train_views=0, test_clips=1, test_crops=1),
)


def simulate(job: ShardJob) -> dict:
    """Claims a shard and gives it back."""
    with take_claim(job.path):
        return {"clips": len(job.clips), "views": len(job.clips), "failures": []}


class Simulated:
    """An engine that runs `simulate` in place of what it is given, and notes when."""

    def __init__(self, engine: DaskEngine | LocalEngine):
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
    engine = Simulated(
        DaskEngine(workers=workers, dashboard="127.0.0.1:0") if workers else LocalEngine()
    )
    summary = extract(
        SMALL,
        read_manifest(manifest),
        cache,
        RunOptions(shard_size=PER_SHARD, workers=0),
        engine=engine,
    )
    return {
        "shards": summary.shards,
        "start": engine.first - begun,
        "start without DaskEngine": engine.opened - begun,
        "per shard": (engine.last - engine.first) / summary.shards,
        "of the client": engine.cpu / summary.shards,
        "memory": peak_memory(),
    }


class OneByOne:
    """An engine that does in this process what Dask has a worker do: one shard at a time."""

    @contextmanager
    def open(self) -> Iterator:
        def run(function, jobs):
            worker = pickle.loads(pickle.dumps(function))
            try:
                for job in jobs:
                    yield job, worker(pickle.loads(pickle.dumps(job)))
            finally:
                if hasattr(worker, "close"):
                    worker.close()

        yield run


class Meanwhile:
    """An engine that begins when another run has just finished every shard of a cache."""

    def __init__(self, engine: OneByOne | LocalEngine, finished: Path, cache: Path):
        self.engine, self.finished, self.cache = engine, finished, cache

    @contextmanager
    def open(self) -> Iterator:
        # By another process, whose calls are not counted.
        subprocess.run(["cp", "-a", f"{self.finished}/.", self.cache], check=True)
        with self.engine.open() as run:
            yield run


# Ways of running: the engine, and whether the time is limited.
WAYS = {
    "one process": (LocalEngine, None),
    "array task": (LocalEngine, 1e9),
    "worker": (OneByOne, None),
}
NEW, BEFORE, MEANWHILE = "new", "before", "meanwhile"
COUNTED_SHARDS = 20
SHOWN = ("stat", "open", "link", "unlink", "mkdir", "statvfs")  # by themselves


def measure_calls(complete: int) -> list[dict[str, object]]:
    """Calls per shard, by state and way, in a folder with `complete` further shards."""
    from _system_calls import METADATA
    from extract import make_videos

    with tempfile.TemporaryDirectory() as name:
        folder, count = Path(name), COUNTED_SHARDS
        manifest = read_manifest(make_videos(folder, count + 2))
        small = replace(TIMED, backbone="digit_cnn", backbone_options={"width": 8})
        # What is made once per cache is no shard's: the last shard pays for it.
        begun, finished = folder / "begun", folder / "finished"
        options = RunOptions(workers=0, shard_size=1)
        extract(small, manifest, begun, options, shards=[count + 1])
        for number in range(complete):
            (begun / "features" / f"{10**6 + number}.json").touch()
        subprocess.run(["cp", "-a", begun, finished], check=True)
        extract(small, manifest, finished, options)

        def calls_of(shards: int, state: str, way: str) -> Counter:
            cache = folder / "counted"
            subprocess.run(["cp", "-a", finished if state == BEFORE else begun, cache], check=True)
            engine_class, stop_after = WAYS[way]
            engine = None if engine_class is LocalEngine else engine_class()
            if state == MEANWHILE:
                engine = Meanwhile(engine_class(), finished, cache)
            calls = _counted_extract(
                small, manifest, cache, replace(options, stop_after=stop_after), shards, engine
            )
            shutil.rmtree(cache)
            return calls

        rows = []
        for state in (NEW, BEFORE, MEANWHILE):
            for way in WAYS:
                many, one = calls_of(count + 1, state, way), calls_of(1, state, way)
                per_shard = {name: (many[name] - one[name]) / count for name in many}
                metadata = {name: per_shard.pop(name, 0.0) for name in METADATA}
                row = {"shard": state, "run": way, "metadata": sum(metadata.values())}
                listings = metadata.pop("listdir") + metadata.pop("scandir")
                row |= {"listings": listings} | {name: metadata[name] for name in SHOWN}
                row["fsync"] = per_shard.pop("fsync", 0.0)
                rows.append(row | {"of open files": sum(per_shard.values())})
        return rows


def _counted_extract(small, manifest, cache: Path, options, shards: int, engine) -> Counter:
    """The calls of an extraction of the first shards of a cache."""
    from _system_calls import counted

    with counted(str(cache)) as calls:
        extract(small, manifest, cache, options, shards=range(shards), engine=engine)
    return calls


def peak_memory() -> int:
    """Bytes; getrusage would count what the parent had before this program replaced it."""
    line = next(
        line
        for line in Path("/proc/self/status").read_text().splitlines()
        if line.startswith("VmHWM")
    )
    return int(line.split()[1]) * 1024


def measure_dry_runs(rows: int, rounds: int) -> list[dict[str, object]]:
    table = []
    with tempfile.TemporaryDirectory() as folder:
        manifest = Path(folder) / "manifest.csv"
        paths = (f"{k % 1000:03d}/clip{k:07d}.mp4" for k in range(rows))
        many = (
            {"clip": path[4:-4], "path": path, "split": "train", "label": f"class {path[:2]}"}
            for path in paths
        )
        write_manifest(manifest, many)
        for workers in (0, 2):
            for number in range(rounds):
                cache = Path(folder) / f"cache-{workers}-{number}"
                asked = [
                    sys.executable,
                    __file__,
                    "--dry",
                    str(manifest),
                    str(cache),
                    str(workers),
                    str(time.time()),
                ]
                done = subprocess.run(asked, capture_output=True, text=True, check=True)
                found = json.loads(done.stdout.splitlines()[-1])
                table.append(
                    {
                        "engine": f"Dask, {workers}" if workers else "here",
                        "rows": rows,
                        "shards": found["shards"],
                        "start, s": found["start"],
                        "of it before DaskEngine, s": found["start without DaskEngine"],
                        "per shard, ms": found["per shard"] * 1e3,
                        "client's CPU, ms": found["of the client"] * 1e3,
                        "client, MB": found["memory"] / 1e6,
                    }
                )
    return table


class Warm:
    """Dask workers that stay for several extractions; `handed` are the clocks when the last one had
    its shards handed out.
    """

    def __init__(self, run):
        self.run, self.handed = run, (0.0, 0.0, 0.0, 0.0)

    @contextmanager
    def open(self) -> Iterator:
        self.handed = clocks()
        yield self.run


def timed_run(manifest: Path, cache: Path, workers: int, per_shard: int) -> dict[str, float]:
    """In a process of its own: the first shards start the workers, then all are extracted into
    another cache.
    """
    options = RunOptions(device="cpu", workers=0, shard_size=per_shard)
    begun, clips = time.perf_counter(), read_manifest(manifest)

    def run_all(engine: Warm, name: str, shards: range | None) -> ExtractSummary:
        return extract(TIMED, clips, cache / name, options, shards=shards, engine=engine)

    with DaskEngine(workers=workers, dashboard="127.0.0.1:0").open() as run:
        engine = Warm(run)
        run_all(engine, "warm", range(2 * workers))
        start = time.perf_counter() - begun
        summary = run_all(engine, "timed", None)
        seconds, client, theirs, all_of_it = (
            now - then for now, then in zip(clocks(), engine.handed, strict=True)
        )
    found = {"clips": summary.clips, "shards": summary.shards, "seconds": seconds, "start": start}
    cores = {
        "workers'": theirs,
        "client's": client,
        "others'": max(0.0, all_of_it - theirs - client),
    }
    return {**found, **{f"{who} cores": busy / seconds for who, busy in cores.items()}}


def clocks() -> tuple[float, float, float, float]:
    """Seconds that pass, and on a core: of this process, of those that it has started (and theirs),
    and of everybody.
    """
    import psutil  # comes with distributed

    theirs = sum(sum(child.cpu_times()[:2]) for child in psutil.Process().children(recursive=True))
    everybody = psutil.cpu_times()
    return (
        time.perf_counter(),
        time.process_time(),
        theirs,
        everybody.user + everybody.nice + everybody.system,
    )


def measure_workers(clips: int, per_shard: int, rounds: int) -> list[dict[str, object]]:
    from extract import make_videos  # loads torch, which the client of the dry run does without

    found: dict[int, list[dict[str, float]]] = {1: [], 2: []}
    with tempfile.TemporaryDirectory() as folder:
        manifest = make_videos(Path(folder), clips)
        for number in range(TRIES * rounds):
            pair = {}
            for workers in found:
                cache = Path(folder) / f"{workers} workers, {number}"
                asked = [
                    sys.executable,
                    __file__,
                    "--timed",
                    str(manifest),
                    str(cache),
                    str(workers),
                    str(per_shard),
                ]
                done = subprocess.run(
                    asked,
                    capture_output=True,
                    text=True,
                    check=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                pair[workers] = json.loads(done.stdout.splitlines()[-1])
                shutil.rmtree(cache)
            if (
                max(run["others' cores"] for run in pair.values()) < QUIET
                or number >= (TRIES - 1) * rounds
            ):
                for workers, run in pair.items():
                    found[workers].append(run)
            if len(found[1]) == rounds:
                break
    rates = {
        workers: [run["clips"] / run["seconds"] for run in runs] for workers, runs in found.items()
    }
    ratios = {
        workers: [rate / one for rate, one in zip(those, rates[1], strict=True)]
        for workers, those in rates.items()
    }
    return [
        {
            "workers": workers,
            "clips": runs[0]["clips"],
            "shards": runs[0]["shards"],
            "start, s": statistics.median(run["start"] for run in runs),
            "s": statistics.median(run["seconds"] for run in runs),
            "clips/s": statistics.median(rates[workers]),
            "slowest and fastest": f"{min(rates[workers]):.2f}, {max(rates[workers]):.2f}",
            "times one worker": statistics.median(ratios[workers]),
            "of the rounds": ", ".join(f"{ratio:.2f}" for ratio in sorted(ratios[workers])),
            **{
                name: statistics.median(run[name] for run in runs)
                for name in runs[0]
                if name.endswith(" cores")
            },
        }
        for workers, runs in found.items()
    ]


def main() -> None:
    if sys.argv[1:2] == ["--timed"]:
        manifest, cache, *numbers = sys.argv[2:]
        print(json.dumps(timed_run(Path(manifest), Path(cache), *map(int, numbers))))
        return
    if sys.argv[1:2] == ["--dry"]:
        manifest, cache, workers, begun = sys.argv[2:]
        print(json.dumps(dry_run(Path(manifest), Path(cache), int(workers), float(begun))))
        return
    parser = arguments(__doc__)
    parser.add_argument(
        "--rows",
        type=int,
        default=1_000_000,
        help="of the manifest of the dry run (default 1,000,000)",
    )
    parser.add_argument("--rounds", type=int, default=3, help="of each measurement (default 3)")
    parser.add_argument(
        "--clips", type=int, default=96, help="generated videos for the workers (default 96)"
    )
    parser.add_argument(
        "--per-shard", type=int, default=4, help="clips of their shards (default 4)"
    )
    parser.add_argument("--only", choices=("dry", "workers", "calls"), help="one of the parts")
    parser.add_argument(
        "--files", type=int, default=20_000, help="files beside those of the calls (default 20,000)"
    )
    given = parser.parse_args()
    if given.only in (None, "calls"):
        beside = given.json and given.json.with_name(f"{given.json.stem}-calls.json")
        report("calls per shard", measure_calls(given.files), beside)
    if given.only in (None, "dry"):
        report("dry run", measure_dry_runs(given.rows, given.rounds), given.json)
    if given.only in (None, "workers"):
        beside = given.json and given.json.with_name(f"{given.json.stem}-workers.json")
        report(
            "workers of one thread each",
            measure_workers(given.clips, given.per_shard, given.rounds),
            beside,
        )


if __name__ == "__main__":
    main()
