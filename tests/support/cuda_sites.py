"""Which line of the project gave the pretended device its work, and which one waited for it.

    with call_sites(device) as sites:
        learner.step(clips, targets)
    assert sites.waits == {}    # fails with {"heads/interface/clips.py:214 in grid_sizes: ...": 3}

A site is the innermost line of the project's own code that was at work when an operator reached the
device. It is a line of a test only where no code of the project was at work. The gradients of an
operator belong to the line that called `backward`.
"""

import sys
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tests.support.cuda_device import Device, Operation

ROOT = Path(__file__).parents[2]
PRODUCT = ("cli", "heads", "pipeline", "vidgraph")
# What stands for torch is no caller.
PRETENDED = (
    "cuda_autocast.py",
    "cuda_calls.py",
    "cuda_device.py",
    "cuda_sites.py",
    "cuda_streams.py",
    "fake_cuda.py",
)


class CallSites:
    """Operators that reached the device, counted by the line of the project that caused them.

    Attributes:
        launches: site -> kernels that it launched.
        copies: "site: h2d pinned" (or d2h, or pageable) -> copies between host and device.
        bytes: as `copies` -> their bytes.
        waits: "site: operator" -> how often the host waited there.
    """

    def __init__(self) -> None:
        self.launches: Counter[str] = Counter()
        self.copies: Counter[str] = Counter()
        self.bytes: Counter[str] = Counter()
        self.waits: Counter[str] = Counter()

    def note(self, operation: Operation) -> None:
        """Count an operator; an observer of the device."""
        if operation.kind == "view":
            return
        site = _site()
        if operation.waits:
            self.waits[f"{site}: {operation.name}"] += 1
        if operation.kind == "launch":
            self.launches[site] += 1
        elif operation.kind in ("h2d", "d2h"):
            memory = "pinned" if operation.pinned else "pageable"
            self.copies[f"{site}: {operation.kind} {memory}"] += 1
            self.bytes[f"{site}: {operation.kind} {memory}"] += operation.bytes

    def clear(self) -> None:
        """Begin anew."""
        for counts in (self.launches, self.copies, self.bytes, self.waits):
            counts.clear()


@contextmanager
def call_sites(device: Device) -> Iterator[CallSites]:
    """Count what reaches the device while the context is open.

    Args:
        device: the pretended one.
    """
    sites = CallSites()
    device.observers.append(sites.note)
    try:
        yield sites
    finally:
        device.observers.remove(sites.note)


def _site() -> str:
    """The innermost line of the product in this thread, else of a test, as "file:line in name"."""
    tests_line = ""
    frame = sys._getframe(1)
    while frame is not None:
        code = frame.f_code
        path = Path(code.co_filename)
        if path.is_relative_to(ROOT) and path.name not in PRETENDED:
            inside = path.relative_to(ROOT)
            line = f"{inside.as_posix()}:{frame.f_lineno} in {code.co_name}"
            if inside.parts[0] in PRODUCT:
                return line
            if inside.parts[0] == "tests":
                tests_line = tests_line or line
        frame = frame.f_back
    return tests_line or "outside the project"
