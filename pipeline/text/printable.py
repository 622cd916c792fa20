"""Make text from files and file names safe for a terminal and for a spreadsheet.

Names may contain any character. Control characters can retitle a terminal, clear it, hide lines
or enter commands. A spreadsheet evaluates a cell that begins with "=", which may read files and
reach the network.
"""

import csv
import re
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any, TextIO

# Characters to escape: C0, DEL and C1; line and paragraph separators; marks of writing direction;
# surrogates, which stand for bytes of file names that are not UTF-8.
_HIDDEN = "\x00-\x1f\x7f-\x9f\u2028\u2029\u200e\u200f\u202a-\u202e\u2066-\u2069\ufeff\ud800-\udfff"
UNSEEN = re.compile(f"[{_HIDDEN}]")
_UNSEEN_IN_LINES = re.compile(f"(?!\n)[{_HIDDEN}]")

# How a formula begins; the last four are the full-width forms of the first four.
_FORMULA = ("=", "+", "-", "@", "\uff1d", "\uff0b", "\uff0d", "\uff20")
_NUMBER = re.compile(r"-?(\d+(\.\d*)?|\.\d+)([eE][+-]?\d+)?")


def visible(text: str) -> str:
    r"""Return the text on one line, with control characters and line ends escaped.

    Args:
        text: any text, such as a file name.

    Returns:
        The text with escapes such as \x1b and \n; unchanged if it has no such character.
    """
    return UNSEEN.sub(_escape, text)


def visible_lines(text: str) -> str:
    """Return the text with control characters escaped and line ends kept.

    Args:
        text: any text of several lines.
    """
    return _UNSEEN_IN_LINES.sub(_escape, text)


def visible_json(text: str) -> str:
    r"""Return JSON text with control characters escaped as JSON does (\u001b), line ends kept.

    Args:
        text: JSON.
    """
    return _UNSEEN_IN_LINES.sub(lambda match: f"\\u{ord(match[0]):04x}", text)


def _escape(match: re.Match) -> str:
    return match[0].encode("unicode_escape").decode()


def first_line(error: BaseException) -> str:
    """Return the first line of an error's message.

    Args:
        error: any exception.

    Returns:
        The line, or the name of the error's class if it has no message.
    """
    message = str(error).strip() or type(error).__name__
    return message.splitlines()[0]


def has_unseen(text: str) -> bool:
    """Return whether `visible` would change the text."""
    return bool(UNSEEN.search(text))


def as_cell(text: str) -> str:
    """Return text as a cell of a table for people.

    Args:
        text: any text.

    Returns:
        The text as `visible` gives it. An apostrophe precedes it if a spreadsheet would evaluate
        it; numbers stay numbers.
    """
    if text.lstrip().startswith(_FORMULA) and not _NUMBER.fullmatch(text):
        text = f"'{text}"
    return visible(text)


def write_table(file: TextIO, rows: Iterable[Iterable[Any]]) -> None:
    """Write rows as CSV for people.

    Args:
        file: a text file, opened with newline="".
        rows: cells of each row; text goes through `as_cell`.
    """
    writer = csv.writer(file, lineterminator="\n")
    for row in rows:
        cells = []
        for cell in row:
            # Numbers and None are written as they are.
            cells.append(as_cell(cell) if isinstance(cell, str) else cell)
        writer.writerow(cells)


class EscapingStream:
    """A text stream that escapes control characters, for everything that the process prints.

    Verbs, Click, warnings, logs and tracebacks all write to it. Code that draws on the terminal
    itself (`rich`, a download's progress bar) writes to `unguarded` and escapes names on its own.

    Args:
        stream: the stream that receives the escaped text.
    """

    def __init__(self, stream: TextIO):
        self.unguarded = stream

    def write(self, text: str) -> int:
        """Write the text with control characters escaped, and return the length of the text."""
        self.unguarded.write(visible_lines(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        """Write several texts, each as `write` does."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        # Click writes bytes to `buffer` where there is one, which would go round this stream.
        if name == "buffer":
            raise AttributeError(name)
        return getattr(self.unguarded, name)


def guard_output() -> None:
    """Escape control characters on standard output and error from now on.

    Characters that the stream's encoding lacks become escapes too. Calling it again does nothing.
    """
    for name in ("stdout", "stderr"):
        stream = getattr(sys, name)
        if stream is None or isinstance(stream, EscapingStream):
            continue
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")
        setattr(sys, name, EscapingStream(stream))


@contextmanager
def guarded_output() -> Iterator[None]:
    """Guard the streams that a progress bar has put in place of standard output and error."""
    before = sys.stdout, sys.stderr
    sys.stdout, sys.stderr = map(EscapingStream, before)
    try:
        yield
    finally:
        sys.stdout, sys.stderr = before


@contextmanager
def unguarded_error() -> Iterator[None]:
    """Use standard error without the guard, for a library that draws its own progress bar."""
    before = sys.stderr
    sys.stderr = getattr(before, "unguarded", before)
    try:
        yield
    finally:
        sys.stderr = before
