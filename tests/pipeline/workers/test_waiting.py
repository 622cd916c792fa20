"""A run that waits for a claim says for which shard, whose claim it is, and until when."""

import os
import re
import threading
import time
from types import SimpleNamespace

import pytest

from pipeline.cache import creation
from pipeline.cache.creation import create_cache
from pipeline.stages.graphs import build_graphs
from pipeline.workers import claims, engines, waiting
from pipeline.workers.claims import (
    SILENCE,
    ClaimWatch,
    NotAClaim,
    claim_file,
    read_claim,
    sweep_claims,
    take_claim,
)
from pipeline.workers.waiting import PATIENCE, WaitMessages
from tests.pipeline.workers.test_claims import elsewhere
from tests.support.small_cache import make_cache, manifest_of


@pytest.fixture
def clock(monkeypatch):
    """Seconds pass when somebody sleeps."""
    passed = [1000.0]
    fake = SimpleNamespace(
        monotonic=lambda: passed[0],
        sleep=lambda seconds: passed.__setitem__(0, passed[0] + seconds),
        time=lambda: 1e9 + passed[0],
        localtime=time.localtime,
        strftime=time.strftime,
    )
    for module in (engines, waiting, creation):
        monkeypatch.setattr(module, "time", fake)
    # The thread of the heartbeats really sleeps.
    monkeypatch.setattr(claims, "time", SimpleNamespace(monotonic=fake.monotonic, sleep=time.sleep))
    return passed


def test_within_ten_seconds_a_person_knows_the_shard_the_owner_and_the_end(tmp_path, clock):
    path, lines = make_cache(tmp_path), []
    elsewhere(path / "graphs" / "00001.h5", "node7.cluster.org-4711-12-0123456789abcdef")
    begun = clock[0]

    def say(line: str) -> None:
        lines.append((clock[0] - begun, line))

    assert len(build_graphs(path, say=say)) == 3  # taken over in the end
    ((when, line),) = lines
    assert PATIENCE <= when < 10
    assert "shard 00001" in line
    assert f"process {os.getpid()} on node7.cluster.org" in line
    left = int(re.search(r"takes over in (\d+) s, at \d\d:\d\d:\d\d", line)[1])
    assert SILENCE <= when + left < SILENCE + 2
    assert SILENCE < clock[0] - begun < SILENCE + 2


def test_a_new_owner_is_named_and_the_same_one_once(tmp_path, clock):
    shards, lines = [tmp_path / "features" / f"0000{k}.h5" for k in range(3)], []
    (tmp_path / "features").mkdir()
    messages = WaitMessages(ClaimWatch(), lines.append)
    for k in range(100):
        elsewhere(shards[0], "one-1-1-0123456789abcdef", count=k)
        elsewhere(shards[1], "one-1-1-0123456789abcdee", count=k)
        if k == 50:
            elsewhere(shards[2], "two-1-1-0123456789abcdef")
        messages.say_of({path: path.name for path in shards if claim_file(path).exists()})
        clock[0] += 0.5
    assert len(lines) == 2
    assert "00000.h5 and 1 more" in lines[0]
    assert "on one" in lines[0]
    assert "on two" in lines[1]


def test_an_owner_that_is_seen_to_live_is_waited_for_without_an_end(tmp_path, clock):
    path, lines = tmp_path / "features" / "00000.h5", []
    with take_claim(path):
        messages = WaitMessages(ClaimWatch(), lines.append)
        for _ in range(20):
            messages.say_of({path: "shard 0"})
            clock[0] += 1
        # Stopped, or suspended: the owner still exists, and its claim is never taken.
        clock[0] += 1000
        assert take_claim(path, messages.watch) is None
        assert not messages.watch.free(path)
    assert lines == [
        f"waiting for shard 0, claimed by process {os.getpid()} on this machine, which is "
        f"running: until it ends"
    ]


def test_short_waits_are_not_worth_a_line(tmp_path, clock):
    path, lines = tmp_path / "features" / "00000.h5", []
    (tmp_path / "features").mkdir()
    elsewhere(path)
    messages = WaitMessages(ClaimWatch(), lines.append)
    for _ in range(5):
        messages.say_of({path: "shard 0"})
        clock[0] += PATIENCE - 0.1
        messages.over()
    assert lines == []


def test_the_claim_on_a_cache_that_is_being_made_is_waited_for_with_words(tmp_path, clock):
    elsewhere(tmp_path / "cache" / "cache.json")
    lines = []
    create_cache(tmp_path / "cache", {"a": 1}, manifest_of(tmp_path), 3, lines.append)
    (line,) = lines
    assert "cache.json" in line
    assert f"process {os.getpid()} on other" in line


def test_control_characters_in_a_claim_do_not_reach_the_terminal(tmp_path):
    (tmp_path / "features").mkdir()
    elsewhere(tmp_path / "features" / "00000.h5", "x\x1b[2J\n-1-1-00000000")
    assert read_claim(tmp_path / "features" / "00000.h5").owner.isprintable()


def test_a_file_of_others_with_the_name_of_a_claim_is_neither_waited_for_nor_removed(tmp_path):
    path, lines = tmp_path / "features" / "00000.h5", "a recording of mine\n"
    path.parent.mkdir()
    claim_file(path).write_text(lines)
    with pytest.raises(NotAClaim, match="expected no such file, or a claim of vidgraph"):
        take_claim(path)
    watch = ClaimWatch(silence=-1)  # all have been silent for long
    (path.parent / "mine.claim").write_text("not the name of a shard's")
    sweep_claims(path.parent, watch)
    sweep_claims(path.parent, watch)
    assert claim_file(path).read_text() == lines
    assert (path.parent / "mine.claim").exists()


@pytest.mark.parametrize(
    "content",
    [b"[" * 60_000, b'{"claim": "x", "machine": "m", "pid": Infinity, "start": "1"}', b""],
)
def test_a_claim_of_any_content_is_judged_by_its_silence_or_refused(tmp_path, content):
    path = tmp_path / "00000.h5"
    claim_file(path).write_bytes(content)
    try:
        assert take_claim(path) is None
        assert ClaimWatch(silence=-1).free(path)
    except NotAClaim:
        assert content.startswith(b"[")


def test_a_pipe_with_the_name_of_a_claim_keeps_nobody_waiting(tmp_path):
    os.mkfifo(claim_file(tmp_path / "00000.h5"))
    with pytest.raises(NotAClaim):
        take_claim(tmp_path / "00000.h5")


@pytest.mark.parametrize("name", ["../../precious", "*", ""])
def test_what_a_claim_calls_itself_removes_nothing_of_others(tmp_path, name):
    path = tmp_path / "cache" / "features" / "00000.h5"
    path.parent.mkdir(parents=True)
    kept = [
        path.parent / "00000.h5.mine.part",
        tmp_path / "precious.part",
        path.parent / "00000.h5..part",
    ]
    for file in kept:
        file.touch()
    claims._remove_parts_under(path, name)
    assert all(file.exists() for file in kept[:2])


def test_several_who_wait_for_one_claim_share_the_work_in_the_end(tmp_path, monkeypatch):
    path, lines, written = make_cache(tmp_path), [], []
    for shard in range(3):
        elsewhere(path / "graphs" / f"0000{shard}.h5")
    monkeypatch.setattr(
        claims.ClaimWatch,
        "__init__",
        lambda watch, silence=0.5, init=claims.ClaimWatch.__init__: init(watch, silence),
    )
    monkeypatch.setattr(waiting, "PATIENCE", 0.0)
    monkeypatch.setattr(engines, "POLL", 0.01)
    both = [
        threading.Thread(target=lambda: written.extend(build_graphs(path, say=lines.append)))
        for _ in range(2)
    ]
    for thread in both:
        thread.start()
    for thread in both:
        thread.join(300)
    assert sorted(record["shard"] for record in written) == [0, 1, 2]
    assert sum("on other" in line for line in lines) == 2  # each says it once
    assert not list((path / "graphs").glob("*.claim"))
