"""Claims have one owner at a time, and are taken over from dead and silent owners.

Nothing is lost when a silent owner wakes up.
"""

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.cache import shard_writer as shards
from pipeline.cache.shard_writer import GroupPlan, ShardWriter
from pipeline.files.atomic_files import done_marker, publish, read_json, sha256_of
from pipeline.files.owners import new_claim_name, part_path, writer_lives
from pipeline.workers import claims
from pipeline.workers.claims import (
    ClaimWatch,
    claim_file,
    give_up,
    read_claim,
    sweep_claims,
    take_claim,
)
from pipeline.workers.completion import remove_parts

ROOT = Path(__file__).parents[3]
OWNER = """
import sys, time
from pathlib import Path
from pipeline.workers.claims import take_claim
from pipeline.files.owners import part_path
path = Path(sys.argv[1])
claim = take_claim(path)
part_path(path, claim.name).write_text("half a shard")
print("claimed", flush=True)
time.sleep(600)
"""


@pytest.fixture
def shard(tmp_path) -> Path:
    return tmp_path / "features" / "00003.h5"


@pytest.fixture
def owner(shard):
    """Another process that holds the claim and has begun to write."""
    process = subprocess.Popen(
        [sys.executable, "-c", OWNER, shard], stdout=subprocess.PIPE, text=True, cwd=ROOT
    )
    assert process.stdout.readline() == "claimed\n"
    yield process
    process.kill()
    process.wait()


def elsewhere(path: Path, name: str = "other-1-1-00000000", count: int = 0) -> None:
    """A claim by a process of another machine, or its heartbeat number `count`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    owner = {"claim": name, "machine": "another", "pid": os.getpid(), "start": "1"}
    claim_file(path).write_bytes(
        json.dumps(owner).encode() + b"\n" + str(count).zfill(claims.COUNTER_DIGITS).encode()
    )


def names(path: Path) -> set[str]:
    return {p.name for p in path.parent.iterdir()}


def test_a_claim_has_one_owner_until_it_is_released(shard):
    with take_claim(shard) as claim:
        assert claim.held()
        assert take_claim(shard) is None
    assert names(shard) == set()
    with take_claim(shard) as again:
        assert again.name != claim.name


def test_of_many_that_ask_at_once_one_gets_it(shard):
    ready, got = threading.Barrier(16), []

    def ask():
        ready.wait()
        got.append(take_claim(shard))

    threads = [threading.Thread(target=ask) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (claim,) = [claim for claim in got if claim]
    claim.release()
    assert names(shard) == set()


def test_a_dead_owners_claim_is_taken_over_at_once_and_its_part_removed(shard, owner):
    assert take_claim(shard) is None
    owner.kill()  # not waited for: a zombie is dead too
    until(lambda: not writer_lives(next(shard.parent.glob("*.part"))))
    with take_claim(shard):
        assert names(shard) == {"00003.claim"}


def test_a_process_number_that_is_used_again_does_not_keep_a_claim(shard):
    with take_claim(shard) as claim:
        text = claim_file(shard).read_bytes()
    mine = json.loads(text.splitlines()[0])
    assert mine["pid"] == os.getpid()
    claim_file(shard).write_bytes(
        json.dumps({**mine, "start": "1"}).encode() + b"\n" + b"0" * claims.COUNTER_DIGITS
    )
    assert not claim.held() or read_claim(shard).dead
    with take_claim(shard):
        pass


def test_silence_is_measured_by_watching_and_not_by_clocks(shard, monkeypatch):
    """File times and the wall clock may say anything: 60 seconds of one's own, without a change,
    are what counts.
    """
    elsewhere(shard)
    now = [1000.0]
    monkeypatch.setattr(claims, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: now[0]))
    watch = ClaimWatch(silence=60)
    for age in (0, 10**9, -(10**9)):
        os.utime(claim_file(shard), (time.time() - age,) * 2)
        assert not watch.free(shard)
    now[0] += 59
    assert not watch.free(shard)
    content = claim_file(shard).read_bytes()
    claim_file(shard).write_bytes(content[:-1] + b"1")  # a heartbeat
    now[0] += 59
    assert not watch.free(shard)
    now[0] += 61
    assert watch.free(shard)
    assert names(shard) == set()


def test_owners_send_heartbeats(shard, monkeypatch):
    monkeypatch.setattr(claims, "HEARTBEAT", 0.02)
    monkeypatch.setattr(claims, "_HEARTBEAT", claims._Heartbeat())
    with take_claim(shard):
        before = claim_file(shard).read_bytes()
        until(lambda: claim_file(shard).read_bytes() != before)
        assert len(claim_file(shard).read_bytes()) == len(before)
        assert read_claim(shard).name


def test_an_owner_that_was_taken_for_dead_knows_it_and_leaves_the_others_claim_alone(shard):
    first = take_claim(shard)
    os.rename(claim_file(shard), shard.with_suffix(".gone"))
    second = take_claim(shard)
    assert not first.held()
    first.beat()  # into its own file, which is nobody's
    first.release()
    assert second.held()
    second.release()


def test_a_sign_of_life_at_the_last_moment_keeps_the_claim(shard, monkeypatch):
    """Whoever takes over compares what it moved away with what it had judged."""
    elsewhere(shard)
    seen = read_claim(shard)
    content = claim_file(shard).read_bytes()
    claim_file(shard).write_bytes(content[:-1] + b"1")
    assert not claims._remove(shard, seen)
    assert read_claim(shard).content == content[:-1] + b"1"
    assert names(shard) == {"00003.claim"}


def test_an_unreadable_claim_is_judged_by_its_silence(shard, monkeypatch):
    shard.parent.mkdir()
    claim_file(shard).write_bytes(b"")
    assert take_claim(shard) is None
    now = [1000.0]
    monkeypatch.setattr(claims, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: now[0]))
    watch = ClaimWatch(silence=60)
    for later, free in ((0, False), (59, False), (2, True)):
        now[0] += later
        assert watch.free(shard) == free


def test_publishing_never_replaces_a_file(tmp_path, monkeypatch):
    for name in ("a", "b"):
        (tmp_path / name).write_text(name)
    publish(tmp_path / "a", tmp_path / "final")
    with pytest.raises(FileExistsError):
        publish(tmp_path / "b", tmp_path / "final")
    monkeypatch.setattr(os, "link", _refuse)
    with pytest.raises(FileExistsError):
        publish(tmp_path / "b", tmp_path / "final")
    assert (tmp_path / "final").read_text() == "a"
    publish(tmp_path / "b", tmp_path / "other")
    assert (tmp_path / "other").read_text() == "b"


def test_a_file_system_without_links_still_has_claims(shard, monkeypatch):
    monkeypatch.setattr(os, "link", _refuse)
    with take_claim(shard) as claim:
        assert claim.held()
        assert take_claim(shard) is None
    assert names(shard) == set()


def _refuse(*_paths):
    raise OSError(errno.EPERM, "no links here")


def test_a_link_whose_success_was_not_heard_of_counts(tmp_path, monkeypatch):
    """NFS: the request is sent twice, done by the first and refused at the second."""
    link = os.link

    def twice(part, path):
        link(part, path)
        raise FileExistsError(17, "there already")

    monkeypatch.setattr(os, "link", twice)
    (tmp_path / "a").write_text("a")
    publish(tmp_path / "a", tmp_path / "final")


def test_a_sweep_removes_what_the_dead_left_and_nothing_of_the_living(shard, owner, monkeypatch):
    code = "from pipeline.files.owners import new_claim_name; print(new_claim_name())"
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    dead = ended.stdout.strip()
    left = part_path(shard.with_name("00007.h5"), dead)
    left.write_text("half")
    foreign = part_path(shard.with_name("00008.h5"), "other-1-1-00000000")
    foreign.write_text("half")
    elsewhere(shard.with_name("00008.h5"))
    unclaimed = part_path(shard.with_name("00009.h5"), "other-1-1-00000000")
    unclaimed.write_text("half")
    ours = part_path(shard.with_name("00010.h5"), new_claim_name())
    ours.write_text("half")
    now, watch = [1000.0], ClaimWatch(silence=60)
    monkeypatch.setattr(claims, "time", SimpleNamespace(sleep=time.sleep, monotonic=lambda: now[0]))
    sweep_claims(shard.parent, watch)
    assert not left.exists()
    now[0] += 50
    unclaimed.write_text("half and more")  # its writer, which nobody here can see, lives
    sweep_claims(shard.parent, watch)
    now[0] += 50
    elsewhere(shard.with_name("00008.h5"), count=1)
    sweep_claims(shard.parent, watch)
    assert unclaimed.exists()
    now[0] += 11
    sweep_claims(shard.parent, watch)
    assert not unclaimed.exists()
    assert {"00003.claim", "00008.claim", foreign.name, ours.name} < names(shard)
    assert len(list(shard.parent.glob("00003.h5.*.part"))) == 1
    owner.send_signal(signal.SIGKILL)
    owner.wait()
    sweep_claims(shard.parent, ClaimWatch())
    assert not list(shard.parent.glob("00003.*"))


def test_a_complete_shard_keeps_no_part_of_anybody(shard, owner):
    remove_parts(shard)
    assert names(shard) == {"00003.claim"}


def test_giving_up_leaves_nothing(shard):
    claim = take_claim(shard)
    part_path(shard, claim.name).write_text("half")
    give_up()
    assert names(shard) == set()


def until(true, seconds: float = 300.0) -> None:
    """Waits; AssertionError after `seconds`, which no working machine needs."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end
        time.sleep(0.01)


def writer_of(path: Path) -> ShardWriter:
    writer = ShardWriter(
        path,
        {"train": GroupPlan(["a"], [0], {"flip": ((), "bool")})},
        attrs={"fingerprint": "f", "shard": 3},
    )
    writer.write("train", 0, {"flip": np.bool_(True)})
    return writer


def agree(path: Path) -> bool:
    return read_json(done_marker(path))["sha256"] == sha256_of(path)


def test_the_first_complete_shard_wins_and_the_other_leaves_nothing(shard):
    with writer_of(shard) as slow, writer_of(shard) as fast:
        fast.finish({"who": "fast"}, replace=False)
        with pytest.raises(FileExistsError):
            slow.finish({"who": "slow"}, replace=False)
    assert names(shard) == {"00003.h5", "00003.json"}
    assert read_json(done_marker(shard))["who"] == "fast"


@pytest.mark.parametrize("wakes", ["before the other is done", "after the other is done"])
def test_a_writer_stalled_between_its_two_files_does_no_harm(shard, monkeypatch, wakes):
    """Whoever takes over removes the file without statistics; the first one then goes on to write
    them.
    """
    complete = shards.move_into_place

    def stalled(part, path, replace=True):
        if path == shard:
            return complete(part, path, replace)
        monkeypatch.setattr(shards, "move_into_place", complete)
        shard.unlink()
        if wakes.startswith("after"):
            other.finish({"who": "other"}, replace=False)
        complete(part, path, replace)
        if wakes.startswith("before"):
            other.finish({"who": "other"}, replace=False)

    monkeypatch.setattr(shards, "move_into_place", stalled)
    with writer_of(shard) as first, writer_of(shard) as other, suppress(FileExistsError):
        first.finish({"who": "first"}, replace=False)
    assert names(shard) == {"00003.h5", "00003.json"}
    assert agree(shard)
    assert read_json(done_marker(shard))["who"] == "other"


@pytest.mark.parametrize("asked", ["TRUE", "BEST_EFFORT", ""])
def test_hdf5_locks_nothing_whatever_the_environment_says(shard, asked):
    code = f"""
import fcntl, os
from tests.pipeline.workers.test_claims import writer_of
from pathlib import Path
writer = writer_of(Path({str(shard)!r}))
file = os.open(writer._part, os.O_RDWR)
fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
"""
    env = {
        **os.environ,
        "HDF5_USE_FILE_LOCKING": asked,
        "PYTHONPATH": os.pathsep.join((str(ROOT), str(ROOT / "tests"))),
    }
    subprocess.run([sys.executable, "-c", code], env=env, check=True)
