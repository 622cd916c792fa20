"""What setup.cfg asks for can be installed from wheels where decord has none: Linux on ARM and
macOS.
"""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

from tests.support.wheels_elsewhere import MACHINES, reaches_an_index, requirements, resolve


@pytest.mark.parametrize(
    ("machine", "has_decord"), [("linux-x86", True), ("linux-arm", False), ("macos-arm", False)]
)
def test_decord_is_asked_for_only_where_it_has_wheels(machine, has_decord):
    """The newest release, 0.6.0, has them for manylinux2010_x86_64, for Windows, and for Python up
    to 3.8 on Intel's macOS.
    """
    (decord,) = (one for one in map(Requirement, requirements()) if one.name == "decord")
    assert decord.marker.evaluate(MACHINES[machine][0]) == has_decord


def test_every_other_requirement_is_the_same_on_every_machine():
    others = [one for one in map(Requirement, requirements()) if one.name != "decord"]
    for machine in MACHINES:
        assert all(
            one.marker is None or one.marker.evaluate(MACHINES[machine][0]) == one.marker.evaluate()
            for one in others
        )


@pytest.fixture(scope="module")
def index() -> None:
    if not reaches_an_index():
        pytest.skip("no package index can be reached")


@pytest.mark.slow
@pytest.mark.parametrize("machine", MACHINES)
def test_every_requirement_resolves_from_wheels(index, machine):
    done = resolve(machine, requirements())
    assert done.returncode == 0, done.stderr
    assert ("decord-" in done.stdout) == (machine == "linux-x86")


@pytest.mark.slow
def test_a_requirement_without_a_wheel_there_is_noticed(index):
    done = resolve("linux-arm", ["decord"])
    assert done.returncode != 0
    assert "No matching distribution found for decord" in done.stderr


HIDDEN = """
import importlib.metadata, importlib.util
import numpy
for name in ("click", "dask_jobqueue"):
    assert importlib.util.find_spec(name) is None
    try:
        importlib.metadata.version(name.replace("_", "-"))
    except importlib.metadata.PackageNotFoundError as error:
        print(name)
assert importlib.metadata.version("numpy") == numpy.__version__
"""


def test_a_package_that_the_tests_hide_is_as_if_not_installed_in_the_programs_that_they_start():
    env = {
        **os.environ,
        "PYTHONPATH": str(Path(__file__).parent / "support" / "hidden_packages"),
        "VIDGRAPH_TESTS_HIDE": "click, dask_jobqueue",
    }
    done = subprocess.run([sys.executable, "-c", HIDDEN], env=env, capture_output=True, text=True)
    assert (done.stdout.split(), done.stderr) == (["click", "dask_jobqueue"], "")
