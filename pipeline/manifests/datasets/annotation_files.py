"""Find official files by their names, and read them as text.

Whatever is wrong with one of them is a ManifestError of one line.
"""

import csv
import io
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.files.regular_files import NotAFile, read_small
from pipeline.manifests.manifest import ManifestError
from pipeline.text import text_files

# Most bytes of an official file.
MOST = 1 << 30


def find(folder: str | Path, pattern: str, example: str) -> Path | None:
    """Find a file by its name.

    Args:
        folder: the folder of the official files.
        pattern: regular expression that the whole name must match, in any case.
        example: a name that matches, for messages.

    Returns:
        The one file that matches, or None.

    Raises:
        ManifestError: several match, or there is no such folder.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: expected the folder of the official annotation files (such as {example}); "
            "found no folder"
        )
    matching = re.compile(pattern, re.IGNORECASE)
    found = []
    for path in folder.iterdir():
        if matching.fullmatch(path.name):
            found.append(path)
    if len(found) > 1:
        names = ", ".join(sorted(path.name for path in found))
        raise ManifestError(
            f"{folder}: expected one file such as {example}, found {names}; leave one of them in "
            "the folder"
        )
    return found[0] if found else None


def require(folder: str | Path, pattern: str, example: str) -> Path:
    """Find a file by its name, as `find` does. ManifestError if there is none."""
    path = find(folder, pattern, example)
    if path is None:
        raise ManifestError(
            f"{folder}: no file such as {example} in it; download it, or name the folder that "
            "holds it"
        )
    return path


def read_text(path: Path) -> str:
    """Read a UTF-8 file, with or without the mark that spreadsheets put before it."""
    try:
        return text_files.decoded(read_small(path, MOST), path)
    except NotAFile as error:
        raise ManifestError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        problem = str(error).partition(";")[0]
        raise ManifestError(f"{problem}; download the file again") from None
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); expected an official annotation file"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number, text without blanks at its ends) of the lines that are not blank."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """Read the rows of a CSV file with a header.

    Args:
        path: the file.
        columns: names that the header must contain.

    Yields:
        (line number, cells by column).

    Raises:
        ManifestError: it is not CSV, a column is missing, or a row has another length.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        missing = [name for name in columns if name not in header]
        if missing:
            separator = text_files.other_separator(text.partition("\n")[0], columns)
            advice = f" ({text_files.separator_advice(separator)})" if separator else ""
            raise ManifestError(
                f"{path}, line 1: no column {missing[0]}{advice}; expected the official header, "
                f"with {','.join(columns)}"
            )
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(header):
                raise ManifestError(
                    f"{path}, line {reader.line_num}: {len(cells)} cells, expected {len(header)}; "
                    "download it again"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ManifestError(
            f"{path}, line {reader.line_num}: not CSV ({error}); download the file again"
        ) from None


def read_json(path: Path, kind: type) -> Any:
    """Read a JSON file.

    Args:
        path: the file.
        kind: what it must hold at its top, `list` or `dict`.

    Raises:
        ManifestError: it is not JSON, or holds something else.
    """
    try:
        value = json.loads(read_text(path))
    except json.JSONDecodeError as error:
        raise ManifestError(f"{path}: not JSON ({error}); download the file again") from None
    except RecursionError:
        raise ManifestError(
            f"{path}: not JSON (nested too deeply); download the file again"
        ) from None
    if not isinstance(value, kind):
        expected = {list: "a list", dict: "an object"}[kind]
        got = type(value).__name__
        raise ManifestError(
            f"{path}: expected {expected} at its top, got {got}; is it the official file?"
        )
    return value


def text_of(item: Any, key: str, path: Path, position: int) -> str:
    """Return a text, or a whole number as text, from an entry of a list.

    Args:
        item: the entry.
        key: the key of the text.
        path: the list's file, for messages.
        position: the entry's place in the list, from 0.

    Raises:
        ManifestError: the entry is not an object, or has no such text.
    """
    value = item.get(key) if isinstance(item, dict) else None
    # Some lists write ids as numbers. True is an int too, but no id.
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        got = _short(value if isinstance(item, dict) else item)
        raise ManifestError(f"{path}, entry {position + 1}: expected text under {key!r}, got {got}")
    return value


def whole_of(item: Any, key: str, path: Path, position: int) -> int:
    """Return a whole number from 0 from an entry of a list; arguments as for `text_of`."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        expected = f"expected a whole number from 0 under {key!r}"
        raise ManifestError(f"{path}, entry {position + 1}: {expected}, got {_short(value)}")
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
