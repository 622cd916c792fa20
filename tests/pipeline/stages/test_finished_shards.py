"""What a shard that another run has finished costs: a look at its done marker, and no claim."""

import os
import pickle
import shutil
import sys
from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.manifests.manifest import read_manifest
from pipeline.stages import graphs
from pipeline.stages.extract import extract
from pipeline.workers.claims import take_claim
from pipeline.workers.completion import OtherRun
from pipeline.workers.engines import LocalEngine, share_jobs
from tests.support.small_cache import make_cache
from tests.support.tiny_videos import INLINE, config_of, make_videos, run

CLIPS = 5
ONE_EACH = replace(INLINE, shard_size=1)
# A task of a job array: its time never runs out here.
ARRAY_TASK = replace(ONE_EACH, stop_after=float("inf"))
# What Python itself tells about calls to the file system; it does not tell about stat.
TOLD = {"open", "os.listdir", "os.scandir", "os.link", "os.remove", "os.rename", "os.mkdir"}
_watching: list["Calls"] = []


def _note(event: str, arguments: tuple) -> None:
    if _watching and event in TOLD:
        _watching[-1].note(event.removeprefix("os."), arguments[0])


sys.addaudithook(_note)


class Calls:
    """The calls about files of one folder that name a path: (name, file) -> how many."""

    def __init__(self, folder: Path):
        self.folder, self.found = folder, Counter()

    def note(self, name: str, path: object) -> None:
        if isinstance(path, (str, os.PathLike)) and Path(path).is_relative_to(self.folder):
            self.found[name, Path(path).name] += 1

    def about(self, shard: int) -> Counter:
        """Calls about the files of a shard: name -> how many."""
        found = Counter()
        for (name, file), count in self.found.items():
            if file.startswith(f"{shard:05d}"):
                found[name] += count
        return found


@contextmanager
def counted(folder: Path):
    """Count calls within the context."""
    calls, plain = Calls(folder), os.stat

    def stat(path, **options):
        calls.note("stat", path)
        return plain(path, **options)

    os.stat = stat
    _watching.append(calls)
    try:
        yield calls
    finally:
        _watching.pop()
        os.stat = plain


class AsOnWorkers:
    """An engine that gives a copy of the function one job at a time, as a Dask worker does."""

    @contextmanager
    def open(self):
        def run_jobs(function, jobs):
            worker = pickle.loads(pickle.dumps(function))
            for job in jobs:
                yield job, worker(pickle.loads(pickle.dumps(job)))

        yield run_jobs


class Overtaken:
    """An engine whose run another one overtakes: all shards are finished before it begins."""

    def __init__(self, engine, finished: Path, cache: Path):
        self.engine, self.finished, self.cache = engine, finished, cache
        self.calls = Calls(cache / "features")

    @contextmanager
    def open(self):
        for path in (self.finished / "features").iterdir():
            shutil.copy2(path, self.cache / "features" / path.name)
        with self.engine.open() as run_jobs, counted(self.cache / "features") as self.calls:
            yield run_jobs


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), CLIPS)


@pytest.fixture(scope="module")
def finished(world, tmp_path_factory):
    """A cache with every shard."""
    cache = tmp_path_factory.mktemp("finished") / "cache"
    run(world, cache, options=ONE_EACH)
    return cache


@pytest.mark.parametrize("engine", [LocalEngine, AsOnWorkers])
def test_a_shard_that_another_run_has_finished_costs_one_stat(world, finished, tmp_path, engine):
    config, manifest = config_of(world), read_manifest(world / "manifest.csv")
    cache = tmp_path / "cache"
    run(world, cache, options=ONE_EACH, shards=[0])
    overtaken = Overtaken(engine(), finished, cache)
    summary = extract(config, manifest, cache, ARRAY_TASK, engine=overtaken)
    assert (summary.shards, summary.already, summary.left) == (0, CLIPS, 0)
    for shard in range(1, CLIPS):
        assert overtaken.calls.about(shard) == {"stat": 1}
    assert not overtaken.calls.about(0)


@pytest.mark.parametrize("engine", [LocalEngine, AsOnWorkers])
def test_a_run_that_reports_it_reads_its_statistics_and_claims_nothing(
    world, finished, tmp_path, engine
):
    config, manifest = config_of(world), read_manifest(world / "manifest.csv")
    cache = tmp_path / "cache"
    run(world, cache, options=ONE_EACH, shards=[0])
    overtaken = Overtaken(engine(), finished, cache)
    summary = extract(config, manifest, cache, ONE_EACH, engine=overtaken)
    assert (summary.shards, summary.already) == (0, CLIPS)
    for shard in range(1, CLIPS):
        calls = overtaken.calls.about(shard)
        # One for the done marker; reading looks at each of the two files, and opens the one.
        assert calls == {"stat": 3, "open": 1}


def test_a_task_of_a_job_array_looks_once_at_each_finished_shard(world, finished):
    with counted(finished / "features") as calls:
        summary = run(world, finished, options=ARRAY_TASK)
    assert (summary.shards, summary.already) == (0, CLIPS)
    for shard in range(CLIPS):
        assert calls.about(shard) == {"stat": 1}


@pytest.mark.parametrize("beside", [0, 50])
def test_the_folder_is_not_listed_for_each_shard(world, tmp_path, beside):
    """Twice as many shards take as many listings, and the files beside them take no call."""
    listings = {}
    for shards in (2, 4):
        cache = tmp_path / f"{shards}"
        run(world, cache, options=ONE_EACH, shards=[CLIPS - 1])
        for number in range(beside):
            (cache / "features" / f"{10**6 + number}.json").touch()
        with counted(cache) as calls:
            run(world, cache, options=ONE_EACH, shards=range(shards))
        names = Counter()
        for (name, file), count in calls.found.items():
            names[name] += count
            assert not file.startswith("1000")
        listings[shards] = names["listdir"], names["scandir"]
    assert listings[2] == listings[4]


def test_graphs_that_another_run_has_finished_are_not_claimed(tmp_path, monkeypatch):
    path = make_cache(tmp_path)
    maker = graphs.ShardGraphs(path, graphs.GraphOptions(neighbours=3), "cpu", "none")
    jobs = [graphs.GraphJob(shard, path / f"graphs/{shard:05d}.h5") for shard in range(2)]
    _ = maker.watched
    assert [record["shard"] for record in graphs.build_graphs(path, neighbours=3)] == [0, 1, 2]

    def no_claim(path):
        raise AssertionError(f"a claim on {path}")

    monkeypatch.setattr(graphs, "take_claim", no_claim)
    assert [maker(job) for job in jobs] == [OtherRun.FINISHED] * 2


def test_while_a_run_waits_a_finished_shard_is_not_asked_for_its_claim(tmp_path, monkeypatch):
    """Of two shards of another run, one is finished while this one waits."""
    features = tmp_path / "features"
    features.mkdir()
    jobs = [graphs.GraphJob(shard, features / f"{shard:05d}.h5") for shard in range(2)]
    claims = [take_claim(job.path) for job in jobs]
    asked: list[tuple[str, bool]] = []
    free = "pipeline.workers.claims.ClaimWatch.free"

    def look(watch, path):
        asked.append((path.stem, path.with_suffix(".json").exists()))
        return False

    monkeypatch.setattr(free, look)
    monkeypatch.setattr("pipeline.workers.engines.POLL", 0)

    def finished(job) -> bool:
        # The first is there from the second round on, the other one from the third.
        rounds = sum(stem == "00001" for stem, _ in asked)
        if rounds > job.shard:
            job.path.with_suffix(".json").touch()
        return job.path.with_suffix(".json").exists()

    results = list(share_jobs(_claimed_by_others, jobs, LocalEngine(), finished))
    assert results == [(jobs[0], None), (jobs[1], None)]
    assert ("00001", False) in asked
    assert not [stem for stem, is_done in asked if is_done]
    for claim in claims:
        claim.release()


def _claimed_by_others(job):
    """A job function that finds each shard claimed."""
