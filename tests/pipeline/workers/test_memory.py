"""Freed memory: whether the next allocation finds it again without the kernel."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]

FAULTS = """
import resource, threading
import numpy as np
from pipeline.workers.memory import keep_freed_memory
if {keep}:
    assert keep_freed_memory()

def work():
    for _ in range(12):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
        np.ones(96 << 20, dtype=np.uint8)  # more than one of glibc's extra arenas can hold
        counts.append(resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before)

counts = []
if {threaded}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
print(sorted(counts)[6])
"""


@pytest.mark.skipif(
    platform.libc_ver()[0] != "glibc", reason="only glibc's malloc is told to keep memory"
)
@pytest.mark.parametrize("threaded", [False, True])
def test_memory_that_is_kept_causes_no_page_faults_again(threaded):
    def faults(keep):
        code = FAULTS.format(keep=keep, threaded=threaded)
        told = subprocess.run(
            [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
        )
        return int(told.stdout)

    assert faults(keep=False) > 20
    assert faults(keep=True) < 5


def test_other_c_libraries_are_left_alone(monkeypatch):
    from pipeline.workers import memory

    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("touched the C library"))
    assert memory.keep_freed_memory() is False
