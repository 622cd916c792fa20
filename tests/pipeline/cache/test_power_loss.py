"""What a power loss leaves: content is on the disk before its name, a shard before its marker."""

import os
from pathlib import Path

import pytest

from heads.runs import run_files as runs
from pipeline.cache.creation import create_cache
from pipeline.cache.folder import read_cache_json, watch_cache_folder
from pipeline.stages.graphs import build_graphs
from tests.support.small_cache import make_cache, manifest_of


@pytest.fixture
def calls(monkeypatch):
    """(what, file) of every step that matters to a disk: "sync", "name" and "unname".

    A sync is that of a file's content, or of the names in a folder.
    """
    done = []

    def noting(what, function, which):
        def call(*args, **named):
            result = function(*args, **named)
            place = str(args[which])
            if isinstance(args[0], int):
                place = os.readlink(f"/proc/self/fd/{args[0]}")
            done.append((what, Path(place)))
            return result

        return call

    for name, what, which in (
        ("fsync", "sync", 0),
        ("link", "name", 1),
        ("rename", "name", 1),
        ("replace", "name", 1),
    ):
        monkeypatch.setattr(os, name, noting(what, getattr(os, name), which))
    for name, what in (("mkdir", "name"), ("unlink", "unname")):
        monkeypatch.setattr(os, name, noting(what, getattr(os, name), 0))
    return done


def check(done, path: Path, before: tuple[Path, ...] = ()) -> int:
    """Assert that `path` got its name after its content was durable.

    The name must be durable before the files of `before` get theirs.
    """
    named = max(k for k, (what, file) in enumerate(done) if what == "name" and file == path)
    parts, synced = [], []
    for k, (what, file) in enumerate(done):
        if what == "sync" and k < named and file.name.startswith(f"{path.name}."):
            parts.append(k)
        if what == "sync" and k > named and file == path.parent:
            synced.append(k)
    assert parts, f"{path}: has a name before its content is durable"
    assert synced, f"{path}: its name is not durable"
    for other in before:
        later = max(k for k, (what, file) in enumerate(done) if what == "name" and file == other)
        assert synced[0] < later, f"{other} has its name before that of {path} is durable"
    return named


def test_a_shard_is_durable_before_its_done_marker(tmp_path, calls):
    path = make_cache(tmp_path)
    build_graphs(path)
    for stage in ("features", "graphs"):
        for shard in range(3):
            file = path / stage / f"{shard:05d}.h5"
            check(calls, file, before=(file.with_suffix(".json"),))
            check(calls, file.with_suffix(".json"))


def test_of_a_shard_that_is_written_again_the_old_marker_is_gone_for_good_before(tmp_path, calls):
    path = make_cache(tmp_path)
    build_graphs(path, neighbours=3)
    calls.clear()
    build_graphs(path, neighbours=4)
    for shard in range(3):
        file = path / "graphs" / f"{shard:05d}.h5"
        named = check(calls, file, before=(file.with_suffix(".json"),))
        unnamed = calls.index(("unname", file.with_suffix(".json")))
        assert ("sync", file.parent) in calls[unnamed:named]


def test_a_new_cache_is_durable_from_its_folder_to_its_description(tmp_path, calls):
    folder = tmp_path / "deep" / "cache"
    create_cache(folder, {"a": 1}, manifest_of(tmp_path), 3)
    watch_cache_folder(folder, read_cache_json(folder)["fingerprint"], "features")
    check(calls, folder / "manifest.csv", before=(folder / "cache.json",))
    check(calls, folder / "cache.json")
    for made in (folder.parent, folder, folder / "features"):
        named = calls.index(("name", made))
        assert ("sync", made.parent) in calls[named:], f"{made}: its name is not durable"


def test_files_of_a_run_are_durable(tmp_path, calls):
    runs.write_json(tmp_path / "run.json", {"a": 1})
    runs.save_checkpoint(tmp_path / "last.pt", {"a": 1})
    runs.append_log(tmp_path / "log.jsonl", {"epoch": 1})
    check(calls, tmp_path / "run.json")
    check(calls, tmp_path / "last.pt")
    assert ("sync", tmp_path / "log.jsonl") in calls
