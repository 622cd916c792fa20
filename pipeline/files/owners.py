"""Names of claims and part files, and whether the process that made one still lives.

A part file is called `NAME.CLAIM.part`; a claim file that is being made is called
`NAME.CLAIM.claiming`. CLAIM is `HOST-PID-START-MARK`. PID and START identify a process until its
machine reboots. The first half of MARK identifies the machine and its boot, the second half the
claim. A file with any other name is not one of our part files.
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
_WRITER = re.compile(
    r".*-(\d+)-(\w+)-([0-9a-f]{8})[0-9a-f]{8}\.(?:part|claiming)", re.ASCII | re.DOTALL
)

# Endings of a file that is being written, and of a claim that is being made.
HALF_WRITTEN = (".part", ".claiming")

# Hexadecimal digits that identify the machine in a MARK; as many identify the claim.
_MARK = 8


@cache
def machine_id() -> str:
    """Identify this boot of this machine and its pid and time namespaces.

    Two processes with the same value agree on process numbers and start times, if they may see
    each other at all.

    Returns:
        A text, or "" if the system does not say.
    """
    if not sys.platform.startswith("linux"):
        return f"{socket.gethostname()} {uuid.getnode():x}"
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text().strip()
        namespaces = os.readlink("/proc/self/ns/pid")
    except OSError:
        return ""

    # A time namespace shifts the start times that /proc shows. Linux before 5.6 has none.
    with suppress(OSError):
        namespaces += f" {os.readlink('/proc/self/ns/time')}"
    return f"{boot} {namespaces}"


def new_claim_name() -> str:
    """Return a unique claim name of this process; `writer_lives` finds the process from it."""
    host = re.sub(r"[^\w.-]", "_", socket.gethostname(), flags=re.ASCII) or "_"
    pid = os.getpid()
    return f"{host}-{pid}-{process_start(pid) or 0}-{_machine_mark()}{uuid.uuid4().hex[:8]}"


def process_start(pid: int) -> str:
    """Return when a process of this machine started, in ticks since the boot.

    Returns:
        The time as /proc writes it; "" if the process has ended or cannot be seen.
    """
    found = _state_and_start(pid)
    return found[1] if found else ""


def process_lives(pid: int, start: str) -> bool | None:
    """Return whether a process of this machine lives.

    A process without an entry in /proc may live all the same: /proc can hide those of other
    users (hidepid).

    Args:
        pid: the number of the process.
        start: what `process_start` said of it; "" or "0" if unknown.

    Returns:
        True or False, or None if this process cannot find out.
    """
    if pid <= 0:
        return False
    is_start_known = start not in ("", "0")

    found = _state_and_start(pid)
    if found:
        state, start_now = found
        # Process numbers are reused; pairs of number and start are not.
        is_other = is_start_known and start_now != start
        if state in "ZX" or is_other:
            return False
        return True if is_start_known else None

    try:
        os.kill(pid, 0)
    except (ProcessLookupError, OverflowError):
        return False
    except OSError:
        # The process is another user's.
        pass
    return None


def _state_and_start(pid: int) -> tuple[str, str] | None:
    """Return state and start time of a process from /proc; None if /proc does not show it."""
    try:
        # If it differs, this /proc belongs to another pid namespace.
        if os.readlink("/proc/self") != str(os.getpid()):
            return None
        state, *fields = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()
        return state, fields[18]
    except (OSError, IndexError):
        return None


def _machine_mark() -> str:
    """Return the first half of a claim's MARK; zeros if the machine is unknown."""
    if not machine_id():
        return "0" * _MARK
    return hashlib.sha256(machine_id().encode()).hexdigest()[:_MARK]


class PartName(NamedTuple):
    """A part file, its name taken apart.

    Attributes:
        path: the part file.
        becomes: name of the file that it will become.
        claim: name of the claim that it is written under.
    """

    path: Path
    becomes: str
    claim: str


def part_path(path: Path, claim: str) -> Path:
    """Return the name under which a file is written until it is complete.

    Args:
        path: the file's final name.
        claim: name of the writer's claim (`new_claim_name`).
    """
    return path.with_name(f"{path.name}.{claim}.part")


def is_claim(name: str) -> bool:
    """Return whether a name has the form of our claims."""
    return _CLAIM.fullmatch(name) is not None


def host_of(claim: str) -> str:
    """Return the host in a claim's name; "" for a name of another form."""
    match = _CLAIM.fullmatch(claim)
    return match["host"] if match else ""


def part_files_in(folder: Path, *becomes: str) -> Iterator[PartName]:
    """Find our part files in a folder.

    Args:
        folder: the folder; it need not exist.
        *becomes: patterns of final names. With any, only part files of matching files count.

    Yields:
        Part files in the order of their names.
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
        for dot, letter in enumerate(body):
            if letter != ".":
                continue
            if is_claim(body[dot + 1 :]) and wanted.fullmatch(body[:dot]):
                yield PartName(folder / name, body[:dot], body[dot + 1 :])
                break


def writer_lives(part: Path) -> bool | None:
    """Return whether the writer of a part file lives.

    Args:
        part: the part file; only its name is read.

    Returns:
        True or False; None if unknown, because the writer runs on another machine or is hidden.
    """
    match = _WRITER.fullmatch(part.name)
    if not match or not machine_id() or match[3] != _machine_mark():
        return None
    return process_lives(int(match[1]), match[2])


def remove_abandoned(folder: Path, *becomes: str) -> None:
    """Remove part files whose writers are known to have ended.

    Files that this user may not remove stay.

    Args:
        folder: the folder; it need not exist.
        *becomes: patterns of final names, as for `part_files_in`.
    """
    for part in part_files_in(folder, *becomes):
        if writer_lives(part.path) is not False:
            continue
        try:
            part.path.unlink(missing_ok=True)
        except OSError as error:
            if error.errno not in (errno.EROFS, errno.EACCES, errno.EPERM):
                raise


def remove_abandoned_of(path: Path) -> None:
    """Remove abandoned part files of one file."""
    remove_abandoned(path.parent, re.escape(path.name))
