"""Official annotation files, found by name and read as text; whatever is wrong with one is a
ManifestError of one line.
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
from pipeline.text import text_files as texts

MOST = 1 << 30  # bytes of an annotation file


def find(folder: str | Path, pattern: str, example: str) -> Path | None:
    """The one file of `folder` whose whole name matches `pattern` (any case), None if there is
    none.

    ManifestError where several match, and where `folder` is none: `example` is the name that the
    message gives.
    """
    folder = Path(folder)
    if not folder.is_dir():
        raise ManifestError(
            f"{folder}: expected the folder of the official annotation files (such as {example}); "
            f"found no folder"
        )
    matching = re.compile(pattern, re.IGNORECASE)
    found = sorted(path for path in folder.iterdir() if matching.fullmatch(path.name))
    if len(found) > 1:
        names = ", ".join(path.name for path in found)
        raise ManifestError(
            f"{folder}: expected one file such as {example}, found {names}; leave one of them in "
            f"the folder"
        )
    return found[0] if found else None


def require(folder: str | Path, pattern: str, example: str) -> Path:
    """`find`, but ManifestError if there is none."""
    if (path := find(folder, pattern, example)) is None:
        raise ManifestError(
            f"{folder}: no file such as {example} in it; download it, or name the folder that "
            f"holds it"
        )
    return path


def read_text(path: Path) -> str:
    """The text of a UTF-8 file, with or without the mark that spreadsheets put before it."""
    try:
        return texts.decoded(read_small(path, MOST), path)
    except NotAFile as error:
        raise ManifestError(f"{path}: {error.strerror}") from None
    except ValueError as error:
        raise ManifestError(f"{str(error).partition(';')[0]}; download the file again") from None
    except OSError as error:
        raise ManifestError(
            f"{path}: cannot be read ({error.strerror}); expected an official annotation file"
        ) from None


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """(line number, text without blanks at its ends) of the lines that are not blank."""
    for number, line in enumerate(read_text(path).splitlines(), 1):
        if line.strip():
            yield number, line.strip()


def read_table(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[int, dict[str, str]]]:
    """(line number, cells by column) of every row of a CSV file with a header, which must name
    `columns`.
    """
    text = read_text(path)
    reader = csv.reader(io.StringIO(text, newline=""))
    try:
        header = [name.strip() for name in next(reader, [])]
        if missing := [name for name in columns if name not in header]:
            other = texts.other_separator(text.partition("\n")[0], columns)
            advice = f" ({texts.separator_advice(other)})" if other else ""
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
                    f"download it again"
                )
            yield reader.line_num, dict(zip(header, cells, strict=True))
    except csv.Error as error:
        raise ManifestError(
            f"{path}, line {reader.line_num}: not CSV ({error}); download the file again"
        ) from None


def read_json(path: Path, kind: type) -> Any:
    """A JSON file that holds a list or an object (`kind` list or dict)."""
    try:
        value = json.loads(read_text(path))
    except (json.JSONDecodeError, RecursionError) as error:
        reason = str(error) if isinstance(error, json.JSONDecodeError) else "nested too deeply"
        raise ManifestError(f"{path}: not JSON ({reason}); download the file again") from None
    if not isinstance(value, kind):
        expected = {list: "a list", dict: "an object"}[kind]
        raise ManifestError(
            f"{path}: expected {expected} at its top, got {type(value).__name__}; is it the "
            f"official file?"
        )
    return value


def text_of(item: Any, key: str, path: Path, position: int) -> str:
    """item[key] as text; ManifestError, with the place in the list, if the item is no object or has
    no such text.
    """
    value = item.get(key) if isinstance(item, dict) else None
    if isinstance(value, int) and not isinstance(value, bool):
        value = str(value)
    if not isinstance(value, str) or not value:
        got = _short(value if isinstance(item, dict) else item)
        raise ManifestError(f"{path}, entry {position + 1}: expected text under {key!r}, got {got}")
    return value


def whole_of(item: Any, key: str, path: Path, position: int) -> int:
    """item[key] as a whole number from 0; ManifestError, with the place in the list, otherwise."""
    value = item.get(key) if isinstance(item, dict) else None
    if not isinstance(value, int) or isinstance(value, bool) or value < 0:
        raise ManifestError(
            f"{path}, entry {position + 1}: expected a whole number from 0 under {key!r}, got "
            f"{_short(value)}"
        )
    return value


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 60 else text[:60] + "…"
