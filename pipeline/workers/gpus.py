"""The GPUs of this machine, and the cores that are near each of them.

A GPU hangs at one of the machine's memory nodes. Pixels that are decoded by cores of another node
cross the link between the nodes twice.
"""

import os
import re
import subprocess
from collections.abc import Sequence
from itertools import takewhile
from pathlib import Path

PCI = Path("/sys/bus/pci/devices")
CPUS = Path("/sys/devices/system/cpu")
# The name of a GPU in CUDA_VISIBLE_DEVICES: a number, or a UUID.
_GPU = re.compile(r"\d+$|GPU-|MIG-")


def visible_gpus() -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them.

    They are the value of CUDA_VISIBLE_DEVICES if it is set, else all GPUs of this machine. As for
    CUDA, the first name that can be no GPU ends them: -1, or Slurm's NoDevFiles.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        stripped = [name.strip() for name in named.split(",")]
        return list(takewhile(_GPU.match, stripped))
    return [uuid for uuid, _ in _installed()]


def chosen_gpus(asked: str) -> list[str]:
    """Return the GPUs that `--gpus` names.

    Args:
        asked: "all", or positions in `visible_gpus` such as "0,1".

    Returns:
        Names for CUDA_VISIBLE_DEVICES.

    Raises:
        ValueError: there is no such GPU.
    """
    gpus = visible_gpus()
    if not gpus:
        raise ValueError("--gpus: expected a machine with GPUs, found none; leave --gpus out")
    if asked == "all":
        return gpus
    chosen = []
    for piece in asked.split(","):
        if not piece.strip().isdecimal() or int(piece) >= len(gpus):
            raise ValueError(
                f"--gpus: expected all, or numbers from 0 to {len(gpus) - 1} such as 0,1; got "
                f"{asked!r}"
            )
        chosen.append(gpus[int(piece)])
    if len(set(chosen)) < len(chosen):
        raise ValueError(f"--gpus: expected each GPU once, got {asked!r}")
    return chosen


def near_cores(gpus: Sequence[str], cores: Sequence[int]) -> list[list[int]]:
    """Divide cores among GPUs, so that each gets cores of its own memory node.

    Args:
        gpus: names of GPUs as in CUDA_VISIBLE_DEVICES, one for each process.
        cores: the numbers of the cores that these processes may use.

    Returns:
        The cores of each GPU; no core occurs twice. Where the system does not tell what is near, or
        where a GPU has no core near it, each GPU gets an equal share of all.
    """
    installed, near = _installed(), []
    for name in gpus:
        near.append(_cores_at(_bus_of(name, installed)) & set(cores))
    if not all(near):
        near = [set(cores)] * len(gpus)

    shares: list[list[int]] = [[] for _ in gpus]
    for group in {frozenset(some) for some in near}:
        members = [k for k, some in enumerate(near) if some == group]
        whole = _whole_cores(group)
        for place, k in enumerate(members):
            first, last = (len(whole) * end // len(members) for end in (place, place + 1))
            for threads in whole[first:last]:
                shares[k] += threads
    # Groups that overlap without being equal, or fewer cores than GPUs.
    if any(not share for share in shares) or _overlap(shares):
        count = len(gpus)
        shares = [
            list(cores[len(cores) * k // count : len(cores) * (k + 1) // count])
            for k in range(count)
        ]
    return shares


def _overlap(shares: Sequence[Sequence[int]]) -> bool:
    return len(set().union(*shares)) < sum(map(len, shares))


def _installed() -> list[tuple[str, str]]:
    """(UUID, PCI address) of every GPU of this machine; [] where no driver tells."""
    # torch would answer too, but it would cost the client half a gigabyte.
    command = ["nvidia-smi", "--query-gpu=uuid,pci.bus_id", "--format=csv,noheader"]
    try:
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return []
    found = []
    for line in text.splitlines():
        uuid, _, bus = line.partition(",")
        if uuid.strip():
            found.append((uuid.strip(), bus.strip()))
    return found


def _bus_of(name: str, installed: Sequence[tuple[str, str]]) -> str:
    """The PCI address of a GPU that CUDA_VISIBLE_DEVICES names; "" if it is not one of these.

    Slurm names GPUs by numbers. CUDA counts equal GPUs by their PCI addresses, as nvidia-smi does.
    """
    if name.isdecimal():
        return installed[int(name)][1] if int(name) < len(installed) else ""
    # CUDA takes the beginning of a UUID, too.
    buses = [bus for uuid, bus in installed if uuid.startswith(name)]
    return buses[0] if len(buses) == 1 else ""


def _cores_at(bus: str) -> set[int]:
    """The cores near a PCI address such as 00000000:3B:00.0; none if the system does not tell."""
    domain, _, rest = bus.lower().partition(":")
    try:
        return set(parse_cores((PCI / f"{domain[-4:]}:{rest}" / "local_cpulist").read_text()))
    except (OSError, ValueError):
        return set()


def _whole_cores(cores: frozenset[int]) -> list[list[int]]:
    """The cores, those together that are threads of one physical core."""
    groups: dict[tuple[int, ...], list[int]] = {}
    for number in sorted(cores):
        try:
            text = (CPUS / f"cpu{number}" / "topology" / "thread_siblings_list").read_text()
            siblings = tuple(parse_cores(text))
        except (OSError, ValueError):
            siblings = (number,)
        groups.setdefault(siblings, []).append(number)
    return list(groups.values())


def parse_cores(text: str) -> list[int]:
    """Parse a list of cores as Linux writes it.

    Args:
        text: such as "0-3,8".

    Returns:
        The numbers, such as [0, 1, 2, 3, 8].

    Raises:
        ValueError: another form.
    """
    numbers: list[int] = []
    for piece in text.strip().split(","):
        if piece:
            first, _, last = piece.partition("-")
            numbers += range(int(first), int(last or first) + 1)
    return numbers


def stay_on(cores: Sequence[int]) -> None:
    """Let all threads of this process, and the processes that they start, run on these cores only.

    Args:
        cores: their numbers. Where the system refuses, all cores stay allowed.
    """
    if not hasattr(os, "sched_setaffinity"):
        return
    for thread in os.listdir("/proc/self/task"):
        try:
            os.sched_setaffinity(int(thread), cores)
        except OSError:
            # The thread has ended, or a batch system forbids it.
            continue
