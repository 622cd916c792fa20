"""The memory of this process: how much it may still take, and how it keeps what it has freed."""

import ctypes
import os
import platform
from contextlib import suppress
from pathlib import Path

from pipeline.workers.cores import own_groups

MEMINFO = Path("/proc/meminfo")

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Make malloc reuse large freed blocks instead of returning them to the system.

    A forward pass on a CPU allocates and frees maps of up to a hundred megabytes each. By default
    glibc maps each one afresh and unmaps it afterwards. The kernel then zeroes every page again on
    its first touch: 100,000 page faults per clip of 32×224² in `i3d_r50`. They take a seventh of
    the time in bf16 on one core, and more on several, because they run one after another.

    Afterwards memory comes from a heap that never shrinks. The peak is the same, but it is kept
    until the process ends. All threads share one arena, because only that one can grow beyond
    64 MiB.

    Call it at the start of a process that runs a backbone on a CPU, before it starts threads.
    glibc's environment variables do the same, but nobody sets them.

    Returns:
        Whether it was done; False where the C library is not glibc.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    # Every setting is tried, also after one has failed.
    done = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(done)


def free_memory() -> int:
    """Return the bytes that this process may still take.

    That is what the machine has free, or less if one of the process's control groups (a container,
    a job of Slurm) allows less. What files take of it counts as free: the system gives it up.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    # Systems without these files do without.
    with suppress(OSError, ValueError):
        for line in MEMINFO.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                free = int(line.split()[1]) * 1024
    for folder, version in own_groups("memory"):
        with suppress(OSError, ValueError):
            free = min(free, _left_in_group(folder, version))
    return max(0, free)


def _left_in_group(folder: Path, version: int) -> int:
    """The bytes that a control group still grants. ValueError without a limit ("max")."""
    files = ("memory.max", "memory.current")
    kinds = ("inactive_file", "active_file")
    if version == 1:
        files = ("memory.limit_in_bytes", "memory.usage_in_bytes")
        kinds = ("total_inactive_file", "total_active_file")
    limit, used = (int((folder / name).read_text()) for name in files)
    statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
    return limit - used + sum(int(statistics[kind]) for kind in kinds)
