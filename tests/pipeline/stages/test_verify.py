"""Every fault of a cache is found, with its place and what to do; a whole cache has none."""

import errno
import json
import os
import shutil

import h5py
import numpy as np
import pytest
from click.testing import CliRunner

import pipeline.files.regular_files
from pipeline.cache.good_rows import wrong_values
from pipeline.cache.reader import Cache, CacheError
from pipeline.cache.shard_check import ShardChecker
from pipeline.cache.shard_reader import ShardFile
from pipeline.files.atomic_files import read_json, sha256_of, write_json
from pipeline.files.owners import part_path
from pipeline.stages.graphs import build_graphs
from pipeline.stages.verify import shards_to_repair, verify
from pipeline.workers.claims import machine_id, take_claim
from tests.support.small_cache import make_cache, tensors_of, write_shard


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A whole cache, features and graphs, to be copied and hurt."""
    path = make_cache(tmp_path_factory.mktemp("made"))
    build_graphs(path, neighbours=3)
    return path


@pytest.fixture
def cache(made, tmp_path):
    return shutil.copytree(made, tmp_path / "cache")


def reseal(path, edit=lambda record: None) -> None:
    """Make a shard's statistics fit its file as it is now, as a faulty writer would.

    `edit` changes the record further.
    """
    record = read_json(path.with_suffix(".json"))
    del record["seal"]
    record |= {"sha256": sha256_of(path), "bytes": path.stat().st_size}
    edit(record)
    write_json(path.with_suffix(".json"), record, "test")


def change(path, name: str, row: int, values) -> None:
    """Store other values in a row, with a checksum and statistics that fit."""
    with h5py.File(path, "r+") as file:
        file[name][row] = values
    reseal(path)


def said(findings) -> list[str]:
    return [f"{finding.where}: {finding.what}" for finding in findings]


def test_nothing_is_wrong_with_a_whole_cache(cache):
    assert verify(cache) == []


@pytest.mark.parametrize("compression", ["lzf", "zstd"])
def test_nothing_is_wrong_with_a_compressed_cache(tmp_path, compression, monkeypatch):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    assert verify(make_cache(tmp_path, compression=compression)) == []


def test_a_failed_clip_is_the_only_finding(tmp_path):
    path = make_cache(tmp_path, failed=("clip2",))
    build_graphs(path)
    (finding,) = verify(path)
    assert finding.where == f"{path}/features/00000.h5 clip clip2"
    assert finding.what == "failed: DecodeError: no video stream"
    assert finding.fix == f"run `vidgraph repair --cache {path}`"
    assert shards_to_repair(path) == [0]


FILES = (
    "features/00000.h5",
    "features/00001.h5",
    "features/00002.h5",
    "graphs/00001.h5",
    "features/00001.json",
    "graphs/00002.json",
    "cache.json",
    "manifest.csv",
)


@pytest.mark.parametrize("name", FILES)
def test_any_flipped_bit_is_found(cache, name):
    whole = (cache / name).read_bytes()
    rng = np.random.default_rng(len(whole))
    for bit in rng.integers(0, len(whole) * 8, 5).tolist():
        wrong = bytearray(whole)
        wrong[bit // 8] ^= 1 << bit % 8
        (cache / name).write_bytes(wrong)
        findings = verify(cache)
        assert findings, f"bit {bit}"
        stem = name.removesuffix(".h5").removesuffix(".json")
        assert any(stem in finding.where or name in finding.what for finding in findings)
        if "/" in name:
            assert {shard for finding in findings for shard in finding.shards} == {int(stem[-1])}
    (cache / name).write_bytes(whole)
    assert verify(cache) == []


@pytest.mark.slow
@pytest.mark.parametrize("compression", ["none", "lzf", "zstd"])
def test_a_thousand_random_flips_are_found(tmp_path, compression, monkeypatch):
    """Anywhere in the files of all shards, 334 for each compression."""
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    path = make_cache(tmp_path, compression=compression)
    build_graphs(path, neighbours=3, compression=compression)
    files = [file for stage in ("features", "graphs") for file in sorted((path / stage).iterdir())]
    sizes = np.array([file.stat().st_size for file in files])
    check, rng = ShardChecker(path), np.random.default_rng(0)
    for place in rng.integers(0, 8 * sizes.sum(), 334).tolist():
        at = int(np.searchsorted(8 * sizes.cumsum(), place, side="right"))
        whole, bit = files[at].read_bytes(), place - 8 * int(sizes[:at].sum())
        wrong = bytearray(whole)
        wrong[bit // 8] ^= 1 << bit % 8
        files[at].write_bytes(wrong)
        stage, shard = files[at].parent.name, int(files[at].stem)
        findings, _ = check((stage, shard))
        assert findings, f"{files[at]} bit {bit}"
        assert {(finding.stage, finding.shards) for finding in findings} == {(stage, (shard,))}
        files[at].write_bytes(whole)
    assert verify(path) == []


@pytest.mark.parametrize("compression", ["none", "lzf"])
def test_damage_is_traced_to_the_view(tmp_path, compression, monkeypatch):
    monkeypatch.setattr("pipeline.cache.shard_writer.SMALL", 16)
    path = make_cache(tmp_path, compression=compression)
    shard = path / "features/00000.h5"
    record = read_json(shard.with_suffix(".json"))
    offset = int(ShardFile(shard, record).layout("train", "nodes").offsets[3])
    data = bytearray(shard.read_bytes())
    data[offset + 10] ^= 4
    shard.write_bytes(data)
    assert said(verify(path)) == [
        f"{shard}: changed since it was written (its sha256 differs)",
        f"{shard} train row 3 (clip clip1): nodes is damaged",
    ]


def test_a_file_cut_short_is_found(cache):
    shard = cache / "features/00001.h5"
    shard.write_bytes(shard.read_bytes()[:-100])
    (finding,) = verify(cache)
    assert "bytes, was written with" in finding.what
    assert finding.shards == (1,)


def test_missing_shards_are_found(cache):
    for name in ("features/00000.json", "features/00001.json", "graphs/00002.json"):
        (cache / name).unlink()
    (cache / "features/00002.h5").unlink()
    findings = said(verify(cache))
    assert f"{cache}/features: 2 of 3 shards are missing: 0-1" in findings
    assert f"{cache}/graphs: 1 of 1 shard is missing: 2" in findings
    assert f"{cache}/features/00002.h5: missing, although its statistics are there" in findings
    assert shards_to_repair(cache) == [0, 1, 2]


def test_a_cache_without_graphs_lacks_nothing(cache):
    shutil.rmtree(cache / "graphs")
    assert verify(cache) == []


def test_what_a_stopped_run_left_is_found(cache):
    (cache / "features/00001.h5.host-17.part").touch()
    (cache / "features/00099.h5").touch()
    (cache / "graphs/0.h5").touch()
    assert said(verify(cache)) == [
        f"{cache}/features/00001.h5.host-17.part: left by a run that was stopped",
        f"{cache}/features/00099.h5: not part of this cache's plan",
        f"{cache}/graphs/0.h5: not part of this cache's plan",
    ]
    assert shards_to_repair(cache) == []


def test_what_a_live_run_is_writing_is_no_finding(cache):
    plan = Cache(cache).shards
    with take_claim(plan.path(1)) as claim:
        part_path(plan.path(1), claim.name).touch()
        assert verify(cache) == []
    (cache / "features/00001.claim").write_text(dead_claim())
    assert f"{cache}/features/00001.claim: left by a run that was stopped" in said(verify(cache))


def dead_claim() -> str:
    """A claim of a process of this machine that has ended."""
    owner = {
        "claim": "a",
        "machine": machine_id(),
        "pid": os.getpid(),
        "start": "before this one",
    }
    return json.dumps(owner) + "\n" + "0" * 20


@pytest.mark.parametrize(
    "name", ["features/00001.h5", "features/00001.json", "graphs/00001.h5", "graphs/00001.json"]
)
def test_a_file_that_cannot_be_read_is_found(cache, name, monkeypatch):
    """As a disk says it of a bad sector: an error from `read`, for this file alone."""
    bad = (cache / name).stat().st_ino
    real = {"preadv": os.preadv, "open": pipeline.files.regular_files.open_regular}

    def reading(file, *rest):
        if isinstance(file, int) and os.fstat(file).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real["preadv"](file, *rest)

    def opening(path):
        if os.stat(path).st_ino == bad:
            raise OSError(errno.EIO, "Input/output error")
        return real["open"](path)

    monkeypatch.setattr(os, "preadv", reading)
    monkeypatch.setattr(pipeline.files.regular_files, "open_regular", opening)
    findings = verify(cache)
    assert any("Input/output error" in finding.what for finding in findings)
    assert {shard for finding in findings for shard in finding.shards} == {1}
    assert {finding.stage for finding in findings} <= {name.split("/")[0]}


@pytest.mark.parametrize("name", ["features/00001.h5", "features/00001.json"])
def test_a_folder_in_the_place_of_a_file_is_found(cache, name):
    (cache / name).unlink()
    (cache / name).mkdir()
    assert shards_to_repair(cache) == [1]


@pytest.mark.parametrize("key", ["attrs", "bytes", "sha256", "groups"])
def test_statistics_that_another_program_wrote_are_found(cache, key):
    reseal(cache / "features/00001.h5", lambda record: record.pop(key))
    assert any(key in finding.what for finding in verify(cache))
    assert shards_to_repair(cache) == [1]


def test_stale_graphs_are_found(cache):
    write_shard(Cache(cache).shards, 1, salt="again")
    (finding,) = verify(cache)
    assert finding.what == "stale: its features were written again since"
    assert (finding.stage, finding.shards) == ("graphs", (1,))
    assert finding.fix == f"run `vidgraph graphs --cache {cache}`"
    assert shards_to_repair(cache) == []


def test_a_shard_of_another_cache_is_found(cache):
    def edit(record):
        record["attrs"]["fingerprint"] = "another"

    reseal(cache / "features/00000.h5", edit)
    findings = said(verify(cache))
    assert any("fingerprint is another, this cache's is" in finding for finding in findings)


def test_a_shard_under_another_number_is_found(cache):
    for suffix in ("h5", "json"):
        shutil.copy(cache / f"features/00000.{suffix}", cache / f"features/00001.{suffix}")
    findings = said(verify(cache))
    assert f"{cache}/features/00001.h5: shard is 0, this cache's is 1" in findings
    order = "row order: clip clip0 view 0, the manifest says clip clip3 view 0"
    assert f"{cache}/features/00001.h5 train row 0: {order}" in findings


def test_rows_in_another_order_are_found(cache):
    shard = cache / "features/00001.h5"
    with h5py.File(shard, "r+") as file:
        file["test/clip"][1:3] = file["test/clip"][1:3][::-1]
    reseal(shard)
    order = "row order: clip clip5 view 0, the manifest says clip clip4 view 0"
    assert said(verify(cache))[0] == f"{shard} test row 1: {order}"


def test_rows_marked_otherwise_than_recorded_are_found(cache):
    change(cache / "features/00000.h5", "train/ok", 2, False)
    finding = f"{cache}/features/00000.h5 train: `ok` differs from what its statistics say"
    assert finding in said(verify(cache))


@pytest.mark.parametrize(
    ("name", "value", "what"),
    [
        ("pooled", np.nan, "pooled has NaN or infinite values"),
        ("nodes", np.inf, "nodes has NaN or infinite values"),
        ("boxes", 1.5, "boxes has values outside 0 to 1"),
        ("scores", -0.5, "scores has values outside 0 to inf"),
        ("frames", -1, "frames has values outside 0 to inf"),
    ],
)
def test_values_that_cannot_be_right_are_found(cache, name, value, what):
    shard = cache / "features/00001.h5"
    change(shard, f"train/{name}", 4, value)
    assert f"{shard} train row 4 (clip clip5): {what}" in said(verify(cache))


def test_the_same_fault_in_many_views_is_said_once(cache):
    shard = cache / "features/00000.h5"
    for row in (1, 2, 5):
        change(shard, "train/pooled", row, np.nan)
    where = f"{shard} train row 1 (clip clip0) and 2 more views"
    assert f"{where}: pooled has NaN or infinite values" in said(verify(cache))


def test_a_row_that_says_ok_but_was_never_written_is_found(tmp_path):
    path = make_cache(tmp_path, failed=("clip1",))
    shard = path / "features/00000.h5"
    with h5py.File(shard, "r+") as file:
        for group in ("train", "test"):
            file[group]["ok"][:] = True

    def edit(record):
        record["failures"] = []
        for group in ("train", "test"):
            record["groups"][group]["absent"] = []

    reseal(shard, edit)
    findings = said(verify(path))
    assert f"{shard} train row 2 (clip clip1) and 1 more view: frames is never written" in findings
    assert f"{shard} test row 1 (clip clip1): res5 is never written" in findings


def test_a_dataset_of_another_shape_is_found(cache):
    def edit(record):
        record["groups"]["train"]["fields"]["pooled"]["shape"] = [4, 7]

    reseal(cache / "features/00000.h5", edit)
    assert any("pooled is" in finding and "expected" in finding for finding in said(verify(cache)))


def test_a_dataset_without_checksums_is_found(cache):
    shard = cache / "features/00000.h5"
    with h5py.File(shard, "r+") as file:
        values = file["test/pooled"][:]
        del file["test/pooled"]
        file["test"].create_dataset("pooled", data=values, chunks=(1, *values.shape[1:]))
    reseal(shard)
    assert f"{shard} test: pooled has no checksums" in said(verify(cache))


@pytest.mark.parametrize("dtype", [np.float16, np.float32])
def test_every_value_that_is_no_number_is_told_from_those_that_are(dtype):
    info = np.finfo(dtype)
    numbers = np.array([0, -0.0, 1, -1, info.max, info.min, info.tiny], dtype)
    assert list(wrong_values({"pooled": numbers})) == []
    for bad in (np.inf, -np.inf, np.nan, np.copysign(np.nan, -1)):
        faults = list(wrong_values({"pooled": np.append(numbers, dtype(bad))}))
        assert faults == ["pooled has NaN or infinite values"]


def test_values_of_a_whole_view_are_not_wrong():
    assert list(wrong_values(tensors_of("train", "a", 0))) == []


@pytest.mark.parametrize(
    ("tensors", "what"),
    [
        ({"boxes": np.array([[0.5, 0, 0.2, 1]], np.float32)}, "boxes has x1 > x2 or y1 > y2"),
        (
            {"crop": np.array([0, 0, 0, 8, 16, 16], np.float32)},
            "crop has a width or height that is not positive",
        ),
        ({"valid": np.array([[True, False, True]])}, "valid has a box after a row that is none"),
        (
            {"valid": np.array([[True, False]]), "scores": np.ones((1, 2), np.float32)},
            "scores is not 0 where there is no box",
        ),
        ({"iou": np.full((1, 2, 2), 1.1, np.float32)}, "iou has values outside 0 to 1"),
        ({"nearest": np.full((2, 3, 2), 3, np.int32)}, "nearest has values outside 0 to 2"),
        ({"similar": np.full((2, 3, 4), 6, np.int32)}, "similar has values outside 0 to 5"),
    ],
)
def test_wrong_values_are_named(tensors, what):
    assert list(wrong_values(tensors)) == [what]


def test_workers_find_the_same(cache):
    change(cache / "features/00001.h5", "train/pooled", 4, np.nan)
    assert verify(cache, workers=2) == verify(cache)


def test_a_folder_without_a_cache_is_refused(tmp_path):
    with pytest.raises(CacheError, match="no cache here"):
        verify(tmp_path)


def run(path, *options: str):
    """Run `vidgraph verify` in this process."""
    from cli.verify import command

    arguments = ["--cache", str(path), "--workers", "0", *options]
    return CliRunner().invoke(command, arguments, standalone_mode=False)


def test_the_command_tells_what_to_do_and_exits_with_3(tmp_path):
    path = make_cache(tmp_path, failed=("clip2",))
    done = run(path)
    assert done.return_value == 3
    failed = "clip clip2: failed: DecodeError: no video stream"
    assert f"{failed}; run `vidgraph repair --cache {path}`" in done.output
    report = run(path, "--json")
    read = json.loads(report.stdout)
    assert read["findings"][0]["shards"] == [0]
    assert read["shards"] == {"features": 3, "graphs": 0}
    assert read["views"] == {"features": 18, "graphs": 0}
    file = tmp_path / "report.json"
    run(path, "--report", str(file))
    assert json.loads(file.read_text())["findings"] == read["findings"]


def test_the_command_exits_with_0_when_nothing_is_wrong(cache):
    done = run(cache)
    assert done.return_value == 0
    assert "nothing wrong" in done.output
