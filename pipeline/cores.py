"""How many cores this process may keep busy: of a machine that it shares, its share."""

import os
from pathlib import Path

CGROUPS = Path("/sys/fs/cgroup")
OWN_CGROUPS = Path("/proc/self/cgroup")  # lines "number:controllers:/path", for version 2 "0::/path"


def cores_here() -> int:
    """The cores that this process may use, at least 1.

    No more than its affinity (taskset, a batch system that confines its jobs), than the time on cores that its control groups
    grant (containers, systemd), and than Slurm gave its job, where it does not confine it.
    """
    affine = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    shares = (affine, _slurms_share(), _cgroups_share())
    return max(1, min(share for share in shares if share is not None))


def _slurms_share() -> int | None:
    """What Slurm says that a task of this job has on this node; None outside of one."""
    for name in ("SLURM_CPUS_PER_TASK", "SLURM_CPUS_ON_NODE"):
        if (given := os.environ.get(name, "")).isdecimal() and int(given):
            return int(given)
    return None


def _cgroups_share() -> int | None:
    """Whole cores' worth of time that the tightest of this process' control groups grants; None without a limit."""
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
        for folder in (group, *group.parents):  # in a container the path may be the host's, of which only the root is there
            grants += _grant(folder, files)
            if folder == root:
                break
    return min(grants, default=None)


def _grant(folder: Path, files: tuple[str, ...]) -> list[int]:
    """[cores] where a control group has a limit: microseconds on cores per period of so many, "max" or -1 for none."""
    try:
        quota, period = " ".join((folder / name).read_text() for name in files).split()
        return [int(quota) // int(period)] if int(quota) > 0 else []
    except (OSError, ValueError):
        return []
