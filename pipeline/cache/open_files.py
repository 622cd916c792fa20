"""The shards that this process keeps open, of all its caches together, within the system's limit on
open files.

The least recently used are closed first and opened again on demand. A limit of 1,024 open files is
usual, 256 is the default of macOS, and some clusters set less. So the budget is half of what the
limit leaves, and at most MOST_OPEN.
"""

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from typing import Protocol
from weakref import ref

MOST_OPEN = 256  # more open files would not make reading faster
NO_MORE = (errno.EMFILE, errno.ENFILE)


class ReopenableFile(Protocol):
    """What can be closed and opened again: `pipeline.cache.shard_reader.ShardFile`."""

    def release(self) -> None: ...


class OpenFiles:
    """The open files of one process, the most recently used last. A forked process begins with
    none.

    It holds weak references: a file that nobody else refers to is closed and forgotten.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._files: OrderedDict[ref[ReopenableFile], None] = OrderedDict()

    def __iter__(self) -> Iterator[ReopenableFile]:
        return (file for key in list(self._files) if (file := key()) is not None)

    def __contains__(self, file: ReopenableFile) -> bool:
        return ref(file) in self._files

    def used(self, file: ReopenableFile) -> None:
        """Notes that an open file is in use now."""
        with self._lock:
            if ref(file) in self._files:
                self._files.move_to_end(ref(file))

    def open(self, file: ReopenableFile, opener: Callable[[], int]) -> int:
        """Opens a descriptor for `file` and closes others to stay within the limit. Raises the
        OSError of `opener`.
        """
        self._make_room(file)
        while True:
            try:
                return opener()
            except OSError as error:
                if error.errno not in NO_MORE or not self._close_oldest(but=file):
                    self.closed(file)
                    raise

    def closed(self, file: ReopenableFile) -> None:
        """Notes that a file is closed."""
        with self._lock:
            self._files.pop(ref(file), None)

    def _make_room(self, file: ReopenableFile) -> None:
        with self._lock:
            for gone in [key for key in self._files if key() is None or key() is file]:
                del self._files[gone]
            away = len(self._files) + 1 - budget(len(self._files))
            oldest = [self._files.popitem(last=False)[0]() for _ in range(away)]
            self._files[ref(file)] = None
        for other in oldest:
            if other is not None:
                other.release()

    def _close_oldest(self, but: ReopenableFile) -> bool:
        with self._lock:
            oldest = next(
                (other for key in self._files if (other := key()) not in (None, but)), None
            )
            if oldest is not None:
                del self._files[ref(oldest)]
        if oldest is not None:
            oldest.release()
        return oldest is not None


def budget(ours: int) -> int:
    """How many shards may be open, at least 1; `ours` is how many of the descriptors open now are
    shards.
    """
    limit, there = _limit(), _open_descriptors()
    if limit is None or there is None:
        return MOST_OPEN
    return max(1, min(MOST_OPEN, (limit - (there - ours)) // 2))


def _limit() -> int | None:
    """The number of files that this process may have open; None if there is no limit or it is
    unknown.
    """
    try:
        import resource
    except ImportError:  # Windows
        return None
    limit = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    return None if limit == resource.RLIM_INFINITY else limit


def _open_descriptors() -> int | None:
    for folder in ("/proc/self/fd", "/dev/fd"):
        try:
            return len(os.listdir(folder)) - 1  # one is that of the listing
        except OSError as error:
            if error.errno in NO_MORE:
                return _limit()
    return None


OPEN_FILES = OpenFiles()


def _begin_anew() -> None:
    """In a forked process: forgets the parent's files and lock, which are not this process's to
    close or to release.
    """
    OPEN_FILES.__init__()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_begin_anew)
