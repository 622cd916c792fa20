"""The owners of claims and part files: the name that a process gives them, and whether that process
still lives.

A part file is called `NAME.CLAIM.part` (`NAME.CLAIM.claiming` for a claim that is being made), and
CLAIM is `HOST-PID-START-MARK`. PID and START identify a process until its machine reboots; the
first half of MARK identifies the machine and its boot. No file with another name counts as one of
our part files.
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

_CLAIM = re.compile(
    r"(?P<host>[\w.-]+)-(?P<pid>\d+)-(?P<start>\w+)-(?P<mark>[0-9a-f]{8}(?:[0-9a-f]{8})?)", re.ASCII
)
HALF_WRITTEN = (
    ".part",
    ".claiming",
)  # endings of a file that is being written, and of a claim that is being made
_MARK = 8  # hexadecimal digits that say which machine, and as many that say which claim


@cache
def machine_id() -> str:
    """Identifies this boot of this machine and its pid and time namespaces; "" if the system does
    not say.

    Two processes with the same value agree on process numbers and start times, if they may see each
    other at all.
    """
    if not sys.platform.startswith("linux"):
        return f"{socket.gethostname()} {uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        seen = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""
    with suppress(
        OSError
    ):  # Linux before 5.6 has no time namespaces; they shift the start times that /proc shows
        seen += f" {os.readlink('/proc/self/ns/time')}"
    return f"{boot} {seen}"


def new_claim_name() -> str:
    """A unique claim name of this process. `writer_lives` tells from it whether the process still
    lives.
    """
    host, pid = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII), os.getpid()
    return f"{host or '_'}-{pid}-{process_start(pid) or 0}-{_mark()}{uuid.uuid4().hex[:8]}"


def process_start(pid: int) -> str:
    """Start time of a process of this machine, in ticks since the boot; "" if it has ended or
    cannot be seen.
    """
    return (_state_and_start(pid) or ("", ""))[1]


def process_lives(pid: int, start: str) -> bool | None:
    """Whether the process of this `machine_id` that started at `start` lives; None if this process
    cannot tell.

    A process without an entry in /proc may live all the same: /proc can hide those of other users
    (hidepid).
    """
    if pid <= 0:
        return False
    known = start not in ("", "0")
    if found := _state_and_start(pid):
        state, now = found
        if state in "ZX" or (
            known and now != start
        ):  # process numbers are reused, (number, start) is not
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
    """State and start time of a process, from /proc; None if /proc does not show it."""
    try:
        if os.readlink("/proc/self") != str(
            os.getpid()
        ):  # this /proc belongs to another pid namespace
            return None
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return state, fields[18]
    except (OSError, IndexError):
        return None


def _mark() -> str:
    return (
        hashlib.sha256(machine_id().encode()).hexdigest()[:_MARK] if machine_id() else "0" * _MARK
    )


class PartName(NamedTuple):
    """A part file: the file that it would become, and the claim that it was written under."""

    path: Path
    becomes: str
    claim: str


def part_path(path: Path, claim: str) -> Path:
    """The name under which a file is written before it is complete; `claim` is the writer's own."""
    return path.with_name(f"{path.name}.{claim}.part")


def is_claim(name: str) -> bool:
    """Whether a name has the form of our claims."""
    return _CLAIM.fullmatch(name) is not None


def host_of(claim: str) -> str:
    """The host in a claim's name; "" for a name of another form."""
    found = _CLAIM.fullmatch(claim)
    return found["host"] if found else ""


def part_files_in(folder: Path, *becomes: str) -> Iterator[PartName]:
    """Our part files in a folder; with `becomes`, only those of files whose names match one of
    these patterns.
    """
    try:
        names = sorted(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return
    wanted = re.compile("|".join(becomes) or ".+")
    for name in names:
        if not name.endswith(HALF_WRITTEN):
            continue
        # File names and host names may both have dots: the shortest file name that matches counts.
        body = name.rpartition(".")[0]
        for dot in (place for place, letter in enumerate(body) if letter == "."):
            if is_claim(body[dot + 1 :]) and wanted.fullmatch(body[:dot]):
                yield PartName(folder / name, body[:dot], body[dot + 1 :])
                break


def writer_lives(part: Path) -> bool | None:
    """Whether the writer of a part file lives; None if unknown: it runs on another machine, or is
    hidden.
    """
    found = re.fullmatch(
        r".*-(\d+)-(\w+)-([0-9a-f]{8})[0-9a-f]{8}\.(?:part|claiming)",
        part.name,
        re.ASCII | re.DOTALL,
    )
    if not found or not machine_id() or found[3] != _mark():
        return None
    return process_lives(int(found[1]), found[2])


def remove_abandoned(folder: Path, *becomes: str) -> None:
    """Removes part files whose writers are known to have ended (see `part_files_in`), where this user
    may remove them.
    """
    for part in part_files_in(folder, *becomes):
        if writer_lives(part.path) is False:
            try:
                part.path.unlink(missing_ok=True)
            except OSError as error:
                if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                    raise


def remove_abandoned_of(path: Path) -> None:
    """Removes abandoned part files of one file."""
    remove_abandoned(path.parent, re.escape(path.name))
