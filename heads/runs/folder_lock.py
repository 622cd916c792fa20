"""A lock on a run folder: only one process may write there.

The lock is the claim file run.claim in the folder (see pipeline/workers/claims.py). A lock whose
process has ended on this machine is taken over at once. A lock of another machine, or of a process
that this user cannot see, is taken over after 60 s without a heartbeat. A process that lost its
lock, or whose folder was moved, stops before the next file that it would write (`refuse_if_lost`).
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
from pipeline.text.counted import counted
from pipeline.text.printable import visible
from pipeline.workers.claims import SILENCE, Claim, ClaimState, ClaimWatch, read_claim, take_claim
from pipeline.workers.waiting import PrintLine, claimed_until, print_nothing

# Seconds between two reads of a claim file.
POLL = 1.0
# The folders that this process has locked, by each of their paths.
_LOCKED: dict[Path, "FolderLock"] = {}


class LockMessages(str):
    """A line that says whom this process waits for; `print_waiting` prints no other lines."""


def print_waiting(line: str) -> None:
    """Print to stderr the lines that say whom a run waits for, and no others.

    A `say` for runs whose other lines nobody reads: their log has them.
    """
    if isinstance(line, LockMessages):
        sys.stderr.write(f"{visible(line)}\n")


class FolderBusy(RuntimeError):
    """Another process works in the folder.

    Attributes:
        owner: the other process, in words.
    """

    owner = "another process"


@dataclass(frozen=True)
class FolderLock:
    """A folder that this process has locked.

    Attributes:
        claim: this process's claim file in it.
        home: notices when the folder is moved away.
        names: the folder's paths, as given and without links.
        made: folders that were made for it, the innermost first.
    """

    claim: Claim
    home: WatchedFolder
    names: tuple[Path, ...]
    made: tuple[Path, ...]

    def reason(self, error: Exception) -> Exception:
        """Return FolderGone if the folder was moved or deleted, else `error`."""
        try:
            self.home.check()
        except (FolderGone, OSError) as gone:
            return gone
        return error

    def leave(self) -> None:
        """Release the lock, and remove the folders that were made for it if they are empty."""
        for name in self.names:
            _LOCKED.pop(name, None)
        self.claim.release()
        self.home.close()
        # A folder that is not empty stays.
        with suppress(OSError):
            for folder in self.made:
                folder.rmdir()


def lock_folders(
    folders: Sequence[Path], say: PrintLine, silence: float = SILENCE
) -> list[FolderLock | FolderBusy | OSError]:
    """Make and lock folders.

    Waits only for locks of other machines, and for all of them at the same time. The wait ends when
    the owner sends a heartbeat, which it does every few seconds, or after `silence` seconds.

    Args:
        folders: the folders.
        say: prints one line for a person.
        silence: seconds without a heartbeat after which a lock is taken over.

    Returns:
        For each folder its lock, or the error that prevents it.
    """
    watch, first = ClaimWatch(silence), {}
    outcomes: dict[Path, FolderLock | FolderBusy | OSError] = {}
    while True:
        for folder in folders:
            if folder in outcomes:
                continue
            try:
                outcome = _try_lock(folder, watch, first)
            except OSError as error:
                outcome = error
            if outcome is not None:
                outcomes[folder] = outcome

        left = [folder for folder in folders if folder not in outcomes]
        if not left:
            return [outcomes[folder] for folder in folders]
        say(_waiting_line(left, watch))
        # One line is enough, however long the wait.
        say = print_nothing
        time.sleep(POLL)


def _try_lock(
    folder: Path, watch: ClaimWatch, first: dict[Path, ClaimState]
) -> FolderLock | FolderBusy | None:
    """Lock a folder; None if it is not known yet whether the present owner lives.

    `first` remembers each folder's claim as it was first read.
    """
    path = claim_path(folder)
    # The innermost first, the order in which `leave` removes them.
    made = []
    for one in (folder, *folder.parents):
        if not one.exists():
            made.append(one)
    make_folder(path.parent)
    claim = take_claim(path, watch)
    if claim is not None:
        names = Path(os.path.abspath(folder)), path.parent
        lock = FolderLock(claim, WatchedFolder(*names), names, tuple(made))
        _LOCKED.update(dict.fromkeys(names, lock))
        return lock

    state = read_claim(path)
    # The owner has just released it: the next try may get it.
    if state is None:
        return None
    if not _owner_lives(state, first.setdefault(folder, state)):
        # Unchanged since the first look: the owner may be dead, or slow.
        return None
    busy = FolderBusy(
        f"{folder}: {_who(state)} is at work here{_name_elsewhere(state)}: wait until it has "
        f"ended, or choose another folder"
    )
    busy.owner = state.owner
    return busy


def claim_path(folder: Path) -> Path:
    """Return the path that is claimed to lock a folder, the same under every name of the folder."""
    return folder.resolve() / "run"


def _owner_lives(state: ClaimState, first: ClaimState) -> bool:
    """Return whether the owner surely lives: it is visible, or its claim changed since `first`."""
    return state.lives is True or state.content != first.content


def _who(state: ClaimState) -> str:
    if state.here:
        return f"process {state.pid} on this machine"
    return "a process of another machine"


def _name_elsewhere(state: ClaimState) -> str:
    return "" if state.here else f" ({state.owner})"


def _waiting_line(folders: Sequence[Path], watch: ClaimWatch) -> LockMessages:
    """Return a line that says for whose locks on `folders` this process waits."""
    more = f" (and in {counted(len(folders) - 1, 'more folder')})" if len(folders) > 1 else ""
    path = claim_path(folders[0])
    state = read_claim(path)
    if state is None:
        return LockMessages(f"{folders[0]}{more}: waiting for a process that is leaving it")
    until = claimed_until(state, watch.silent_for(path, state), watch.silence)
    return LockMessages(
        f"{folders[0]}: {_who(state)} was at work here{more}; waiting for a heartbeat; {until}"
    )


def refuse_if_lost(path: Path) -> None:
    """Check this process's lock before a file of a run folder gets its final name.

    A machine that was suspended, or a network that was away, can stop the heartbeat for so long
    that another process takes the lock over. Does nothing for a folder that this process has not
    locked.

    Args:
        path: the file that will be written.

    Raises:
        FolderBusy: another process has taken the lock over, or the lock file was removed.
        FolderGone: the folder was moved, deleted or replaced.
    """
    lock = _LOCKED.get(Path(os.path.abspath(path.parent)))
    # Resolving links takes system calls: only if this process has locked anything.
    if lock is None and _LOCKED:
        lock = _LOCKED.get(path.parent.resolve())
    if lock is None:
        return

    lock.home.check()
    if lock.claim.held():
        return
    if read_claim(claim_path(path.parent)) is None:
        raise FolderBusy(
            f"{path.parent}: stopping: run.claim was removed from this folder, or the folder is "
            f"being deleted"
        )
    raise FolderBusy(
        f"{path.parent}: stopping: another process has taken over this folder, because this one "
        f"did not renew its claim for {SILENCE:.0f} s"
    )


def refuse_if_busy(folder: Path, say: PrintLine, watch: ClaimWatch | None = None) -> ClaimWatch:
    """Check that no process, this one included, has locked a folder; lock nothing.

    Waits for locks of other machines as `lock_folders` does.

    Args:
        folder: the folder.
        say: prints one line for a person.
        watch: what an earlier call returned; a claim that has not changed since is not waited
            for again.

    Returns:
        The claims that were read, for a later call.

    Raises:
        FolderBusy: a process works in the folder.
    """
    watch, first, path = watch or ClaimWatch(), None, claim_path(folder)
    while True:
        state = read_claim(path)
        if state is None or watch.abandoned(path, state):
            return watch
        first = first or state
        if _owner_lives(state, first):
            raise FolderBusy(
                f"{folder}: {_who(state)} is at work here{_name_elsewhere(state)}: wait until it "
                f"has ended"
            )
        if state is first:
            say(_waiting_line([folder], watch))
        time.sleep(POLL)


@contextmanager
def hold_folder(folder: Path, say: PrintLine, silence: float = SILENCE) -> Iterator[None]:
    """Hold the lock of a folder while the context is open; wait until other processes are done.

    Args:
        folder: the folder, which is made.
        say: prints one line for a person.
        silence: seconds without a heartbeat after which a lock is taken over.
    """
    outcome = lock_folders([folder], say, silence)[0]
    if isinstance(outcome, FolderBusy):
        say(LockMessages(f"{folder}: {outcome.owner} is at work here; waiting until it has ended"))
    while isinstance(outcome, FolderBusy):
        time.sleep(POLL)
        outcome = lock_folders([folder], print_nothing, silence)[0]
    if isinstance(outcome, OSError):
        raise outcome
    try:
        yield
    finally:
        outcome.leave()
