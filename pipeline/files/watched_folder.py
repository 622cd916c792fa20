"""The folder that a run works in: the run notices when it is moved, deleted or replaced by another
of the same name.

An open handle identifies the folder, and `check` compares the folder at its path with the handle.
Stored inode numbers would not do: some file systems number a folder anew when nobody has it open.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

_AWAY = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)  # ESTALE: deleted, on a network file system


class FolderGone(RuntimeError):
    """The folder that a run works in was moved, deleted or replaced."""


class WatchedFolder:
    """The existing folders that one run works in; `check` raises Gone if one of them is no longer
    at its path.

    Args:
        *paths: the folders.
        unchanged: whether their content still belongs to this run; False for a cache that was made
        anew in the same folder.

    Raises:
        FileNotFoundError: a folder does not exist.
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
                raise FolderGone(
                    self._said(path, "was moved or deleted, or another folder has its name now")
                )
        if not self._unchanged():
            raise FolderGone(
                self._said(next(iter(self._handles)), "was deleted and made anew, by another run")
            )

    def _said(self, path: Path, what: str) -> str:
        return f"{path}: this folder {what}, while this run wrote to it; nothing more is written: look where it is, and run again"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Checks at its end. Gone replaces an error that was raised within, if the folders are gone
        then.
        """
        try:
            yield
        except Exception:
            self.check()
            raise
        self.check()

    def close(self) -> None:
        """Closes the handles; may be called again."""
        while self._handles:
            with suppress(OSError):
                os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()
