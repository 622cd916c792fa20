"""Read text files that people wrote: byte order marks, encodings, separators of a table.

UTF-8 is read, with or without the byte order mark that some editors put before it. UTF-16 and
other encodings are refused by name.
"""

import csv
import sys
from collections.abc import Collection
from pathlib import Path

from pipeline.files.regular_files import MOST_TEXT, read_small

# The byte order mark of UTF-8.
MARK = b"\xef\xbb\xbf"
SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "pipes (|)", " ": "blanks"}

# The csv module refuses cells above 131,072 characters. Ours may be longer: a clip's boxes as
# JSON, for example.
csv.field_size_limit(min(sys.maxsize, 2**31 - 1))


def decoded(data: bytes, path: str | Path, what: str = "text") -> str:
    """Decode the bytes of a whole file.

    Args:
        data: the bytes.
        path: the file, for messages.
        what: what the file should contain, in words, for messages.

    Returns:
        The text without byte order marks.

    Raises:
        ValueError: the bytes are not UTF-8.
    """
    if is_utf16(data):
        raise ValueError(f"{path}: UTF-16 text; save the file as UTF-8")
    try:
        return without_mark(data).decode("utf-8")
    except UnicodeDecodeError as error:
        byte = f"byte {error.start} (0x{data[error.start]:02x})"
        raise ValueError(f"{path}: {byte} is not UTF-8; expected {what}, saved as UTF-8") from None


def read_text(path: str | Path, what: str = "text") -> str:
    """Read a text file of at most 64 MiB.

    Args:
        path: the file.
        what: what it should contain, in words, for messages.

    Raises:
        ValueError: it cannot be read, or it is not UTF-8.
    """
    try:
        data = read_small(path, MOST_TEXT)
    except OSError as error:
        raise ValueError(f"{path}: {error.strerror}; expected {what}") from None
    return decoded(data, path, what)


def read_names(path: str | Path, what: str) -> tuple[str, ...]:
    """Read a list of names, one per line.

    Args:
        path: the file.
        what: what it should contain, in words, for messages.

    Returns:
        The lines that are not empty, without blanks at their ends.

    Raises:
        ValueError: a name is a duplicate, or as `read_text`.
    """
    # A mark stands in the middle too, where somebody joined two files.
    text = read_text(path, what).replace("\ufeff", "")
    lines = [line.strip() for line in text.splitlines()]

    names: dict[str, None] = {}
    for name in filter(None, lines):
        if name in names:
            raise ValueError(f"{path}: duplicate name {name!r}; keep one of them")
        names[name] = None
    return tuple(names)


def without_mark(data: bytes) -> bytes:
    """Remove the byte order marks of UTF-8 before a text; some programs write two."""
    while data.startswith(MARK):
        data = data[len(MARK) :]
    return data


def is_utf16(data: bytes) -> bool:
    """Return whether a file begins with the byte order mark of UTF-16 or UTF-32."""
    return data.startswith((b"\xff\xfe", b"\xfe\xff", b"\0\0\xfe\xff"))


def other_separator(line: str, columns: Collection[str]) -> str:
    """Find out whether something other than a comma separates the cells of a table.

    Args:
        line: the table's first line.
        columns: names that the header must contain.

    Returns:
        The separator in words, such as "semicolons"; "" if it is a comma or unknown.
        `separator_advice` makes a message of it.
    """
    line = line.strip("\r\n")
    if line.lstrip('"').lower().startswith("sep="):
        return f"the line {line!r}, which only one spreadsheet program reads,"

    known = {name.lower() for name in columns}
    by_comma = len(_cells(line, ",") & known)
    found = {words: len(_cells(line, mark) & known) for mark, words in SEPARATORS.items()}
    best = max(found, key=lambda words: found[words])
    if found[best] > max(by_comma, 1):
        return best
    return cell_separator(line, len(columns))


def cell_separator(line: str, cells: int) -> str:
    """Find what separates the cells of a line that has no comma.

    Args:
        line: a line of a table.
        cells: how many cells it must have at least.

    Returns:
        The separator in words; "" if there is none. Blanks do not count: any text has them.
    """
    if "," in line:
        return ""
    best, most = "", max(1, cells - 1) - 1
    for mark, words in SEPARATORS.items():
        if mark != " " and line.count(mark) > most:
            best, most = words, line.count(mark)
    return best


def separator_advice(words: str) -> str:
    """Return the message about a table with a wrong separator.

    Args:
        words: what `other_separator` returned.
    """
    if words.startswith("the line"):
        return (
            f"it begins with {words} expected the header there; "
            "delete that line, and separate cells by commas"
        )
    return f"its cells are separated by {words}, expected commas; save it as CSV with commas"


def _cells(line: str, separator: str) -> set[str]:
    """Return the cells of a line in lower case; none if the line is not CSV."""
    try:
        reader = csv.reader([line], delimiter=separator, skipinitialspace=True)
        cells = next(reader, [])
    except csv.Error:
        return set()
    return {cell.strip().lower() for cell in cells}
