"""How many cores this process may keep busy: its share of a machine that it shares with others.

OMP_NUM_THREADS does not count here: it says how many threads one computation takes. Dask's nannies
set it to 1 in every worker, torchrun in every process, and many people in their shell.
"""

import os
import re
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path(
    "/proc/self/cgroup"
)  # lines "number:controllers:/path", for version 2 "0::/path"

_sharing = 1  # processes of ours that use the cores that this one may use, itself among them


def cores_here() -> int:
    """The cores that this process may use, at least 1.

    No more than its affinity (taskset, a batch system that confines its jobs), than the time on
    cores that its control groups grant (containers, systemd), and than Slurm gave its job, where it
    does not confine it; divided by the processes that `share_with` says.
    """
    shares = (len(_affinity()), _slurms_share(), _cgroups_share())
    return max(1, min(share for share in shares if share is not None) // _sharing)


def share_with(processes: int) -> None:
    """From now on `cores_here` divides the cores by so many processes, this one included."""
    global _sharing
    _sharing = max(1, processes)


def place() -> tuple[str, ...]:
    """Identifies the cores of this process: affinity, control groups, Slurm's task. Processes with
    equal values share cores.
    """
    try:
        groups = OWN_CGROUPS.read_text() + os.readlink(
            "/proc/self/ns/cgroup"
        )  # a container calls its own group "/"
    except OSError:
        groups = ""
    task = [os.environ.get(f"SLURM_{name}", "") for name in ("JOB_ID", "STEP_ID", "PROCID")]
    return (repr(_affinity()), groups, *task)


def _affinity() -> list[int]:
    """The numbers of the cores that the system lets this process run on."""
    return (
        sorted(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else list(range(os.cpu_count() or 1))
    )


def _slurms_share() -> int | None:
    """What Slurm says that a task of this job has on this node; None outside of one."""
    if given := _number("SLURM_CPUS_PER_TASK"):
        return given
    if given := _number("SLURM_CPUS_ON_NODE"):
        return max(1, given // _slurms_tasks())
    return None


def _slurms_tasks() -> int:
    """How many tasks srun started on this node; 1 in the script of a job."""
    counts: list[int] = []
    for piece in os.environ.get("SLURM_STEP_TASKS_PER_NODE", "").split(
        ","
    ):  # "4(x2),1": four on two nodes, then one
        if match := re.fullmatch(r"([0-9]+)(?:\(x([0-9]+)\))?", piece):
            counts += [int(match[1])] * min(int(match[2] or 1), 1_000_000 - len(counts))
    node = os.environ.get("SLURM_NODEID", "")
    return max(1, counts[int(node)]) if node.isdecimal() and int(node) < len(counts) else 1


def _number(name: str) -> int:
    """A whole number of the environment, 0 where there is none."""
    given = os.environ.get(name, "")
    return int(given) if given.isdecimal() else 0


def _cgroups_share() -> int | None:
    """Whole cores' worth of time that the tightest of this process' control groups grants; None
    without a limit.
    """
    grants = []
    try:
        lines = OWN_CGROUPS.read_text().splitlines()
    except OSError:
        return None
    for line in lines:
        number, controllers, path = line.split(":", 2)
        if number == "0":
            root, files = CGROUPS, ("cpu.max",)
        elif "cpu" in controllers.split(","):
            root, files = CGROUPS / "cpu", ("cpu.cfs_quota_us", "cpu.cfs_period_us")
        else:
            continue
        group = root / path.lstrip("/")
        for folder in (
            group,
            *group.parents,
        ):  # in a container the path may be the host's, of which only the root is there
            grants += _grant(folder, files)
            if folder == root:
                break
    return min(grants, default=None)


def _grant(folder: Path, files: tuple[str, ...]) -> list[int]:
    """[cores] where a control group has a limit: microseconds on cores per period of so many, "max"
    or -1 for none.
    """
    try:
        quota, period = " ".join((folder / name).read_text() for name in files).split()
        return [int(quota) // int(period)] if int(quota) > 0 else []
    except (OSError, ValueError):
        return []
