"""Opens regular files only, and reads small ones whole, within a limit.

A pipe would block its reader. A device such as /dev/zero, or a sparse file of a terabyte, would
fill the memory.
"""

import errno
import os
import stat
from pathlib import Path
from typing import BinaryIO

MOST_JSON = (
    256 << 20
)  # bytes: the statistics of a shard of a hundred thousand clips have a tenth of that
MOST_TEXT = 64 << 20  # bytes of a recipe, a study, a list of classes, the log of a run
KINDS = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a device"),
    (stat.S_ISBLK, "a device"),
)


class NotAFile(OSError, ValueError):
    """A pipe, a device or a far too large file in the place of a small one; `strerror` says
    which.
    """


def open_regular(path: str | os.PathLike) -> int:
    """Opens a regular file for reading and returns its descriptor.

    Raises:
        NotAFile: it is a pipe, a socket or a device; IsADirectoryError for a folder; another
        OSError if it cannot be opened.
    """
    _refuse(
        path, os.stat(path).st_mode
    )  # before opening, which may rewind a tape or wait for a pipe's other end
    number = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOCTTY)
    try:
        _refuse(path, os.fstat(number).st_mode)
    except BaseException:
        os.close(number)
        raise
    return number


def opened(path: str | os.PathLike, most: int | None = None) -> BinaryIO:
    """A regular file of at most `most` bytes, open for reading without a buffer. Errors as for
    `open_regular`.
    """
    file = os.fdopen(open_regular(path), "rb", buffering=0)
    size = os.fstat(file.fileno()).st_size
    if most is not None and size > most:
        file.close()
        raise NotAFile(
            errno.EFBIG, f"a file of {size:,} bytes, expected at most {most:,}", str(path)
        )
    return file


def read_small(path: str | os.PathLike, most: int = MOST_JSON) -> bytes:
    """The bytes of a regular file of at most `most` bytes. Errors as for `opened`."""
    with opened(path, most) as file:
        parts, left = [], most
        while left > 0 and (part := file.read(min(left, 1 << 20))):  # the file may grow meanwhile
            parts.append(part)
            left -= len(part)
    return b"".join(parts)


def read_small_text(
    path: str | os.PathLike, most: int = MOST_TEXT, encoding: str = "utf-8", errors: str = "strict"
) -> str:
    """The text of a small file, with \\n as line ends. UnicodeDecodeError, and errors as for `read_small`."""
    text = read_small(path, most).decode(encoding, errors)
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _refuse(path: str | os.PathLike, mode: int) -> None:
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), str(path))
    if not stat.S_ISREG(mode):
        kind = next((name for test, name in KINDS if test(mode)), "no regular file")
        raise NotAFile(errno.EINVAL, f"{kind}, expected a file", str(Path(path)))
