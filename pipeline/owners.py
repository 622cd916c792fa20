"""Who writes: the name that a process gives its claims and part files, and whether that process still lives.

A part file is `NAME.CLAIM.part` (`NAME.CLAIM.claiming` where a claim itself is being made), a claim's name
`HOST-PID-START-MARK`: process number and start name a process for as long as its machine runs, and the first half of MARK says
which machine that is. Nothing else is ever taken for one of our part files.
"""

import errno
import hashlib
import os
import re
import socket
import sys
import uuid
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from pathlib import Path
from typing import NamedTuple

_CLAIM = re.compile(r"(?P<host>[\w.-]+)-(?P<pid>\d+)-(?P<start>\w+)-(?P<mark>[0-9a-f]{8}(?:[0-9a-f]{8})?)", re.ASCII)
HALF_WRITTEN = (".part", ".claiming")  # endings of a file that is being written, and of a claim that is being made
_MARK = 8  # hexadecimal digits that say which machine, and as many that say which claim


@cache
def machine() -> str:
    """This boot of this machine, its table of processes and its clock (a container has its own); "" if it does not tell.

    Two processes with the same one see each other's numbers and starts, as far as they may see each other at all.
    """
    if not sys.platform.startswith("linux"):
        return f"{socket.gethostname()} {uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        seen = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    with suppress(OSError):  # Linux before 5.6 has one clock; where there are several, starts are told by the reader's
        seen += f" {os.readlink('/proc/self/ns/time')}"
    return f"{boot} {seen}"


def own_claim() -> str:
    """A claim that no other writer has; its part files say whether their writer still lives (`writer_lives`)."""
    host, pid = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII), os.getpid()
    return f"{host or '_'}-{pid}-{started(pid) or 0}-{_mark()}{uuid.uuid4().hex[:8]}"


def started(pid: int) -> str:
    """When a process of this machine began, in ticks since its boot; "" if it has ended, or cannot be seen."""
    return (_state_and_start(pid) or ("", ""))[1]


def lives(pid: int, start: str) -> bool | None:
    """Whether a process of this `machine` lives that began at `start`; None if it may and cannot be seen.

    A process that is not found has not ended for that: /proc may hide those of other users (hidepid).
    """
    if pid <= 0:
        return False
    known = start not in ("", "0")
    if found := _state_and_start(pid):
        state, now = found
        if state in "ZX" or (known and now != start):  # numbers are used again, pairs are not
            return False
        return True if known else None
    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:  # another user's
        pass
    return None


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """A process' state and start as /proc tells them; None if it does not."""
    try:
        if os.readlink("/proc/self") != str(os.getpid()):  # it is that of another table of processes
            return None
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return state, fields[18]
    except (OSError, IndexError):
        return None


def _mark() -> str:
    return hashlib.sha256(machine().encode()).hexdigest()[:_MARK] if machine() else "0" * _MARK


class Part(NamedTuple):
    """A part file: the file that it would become, and the claim that it was written under."""

    path: Path
    becomes: str
    claim: str


def part_of(path: Path, claim: str) -> Path:
    """The name under which a file is written before it is complete; `claim` is the writer's own."""
    return path.with_name(f"{path.name}.{claim}.part")


def is_claim(name: str) -> bool:
    """Whether a claim may have this name."""
    return _CLAIM.fullmatch(name) is not None


def host_of(claim: str) -> str:
    """The machine that a claim's name tells; "" for a name of another form."""
    found = _CLAIM.fullmatch(claim)
    return found["host"] if found else ""


def parts_in(folder: Path, *becomes: str) -> Iterator[Part]:
    """The part files in a folder whose names are ours; with `becomes` only those of files with these names (patterns)."""
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    wanted = re.compile("|".join(becomes) or ".+")
    for name in names:
        if not name.endswith(HALF_WRITTEN):
            continue
        # A host's name may have dots, as the file's may: the file that it becomes is the shortest that is wanted.
        body = name.rpartition(".")[0]
        for dot in (place for place, letter in enumerate(body) if letter == "."):
            if is_claim(body[dot + 1 :]) and wanted.fullmatch(body[:dot]):
                yield Part(folder / name, body[:dot], body[dot + 1 :])
                break


def writer_lives(part: Path) -> bool | None:
    """Whether the writer of a part file lives; None if that cannot be known: another machine's, or hidden."""
    found = re.fullmatch(r".*-(\d+)-(\w+)-([0-9a-f]{8})[0-9a-f]{8}\.(?:part|claiming)", part.name, re.ASCII | re.DOTALL)
    if not found or not machine() or found[3] != _mark():
        return None
    return lives(int(found[1]), found[2])


def remove_abandoned(folder: Path, *becomes: str) -> None:
    """Removes part files whose writers are known to have ended (see `parts_in`), where this user may remove them."""
    for part in parts_in(folder, *becomes):
        if writer_lives(part.path) is False:
            try:
                part.path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise


def remove_abandoned_of(path: Path) -> None:
    """The same for what writers of one file have left."""
    remove_abandoned(path.parent, re.escape(path.name))
