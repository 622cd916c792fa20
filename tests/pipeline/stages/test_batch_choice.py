"""The batch that suits a device, and that one cache has one batch."""

import json
from dataclasses import replace

import pytest

from pipeline.files.atomic_files import Damaged
from pipeline.stages import extract_shards
from pipeline.stages.batch_choice import (
    CPU_BATCH,
    OutOfMemory,
    fastest,
    record_batch,
    recorded_batch,
)
from tests.support.tiny_videos import INLINE, make_videos, run

AUTO = replace(INLINE, batch=None)


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    return make_videos(tmp_path_factory.mktemp("videos"), 3)


def batches(cache) -> set[int]:
    return {json.loads(path.read_text())["batch"] for path in cache.glob("features/*.json")}


@pytest.mark.parametrize(
    ("seconds", "most", "best"),
    [
        # A batch costs 1 s, whatever its size: the largest that may be tried.
        (lambda batch: 1.0, 128, 128),
        (lambda batch: 1.0, 40, 32),
        # A view costs 1 s: no batch is faster than the smallest.
        (lambda batch: float(batch), 128, 4),
        # 8 ms a batch and 1 ms a view: from 64 to 128 the rate grows by 6 %; 256 is not tried.
        (lambda batch: 8.0 + batch, 128, 128),
        # 1 ms a batch: 16 views are 6 % faster than 8, 32 are 3 % faster, 64 are 1.5 % faster.
        (lambda batch: 1.0 + batch, 128, 32),
    ],
)
def test_larger_batches_are_taken_while_they_pay(seconds, most, best):
    assert fastest(seconds, most) == best


def test_a_batch_beyond_the_devices_memory_is_not_taken():
    def seconds(batch: int) -> float:
        if batch > 16:
            raise OutOfMemory
        return 1.0

    assert fastest(seconds, 128) == 16


def test_a_device_without_room_for_any_gets_the_smallest():
    def seconds(batch: int) -> float:
        raise OutOfMemory

    assert fastest(seconds, 128) == 4


def test_a_new_cache_on_a_cpu_has_the_batch_that_caches_always_had_there(world, tmp_path):
    lines: list[str] = []
    run(world, tmp_path / "cache", options=AUTO, say=lines.append)
    assert batches(tmp_path / "cache") == {CPU_BATCH} == {4}
    assert recorded_batch(tmp_path / "cache") == 4
    assert any("4 views in each forward pass" in line for line in lines)


def test_later_runs_take_the_batch_that_a_cache_was_begun_with(world, tmp_path):
    cache = tmp_path / "cache"
    run(world, cache, options=replace(INLINE, batch=3, shard_size=1), shards=[0])
    run(world, cache, options=replace(AUTO, shard_size=1))
    assert batches(cache) == {3}
    # A batch that is asked for is used, and what was recorded stays.
    run(world, cache, options=replace(INLINE, batch=2), shards=[1], redo=True)
    assert batches(cache) == {2, 3}
    assert recorded_batch(cache) == 3


def test_a_cache_from_before_goes_on_with_the_batch_of_its_shards(world, tmp_path, monkeypatch):
    cache = tmp_path / "cache"
    run(world, cache, options=replace(INLINE, batch=5, shard_size=1), shards=[0])
    (cache / "batch.json").unlink()
    monkeypatch.setattr(extract_shards, "choose_batch", lambda models: 64)
    run(world, cache, options=replace(AUTO, shard_size=1))
    assert batches(cache) == {5}


def test_of_processes_that_choose_at_once_the_first_decides(tmp_path):
    assert [record_batch(tmp_path, 8), record_batch(tmp_path, 16)] == [8, 8]
    assert [path.name for path in tmp_path.iterdir()] == ["batch.json"]


def test_a_record_that_has_changed_is_refused(tmp_path):
    record_batch(tmp_path, 8)
    text = (tmp_path / "batch.json").read_text()
    (tmp_path / "batch.json").write_text(text.replace("8", "9", 1))
    with pytest.raises(Damaged):
        recorded_batch(tmp_path)
