"""A process that cannot be seen has not ended, and only our own names are part files."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.files import owners
from pipeline.files.owners import (
    is_claim,
    new_claim_name,
    part_files_in,
    part_path,
    process_lives,
    process_start,
    remove_abandoned,
    writer_lives,
)

ROOT = Path(__file__).parents[3]
CLAIM = "from pipeline.files.owners import new_claim_name; print(new_claim_name())"
OF_OTHERS = (
    "lecture.mp4.part",
    "clip9.webm.part",
    "mine.part",
    "a.host-1-2.part",
    "00000.h5.12345.part",
    "x.1-2-3-abcdefgh.part",
)


@pytest.fixture
def living():
    process = subprocess.Popen(["sleep", "600"])
    kill = os.kill  # a test may have replaced it by the end
    yield process.pid
    kill(process.pid, signal.SIGKILL)
    process.wait()


@pytest.fixture(scope="module")
def dead() -> str:
    """The claim of a process that has ended."""
    return subprocess.run(
        [sys.executable, "-c", CLAIM], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.strip()


def hide(monkeypatch, denied: bool) -> None:
    """Hide other processes, as /proc does for other users with hidepid=2.

    denied: whether the kernel refuses signals to them, too.
    """
    look_up = owners._state_and_start

    def own_only(pid: int) -> tuple[str, str] | None:
        return look_up(pid) if pid == os.getpid() else None

    monkeypatch.setattr(owners, "_state_and_start", own_only)
    kill = os.kill

    def refuse(pid: int, number: int) -> None:
        kill(pid, number)  # ProcessLookupError where there is none, hidden or not
        raise PermissionError(1, "Operation not permitted")

    if denied:
        monkeypatch.setattr(os, "kill", refuse)


def test_a_process_lives_until_it_has_ended_and_its_number_alone_does_not_name_it(living):
    assert process_lives(living, process_start(living)) is True
    assert process_lives(living, "1") is False  # the number is another's by now
    assert process_lives(living, "") is None
    ended = subprocess.Popen(["true"])
    start = process_start(ended.pid)
    ended.wait()
    assert process_lives(ended.pid, start) is False


def test_a_zombie_has_ended():
    process = subprocess.Popen(["true"])
    start = process_start(process.pid)
    os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
    assert process_lives(process.pid, start) is False
    process.wait()


@pytest.mark.parametrize("denied", [True, False])
def test_a_process_that_cannot_be_seen_may_live(living, monkeypatch, denied):
    start = process_start(living)
    hide(monkeypatch, denied)
    assert process_lives(living, start) is None
    assert process_lives(os.getpid(), process_start(os.getpid())) is True


def test_a_process_that_nobody_can_signal_has_ended_though_processes_are_hidden(monkeypatch):
    ended = subprocess.Popen(["true"])
    start = process_start(ended.pid)
    ended.wait()
    hide(monkeypatch, denied=True)
    assert process_lives(ended.pid, start) is False


@pytest.mark.parametrize("pid", [0, -1, 1 << 40])
def test_a_number_that_no_process_has_is_never_signalled(pid):
    assert process_lives(pid, "1") is False


def test_proc_of_another_table_of_processes_tells_nothing(living, monkeypatch):
    """unshare --pid without --mount-proc: /proc/self is another process there, or none."""
    start, readlink = process_start(living), os.readlink
    monkeypatch.setattr(
        os, "readlink", lambda path: "4711" if path == "/proc/self" else readlink(path)
    )
    assert process_start(living) == ""
    assert process_lives(living, start) is None


@pytest.mark.parametrize(
    "where", ["", "another boot pid:[4026531836]", "the same boot pid:[4026532999]"]
)
def test_of_another_machine_or_table_of_processes_nothing_is_known(dead, monkeypatch, where):
    part = Path(f"00000.h5.{dead}.part")
    assert writer_lives(part) is False
    monkeypatch.setattr(owners, "machine_id", lambda: where)
    assert writer_lives(part) is None


def test_the_time_namespace_is_part_of_the_machine():
    """Starts in /proc are told by the reader's clock."""
    for name in ("pid", "time"):
        if os.path.exists(f"/proc/self/ns/{name}"):
            assert os.readlink(f"/proc/self/ns/{name}") in owners.machine_id()


def test_only_names_that_ours_make_are_part_files_and_only_those_of_the_dead_go(dead, tmp_path):
    for name in OF_OTHERS:
        (tmp_path / name).touch()
    other = "node7.cluster.org-1-2-0123456789abcdef"
    mine = part_path(tmp_path / "run.json", new_claim_name())
    theirs = part_path(tmp_path / "run.json", other)
    names = ("last.pt", "00000.h5", "my.clips.csv", "a [b].json")
    left = [part_path(tmp_path / name, dead) for name in names]
    for path in (mine, theirs, *left):
        path.touch()
    assert {part.path for part in part_files_in(tmp_path)} == {mine, theirs, *left}
    assert [part.becomes for part in part_files_in(tmp_path, r"\d{5}\.h5")] == ["00000.h5"]
    of_run = part_files_in(tmp_path, r"run\.json")
    assert [part.claim for part in of_run if part.path == theirs] == [other]
    remove_abandoned(tmp_path)
    assert {path.name for path in tmp_path.iterdir()} == {*OF_OTHERS, mine.name, theirs.name}


def test_a_hosts_name_of_any_kind_makes_a_claim(monkeypatch):
    for host in ("node-7.cluster.org", "x" * 64, "ein/zwei drei", ""):
        monkeypatch.setattr("socket.gethostname", lambda host=host: host)
        claim = new_claim_name()
        assert is_claim(claim)
        assert "/" not in claim
        assert writer_lives(Path(f"run.json.{claim}.part")) is True
