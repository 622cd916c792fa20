"""Ctrl-C and SIGTERM: a word on how to go on, exit code 130, within seconds whatever the process is doing."""

import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from cli._interrupt import stoppable

ROOT = Path(__file__).parent.parent
SCRIPT = """
import ctypes, sys, time
from pathlib import Path
from cli import _interrupt
from pipeline.claims import take
from pipeline.sealed import part_of
_interrupt.GRACE = {grace}
claim = take(Path(sys.argv[1]))
part_of(claim.path, claim.name).write_text("half")
try:
    with _interrupt.stoppable("go on so"):
        print("ready", flush=True)
        {busy}
except KeyboardInterrupt:
    sys.exit(130)
"""
BUSY = {
    "between two instructions": "time.sleep(600)",
    "in native code": "mutex = bytes(64); [ctypes.CDLL(None).pthread_mutex_lock(mutex) for _ in range(2)]",
    "in a lock that is never free": "import threading; lock = threading.Lock(); lock.acquire(); lock.acquire()",
}


@pytest.fixture
def busy(tmp_path):
    processes = []

    def start(doing: str, grace: float = 0.3) -> subprocess.Popen:
        code = SCRIPT.format(grace=grace, busy=doing)
        command = [sys.executable, "-c", code, tmp_path / "00000.h5"]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT))
        assert processes[-1].stdout.readline() == "ready\n"
        time.sleep(0.3)  # until it is busy
        return processes[-1]

    yield start
    for process in processes:
        process.kill()
        process.wait()


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("doing", BUSY)
def test_a_signal_ends_it_with_130_and_says_how_to_resume(busy, doing, sent):
    process = busy(BUSY[doing])
    process.send_signal(sent)
    _, said = process.communicate(timeout=10)
    assert process.returncode == 130
    assert "go on so" in said
    assert "Traceback" not in said


def test_one_that_has_to_be_ended_leaves_neither_claim_nor_part(busy, tmp_path):
    busy(BUSY["in native code"]).send_signal(signal.SIGTERM)
    end = time.monotonic() + 10
    while list(tmp_path.iterdir()):
        assert time.monotonic() < end, list(tmp_path.iterdir())
        time.sleep(0.02)


def test_the_second_ctrl_c_ends_it_at_once(busy):
    process = busy(BUSY["in native code"], grace=600)
    process.send_signal(signal.SIGINT)
    time.sleep(0.1)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=10)
    assert process.returncode == 130


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable("go on so"), stoppable("inner"):
        signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
