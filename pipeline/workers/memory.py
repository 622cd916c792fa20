"""How this process keeps memory between one forward pass and the next."""

import ctypes
import platform

# Parameters of glibc's mallopt, from malloc.h.
_M_TRIM_THRESHOLD = -1
_M_MMAP_MAX = -4
_M_ARENA_MAX = -8


def keep_freed_memory() -> bool:
    """Makes malloc reuse large freed blocks instead of returning them to the system. True if that
    was done.

    A forward pass on a CPU allocates and frees maps of up to a hundred megabytes each. glibc maps
    every one afresh and unmaps it afterwards, and the kernel then zeroes each page again on its
    first touch: 100,000 page faults a clip of 32×224² in `i3d_r50`, a seventh of the whole time in
    bf16 on one core and more on several, because the faults run one after another. Afterwards
    memory comes from a heap that never shrinks: no faults, the same peak, but the peak is kept
    until the process ends. One arena serves all threads, because only that one can grow beyond 64
    MiB.

    Call it at the start of a process that runs a backbone on a CPU, before it starts threads. It
    changes nothing and returns False where the C library is not glibc. The environment variables of
    glibc do the same, but nobody sets them.
    """
    if platform.libc_ver()[0] != "glibc":
        return False
    mallopt = ctypes.CDLL(None).mallopt
    settings = ((_M_MMAP_MAX, 0), (_M_TRIM_THRESHOLD, -1), (_M_ARENA_MAX, 1))
    done = [mallopt(parameter, value) == 1 for parameter, value in settings]
    return all(done)
