"""Counts the calls of this process that reach a file system, by name.

They are counted where Python makes them: in the functions of `os`, and by the audit event of
`open`. HDF5 writes through a file object of ours, so its calls are among them.
"""

import os
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

COUNTED = (
    *("stat", "lstat", "fstat", "statvfs", "listdir", "scandir", "mkdir", "rmdir", "rename"),
    *("replace", "link", "unlink", "remove", "close", "read", "write", "pread", "pwrite", "fsync"),
)
# What asks the server of a network file system for names and attributes.
METADATA = (
    *("stat", "lstat", "statvfs", "listdir", "scandir", "mkdir", "rmdir", "rename", "replace"),
    *("link", "unlink", "remove", "open"),
)

_watching: list[Counter] = []


def _opened(event: str, arguments: tuple) -> None:
    # Files of the program itself, and pipes, are no files of the cache.
    if event == "open" and _watching and str(arguments[0]).startswith(_inside[0]):
        _watching[-1]["open"] += 1


_inside = [""]
_hooked: list[bool] = []


@contextmanager
def counted(folder: str) -> Iterator[Counter]:
    """Count within the context.

    Args:
        folder: calls that name a path are counted where it is below this one; those that name an
            open file are counted wherever it is.

    Yields:
        Name -> number; "open" and the names of COUNTED.
    """
    calls: Counter = Counter()
    if not _hooked:
        sys.addaudithook(_opened)  # it stays for ever
        _hooked.append(True)
    plain: dict[str, Callable] = {name: getattr(os, name) for name in COUNTED}

    def counting(name: str, function: Callable) -> Callable:
        def call(*arguments, **options):
            # Of calls that name a path, those about other folders are not counted.
            first = arguments[0] if arguments else ""
            if isinstance(first, int) or os.fspath(first).startswith(folder):
                calls[name] += 1
            return function(*arguments, **options)

        return call

    _inside[0] = folder
    _watching.append(calls)
    for name, function in plain.items():
        setattr(os, name, counting(name, function))
    try:
        yield calls
    finally:
        for name, function in plain.items():
            setattr(os, name, function)
        _watching.pop()
