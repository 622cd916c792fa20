"""Every reader of a small file refuses at once what is no small file."""

import ast
import os
import signal
import socket
from pathlib import Path

import pytest
import torch

from heads.config.recipe import read_toml
from heads.data.classes import _read_classes
from heads.evaluation.prediction_files import read_predictions
from heads.reporting.run_folders import failed_members, read_run
from heads.runs.find_runs import entries_below
from heads.runs.run_files import load_checkpoint, read_json
from pipeline.cache.reader import Cache
from pipeline.cache.records import read_statistics
from pipeline.cache.shard_reader import ShardFile
from pipeline.files.atomic_files import sha256_of
from pipeline.files.regular_files import NotAFile, read_small, read_small_text
from pipeline.manifests.datasets.annotation_files import read_text
from pipeline.manifests.manifest import ManifestError, read_manifest
from pipeline.stages.verify import verify
from pipeline.workers.claims import read_claim
from tests.support.small_cache import make_cache


@pytest.fixture(autouse=True)
def no_waiting():
    """A reader that waits for a pipe's other end is interrupted."""

    def late(number, frame):
        raise AssertionError("waited")

    before = signal.signal(signal.SIGALRM, late)
    signal.alarm(60)
    yield
    signal.alarm(0)
    signal.signal(signal.SIGALRM, before)


def make(kind: str, path: Path) -> None:
    """Something that is no small file."""
    path.unlink(missing_ok=True)
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as other:
            here = os.getcwd()
            # The path of a socket must be short.
            os.chdir(path.parent)
            other.bind(path.name)
            os.chdir(here)
    elif kind == "device":
        path.symlink_to("/dev/zero")
    elif kind == "folder":
        path.mkdir()
    else:
        with open(path, "wb") as file:
            file.truncate(1 << 40)


KINDS = {
    "pipe": "a pipe",
    "socket": "a socket",
    "device": "a device",
    "folder": "directory",
    "hole": "1,099,511,627,776",
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_no_small_file_is_refused_with_what_it_is(tmp_path, kind):
    make(kind, tmp_path / "x")
    with pytest.raises(OSError, match=KINDS[kind] if kind != "folder" else "Is a directory"):
        read_small(tmp_path / "x")


def test_a_small_file_is_read_whole_within_the_limit(tmp_path):
    (tmp_path / "x").write_bytes(b"\xef\xbb\xbfa\r\nb\rc\n")
    assert read_small(tmp_path / "x", 12) == b"\xef\xbb\xbfa\r\nb\rc\n"[:12]
    assert read_small_text(tmp_path / "x", encoding="utf-8-sig") == "a\nb\nc\n"
    with pytest.raises(NotAFile, match="10 bytes, expected at most 8"):
        read_small(tmp_path / "x", 8)


RECORD = {"compression": "none", "bytes": 1, "groups": {}}
READERS = {
    "manifest": read_manifest,
    "classes": _read_classes,
    "recipe": read_toml,
    "annotations": read_text,
    "checkpoint": load_checkpoint,
    "predictions": lambda path: read_predictions(path, "evaluate it"),
    "run": read_json,
    "hash": sha256_of,
    "shard": lambda path: ShardFile(path, RECORD).opened(),
    "statistics": lambda path: read_statistics(path.with_suffix(".h5")),
    "claim": lambda path: read_claim(path.with_suffix(".h5")),
}


@pytest.mark.parametrize("kind", ["pipe", "device"])
@pytest.mark.parametrize("reader", READERS)
def test_every_reader_refuses_it_in_one_line(tmp_path, reader, kind):
    path = tmp_path / {"statistics": "x.json", "claim": "x.claim"}.get(reader, "x")
    make(kind, path)
    with pytest.raises((OSError, ValueError)) as caught:
        READERS[reader](path)
    said = f"{caught.value} {getattr(caught.value, 'strerror', '')}"
    assert KINDS[kind] in said
    assert len(said.splitlines()) == 1


@pytest.mark.parametrize("kind", ["pipe", "device", "hole"])
def test_a_listing_and_a_report_show_the_rest(tmp_path, kind):
    make_cache(tmp_path)
    for name, mark in (("bad", "cache.json"), ("worse", "run.json")):
        (tmp_path / name).mkdir()
        make(kind, tmp_path / name / mark)
    found = {entry.path.name: entry.stage for entry in entries_below(tmp_path)}
    assert found["cache"] == "complete, no graphs"
    assert KINDS[kind] in found["bad"]
    assert KINDS[kind] in found["worse"]
    make(kind, tmp_path / "results.json")
    make(kind, tmp_path / "worse" / "log.jsonl")
    assert KINDS[kind] in " ".join(read_run(tmp_path / "worse").problems)
    assert KINDS[kind] in failed_members([tmp_path / "worse"])[0][1]


@pytest.mark.parametrize("name", ["features/00000.json", "features/00000.h5", "00000.claim"])
def test_verify_checks_the_other_shards(tmp_path, name):
    path = make_cache(tmp_path)
    make("pipe", path / name)
    findings = verify(path)
    assert {shard for finding in findings for shard in finding.shards} <= {0}
    assert findings


@pytest.mark.parametrize("name", ["manifest.csv", "features/00000.h5", "features/00000.json"])
def test_a_cache_with_a_pipe_in_it_is_refused(tmp_path, name):
    path = make_cache(tmp_path)
    make("pipe", path / name)
    with pytest.raises((OSError, ValueError)):
        Cache(path)["train"].view(0)


def test_a_line_without_end_is_refused_before_the_memory_is_full(tmp_path, monkeypatch):
    monkeypatch.setattr("pipeline.manifests.manifest.LONGEST", 1 << 16)
    monkeypatch.setattr("pipeline.manifests.manifest.BLOCK", 1 << 12)
    (tmp_path / "x.csv").write_text("clip,path,split,label\na,a.mp4,train,x\n" + "b" * (1 << 18))
    with pytest.raises(ManifestError, match="line 3: no end of the line"):
        read_manifest(tmp_path / "x.csv")


def test_a_flipped_bit_of_a_checkpoint_is_found(tmp_path):
    """torch.load takes it for a weight."""
    path = tmp_path / "last.pt"
    torch.save({"format": 1, "state": {"w": torch.arange(500.0)}}, path)
    good = path.read_bytes()
    place = good.index(torch.tensor([250.0]).numpy().tobytes())
    path.write_bytes(good[:place] + bytes([good[place] ^ 1]) + good[place + 1 :])
    assert not torch.equal(torch.load(path, weights_only=True)["state"]["w"], torch.arange(500.0))
    with pytest.raises(ValueError, match=r"checksum of .* differs"):
        load_checkpoint(path)
    path.write_bytes(good)
    assert torch.equal(load_checkpoint(path)["state"]["w"], torch.arange(500.0))


# Where a file is read whole in another way: what the system or the package itself writes.
OWN = {
    "pipeline/workers/cores.py",
    "pipeline/files/atomic_files.py",
    "pipeline/files/owners.py",  # /proc
    "pipeline/proposals/_model_zoo.py",  # sources of an installed package
    "pipeline/digits/video_files.py",
    "pipeline/workers/memory.py",  # /proc
    "pipeline/workers/gpus.py",  # /sys
    "heads/reproduction/report.py",
    "heads/reporting/html_page.py",
    "heads/reporting/plots.py",
    "cli/demo.py",
    "cli/reproduce.py",
}


def test_files_are_read_whole_in_one_place():
    root = Path(__file__).parents[3]
    found = set()
    for room in ("pipeline", "heads", "cli"):
        for path in (root / room).rglob("*.py"):
            nodes = ast.walk(ast.parse(path.read_text()))
            called = {ast.unparse(node.func) for node in nodes if isinstance(node, ast.Call)}
            methods = {name.rpartition(".")[2] for name in called if "." in name}
            if methods & {"read_text", "read_bytes"} or "np.load" in called:
                found.add(str(path.relative_to(root)))
    assert found <= OWN
