"""Text files that people write: byte order marks, encodings, and the separator of a table.

UTF-8 is read, with or without the mark (BOM) that some editors put before it. UTF-16 and other
encodings are refused by name.
"""

import csv
import sys
from collections.abc import Collection
from pathlib import Path

from pipeline.files.regular_files import MOST_TEXT, read_small

MARK = b"\xef\xbb\xbf"  # before UTF-8
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "pipes (|)", " ": "blanks"}

# The csv module refuses cells above 131,072 characters; a column of ours may hold more (a clip's
# boxes as JSON, for one).
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def decoded(data: bytes, path: str | Path, what: str = "text") -> str:
    """The text of a whole file; ValueError, with its name, if it is not UTF-8. `what` the file
    should hold, in words.
    """
    if utf16(data):
        raise ValueError(f"{path}: UTF-16 text; save the file as UTF-8")
    try:
        return unmarked(data).decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{path}: byte {error.start} (0x{data[error.start]:02x}) is not UTF-8; expected "
            f"{what}, saved as UTF-8"
        ) from None


def read_text(path: str | Path, what: str = "text") -> str:
    """The text of a file; ValueError, with its name, if it cannot be read or is not UTF-8."""
    try:
        data = read_small(path, MOST_TEXT)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected {what}") from None
    return decoded(data, path, what)


def read_names(path: str | Path, what: str) -> tuple[str, ...]:
    """The non-empty lines of a list of names, without blanks at their ends; ValueError if a name
    appears twice.
    """
    lines = (
        read_text(path, what).replace("\ufeff", "").splitlines()
    )  # a mark stands where two marked files were joined, too
    names = tuple(line.strip() for line in lines if line.strip())
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ValueError(f"{path}: {twice!r} is there twice")
    return names


def unmarked(data: bytes) -> bytes:
    """The bytes of a text without the marks of UTF-8 before it: two where it was marked twice."""
    while data.startswith(MARK):
        data = data[len(MARK) :]
    return data


def utf16(data: bytes) -> bool:
    """Whether a file's first bytes are the mark of UTF-16 (or UTF-32)."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))


def other_separator(line: str, columns: Collection[str]) -> str:
    """The separator of a table's first line in words, such as "semicolons"; "" if it is a comma or
    unknown.

    line: the first line. columns: names that a header must have.
    """
    line = line.strip("\r\n")
    if line.lstrip('"').lower().startswith("sep="):
        return f"the line {line!r}, which only one spreadsheet program reads,"
    known = {name.lower() for name in columns}
    here = len(_cells(line, ",") & known)
    found = {words: len(_cells(line, mark) & known) for mark, words in SEPARATORS.items()}
    best = max(found, key=lambda words: found[words])
    if found[best] > max(here, 1):
        return best
    return cell_separator(line, len(columns))


def cell_separator(line: str, cells: int) -> str:
    """What separates at least so many cells of a line without commas, in words; "" for blanks,
    which any text has.
    """
    marks = {
        mark: words
        for mark, words in SEPARATORS.items()
        if mark != " " and line.count(mark) >= max(1, cells - 1)
    }
    return marks[max(marks, key=line.count)] if marks and "," not in line else ""


def separator_advice(words: str) -> str:
    """What to say of a table whose cells are separated by `words` (see `other_separator`)."""
    if words.startswith("the line"):
        return f"it begins with {words} expected the header there; delete that line, and separate cells by commas"
    return f"its cells are separated by {words}, expected commas; save it as CSV with commas"


def _cells(line: str, mark: str) -> set[str]:
    try:
        return {
            cell.strip().lower()
            for cell in next(csv.reader([line], delimiter=mark, skipinitialspace=True), [])
        }
    except csv.Error:
        return set()
