"""Open regular files only, and read small ones whole, within a limit.

A pipe would block its reader. A device such as /dev/zero, or a sparse file of a terabyte, would
fill the memory.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

# Most bytes of a JSON file: ten times the statistics of a shard of a hundred thousand clips.
MOST_JSON = 256 << 20

# Most bytes of a recipe, a study, a list of classes, the log of a run.
MOST_TEXT = 64 << 20

_KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFile(OSError, ValueError):
    """A pipe, a device or a far too large file in place of a small one; `strerror` says which."""


def open_regular(path: str | os.PathLike) -> int:
    """Open a regular file for reading.

    Args:
        path: the file, or a link to it.

    Returns:
        Its file descriptor.

    Raises:
        NotAFile: it is a pipe, a socket or a device.
        IsADirectoryError: it is a folder.
        OSError: it cannot be opened.
    """
    # Look before opening: that may rewind a tape, or wait for the other end of a pipe.
    _refuse(path, os.stat(path).st_mode)
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        # The name may lead to something else by now.
        _refuse(path, os.fstat(number).st_mode)
    except BaseException:
        os.close(number)
        raise
    return number


def opened(path: str | os.PathLike, most: int | None = None) -> BinaryIO:
    """Open a regular file for reading bytes, without a buffer.

    Args:
        path: the file.
        most: most bytes that it may have; None for no limit.

    Raises:
        NotAFile: it is larger, or as `open_regular`.
        OSError: as `open_regular`.
    """
    file = os.fdopen(open_regular(path), "rb", buffering=0)
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        file.close()
        message = f"a file of {size:,} bytes, expected at most {most:,}"
        raise NotAFile(errno.EFBIG, message, str(path))
    return file


def read_small(path: str | os.PathLike, most: int = MOST_JSON) -> bytes:
    """Read a regular file whole.

    Args:
        path: the file.
        most: most bytes that it may have (256 MiB).

    Raises:
        NotAFile: it is larger, or as `open_regular`.
        OSError: as `open_regular`.
    """
    parts = []
    left = most
    with opened(path, most) as file:
        # The file may grow while it is read, so the limit holds here too.
        while left > 0:
            part = file.read(min(left, 1 << 20))
            if not part:
                break
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def read_small_text(
    path: str | os.PathLike, most: int = MOST_TEXT, encoding: str = "utf-8", errors: str = "strict"
) -> str:
    r"""Read a text file whole, with \n as line ends.

    Args:
        path: the file.
        most: most bytes that it may have (64 MiB).
        encoding: as for `bytes.decode`.
        errors: as for `bytes.decode`.

    Raises:
        UnicodeDecodeError: the bytes do not fit the encoding.
        NotAFile, OSError: as `read_small`.
    """
    text = read_small(path, most).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse(path: str | os.PathLike, mode: int) -> None:
    """Raise unless the mode is that of a regular file."""
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if stat.S_ISREG(mode):
        return
    kind = "no regular file"
    for is_kind, name in _KINDS:
        if is_kind(mode):
            kind = name
            break
    raise NotAFile(errno.EINVAL, f"{kind}, expected a file", str(Path(path)))
