"""Text from files and their names, made harmless for whoever looks at it: on a terminal, and in a spreadsheet.

Names may hold anything. Printed as they are, control characters retitle a terminal, wipe its screen, hide lines, or type; in a
table, a cell that begins with = is calculated, with access to the network and to files.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# C0, DEL and C1; what breaks a line; what turns the direction of writing; halves of characters, from names that are no UTF-8.
_HIDDEN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
UNSEEN = re.compile(f"[{_HIDDEN}]")
_UNSEEN_IN_LINES = re.compile(f"(?!\n)[{_HIDDEN}]")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def visible(text: str) -> str:
    r"""One line: every control character as its escape, such as \x1b, line ends too."""
    return UNSEEN.sub(_escape, text)


def visible_lines(text: str) -> str:
    """The same for text whose line ends are ours."""
    return _UNSEEN_IN_LINES.sub(_escape, text)


def visible_json(text: str) -> str:
    """JSON without control characters, in which an escape has four digits."""
    return _UNSEEN_IN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()


def has_unseen(text: str) -> bool:
    """Whether `visible` would change it."""
    return bool(UNSEEN.search(text))


def as_cell(text: str) -> str:
    """For a table that people open: an apostrophe in front of what a spreadsheet would calculate; a number stays one."""
    if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return visible(text)


def write_table(file: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Rows as CSV for people: every text as `as_cell` gives it."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([as_cell(cell) if isinstance(cell, str) else cell for cell in row])


class Guarded:
    """A text stream that shows control characters as escapes, whoever writes: verbs, Click, warnings, logs, tracebacks.

    What draws on the terminal itself (`rich`, a download's bar) takes `unguarded`, and sees to it that names are harmless.
    """

    def __init__(self, stream: TextIO):
        self.unguarded = stream

    def write(self, text: str) -> int:
        self.unguarded.write(visible_lines(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        if name == "buffer":  # Click would write past this one
            raise AttributeError(name)
        return getattr(self.unguarded, name)


def guard_output() -> None:
    """Guards standard output and error of this process from now on; what their encoding has not is shown as an escape."""
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Guarded):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Guarded(stream))


@contextmanager
def guarded_output() -> Iterator[None]:
    """Guards both while a bar on the terminal has taken their place."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Guarded, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def unguarded_error() -> Iterator[None]:
    """Standard error as it is, for a library that draws a bar of its own there."""
    before = sys.stderr
    sys.stderr = getattr(before, "unguarded", before)
    try:
        yield
    finally:
        sys.stderr = before
