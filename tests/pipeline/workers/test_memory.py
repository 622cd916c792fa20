"""Freed memory: whether the next allocation finds it again without the kernel."""

import platform
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.workers import cores, memory

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
    monkeypatch.setattr(memory.platform, "libc_ver", lambda: ("musl", "1.2"))
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda name: pytest.fail("touched the C library"))
    assert memory.keep_freed_memory() is False


GIB = 1 << 30
# version -> files with the limit and the use, and the line of the memory that files take.
FILES = {
    2: ("memory.max", "memory.current", "active_file"),
    1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_active_file"),
}


@pytest.fixture
def machine(tmp_path, monkeypatch):
    """Make a machine with 64 GiB free: called with the text of /proc/self/cgroup.

    It returns the folder of the control groups.
    """
    meminfo = tmp_path / "meminfo"
    meminfo.write_text(f"MemTotal: 999999999 kB\nMemAvailable: {64 * GIB >> 10} kB\n")
    monkeypatch.setattr(memory, "MEMINFO", meminfo)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")

    def make(own: str) -> Path:
        (tmp_path / "own").write_text(own)
        return tmp_path / "groups"

    return make


def fill(group: Path, version: int, limit: object, used: int, files: int = 0) -> None:
    group.mkdir(parents=True, exist_ok=True)
    limit_file, used_file, kind = FILES[version]
    (group / limit_file).write_text(f"{limit}\n")
    (group / used_file).write_text(f"{used}\n")
    other = kind.replace("active", "inactive")
    (group / "memory.stat").write_text(
        f"anon 5\n{kind} {files - files // 3}\n{other} {files // 3}\n"
    )


def test_without_a_limit_all_that_the_machine_has_is_free(machine):
    fill(machine("0::/job\n") / "job", 2, "max", 7 * GIB)
    assert memory.free_memory() == 64 * GIB


@pytest.mark.parametrize(
    ("own", "version", "folder"),
    [
        ("0::/slurm/job_1/step_0\n", 2, "slurm/job_1"),
        ("0::/\n", 2, ""),
        ("5:cpu:/x\n4:memory:/job/1\n0::/\n", 1, "memory/job/1"),
    ],
)
def test_a_control_group_bounds_it_and_files_in_memory_count_as_free(machine, own, version, folder):
    fill(machine(own) / folder, version, 16 * GIB, used=15 * GIB, files=12 * GIB)
    assert memory.free_memory() == 13 * GIB


def test_the_tightest_control_group_counts_and_none_leaves_less_than_nothing(machine):
    groups = machine("0::/job/step\n")
    fill(groups / "job", 2, 9 * GIB, used=2 * GIB)
    fill(groups / "job/step", 2, "max", used=2 * GIB)
    assert memory.free_memory() == 7 * GIB
    fill(groups / "job", 2, GIB, used=2 * GIB)
    assert memory.free_memory() == 0
