"""How this process keeps memory between one forward pass and the next."""

import ctypes
import platform

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
