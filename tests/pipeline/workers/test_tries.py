"""Processes that end in the middle of a shard leave a note, which the next owner reads."""

import pytest

from pipeline.files.atomic_files import done_marker
from pipeline.workers import claims
from pipeline.workers.claims import COUNTER_DIGITS, ClaimWatch, claim_file, take_claim
from pipeline.workers.tries import describe_tries, forget_tries, note_try, tries_file


@pytest.fixture
def shard(tmp_path):
    (tmp_path / "features").mkdir()
    return tmp_path / "features" / "00003.h5"


def test_a_shard_says_so_once_many_processes_have_ended_in_it(shard):
    for seconds in (3580.4, 3575.0):
        note_try(shard, seconds)
        assert describe_tries(shard) == ""
    note_try(shard, 3590.0)
    line = describe_tries(shard)
    assert line.startswith("shard 00003: 3 processes ended before it was complete")
    assert "3,580, 3,575, 3,590 s" in line
    forget_tries(shard)
    assert describe_tries(shard) == ""


def test_a_person_who_stops_a_run_leaves_no_note(shard):
    note_try(shard, 59.0)
    assert not tries_file(shard).exists()


def test_a_complete_shard_gets_no_note(shard):
    done_marker(shard).write_text("{}")
    note_try(shard, 1000.0)
    assert not tries_file(shard).exists()


def test_a_claim_that_is_given_up_late_leaves_a_note(shard, monkeypatch):
    now = [0.0]
    monkeypatch.setattr(claims.time, "monotonic", lambda: now[0])
    claim = take_claim(shard)
    now[0] = 700.0
    claim.abandon()
    assert tries_file(shard).read_text() == "700\n"


def test_a_claim_that_is_taken_over_leaves_a_note_of_its_heartbeats(shard, monkeypatch):
    claim = take_claim(shard)
    for _ in range(20):
        claim.beat()
    text = claim_file(shard).read_bytes()
    assert text.endswith(str(20).zfill(COUNTER_DIGITS).encode())
    monkeypatch.setattr(claims, "process_lives", lambda pid, start: False)
    assert ClaimWatch().free(shard)
    assert tries_file(shard).read_text() == "100\n"


def test_a_note_of_another_program_is_harmless(shard):
    tries_file(shard).write_bytes(b"\xff\x00 nonsense 9999999999999999999999 1 2 3 4")
    assert "5 processes" in describe_tries(shard)
