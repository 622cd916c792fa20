"""Ctrl-C and SIGTERM: a word on how to go on, exit code 130, whatever the process is doing.

That it ends within 10 seconds depends on the machine: the slow tests of faults
(tests/support/fault_lab.py, SOON) hold real runs to it.
"""

import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import h5py
import numpy as np
import pytest

from cli._shared import interrupt
from cli._shared.interrupt import stoppable
from pipeline.cache.part_file import PartFile
from pipeline.workers import claims

ROOT = Path(__file__).parents[2]
# seconds: a limit that no working machine reaches, so that a process which does not end is a
# failure
NET = 300.0
SCRIPT = """
import ctypes, sys, threading, time
from pathlib import Path
from cli._shared import interrupt
from pipeline.workers.claims import take_claim
from pipeline.files.owners import part_path
interrupt.GRACE, interrupt.PARTING = {grace}, {net}
claim = take_claim(Path(sys.argv[1]))
part_path(claim.path, claim.name).write_text("half")

def native():
    # Waiting frees the mutex: whoever has it afterwards knows that this thread is inside,
    # where Python hears of no signal.
    libc, mutex, condition = ctypes.CDLL(None), bytes(64), bytes(64)
    def tell():
        libc.pthread_mutex_lock(mutex)
        print("busy", flush=True)
    libc.pthread_mutex_lock(mutex)
    threading.Thread(target=tell, daemon=True).start()
    libc.pthread_cond_wait(condition, mutex)

try:
    with interrupt.stoppable("go on so"):
        {busy}
except KeyboardInterrupt:
    sys.exit(130)
"""
BUSY = {
    "between two instructions": "print('busy', flush=True); time.sleep(600)",
    "in native code": "native()",
    "in a lock that is never "
    "free": "lock = threading.Lock(); lock.acquire(); print('busy', flush=True); lock.acquire()",
}


@pytest.fixture(autouse=True)
def patience(monkeypatch):
    """What is stopped in this process would end it, and all tests with it, where a machine takes
    longer than GRACE.
    """
    monkeypatch.setattr(interrupt, "GRACE", NET)


@pytest.fixture
def busy(tmp_path):
    processes = []

    def start(doing: str, grace: float = 0.3) -> subprocess.Popen:
        code = SCRIPT.format(grace=grace, net=NET, busy=doing)
        command = [sys.executable, "-c", code, tmp_path / "00000.h5"]
        processes.append(
            subprocess.Popen(
                command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT
            )
        )
        assert processes[-1].stdout.readline() == "busy\n"
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
    _, said = process.communicate(timeout=NET)
    assert process.returncode == 130
    assert "go on so" in said
    assert "Traceback" not in said


def test_one_that_has_to_be_ended_leaves_neither_claim_nor_part(busy, tmp_path):
    process = busy(BUSY["in native code"])
    assert len(list(tmp_path.iterdir())) == 2
    process.send_signal(signal.SIGTERM)
    process.communicate(timeout=NET)
    assert not list(tmp_path.iterdir())


def test_the_second_ctrl_c_ends_it_at_once(busy):
    process = busy(BUSY["in native code"], grace=2 * NET)
    end = time.monotonic() + NET
    while process.poll() is None:  # two that are sent before the first one has arrived are one
        assert time.monotonic() < end
        process.send_signal(signal.SIGINT)
        time.sleep(0.1)
    assert process.returncode == 130


OTHER = """
import signal, time
from cli._shared import interrupt
interrupt.GRACE = 0
signal.signal(signal.SIGCHLD, lambda *given: None)
with interrupt.stoppable("go on so"):
    for _ in range(2):
        signal.raise_signal(signal.SIGCHLD)
        time.sleep(0.3)
print("alive")
"""


def test_the_end_of_a_child_is_no_reason_to_end():
    """Where a library listens for it, as torch's DataLoader does."""
    done = subprocess.run([sys.executable, "-c", OTHER], cwd=ROOT, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "alive\n", "")


def test_afterwards_signals_do_what_they_did_before():
    before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt), stoppable("go on so"), stoppable("inner"):
        signal.raise_signal(signal.SIGTERM)
    assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_that_comes_while_hdf5_calls_us_is_put_off_and_counts_once(
    tmp_path, monkeypatch, capsys, sent
):
    """It would be lost in HDF5, or leave half a file. Were it taken for a second one as it comes
    again, we would be ended.
    """
    out, write, struck = PartFile(tmp_path / "file.part"), os.pwrite, []

    def slow(*args) -> int:
        if not struck:
            struck.append(signal.raise_signal(sent))
            time.sleep(20 * interrupt.LATER)  # it comes again, and is put off again
        return write(*args)

    def work() -> None:
        with h5py.File(out, "w") as file:
            file.create_dataset("there", data=np.arange(1000), chunks=(1000,))
            monkeypatch.setattr(os, "pwrite", slow)
            file.flush()
        while True:
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), stoppable("go on so"):
        work()
    out.close()
    assert struck
    assert "go on so" in capsys.readouterr().err
    with h5py.File(tmp_path / "file.part") as file:
        assert np.array_equal(file["there"], np.arange(1000))


@pytest.mark.parametrize("step", ["publish", "new_claim_name"])
def test_a_signal_while_a_claim_is_made_leaves_none(tmp_path, monkeypatch, step):
    done = getattr(claims, step)

    def struck(*args):
        result = done(*args)
        signal.raise_signal(signal.SIGINT)
        return result

    def work() -> None:
        monkeypatch.setattr(claims, step, struck)
        claims.take_claim(tmp_path / "00000.h5")  # which nobody holds by a with
        while True:
            time.sleep(0.01)

    with pytest.raises(KeyboardInterrupt), stoppable("go on so"):
        work()
    assert not list(tmp_path.iterdir())


def test_a_signal_that_was_put_off_until_all_was_done_is_forgotten(tmp_path, monkeypatch):
    monkeypatch.setattr(interrupt, "LATER", 3600.0)
    monkeypatch.setattr(
        os,
        "pwrite",
        lambda *args, write=os.pwrite: signal.raise_signal(signal.SIGTERM) or write(*args),
    )
    with stoppable("go on so"):
        out = PartFile(tmp_path / "file.part")
        out.write(memoryview(b"all of it"))
        out.close()
    assert not [one for one in threading.enumerate() if getattr(one, "function", None) is os.kill]
