"""Notice that the folder of a run was moved, deleted or replaced by another of the same name.

An open handle identifies the folder, and `check` compares the folder at its path with the handle.
A stored inode number would not do: some file systems number a folder anew when nobody has it
open.
"""

import errno
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

# Errors that mean that a folder is gone. ESTALE: it was deleted on a network file system.
_GONE = (errno.ENOENT, errno.ENOTDIR, errno.ESTALE)


class FolderGone(RuntimeError):
    """The folder that a run works in was moved, deleted or replaced."""


class WatchedFolder:
    """The folders that one run works in, watched for being moved, deleted or replaced.

    Args:
        *paths: existing folders.
        unchanged: returns whether their content still belongs to this run. It returns False for
            a cache that was made anew in the same folder.

    Raises:
        FileNotFoundError: a folder does not exist.
    """

    def __init__(self, *paths: Path, unchanged: Callable[[], bool] = lambda: True):
        self._unchanged = unchanged
        self._handles = {}
        try:
            for path in paths:
                self._handles[path] = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        except OSError:
            self.close()
            raise

    def check(self) -> None:
        """Check that all folders are where they were.

        Raises:
            FolderGone: one of them was moved, deleted, replaced or made anew.
        """
        for path, handle in self._handles.items():
            try:
                is_same = os.path.samestat(os.stat(path), os.fstat(handle))
            except OSError as error:
                if error.errno not in _GONE:
                    raise
                is_same = False
            if not is_same:
                raise _gone(path, "was moved or deleted, or another folder has its name now")
        if not self._unchanged():
            raise _gone(next(iter(self._handles)), "was deleted and made anew, by another run")

    @contextmanager
    def explaining(self) -> Iterator[None]:
        """Run a block, and check if it raises: a folder that is gone explains more.

        Raises:
            FolderGone: a folder is gone. It replaces the error of the block.
        """
        try:
            yield
        except Exception:
            self.check()
            raise

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Run a block, then check.

        Raises:
            FolderGone: a folder is gone. It replaces an error of the block.
        """
        with self.explaining():
            yield
        self.check()

    def close(self) -> None:
        """Close the handles; it may be called again."""
        while self._handles:
            with suppress(OSError):
                os.close(self._handles.popitem()[1])

    def __del__(self) -> None:
        self.close()


def _gone(path: Path, what: str) -> FolderGone:
    return FolderGone(
        f"{path}: this folder {what}, while this run wrote to it; nothing more is written: "
        "find the folder, and run again"
    )
