"""The suite itself: a test that kills its process has failed, and nothing else is lost."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("xdist")
HERE = Path(__file__).parent
CONFTEST = f"""
import sys
sys.path.insert(0, {str(HERE.parent)!r})
from tests.support.crashes import pytest_xdist_make_scheduler
"""
DIES = """
import os
def test_{k}a(): pass
def test_{k}dies(): os.abort()
def test_{k}b(): pass
def test_{k}c(): pass
"""


@pytest.mark.parametrize("processes", [1, 2])
def test_tests_that_kill_their_process_are_named_and_all_others_run(tmp_path, processes):
    """Two of them at the same time, which ends xdist's own scheduler in an internal error; in one
    process it waits for ever.
    """
    (tmp_path / "conftest.py").write_text(CONFTEST)
    for k in range(2):
        (tmp_path / f"test_{k}.py").write_text(DIES.format(k=k))
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-q",
        "-rA",
        "-p",
        "no:cacheprovider",
        "--dist",
        "loadfile",
    ]
    command += [
        "-n",
        str(processes),
        "--max-worker-restart",
        "20",
        "--rootdir",
        str(tmp_path),
        str(tmp_path),
    ]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1, done.stdout + done.stderr
    assert "INTERNALERROR" not in done.stdout + done.stderr
    assert "2 failed, 6 passed" in done.stdout
    for k in range(2):
        assert f"crashed while running 'test_{k}.py::test_{k}dies'" in done.stdout
        for name in "abc":
            assert f"PASSED test_{k}.py::test_{k}{name}" in done.stdout


def test_make_test_hands_out_tests_that_way():
    rule = next(
        line
        for line in (HERE.parent / "Makefile").read_text().splitlines()
        if line.startswith("PYTEST :=")
    )
    assert "--dist loadfile --max-worker-restart" in rule
    assert "crashes import pytest_xdist_make_scheduler" in (HERE / "conftest.py").read_text()
