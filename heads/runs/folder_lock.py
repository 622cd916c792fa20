"""A lock on a run folder: one process at a time, so that two commands that are given the same
folder do not mix.

The claim on a folder is the file run.claim in it (pipeline/workers/claims.py). If its process has
ended on this machine, the claim is taken over at once. If the process runs on another machine, or
this user cannot see it, the claim is taken over after 60 s without a sign of life. An owner that
wakes up later stops at the next file that it would write (`refuse_if_lost`), and so does one whose
folder was moved away.
"""

import os
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.atomic_files import make_folder
from pipeline.files.watched_folder import FolderGone, WatchedFolder
from pipeline.text.printable import visible
from pipeline.workers.claims import SILENCE, Claim, ClaimState, ClaimWatch, read_claim, take_claim
from pipeline.workers.waiting import PrintLine, claimed_until

LOOK = 1.0  # seconds between two looks at a claim
_OURS: dict[Path, "FolderLock"] = {}  # the folders that this process works in


class LockMessages(str):
    """A line that says for whom this process waits. `print_waiting` prints such lines and no others."""


def print_waiting(line: str) -> None:
    """A `say` for runs whose lines are in a log: it prints only the lines that say for whom the run
    waits.
    """
    if isinstance(line, LockMessages):
        sys.stderr.write(f"{visible(line)}\n")


class FolderBusy(RuntimeError):
    """Another process works in the folder: `owner`, in words, where it is known."""

    owner = "another process"


@dataclass(frozen=True)
class FolderLock:
    """A folder that this process works in.

    `claim` is this process's claim on it. `home` notices when the folder is moved away. `names` are
    its paths, as given and without links. `made` are the folders that were made for it, the
    innermost first.
    """

    claim: Claim
    home: WatchedFolder
    names: tuple[Path, ...]
    made: tuple[Path, ...]

    def reason(self, error: Exception) -> Exception:
        """What ended the work here: `error`, or Gone, where that came of the folder's being moved
        or deleted.
        """
        try:
            self.home.check()
        except (FolderGone, OSError) as gone:
            return gone
        return error

    def leave(self) -> None:
        """Gives the folder up, and removes the folders that were made for it if they are still
        empty.
        """
        for name in self.names:
            _OURS.pop(name, None)
        self.claim.release()
        self.home.close()
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()


def lock_folders(
    folders: Sequence[Path], say: PrintLine, silence: float = SILENCE
) -> list[FolderLock | FolderBusy | OSError]:
    """For each folder, which is made, that it is held, or what stands against it.

    Waits only for claims of other machines, until their owner gives a sign of life (every few
    seconds) or has been silent for `silence` seconds; all of them at the same time.
    """
    watch, first = ClaimWatch(silence), {}
    found: dict[Path, FolderLock | FolderBusy | OSError] = {}
    while True:
        for folder in (folder for folder in folders if folder not in found):
            try:
                if (outcome := _try(folder, watch, first)) is not None:
                    found[folder] = outcome
            except OSError as error:
                found[folder] = error
        left = [folder for folder in folders if folder not in found]
        if not left:
            return [found[folder] for folder in folders]
        say(_waiting(left, watch))
        say = _silent  # once
        time.sleep(LOOK)


def _try(
    folder: Path, watch: ClaimWatch, first: dict[Path, ClaimState]
) -> FolderLock | FolderBusy | None:
    """Held, or Busy where its owner lives; None where that is not known yet. `first` has claims as
    they were first seen.
    """
    path, made = (
        claim_path(folder),
        tuple(one for one in (folder, *folder.parents) if not one.exists()),
    )
    make_folder(path.parent)
    if (claim := take_claim(path, watch)) is not None:
        names = Path(os.path.abspath(folder)), path.parent
        held = FolderLock(claim, WatchedFolder(*names), names, made)
        _OURS.update(dict.fromkeys(names, held))
        return held
    if (seen := read_claim(path)) is None:  # given up in this instant
        return None
    if not _lives(seen, first.setdefault(folder, seen)):
        return None
    busy = FolderBusy(
        f"{folder}: {_who(seen)} is at work here{_named(seen)}: wait until it has ended, "
        f"or choose another folder"
    )
    busy.owner = seen.owner
    return busy


def claim_path(folder: Path) -> Path:
    """What is claimed of a folder, under whatever name it is reached."""
    return folder.resolve() / "run"


def _lives(seen: ClaimState, first: ClaimState) -> bool:
    """Whether the owner of a claim that is not abandoned surely lives: it is seen, or its claim has
    moved since `first`.
    """
    return seen.lives is True or seen.content != first.content


def _who(seen: ClaimState) -> str:
    return f"process {seen.pid} on this machine" if seen.here else "a process of another machine"


def _named(seen: ClaimState) -> str:
    return "" if seen.here else f" ({seen.owner})"


def _waiting(folders: Sequence[Path], watch: ClaimWatch) -> LockMessages:
    """A line that says whose claims on `folders` this process waits for."""
    more = f" (and in {len(folders) - 1} more folders)" if len(folders) > 1 else ""
    path = claim_path(folders[0])
    if (seen := read_claim(path)) is None:
        return LockMessages(f"{folders[0]}{more}: waiting for a process that has just given it up")
    until = claimed_until(seen, watch.silent_for(path, seen), watch.silence)
    return LockMessages(
        f"{folders[0]}: {_who(seen)} was at work here{more}; waiting for a sign of life; {until}"
    )


def refuse_if_lost(path: Path) -> None:
    """Before a file of a run folder gets its name: Busy if this process worked in the folder and
    another has taken over, Gone if the folder was moved, deleted or replaced.

    Its claim is looked at: it may have stood still (a machine suspended, a network away) so long
    that it was taken for dead. Nothing for a folder that this process does not hold.
    """
    held = (
        _OURS.get(Path(os.path.abspath(path.parent))) or _OURS.get(path.parent.resolve())
        if _OURS
        else None
    )
    if held is None:
        return
    held.home.check()
    if not held.claim.held():
        if read_claim(claim_path(path.parent)) is None:
            raise FolderBusy(
                f"{path.parent}: somebody has removed run.claim, or is removing the whole "
                f"folder: this process ends"
            )
        raise FolderBusy(
            f"{path.parent}: another process has taken over, as this one gave no sign of "
            f"life for long: this one ends"
        )


def refuse_if_busy(folder: Path, say: PrintLine, watch: ClaimWatch | None = None) -> ClaimWatch:
    """Busy if another process, or this one, works in `folder`. Takes nothing; waits for claims of
    other machines, as `lock_folders`.

    Returns what it has seen: a later call that is given it as `watch` waits for no claim again that
    has not moved since.
    """
    watch, first, path = watch or ClaimWatch(), None, claim_path(folder)
    while (seen := read_claim(path)) is not None and not watch.abandoned(path, seen):
        first = first or seen
        if _lives(seen, first):
            raise FolderBusy(
                f"{folder}: {_who(seen)} is at work here{_named(seen)}: wait until it has ended"
            )
        if seen is first:
            say(_waiting([folder], watch))
        time.sleep(LOOK)
    return watch


@contextmanager
def hold_folder(folder: Path, say: PrintLine, silence: float = SILENCE) -> Iterator[None]:
    """Within it no other process is within it with the same folder: waits until the others are
    done.
    """
    (outcome,), said = lock_folders([folder], say, silence), False
    while isinstance(outcome, FolderBusy):
        if not said:
            say(
                LockMessages(
                    f"{folder}: {outcome.owner} is at work here; waiting until it has ended"
                )
            )
        said = True
        time.sleep(LOOK)
        (outcome,) = lock_folders([folder], _silent, silence)
    if isinstance(outcome, OSError):
        raise outcome
    try:
        yield
    finally:
        outcome.leave()


def _silent(line: str) -> None:
    """Says nothing."""
