"""Who works on what: several runs, on one machine or on many that share a file system, divide the
shards of one cache.

A writer claims the file `NAME.h5` by a claim file `NAME.claim` beside it, which appears whole (a
hard link), names its owner and holds a number that the owner raises every few seconds. The file
system needs no locks. A claim whose owner is known to live is never taken. It is abandoned when its
owner is known to be dead, which only a process of the same machine can know. If nobody can know, it
is abandoned when a watcher has seen it unchanged for SILENCE seconds of the watcher's own monotonic
clock: clocks of different machines, and file times, are never compared.

Claims divide the work, they do not guard the data: an owner that was stalled and wakes up goes on
writing its own part file, and whoever completes the shard first wins (`ShardWriter.finish_shard`).
"""

import json
import os
import re
import threading
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

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

BEAT = 5.0  # seconds between an owner's signs of life
SILENCE = 60.0  # seconds without one after which a claim is taken over
LONGEST = 1 << 16  # bytes of a claim file that are looked at
SHARD = r"\d{5,}"  # names of shards' files, without their ending
COUNT = 20  # digits of the number at the end of a claim file, so that it is overwritten in place


def claim_file(path: Path) -> Path:
    """The claim file of a shard's HDF5 file."""
    return path.with_suffix(".claim")


class NotAClaim(ValueError):
    """A file has the name of a claim and is none: another program or a person made it."""


@dataclass(frozen=True)
class ClaimState:
    """A claim file as it was read: its bytes, and the owner's name, machine, process number, start
    and host.
    """

    content: bytes
    name: str = ""
    machine_id: str = ""
    pid: int = 0
    start: str = ""
    host: str = ""

    @property
    def here(self) -> bool:
        """Whether the owner is, or was, a process of this machine."""
        return self.machine == machine_id() != ""

    @property
    def process_lives(self) -> bool | None:
        """Whether the owner lives; None if this process cannot know."""
        return process_lives(self.pid, self.start) if self.here else None

    @property
    def dead(self) -> bool:
        """Whether the owner is known to have ended."""
        return self.lives is False

    @property
    def owner(self) -> str:
        """The owner for a person."""
        if not self.name:
            return "an unknown process (its claim names none)"
        where = "this machine" if self.here else self.host or host_of(self.name) or self.machine
        return f"process {self.pid} on {''.join(c if c.isprintable() else '?' for c in where[:80])}"


def read_claim(path: Path) -> ClaimState | None:
    """The claim on a shard's HDF5 file as it is now; None if there is none. NotAClaim for a file
    that none of ours wrote.

    Opening a file is what makes a network file system ask its server for the present content.
    """
    try:
        with opened(claim_file(path)) as file:
            content = file.read(LONGEST)
    except (FileNotFoundError, NotADirectoryError):
        return None
    except (NotAFile, IsADirectoryError) as error:
        raise NotAClaim(
            f"{claim_file(path)}: {error.strerror}; expected no such file, or a claim of "
            f"vidgraph: move it away"
        ) from None
    with suppress(ValueError, KeyError, TypeError, OverflowError, RecursionError):
        owner = json.loads(content.partition(b"\n")[0])
        where = (
            str(owner["machine_id"]),
            int(owner["pid"]),
            str(owner["start"]),
            str(owner.get("host", "")),
        )
        return ClaimState(content, str(owner["claim"]), *where)
    if content.strip(b"\0") and not content.startswith(b'{"claim"'):
        raise NotAClaim(
            f"{claim_file(path)}: expected no such file, or a claim of vidgraph, found something "
            f"else; move it away"
        )
    return ClaimState(content)  # by another version, or written half: judged by its silence


class ShardFileWriter(Protocol):
    """What writes a shard: `pipeline.cache.shard_writer.ShardWriter`."""

    def finish_shard(self, stats: Mapping[str, object], replace: bool) -> dict: ...


class ClaimWatch:
    """One process' memory of claims that it has looked at: since when each has stood still, by the
    monotonic clock.
    """

    def __init__(self, silence: float = SILENCE):
        self.silence = silence
        self._since: dict[Path, tuple[bytes, float]] = {}

    def abandoned(self, path: Path, seen: ClaimState) -> bool:
        """Whether a claim that was just read is abandoned: its owner is dead or, if nobody can
        know, silent for too long.
        """
        silent, owner_lives = self.silent_for(path, seen), seen.lives
        return silent > self.silence if owner_lives is None else not owner_lives

    def silent_for(self, path: Path, seen: ClaimState) -> float:
        """Seconds since a claim that was just read last changed, as far as this process has watched
        it.
        """
        now = time.monotonic()
        content, since = self._since.get(path, (b"", now))
        if content != seen.content:
            since = now
        self._since[path] = seen.content, since
        return now - since

    def left_behind(self, part: Path) -> bool:
        """Whether the writer of a part file without a claim has ended or, if nobody can know, been
        silent for too long.
        """
        writer = writer_lives(part)
        if writer is not None:
            return not writer
        now, found = time.monotonic(), os.stat(part)
        size, since = self._since.get(part, (b"", now))
        if size != (grown := f"{found.st_size} {found.st_mtime_ns}".encode()):
            since = now
        self._since[part] = grown, since
        return now - since > self.silence

    def free(self, path: Path) -> bool:
        """Whether a shard has no claim any more; one that is abandoned is removed, with what its
        owner left half written.
        """
        seen = read_claim(path)
        if seen is None:
            self._since.pop(path, None)
            return True
        return self.abandoned(path, seen) and _remove(path, seen)


def _remove(path: Path, seen: ClaimState) -> bool:
    """Removes an abandoned claim; False if somebody else was faster. Part files go only where the
    owner is surely dead.
    """
    grave = part_path(claim_file(path), new_claim_name())
    try:
        os.rename(claim_file(path), grave)
    except FileNotFoundError:
        return False
    try:
        if (
            read_small(grave, LONGEST) != seen.content
        ):  # it is another's by now, or gave a sign of life: give it back
            with suppress(OSError):
                os.link(grave, claim_file(path))
            return False
        if seen.dead:
            _remove_parts_under(path, seen.name)
        return True
    finally:
        grave.unlink(missing_ok=True)


class Claim:
    """A claim that this process holds on a shard's HDF5 file; `name` is its own among all claims
    ever made.
    """

    def __init__(self, path: Path, name: str):
        self.path, self.name, self._given_up = path, name, False
        self._count, self._lock = 0, threading.Lock()

    def beat(self) -> None:
        """Gives a sign of life: overwrites the number in the claim file.

        If another process takes the claim over meanwhile, the write goes to a file that has no name
        any more. The file is closed after each write, since a study holds a claim for each of its
        members.
        """
        with self._lock:
            if not self._given_up:
                self._count += 1
                with suppress(OSError):  # others see its silence, and take it over
                    file = os.open(claim_file(self.path), os.O_RDWR | os.O_NONBLOCK)
                    try:
                        if _names(file, self.name):
                            os.pwrite(file, _digits(self._count), os.fstat(file).st_size - COUNT)
                            os.fsync(file)
                    finally:
                        os.close(file)

    def held(self) -> bool:
        """Whether it is still ours: not if another took us for dead."""
        seen = read_claim(self.path)
        return seen is not None and seen.name == self.name

    def release(self) -> None:
        """Gives it up; may be called again."""
        with self._lock:
            if self._given_up:
                return
            self._given_up = True
        _HEART.drop(self)
        if self.held():
            claim_file(self.path).unlink(missing_ok=True)

    def abandon(self) -> None:
        """Gives it up before its shard is complete: what was written under it goes, too. Nothing if
        it was released before.
        """
        if not self._given_up:
            _remove_parts_under(self.path, self.name)
            self.release()

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *error: object) -> None:
        self.release()


def _names(file: int, name: str) -> bool:
    """Whether an open claim file belongs to the claim `name`."""
    return os.pread(file, LONGEST, 0).find(name.encode()) >= 0


def take_claim(path: Path, watch: ClaimWatch | None = None) -> Claim | None:
    """Claims a shard's HDF5 file, taking over from an owner that is gone; None if another's claim
    stands.

    FileNotFoundError where the folder above its own is not there: nobody makes a cache anew that
    somebody has moved away.
    """
    path.parent.mkdir(exist_ok=True)
    if not (watch or ClaimWatch()).free(path):
        return None
    name = new_claim_name()
    owner = {
        "claim": name,
        "machine_id": machine_id(),
        "pid": os.getpid(),
        "start": process_start(os.getpid()),
        "host": host_of(name),
    }
    part = claim_file(path).with_name(
        f"{claim_file(path).name}.{name}.claiming"
    )  # no part of a shard: nothing stands for it
    try:
        part.write_bytes(
            json.dumps(owner).encode() + b"\n" + _digits(0)
        )  # closing it is what sends it to a network's server
        publish(part, claim_file(path))
        file = os.open(claim_file(path), os.O_RDWR)
    except (FileExistsError, FileNotFoundError):
        os.stat(path.parent)  # raises where the folder has gone in this instant
        return None
    finally:
        part.unlink(missing_ok=True)
    ours = _names(file, name)
    os.close(file)
    if not ours:  # taken over in this instant
        return None
    claim = Claim(path, name)
    _HEART.add(claim)
    return claim


# A claim is made or given up in them: an exception that came up in one would leave a claim that
# nobody holds.
STEPS = frozenset(step.__code__ for step in (take_claim, _remove, Claim.release, Claim.abandon))


def sweep_claims(folder: Path, watch: ClaimWatch) -> None:
    """Removes what dead runs left in a stage's folder: their claims, and part files that no claim
    stands for any more.

    Only what has the name of a shard's claim or part file, and whose writer is known to have ended:
    a file that is called otherwise is somebody else's, whatever it holds. Of a writer that cannot
    be seen, part files go when `watch` has seen them stand still for long, or with the shard's
    completion.
    """
    with suppress(OSError):  # a cache that may only be read is none the worse for them
        for name in os.listdir(folder):
            if re.fullmatch(rf"{SHARD}\.claim", name):
                with suppress(NotAClaim):
                    watch.free(folder / f"{name.partition('.')[0]}.h5")
        for part in part_files_in(folder, rf"{SHARD}\.(h5|json|claim)"):
            with suppress(NotAClaim):
                seen = read_claim(folder / f"{part.becomes.partition('.')[0]}.h5")
                claimed = seen is not None and part.claim == seen.name
                if not claimed and watch.left_behind(part.path):
                    part.path.unlink(missing_ok=True)


Mark = tuple[int, int, int] | None


def mark_of(path: Path) -> Mark:
    """What tells a shard's done marker from one that is written later; None if the shard is not
    complete.
    """
    return version_of(done_marker(path))


def version_of(path: Path) -> Mark:
    """What tells a file from one that is written in its place; None if there is none."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def begin_shard(path: Path) -> Mark:
    """Under a claim, before writing: a shard's mark; removes a file without statistics, of a writer
    killed between the two.
    """
    mark = mark_of(path)
    if mark is None:
        path.unlink(missing_ok=True)
    return mark


def finish_shard(
    writer: ShardFileWriter,
    stats: Mapping[str, object],
    claim: Claim,
    mark: Mark,
    replace: bool = False,
) -> dict | None:
    """Completes a shard that was begun at `mark`, and returns its statistics; None if another was
    faster, whose shard stays.

    A shard that had a mark is replaced; with `replace` a file that had none, too.
    """
    try:
        if mark_of(claim.path) != mark:
            return None
        record = writer.finish(stats, replace=replace or mark is not None)
    except FileExistsError:
        return None
    except OSError:  # the part file of one who was taken for dead may be gone
        if claim.held():
            raise
        return None
    remove_parts(claim.path)
    return record


def remove_parts(path: Path) -> None:
    """Removes every part file of a shard that is complete: whoever still writes one has lost."""
    for part in part_files_in(path.parent, *(re.escape(file.name) for file in _files_of(path))):
        part.path.unlink(missing_ok=True)


def _remove_parts_under(path: Path, claim: str) -> None:
    """Removes the part files of a shard that were written under a claim which was given up or whose
    owner has ended.
    """
    if claim and claim == os.path.basename(claim):  # a claim file may hold any text, even a path
        for file in _files_of(path):
            part_path(file, claim).unlink(missing_ok=True)


def _files_of(path: Path) -> tuple[Path, Path, Path]:
    return path, done_marker(path), claim_file(path)


def _digits(count: int) -> bytes:
    return str(count).zfill(COUNT).encode()


class _Heartbeat:
    """One thread that beats for all claims of this process, for as long as there are any."""

    def __init__(self):
        self._claims: set[Claim] = set()
        self._lock = threading.Lock()
        self._beating = False

    def held(self) -> tuple[Claim, ...]:
        with self._lock:
            return tuple(self._claims)

    def add(self, claim: Claim) -> None:
        with self._lock:
            self._claims.add(claim)
            if not self._beating:
                self._beating = True
                threading.Thread(target=self._run, name="claims-heart", daemon=True).start()

    def drop(self, claim: Claim) -> None:
        with self._lock:
            self._claims.discard(claim)

    def _run(self) -> None:
        while True:
            time.sleep(BEAT)
            with self._lock:
                if not self._claims:
                    self._beating = False
                    return
            for claim in self.held():
                claim.beat()


_HEART = _Heartbeat()


def give_up() -> None:
    """Releases every claim of this process and removes what was written under it: for one that has
    to end at once.
    """
    for claim in _HEART.held():
        claim.abandon()
