"""Which GPUs --gpus names, and which cores are near each."""

import os
import subprocess
import sys

import pytest

from pipeline.workers import gpus
from pipeline.workers.gpus import chosen_gpus, near_cores, parse_cores, visible_gpus

# A node of two memory nodes with two GPUs each: cores 0-3 and 4-7, whose second threads are 8-15.
LISTED = "".join(
    f"GPU-{k}, 00000000:{bus}:00.0\n" for k, bus in enumerate(("3B", "5E", "AF", "D8"))
)
NEAR = {"3b": "0-3,8-11", "5e": "0-3,8-11", "af": "4-7,12-15", "d8": "4-7,12-15"}


@pytest.fixture
def node(tmp_path, monkeypatch):
    """A pretended machine with an nvidia-smi and the files of its kernel."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(gpus, "PCI", tmp_path / "pci")
    monkeypatch.setattr(gpus, "CPUS", tmp_path / "cpus")
    for bus, cores in NEAR.items():
        folder = tmp_path / "pci" / f"0000:{bus}:00.0"
        folder.mkdir(parents=True)
        (folder / "local_cpulist").write_text(cores + "\n")
    for core in range(16):
        folder = tmp_path / "cpus" / f"cpu{core}" / "topology"
        folder.mkdir(parents=True)
        (folder / "thread_siblings_list").write_text(f"{core % 8},{core % 8 + 8}\n")
    program = tmp_path / "bin" / "nvidia-smi"
    program.parent.mkdir()
    program.write_text(f"#!/bin/sh\ncat <<'END'\n{LISTED}END\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{program.parent}{os.pathsep}{os.environ['PATH']}")
    return tmp_path


def test_all_and_numbers_name_gpus(node, monkeypatch):
    assert chosen_gpus("all") == ["GPU-0", "GPU-1", "GPU-2", "GPU-3"]
    assert chosen_gpus("3,0") == ["GPU-3", "GPU-0"]
    # Numbers count among the visible ones, as they do for CUDA.
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "GPU-2, GPU-1")
    assert chosen_gpus("0") == ["GPU-2"]


@pytest.mark.parametrize("wrong", ["4", "0,0", "a", "", "-1"])
def test_gpus_that_are_not_there_are_refused(node, wrong):
    with pytest.raises(ValueError, match="--gpus: expected"):
        chosen_gpus(wrong)


@pytest.mark.parametrize("named", ["", "-1", "NoDevFiles", "none"])
def test_a_machine_without_gpus_says_so(monkeypatch, named):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == []
    with pytest.raises(ValueError, match="found none"):
        chosen_gpus("all")


@pytest.mark.parametrize(
    ("named", "seen"),
    [
        ("0,2", ["0", "2"]),
        ("1, -1, 2", ["1"]),
        ("GPU-8a,MIG-b,,3", ["GPU-8a", "MIG-b"]),
    ],
)
def test_the_first_name_that_is_no_gpu_ends_the_list_as_for_cuda(monkeypatch, named, seen):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
    assert visible_gpus() == seen


def test_each_gpu_gets_whole_cores_of_its_memory_node_and_no_core_twice(node):
    shares = near_cores(chosen_gpus("all"), range(16))
    assert shares == [[0, 8, 1, 9], [2, 10, 3, 11], [4, 12, 5, 13], [6, 14, 7, 15]]
    assert near_cores(["GPU-3"], range(16)) == [[4, 12, 5, 13, 6, 14, 7, 15]]


def test_numbers_as_slurm_sets_them_find_the_near_cores_too(node, monkeypatch):
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,1")
    shares = near_cores(chosen_gpus("all"), range(16))
    assert shares == [[4, 12, 5, 13, 6, 14, 7, 15], [0, 8, 1, 9, 2, 10, 3, 11]]


@pytest.mark.parametrize("name", ["4", "GPU-", "MIG-0"])
def test_a_name_that_is_no_gpu_of_this_machine_has_no_near_cores(node, name):
    assert near_cores([name, "GPU-0"], [0, 1, 2, 3, 4, 5]) == [[0, 1, 2], [3, 4, 5]]


def test_only_cores_that_the_process_may_use_are_given(node):
    assert near_cores(["GPU-0", "GPU-2"], [1, 2, 4]) == [[1, 2], [4]]


def test_where_nothing_tells_what_is_near_cores_are_shared_equally(node):
    (node / "pci" / "0000:5e:00.0" / "local_cpulist").unlink()
    assert near_cores(["GPU-0", "GPU-1"], [0, 1, 2, 3]) == [[0, 1], [2, 3]]
    assert near_cores(["0", "1"], [5, 6, 7]) == [[5], [6, 7]]


def test_no_near_core_at_all_gives_an_equal_share(node):
    assert near_cores(["GPU-0", "GPU-2"], [8, 9, 10, 11]) == [[8, 9], [10, 11]]


def test_lists_of_cores_are_read_as_the_kernel_writes_them():
    assert parse_cores("0-2,5,7-8\n") == [0, 1, 2, 5, 7, 8]
    assert parse_cores("\n") == []


@pytest.mark.skipif(not hasattr(os, "sched_setaffinity"), reason="no affinity on this system")
def test_all_threads_and_children_stay_on_the_cores_that_they_are_given():
    code = (
        "import os, subprocess, sys, threading\n"
        "from pipeline.workers.gpus import stay_on\n"
        "first = min(os.sched_getaffinity(0))\n"
        "done, seen = threading.Event(), []\n"
        "def look():\n"
        "    done.wait()\n"
        "    seen.append(os.sched_getaffinity(0))\n"
        "thread = threading.Thread(target=look)\n"
        "thread.start()\n"
        "stay_on([first])\n"
        "done.set(); thread.join()\n"
        "child = 'import os; print(os.sched_getaffinity(0))'\n"
        "said = subprocess.run([sys.executable, '-c', child], capture_output=True, text=True)\n"
        "assert seen == [{first}] and said.stdout.strip() == str({first}), (seen, said)\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
