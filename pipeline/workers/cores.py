"""How many cores this process may keep busy: its part of a machine that it shares with others.

OMP_NUM_THREADS does not count here: it says how many threads one computation uses. Dask's nannies
set it to 1 in every worker, torchrun in every process, and many people in their shell.
"""

import os
import re
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
# Lines "number:controllers:/path"; for cgroups of version 2 "0::/path".
OWN_CGROUPS = Path("/proc/self/cgroup")

_sharing = 1  # our processes that use the same cores as this one, this one included
_apart = False  # whether the affinity of each of them has cores of its own
_MAX_TASKS = 1_000_000  # of one node, as far as they are listed


def cores_here() -> int:
    """Return the number of cores that this process may use, at least 1.

    It is the least of three limits, divided by the number of processes given to `share_with`:
    the process's affinity (taskset, a batch system that confines its jobs); the time that its
    control groups grant (containers, systemd); and what Slurm gave its job.
    """
    limits = [len(allowed_cores()) // (1 if _apart else _sharing)]
    for limit in (_slurm_limit(), _cgroup_limit()):
        if limit is not None:
            limits.append(limit // _sharing)
    return max(1, min(limits))


def share_with(processes: int, apart: bool = False) -> None:
    """Divide the cores of `cores_here` from now on by this many processes, this one included.

    Args:
        processes: how many there are.
        apart: whether the affinity of each of them has cores of its own already. What control
            groups and Slurm grant is for all of them together in any case.
    """
    global _sharing, _apart
    _sharing, _apart = max(1, processes), apart


def place() -> tuple[str, ...]:
    """Identify the cores of this process; processes with equal values share them.

    Returns:
        The affinity, the control groups, and Slurm's job, step and task.
    """
    try:
        # A container calls its own group "/": only the namespace tells containers apart.
        groups = OWN_CGROUPS.read_text() + os.readlink("/proc/self/ns/cgroup")
    except OSError:
        groups = ""
    task = [os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "PROCID")]
    return (repr(allowed_cores()), groups, *task)


def allowed_cores() -> list[int]:
    """Return the numbers of the cores that the system lets this process run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def _slurm_limit() -> int | None:
    """The cores that Slurm gives each task of this job on this node; None outside a job."""
    per_task = _environment_number("SLURM_CPUS_PER_TASK")
    if per_task:
        return per_task
    on_node = _environment_number("SLURM_CPUS_ON_NODE")
    if on_node:
        return max(1, on_node // _slurm_tasks())
    return None


def _slurm_tasks() -> int:
    """How many tasks srun started on this node; 1 in the script of a job."""
    # "4(x2),1" means four tasks on each of two nodes, then one task on a third.
    counts: list[int] = []
    for piece in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(","):
        match = re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", piece)
        if match:
            nodes = min(int(match[2] or 1), _MAX_TASKS - len(counts))
            counts += [int(match[1])] * nodes

    node = os.environ.get("SLURM_NODEID", "")
    if not node.isdecimal() or int(node) >= len(counts):
        return 1
    return max(1, counts[int(node)])


def _environment_number(name: str) -> int:
    """A whole number from the environment, 0 if there is none."""
    value = os.environ.get(name, "")
    return int(value) if value.isdecimal() else 0


def _cgroup_limit() -> int | None:
    """The whole cores that the tightest of this process's control groups grants; None if none does.

    A group grants microseconds of core time per period of so many microseconds.
    """
    limits: list[int] = []
    for folder, version in own_groups("cpu"):
        files = ("cpu.max",) if version == 2 else ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        limits += _limit_of_group(folder, files)
    return min(limits, default=None)


def own_groups(controller: str) -> list[tuple[Path, int]]:
    """Return the control groups of this process, and those above them.

    Args:
        controller: what they limit, such as "cpu".

    Returns:
        (folder, version of its files, 1 or 2) of each; some may not exist.
    """
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return []

    found: list[tuple[Path, int]] = []
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, version = CGROUPS, 2
        elif controller in controllers.split(","):
            root, version = CGROUPS / controller, 1
        else:
            continue

        # In a container the path may be the host's, of which only the root exists here.
        group = root / path.lstrip("/")
        for folder in (group, *group.parents):
            found.append((folder, version))
            if folder == root:
                break
    return found


def _limit_of_group(folder: Path, files: tuple[str, ...]) -> list[int]:
    """[cores] of one control group; empty without a limit (its quota is "max" or -1)."""
    try:
        quota, period = " ".join((folder / name).read_text() for name in files).split()
        return [int(quota) // int(period)] if int(quota) > 0 else []
    except (OSError, ValueError):
        return []
