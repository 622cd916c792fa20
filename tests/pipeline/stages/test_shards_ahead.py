"""Shards that overlap: while one is computed, the next is decoded and the last one hashed."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import pytest

from pipeline.manifests.manifest import read_manifest
from pipeline.networks.transfers import Transfers
from pipeline.stages import extract_shards
from pipeline.stages.extract import extract
from pipeline.stages.extract_shards import SHARDS_AT_ONCE, ExtractShards
from pipeline.stages.shard_composer import ShardComposer
from pipeline.workers import decode_pool
from pipeline.workers.decode_pool import Results
from pipeline.workers.engines import LocalEngine
from tests.support.tiny_videos import INLINE, config_of, make_videos, run

ONE_DECODER = replace(INLINE, workers=1, shard_size=1)
CLIPS = 4


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), CLIPS)


class Threads:
    """An engine whose workers are threads, which all call one function, as in a Dask worker."""

    def open(self):
        return self

    def __enter__(self):
        return self.run

    def __exit__(self, *exception):
        return None

    @staticmethod
    def run(function, jobs):
        with ThreadPoolExecutor(SHARDS_AT_ONCE) as threads:
            pairs = [(job, threads.submit(function, job)) for job in jobs]
            for job, future in pairs:
                yield job, future.result()


def files(cache) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in sorted(cache.glob("features/*.h5"))}


def extract_in_threads(world, cache, monkeypatch, options=ONE_DECODER):
    # The networks stay in this process, which is what an engine would otherwise avoid.
    described = extract_shards.as_json
    from pipeline.stages import extract as stage

    monkeypatch.setattr(
        stage,
        "_describe_for",
        lambda engine, one: (described(one.models.record()), options.shard_size),
    )
    config, manifest = config_of(world), read_manifest(world / "manifest.csv")
    return extract(config, manifest, cache, options, engine=Threads())


@pytest.mark.parametrize("workers", [0, 1])
def test_shards_of_several_threads_have_the_bytes_of_one_after_the_other(
    world, tmp_path, monkeypatch, workers
):
    options = replace(ONE_DECODER, workers=workers)
    run(world, tmp_path / "one", options=options)
    summary = extract_in_threads(world, tmp_path / "threads", monkeypatch, options)
    assert summary.shards == CLIPS
    assert files(tmp_path / "threads") == files(tmp_path / "one")
    left = [p.name for p in (tmp_path / "threads" / "features").iterdir()]
    assert not [name for name in left if not name.endswith((".h5", ".json"))]


def test_while_a_shard_is_computed_the_next_one_is_decoded(world, tmp_path, monkeypatch):
    """Each shard is kept in `run` until the clip of the next one has been decoded."""
    asked, compose = [], ShardComposer.run
    task_of = ExtractShards._tasks_of

    def noted(self, shard):
        asked.append(shard.job.shard)
        return task_of(self, shard)

    waited = []

    def slowly(self, results, advance):
        end = time.monotonic() + 120
        last = CLIPS - 1
        while self.job.shard < last and len(asked) < len(waited) + 2:
            assert time.monotonic() < end, "the next shard was not begun"
            time.sleep(0.01)
        waited.append(self.job.shard)
        return compose(self, results, advance)

    monkeypatch.setattr(ExtractShards, "_tasks_of", noted)
    monkeypatch.setattr(ShardComposer, "run", slowly)
    extract_in_threads(world, tmp_path / "cache", monkeypatch)
    assert sorted(waited) == list(range(CLIPS))


def test_a_slow_hash_does_not_stop_the_next_shards(world, tmp_path, monkeypatch):
    """The first shard's last step ends when the last shard has been computed."""
    finish, compose = extract_shards._finish, ShardComposer.run
    computed, order = threading.Semaphore(0), []

    def last_step(complete, claim):
        if claim.path.stem == "00000":
            for _ in range(CLIPS):
                assert computed.acquire(timeout=120)
        order.append(claim.path.stem)
        return finish(complete, claim)

    def counted(self, results, advance):
        complete = compose(self, results, advance)
        computed.release()
        return complete

    monkeypatch.setattr(extract_shards, "_finish", last_step)
    monkeypatch.setattr(ShardComposer, "run", counted)
    run(world, tmp_path / "cache", options=ONE_DECODER)
    assert order[0] == "00000"
    assert len(files(tmp_path / "cache")) == CLIPS


def test_an_error_in_one_thread_leaves_the_turn_to_the_next(world, tmp_path, monkeypatch):
    options = replace(ONE_DECODER, workers=0)
    one = ExtractShards(config_of(world), world, options, redo=False)
    monkeypatch.setattr(one, "_claim", lambda job: 1 / 0)
    for _ in range(2):
        with pytest.raises(ZeroDivisionError):
            one(None)


def test_a_run_whose_time_is_up_begins_no_shard(world, tmp_path):
    cache = tmp_path / "cache"
    options = replace(ONE_DECODER, workers=0, stop_after=1e-9)
    summary = run(world, cache, options=options)
    assert (summary.shards, summary.left) == (0, CLIPS)
    summary = run(world, cache, options=replace(options, stop_after=3600.0))
    assert (summary.shards, summary.left) == (CLIPS, 0)


def test_decode_processes_share_enough_memory_for_four_tasks_each(monkeypatch):
    monkeypatch.setattr(extract_shards, "free_memory", lambda: 1 << 40)
    default_view = 32 * 224 * 224 * 3 + 16 * 240 * 426 * 3
    for workers in (1, 15, 128):
        assert extract_shards.shared_bytes(workers) >= 4 * workers * default_view
    monkeypatch.setattr(extract_shards, "free_memory", lambda: 8 << 20)
    assert extract_shards.shared_bytes(128) == 1 << 20


def test_the_engine_of_this_process_still_streams(world, tmp_path):
    assert run(world, tmp_path / "cache", options=ONE_DECODER, engine=LocalEngine()).shards == CLIPS


def test_a_closed_run_gives_up_the_memory_that_it_locked_and_loads_no_networks_for_it(world):
    one = ExtractShards(config_of(world), world, replace(ONE_DECODER, workers=0), redo=False)
    one.pool.close()
    one.close()
    assert "models" not in vars(one)

    one = ExtractShards(config_of(world), world, ONE_DECODER, redo=False)
    unlocked = []
    one.models.transfers.unlock_pages = lambda: unlocked.append(one)
    one.pool.close()
    one.close()
    assert unlocked == [one]


def test_memory_that_the_device_has_read_is_let_go_before_a_clip_is_waited_for(
    world, tmp_path, monkeypatch
):
    """Decode workers may wait for it."""
    order, answer = [], Results.__next__

    def waiting(results):
        order.append("wait")
        return answer(results)

    monkeypatch.setattr(Transfers, "forget_what_was_read", lambda self: order.append("let go"))
    monkeypatch.setattr(Results, "__next__", waiting)
    # All clips in one shard.
    options = replace(ONE_DECODER, workers=0, shard_size=CLIPS)
    run(world, tmp_path / "cache", options=options)
    # The first wait is for the shard; the last one finds that no clip is left.
    assert order == ["wait", "let go", *["let go", "wait"] * (CLIPS - 1), "wait"]


def test_without_memory_to_share_pixels_go_through_pipes_and_a_line_says_so(world, monkeypatch):
    def refuse(size, freed):
        raise OSError(12, "Cannot allocate memory")

    monkeypatch.setattr(decode_pool, "Arena", refuse)
    lines = []
    one = ExtractShards(config_of(world), world, ONE_DECODER, redo=False)
    one.say = lines.append
    try:
        assert one.pool.arena is None
    finally:
        one.close()
    (line,) = lines
    assert "Cannot allocate memory" in line
    assert "pipes" in line
