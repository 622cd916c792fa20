"""A folder that a run works in, so that the run notices when it is moved, deleted, or another takes its name.

The folder is known by an open handle: what its path leads to is compared with that, so no number has to mean the same on two
machines, or on a file system that gives a folder another number when nobody has it open.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AWAY = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)  # the last: what a network file system says of what was deleted


class Gone(RuntimeError):
    """The folder that a run works in was moved, deleted or replaced."""


class Home:
    """The folders `paths`, which are there, of one piece of work; `check` says whether they still are what they were.

    `unchanged`, if given, is asked too: whether what is in them still belongs to this work (False for a cache that was deleted
    and made again in the same folder). FileNotFoundError for a folder that is not there.
    """

    def __init__(self, *paths: Path, unchanged: Callable[[], bool] = lambda: True):
        self._unchanged, self._handles = unchanged, {}
        try:
            for path in paths:
                self._handles[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def check(self) -> None:
        """Gone if one of the folders is no longer where it was."""
        for path, handle in self._handles.items():
            try:
                same = os.path.samestat(os.stat(path), os.fstat(handle))
            except OSError as error:
                if error.errno not in _AWAY:
                    raise
                same = False
            if not same:
                raise Gone(self._said(path, "was moved or deleted, or another folder has its name now"))
        if not self._unchanged():
            raise Gone(self._said(next(iter(self._handles)), "was deleted and made anew, by another run"))

    def _said(self, path: Path, what: str) -> str:
        return (
            f"{path}: this folder {what}, while this run wrote to it; nothing more is written: look where it is, and run again"
        )

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Gone in place of whatever is raised within it, where that is the reason; and at its end."""
        try:
            yield
        except Exception:
            self.check()
            raise
        self.check()

    def close(self) -> None:
        """Gives the handles back; may be called again."""
        while self._handles:
            with suppress(OSError):
                os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()
