"""A limit on the shard files that one process keeps open, over all its caches.

The least recently used files are closed first, and are opened again on demand. Systems usually
allow 1,024 open files, macOS 256 by default, and some clusters fewer. So shards get half of the
descriptors that other files leave, and at most MOST_OPEN.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol
from weakref import ref

# More open files would not make reading faster.
MOST_OPEN = 256

TOO_MANY_OPEN = (errno.EMFILE, errno.ENFILE)


class ReopenableFile(Protocol):
    """A file that can be closed and opened again: `pipeline.cache.shard_reader.ShardFile`."""

    def release(self) -> None:
        """Close the file; its next read opens it again."""


class OpenFiles:
    """The open files of one process, the most recently used last.

    A forked process starts with none. The references are weak: a file that nobody else refers to
    is closed and forgotten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[ref[ReopenableFile], None] = OrderedDict()

    def __iter__(self) -> Iterator[ReopenableFile]:
        for reference in list(self._files):
            file = reference()
            if file is not None:
                yield file

    def __contains__(self, file: ReopenableFile) -> bool:
        return ref(file) in self._files

    def used(self, file: ReopenableFile) -> None:
        """Mark a file as the most recently used one.

        Args:
            file: nothing happens if it is not open.
        """
        with self._lock:
            if ref(file) in self._files:
                self._files.move_to_end(ref(file))

    def open(self, file: ReopenableFile, opener: Callable[[], int]) -> int:
        """Open a descriptor, and close other files to stay within the limit.

        Args:
            file: the file that the descriptor is for.
            opener: opens it; called again after another file was closed for it.

        Returns:
            The descriptor.

        Raises:
            OSError: the error of `opener`, once no other file can be closed for it.
        """
        self._make_room(file)
        while True:
            try:
                return opener()
            except OSError as error:
                if error.errno not in TOO_MANY_OPEN or not self._close_oldest(but=file):
                    self.closed(file)
                    raise

    def closed(self, file: ReopenableFile) -> None:
        """Forget a file that is being closed.

        Args:
            file: nothing happens if it is not open.
        """
        with self._lock:
            self._files.pop(ref(file), None)

    def _make_room(self, file: ReopenableFile) -> None:
        """Register a file, and release the oldest ones that exceed the budget."""
        with self._lock:
            for reference in list(self._files):
                if reference() is None or reference() is file:
                    del self._files[reference]
            excess = len(self._files) + 1 - budget(len(self._files))
            oldest = [self._files.popitem(last=False)[0]() for _ in range(excess)]
            self._files[ref(file)] = None

        # `release` may take this lock again.
        for other in oldest:
            if other is not None:
                other.release()

    def _close_oldest(self, but: ReopenableFile) -> bool:
        """Close the least recently used file except `but`; False if there is none."""
        with self._lock:
            oldest = next((file for file in self if file != but), None)
            if oldest is not None:
                del self._files[ref(oldest)]
        if oldest is None:
            return False
        oldest.release()
        return True


def budget(shards: int) -> int:
    """Return how many shards may be open at once.

    Args:
        shards: how many of the descriptors that are open now belong to shards.

    Returns:
        A number from 1 to MOST_OPEN.
    """
    limit, now_open = _limit(), _open_descriptors()
    if limit is None or now_open is None:
        return MOST_OPEN
    return max(1, min(MOST_OPEN, (limit - (now_open - shards)) // 2))


def _limit() -> int | None:
    """How many files this process may have open; None if that is unlimited or unknown."""
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _open_descriptors() -> int | None:
    """How many descriptors this process has open; None if the system does not say."""
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            # Listing the folder opens one descriptor of its own.
            return len(os.listdir(folder)) - 1
        except OSError as error:
            if error.errno in TOO_MANY_OPEN:
                return _limit()
    return None


OPEN_FILES = OpenFiles()


def _reset_after_fork() -> None:
    """Forget the parent's files and lock: this process may neither close nor release them."""
    OPEN_FILES.__init__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_reset_after_fork)
