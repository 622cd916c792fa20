"""The cores of a process: by affinity, by control groups of both versions, and by Slurm."""

import ast
from pathlib import Path

import pytest

from pipeline.workers import cores

ROOT = Path(__file__).parents[3]
# They record what machine it was.
RECORDS = {"pipeline/stages/shard_composer.py", "heads/reproduction/report.py"}


@pytest.fixture
def groups(tmp_path, monkeypatch):
    """A machine of 16 cores whose control groups are in the returned folder.

    The file `own` beside it names those of this process.
    """
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: set(range(16)), raising=False)
    monkeypatch.setattr(cores, "CGROUPS", tmp_path / "groups")
    monkeypatch.setattr(cores, "OWN_CGROUPS", tmp_path / "own")
    per_node = ("CPUS_PER_TASK", "CPUS_ON_NODE", "STEP_TASKS_PER_NODE", "NODEID")
    for name in (*per_node, "JOB_ID", "STEP_ID", "PROCID"):
        monkeypatch.delenv(f"SLURM_{name}", raising=False)
    monkeypatch.setattr(cores, "_sharing", 1)
    monkeypatch.setattr(cores, "_apart", False)
    return tmp_path / "groups"


def write(path: Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_without_limits_it_is_the_affinity(groups, monkeypatch):
    assert cores.cores_here() == 16
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 4, 9}, raising=False)
    assert cores.cores_here() == 3


def test_a_system_without_affinities_counts_its_cores(groups, monkeypatch):
    monkeypatch.delattr("os.sched_getaffinity", raising=False)
    monkeypatch.setattr("os.cpu_count", lambda: 5)
    assert cores.cores_here() == 5


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("max 100000", 16),
        ("400000 100000", 4),
        ("250000 100000", 2),
        ("50000 100000", 1),
        ("6400000 100000", 16),
        ("", 16),
    ],
)
def test_a_control_group_grants_whole_cores_and_at_least_one(groups, limit, expected):
    write(groups.parent / "own", "0::/job/step\n")
    write(groups / "job/step/cpu.max", f"{limit}\n")
    assert cores.cores_here() == expected


def test_the_tightest_of_the_groups_above_counts(groups):
    write(groups.parent / "own", "0::/job/step\n")
    write(groups / "job/step/cpu.max", "800000 100000\n")
    write(groups / "job/cpu.max", "300000 100000\n")
    assert cores.cores_here() == 3


def test_in_a_container_the_root_is_its_own(groups):
    write(groups.parent / "own", "0::/../host/path\n")
    write(groups / "cpu.max", "200000 100000\n")
    assert cores.cores_here() == 2


@pytest.mark.parametrize(("quota", "expected"), [("-1", 16), ("500000", 5)])
def test_groups_of_the_first_version_too(groups, quota, expected):
    write(groups.parent / "own", "9:memory:/box\n4:cpu,cpuacct:/box\n0::/\n")
    write(groups / "cpu/box/cpu.cfs_quota_us", f"{quota}\n")
    write(groups / "cpu/box/cpu.cfs_period_us", "100000\n")
    assert cores.cores_here() == expected


def test_slurms_share_counts_where_it_does_not_confine(groups, monkeypatch):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "6")
    assert cores.cores_here() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    assert cores.cores_here() == 2
    for nothing in ("", "0", "²", "2(x3)"):
        monkeypatch.setenv("SLURM_CPUS_PER_TASK", nothing)
        assert cores.cores_here() == 6
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "64")
    assert cores.cores_here() == 16


@pytest.mark.parametrize(
    ("tasks", "node", "expected"),
    [
        ("4", "0", 3),
        ("2(x3),1", "2", 6),
        ("2(x3),1", "3", 12),
        ("2(x3),1", "4", 12),
        ("", "0", 12),
        ("many", "0", 12),
        ("0", "0", 12),
    ],
)
def test_tasks_that_srun_starts_share_what_the_job_has_on_their_node(
    groups, monkeypatch, tasks, node, expected
):
    monkeypatch.setenv("SLURM_CPUS_ON_NODE", "12")
    monkeypatch.setenv("SLURM_STEP_TASKS_PER_NODE", tasks)
    monkeypatch.setenv("SLURM_NODEID", node)
    assert cores.cores_here() == expected


@pytest.mark.parametrize("variable", ["OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"])
def test_threads_of_a_computation_are_not_cores(groups, monkeypatch, variable):
    monkeypatch.setenv(variable, "1")
    assert cores.cores_here() == 16


@pytest.mark.parametrize(("processes", "expected"), [(1, 16), (3, 5), (16, 1), (100, 1), (0, 16)])
def test_processes_that_use_the_same_cores_divide_them(groups, processes, expected):
    cores.share_with(processes)
    assert cores.cores_here() == expected


def test_processes_have_the_same_place_only_where_they_share_cores(groups, monkeypatch):
    write(groups.parent / "own", "0::/job/step\n")
    here = cores.place()
    assert here == cores.place()
    write(groups.parent / "own", "0::/job/other\n")
    assert cores.place() != here
    write(groups.parent / "own", "0::/job/step\n")
    monkeypatch.setenv("SLURM_PROCID", "3")  # tasks of a job that Slurm does not confine
    assert cores.place() != here
    monkeypatch.delenv("SLURM_PROCID")
    monkeypatch.setattr("os.sched_getaffinity", lambda pid: {3, 4, 9}, raising=False)
    assert cores.place() != here


def test_who_starts_processes_or_threads_asks_here():
    asking = set()
    for path in (
        path for room in ("cli", "heads", "pipeline") for path in (ROOT / room).rglob("*.py")
    ):
        names = {
            node.attr
            for node in ast.walk(ast.parse(path.read_text()))
            if isinstance(node, ast.Attribute)
        }
        asking |= (
            {str(path.relative_to(ROOT))}
            if names & {"cpu_count", "sched_getaffinity", "process_cpu_count"}
            else set()
        )
    assert asking - RECORDS == {"pipeline/workers/cores.py"}


def test_processes_with_cores_of_their_own_still_share_what_a_control_group_grants(groups):
    cores.share_with(8, apart=True)
    assert cores.cores_here() == 16  # of this process alone
    write(groups.parent / "own", "0::/box\n")
    write(groups / "box/cpu.max", "4000000 100000\n")
    assert cores.cores_here() == 5


def test_and_what_slurm_gave_their_job(groups, monkeypatch):
    cores.share_with(4, apart=True)
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "24")
    assert cores.cores_here() == 6
