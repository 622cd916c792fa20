"""Makes text from files and file names safe to print on a terminal and to open in a spreadsheet.

Names may hold any character. Control characters can retitle a terminal, clear it, hide lines or
enter commands. A spreadsheet evaluates a cell that begins with =, which may read files and reach
the network.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# C0, DEL and C1; line and paragraph separators; marks of writing direction; surrogates, from names
# that are not UTF-8.
_HIDDEN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
UNSEEN = re.compile(f"[{_HIDDEN}]")
_UNSEEN_IN_LINES = re.compile(f"(?!\n)[{_HIDDEN}]")
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def visible(text: str) -> str:
    r"""The text on one line: control characters and line ends become escapes such as \x1b."""
    return UNSEEN.sub(_escape, text)


def visible_lines(text: str) -> str:
    """As `visible`, but line ends stay."""
    return _UNSEEN_IN_LINES.sub(_escape, text)


def visible_json(text: str) -> str:
    """As `visible_lines`, for JSON text: escapes have the form \\u001b."""
    return _UNSEEN_IN_LINES.sub(lambda found: f"\\u{ord(found[0]):04x}", text)


def _escape(found: re.Match) -> str:
    return found[0].encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """The first line of an error's message; the name of its class if it has no message."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def has_unseen(text: str) -> bool:
    """Whether `visible` would change it."""
    return bool(UNSEEN.search(text))


def as_cell(text: str) -> str:
    """A cell of a table for people: an apostrophe precedes text that a spreadsheet would evaluate;
    numbers stay numbers.
    """
    if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return visible(text)


def write_table(file: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Rows as CSV for people: every text as `as_cell` gives it."""
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        writer.writerow([as_cell(cell) if isinstance(cell, str) else cell for cell in row])


class Guarded:
    """A text stream that writes control characters as escapes, for verbs, Click, warnings, logs and
    tracebacks.

    Code that draws on the terminal itself (`rich`, a download's progress bar) uses `unguarded` and
    escapes names on its own.
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
    """Guards standard output and error from now on; characters that their encoding lacks become
    escapes too.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, Guarded):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, Guarded(stream))


@contextmanager
def guarded_output() -> Iterator[None]:
    """Guards the streams that a progress bar has put in place of standard output and error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(Guarded, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def unguarded_error() -> Iterator[None]:
    """Standard error without the guard, for a library that draws its own progress bar."""
    before = sys.stderr
    sys.stderr = getattr(before, "unguarded", before)
    try:
        yield
    finally:
        sys.stderr = before
