"""Claims on shards: runs on one machine, or on many that share a file system, divide one cache.

A writer of the file `NAME.h5` first makes the claim file `NAME.claim` beside it. The claim file
appears whole, by a hard link, so the file system needs no locks. It names its owner and holds a
counter that the owner raises every HEARTBEAT seconds.

Who may take a claim over:
- A claim whose owner is known to be alive is never taken.
- A claim whose owner is known to be dead is taken at once. Only a process of the same machine can
  know that.
- Any other claim is taken after SILENCE seconds without a change. The watcher measures them with
  its own monotonic clock, and never compares file times or clocks of different machines.

Claims divide the work; they do not guard the data. An owner that stalls and wakes up continues with
its own part file. Whoever completes the shard first wins (`pipeline.workers.completion`).
"""

import json
import os
import re
import threading
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.atomic_files import done_marker, publish
from pipeline.files.owners import (
    host_of,
    machine_id,
    new_claim_name,
    part_files_in,
    part_path,
    process_lives,
    process_start,
    writer_lives,
)
from pipeline.files.regular_files import NotAFile, opened, read_small
from pipeline.workers.tries import note_try

HEARTBEAT = 5.0  # seconds between two writes of an owner to its claim file
SILENCE = 60.0  # seconds without a heartbeat after which a claim is taken over
MAX_BYTES = 1 << 16  # read at most so much of a claim file
SHARD = r"\d{5,}"  # pattern of a shard's file name, without its ending
# The counter at the end of a claim file has a fixed length, so that it is overwritten in place.
COUNTER_DIGITS = 20


def claim_file(path: Path) -> Path:
    """Return the claim file of a shard's HDF5 file."""
    return path.with_suffix(".claim")


class NotAClaim(ValueError):
    """A file has the name of a claim, but another program or a person made it."""


@dataclass(frozen=True)
class ClaimState:
    """A claim file at the moment when it was read.

    Attributes:
        content: the bytes of the file.
        name: the claim's unique name; "" where the file does not tell its owner.
        machine: the owner's `machine_id`.
        pid: the owner's process number.
        start: the owner's start time, in ticks since the boot of its machine.
        host: the owner's host name.
    """

    content: bytes
    name: str = ""
    machine: str = ""
    pid: int = 0
    start: str = ""
    host: str = ""

    @property
    def here(self) -> bool:
        """Whether the owner is, or was, a process of this machine."""
        return self.machine == machine_id() != ""

    @property
    def seconds(self) -> float:
        """How long the owner has sent heartbeats."""
        count = self.content[-COUNTER_DIGITS:]
        return int(count) * HEARTBEAT if count.isdigit() else 0.0

    @property
    def lives(self) -> bool | None:
        """Whether the owner is alive; None if this process cannot know."""
        return process_lives(self.pid, self.start) if self.here else None

    @property
    def dead(self) -> bool:
        """Whether the owner is known to have ended."""
        return self.lives is False

    @property
    def owner(self) -> str:
        """The owner in words, for messages; without control characters."""
        if not self.name:
            return "an unknown process (its claim names none)"

        host = self.host or host_of(self.name) or self.machine
        if self.here:
            host = "this machine"
        # Anybody can write a claim file: its text must not control the terminal.
        printable = ""
        for character in host[:80]:
            printable += character if character.isprintable() else "?"
        return f"process {self.pid} on {printable}"


def read_claim(path: Path) -> ClaimState | None:
    """Read the claim on a shard.

    Opening the file makes a network file system ask its server for the current content.

    Args:
        path: the shard's HDF5 file.

    Returns:
        The claim as it is now, or None if there is none. A claim that is only half written, or
        written by another version, has no `name`; its silence decides.

    Raises:
        NotAClaim: a file of that name is not one of our claims.
    """
    try:
        with opened(claim_file(path)) as file:
            content = file.read(MAX_BYTES)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (NotAFile, IsADirectoryError) as error:
        raise NotAClaim(
            f"{claim_file(path)}: expected no such file, or a claim of vidgraph; "
            f"{error.strerror}: move it away"
        ) from None

    with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        owner = json.loads(content.partition(b"\n")[0])
        return ClaimState(
            content,
            name=str(owner["claim"]),
            machine=str(owner["machine"]),
            pid=int(owner["pid"]),
            start=str(owner["start"]),
            host=str(owner.get("host", "")),
        )
    # A file system that was not synced before a power loss may return zeros.
    if content.strip(b"\0") and not content.startswith(b'{"claim"'):
        raise NotAClaim(
            f"{claim_file(path)}: expected no such file, or a claim of vidgraph, found something "
            f"else: move it away"
        )
    return ClaimState(content)


class ClaimWatch:
    """One process's memory of the claims that it has read: since when each has not changed.

    Args:
        silence: seconds without a change after which a claim counts as abandoned, where nobody
            can know whether its owner lives.
    """

    def __init__(self, silence: float = SILENCE):
        self.silence = silence
        # path -> (what was last read there, when that was first read, by the monotonic clock)
        self._since: dict[Path, tuple[bytes, float]] = {}

    def abandoned(self, path: Path, state: ClaimState) -> bool:
        """Return whether the claim on a shard, read just now, may be taken over.

        True if the owner is dead or, where nobody can know, has been silent for too long.
        """
        # Also where the owner is known to live: the silence is then measured from the start.
        silent = self.silent_for(path, state)
        owner_lives = state.lives
        if owner_lives is None:
            return silent > self.silence
        return not owner_lives

    def silent_for(self, path: Path, state: ClaimState) -> float:
        """Return for how many seconds this process has seen a shard's claim unchanged."""
        return self._unchanged_for(path, state.content)

    def left_behind(self, part: Path) -> bool:
        """Return whether the writer of a part file without a claim has ended.

        Where nobody can know, a file that has not changed for `silence` seconds counts as left
        behind.
        """
        lives = writer_lives(part)
        if lives is not None:
            return not lives
        found = os.stat(part)
        state = f"{found.st_size} {found.st_mtime_ns}".encode()
        return self._unchanged_for(part, state) > self.silence

    def free(self, path: Path) -> bool:
        """Return whether a shard has no claim, after removing an abandoned one.

        The half-written files of an owner that is surely dead go with its claim.

        Raises:
            NotAClaim: a file of that name is not one of our claims.
        """
        state = read_claim(path)
        if state is None:
            self._since.pop(path, None)
            return True
        return self.abandoned(path, state) and _remove(path, state)

    def _unchanged_for(self, path: Path, state: bytes) -> float:
        now = time.monotonic()
        last, since = self._since.get(path, (b"", now))
        if last != state:
            since = now
        self._since[path] = state, since
        return now - since


def _remove(path: Path, state: ClaimState) -> bool:
    """Remove an abandoned claim; False if another process was faster."""
    # Renaming is atomic: of several processes that do this at once, one gets the file.
    grave = part_path(claim_file(path), new_claim_name())
    try:
        os.rename(claim_file(path), grave)
    except FileNotFoundError:
        return False

    try:
        if read_small(grave, MAX_BYTES) != state.content:
            # It is another process's claim by now, or had a heartbeat: give it back.
            with suppress(OSError):
                os.link(grave, claim_file(path))
            return False
        note_try(path, state.seconds)
        # A silent owner may still wake up and write: its part files stay.
        if state.dead:
            _remove_parts_under(path, state.name)
        return True
    finally:
        grave.unlink(missing_ok=True)


class Claim:
    """A claim that this process holds. A context manager: it is released at the end.

    Attributes:
        path: the shard's HDF5 file.
        name: the claim's name, unique among all claims ever made.
        first: whether the shard had no claim before that another process may still write under.
    """

    def __init__(self, path: Path, name: str, first: bool = True):
        self.path = path
        self.name = name
        self.first = first
        self._since = time.monotonic()
        self._released = False
        self._counter = 0
        self._lock = threading.Lock()

    def beat(self) -> None:
        """Raise the counter in the claim file, as a heartbeat.

        If another process takes the claim over meanwhile, the write goes to a file without a name.
        An error is ignored: other processes then see silence, and take the claim over.
        """
        with self._lock:
            if self._released:
                return
            self._counter += 1
            # The file is closed after each write: a study holds a claim for each of its members.
            with suppress(OSError):
                file = os.open(claim_file(self.path), os.O_RDWR | os.O_NONBLOCK)
                try:
                    if _names(file, self.name):
                        place = os.fstat(file).st_size - COUNTER_DIGITS
                        os.pwrite(file, _digits(self._counter), place)
                        os.fsync(file)
                finally:
                    os.close(file)

    def held(self) -> bool:
        """Return whether the claim is still ours: no other process has taken it over."""
        state = read_claim(self.path)
        return state is not None and state.name == self.name

    def release(self) -> None:
        """Give the claim up; further calls do nothing."""
        with self._lock:
            if self._released:
                return
            self._released = True
        _HEARTBEAT.drop(self)
        if self.held():
            claim_file(self.path).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Give the claim up before its shard is complete, and remove what was written under it.

        A claim that was released before does nothing.
        """
        if not self._released:
            _remove_parts_under(self.path, self.name)
            self.release()
            note_try(self.path, time.monotonic() - self._since)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _names(file: int, name: str) -> bool:
    """Whether an open claim file belongs to the claim `name`."""
    return os.pread(file, MAX_BYTES, 0).find(name.encode()) >= 0


def take_claim(path: Path, watch: ClaimWatch | None = None) -> Claim | None:
    """Claim a shard, taking over an abandoned claim.

    Args:
        path: the shard's HDF5 file. Its folder is made; the folder above must exist, so that
            nobody makes a cache anew that somebody has moved away.
        watch: this process's memory of claims; a new one unless given.

    Returns:
        The claim, or None if another process holds it.

    Raises:
        FileNotFoundError: the folder above the shard's own does not exist.
        NotAClaim: a file of that name is not one of our claims.
    """
    if not path.parent.is_dir():
        path.parent.mkdir(exist_ok=True)
    found = read_claim(path)
    if found is not None:
        watch = watch or ClaimWatch()
        if not (watch.abandoned(path, found) and _remove(path, found)):
            return None

    name = new_claim_name()
    owner = {
        "claim": name,
        "machine": machine_id(),
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "host": host_of(name),
    }
    # Not ".part": no claim stands for this file yet, so `sweep_claims` would remove it.
    part = claim_file(path).with_name(f"{claim_file(path).name}.{name}.claiming")
    try:
        # Closing the file is what sends its content to a network file system's server.
        part.write_bytes(json.dumps(owner).encode() + b"\n" + _digits(0))
        publish(part, claim_file(path))
        file = os.open(claim_file(path), os.O_RDWR)
    except (FileExistsError, FileNotFoundError):
        os.stat(path.parent)  # raises if the folder has been removed meanwhile
        return None
    finally:
        part.unlink(missing_ok=True)

    # Another process may have taken it over between the last two calls.
    ours = _names(file, name)
    os.close(file)
    if not ours:
        return None
    claim = Claim(path, name, found is None)
    _HEARTBEAT.add(claim)
    return claim


# The code of functions that make or give up a claim. `cli._shared.interrupt` delays signals in
# them: an exception raised inside would leave a claim that nobody holds.
STEPS = frozenset(step.__code__ for step in (take_claim, _remove, Claim.release, Claim.abandon))


def sweep_claims(folder: Path, watch: ClaimWatch) -> None:
    """Remove what dead runs left in a stage's folder: claims, and part files without a claim.

    Only files with the name of a shard's claim or part file are removed, and only where the writer
    has ended. Part files of a writer that cannot be seen go once `watch` has seen them unchanged
    for long, or when the shard is complete.
    """
    # A cache that may only be read works all the same.
    with suppress(OSError):
        for name in os.listdir(folder):
            if re.fullmatch(rf"{SHARD}\.claim", name):
                with suppress(NotAClaim):
                    watch.free(folder / f"{name.partition('.')[0]}.h5")

        for part in part_files_in(folder, rf"{SHARD}\.(h5|json|claim)"):
            with suppress(NotAClaim):
                shard = folder / f"{part.becomes.partition('.')[0]}.h5"
                state = read_claim(shard)
                claimed = state is not None and part.claim == state.name
                # Whoever still writes a shard that is complete has lost.
                lost = not claimed and done_marker(shard).exists()
                if lost or (not claimed and watch.left_behind(part.path)):
                    part.path.unlink(missing_ok=True)


def _remove_parts_under(path: Path, claim: str) -> None:
    """Remove the part files that were written under one claim."""
    # A claim file may hold any text, even a path.
    if claim and claim == os.path.basename(claim):
        for file in files_of(path):
            part_path(file, claim).unlink(missing_ok=True)


def files_of(path: Path) -> tuple[Path, Path, Path]:
    """Return a shard's HDF5 file, its done marker and its claim file."""
    return path, done_marker(path), claim_file(path)


def _digits(count: int) -> bytes:
    return str(count).zfill(COUNTER_DIGITS).encode()


class _Heartbeat:
    """The thread that sends the heartbeats of all claims of this process, while there are any."""

    def __init__(self):
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        self._running = False

    def held(self) -> tuple[Claim, ...]:
        with self._lock:
            return tuple(self._claims)

    def add(self, claim: Claim) -> None:
        with self._lock:
            self._claims.add(claim)
            if not self._running:
                self._running = True
                threading.Thread(target=self._run, name="claims-heartbeat", daemon=True).start()

    def drop(self, claim: Claim) -> None:
        with self._lock:
            self._claims.discard(claim)

    def _run(self) -> None:
        while True:
            time.sleep(HEARTBEAT)
            with self._lock:
                if not self._claims:
                    self._running = False
                    return
            for claim in self.held():
                claim.beat()


_HEARTBEAT = _Heartbeat()


def give_up() -> None:
    """Release every claim of this process and remove what was written under it.

    For a process that has to end at once.
    """
    for claim in _HEARTBEAT.held():
        claim.abandon()
