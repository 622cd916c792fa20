"""With few open files allowed, shards are closed and opened again."""

import errno
import gc
import os
import resource

import numpy as np
import pytest

import pipeline.cache.open_files
from pipeline.cache.open_files import OPEN_FILES, OpenFiles, budget
from pipeline.cache.reader import Cache
from pipeline.cache.shard_reader import ShardFile
from pipeline.stages.graphs import build_graphs
from pipeline.workers.claims import take_claim
from tests.support.small_cache import make_cache, tensors_of


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd")) - 1


@pytest.fixture
def few(request):
    """Let this process open so many more files than are open now."""
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    for file in OPEN_FILES:
        file.release()

    def allow(more: int) -> None:
        used, limit = set(map(int, os.listdir("/proc/self/fd"))), 0
        # The system gives the lowest free number, so gaps count as free.
        while more:
            more -= limit not in used
            limit += 1
        resource.setrlimit(resource.RLIMIT_NOFILE, (limit, before[1]))

    yield allow
    resource.setrlimit(resource.RLIMIT_NOFILE, before)


@pytest.mark.parametrize("compression", ["none", "zstd"])
def test_two_caches_of_more_shards_than_files_may_be_open_are_read(
    tmp_path, compression, few, monkeypatch
):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    folders = tmp_path / "a", tmp_path / "b"
    for folder in folders:
        folder.mkdir()
        build_graphs(make_cache(folder, compression=compression), neighbours=3)
    caches = [Cache(folder / "cache") for folder in folders]
    rows = [0, 7, 13, 1, 8, 12]
    few(8)
    for row in rows * 2:
        for cache in caches:
            group = cache["train"]
            values = group.view(row)
            expected = tensors_of("train", group.clips[row], int(group.views[row]))
            for name in ("nodes", "valid"):
                np.testing.assert_array_equal(values[name], expected[name])
            assert values["iou"].shape == (3, 5, 5)
    assert 1 <= sum(len(list(cache.files)) for cache in caches) <= 8


@pytest.mark.parametrize("compression", ["none", "lzf", "zstd"])
def test_a_shard_takes_one_descriptor_however_it_is_read(tmp_path, compression, monkeypatch):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    group = Cache(make_cache(tmp_path, compression=compression))["train"]
    before = descriptors()
    group.batch([0, 1, 2, 3])
    assert descriptors() == before + 1
    del group


@pytest.mark.parametrize(
    ("limit", "there", "ours", "may"),
    [
        (64, 14, 0, 25),
        (64, 34, 20, 25),
        (100, 20, 0, 40),
        (1024, 24, 0, 256),
        (16, 16, 0, 1),
        (None, 20, 0, 256),
    ],
)
def test_half_of_what_the_limit_leaves_is_taken(limit, there, ours, may, monkeypatch):
    monkeypatch.setattr("pipeline.cache.open_files._limit", lambda: limit)
    monkeypatch.setattr("pipeline.cache.open_files._open_descriptors", lambda: there)
    assert budget(ours) == may


def test_where_no_file_is_left_those_not_used_for_longest_are_closed():
    class File:
        def __init__(self):
            self.released = 0

        def release(self) -> None:
            self.released += 1

    files, old, older = OpenFiles(), File(), File()
    files.open(older, lambda: 3)
    files.open(old, lambda: 4)
    files.used(older)
    too_many = OSError(errno.EMFILE, "Too many open files")
    answers = [too_many, OSError(errno.ENFILE, "of the system"), 5]

    def opener() -> int:
        answer = answers.pop(0)
        if isinstance(answer, OSError):
            raise answer
        return answer

    new = File()
    assert files.open(new, opener) == 5
    assert (old.released, older.released, new.released) == (1, 1, 0)
    assert list(files) == [new]
    answers = [too_many] * 3
    with pytest.raises(OSError, match="Too many"):
        files.open(File(), opener)


def test_what_nobody_holds_any_more_is_closed(tmp_path):
    gc.collect()
    before = descriptors()
    cache = Cache(make_cache(tmp_path))
    cache["train"].batch([0, 7])
    assert descriptors() == before + 2
    del cache
    gc.collect()
    assert descriptors() == before


def test_a_file_that_is_closed_and_opened_again_is_asked_for_its_tables_once(tmp_path, monkeypatch):
    cache = Cache(make_cache(tmp_path))
    file = ShardFile(cache.shards.path(0), cache.records["features"][0])
    out = np.empty((1, 4, 6), np.float16)
    file.read("train", "pooled", [0], out)
    file.release()
    monkeypatch.setattr("pipeline.cache.shard_reader.ShardTables", None)
    file.read("train", "pooled", [1], out)


def test_a_claim_keeps_no_file_open(tmp_path):
    before = descriptors()
    claims = [take_claim(tmp_path / f"{k}.h5") for k in range(5)]
    for claim in claims:
        claim.beat()
    assert descriptors() == before
    for claim in claims:
        assert claim.held()
        claim.release()
    assert pipeline.cache.open_files.MOST_OPEN == 256
