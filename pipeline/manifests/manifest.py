"""A manifest (a CSV file that lists clips) becomes validated Clips, and clips become shards.

data_manifests/README.md says what the columns mean. Every rule is checked when the manifest is
read; no video is opened. `rows` holds the rules of a row; its names are exported here too.
"""

import csv
import gc
import hashlib
import io
import os
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain, islice
from pathlib import Path

from pipeline.files.atomic_files import move_into_place
from pipeline.files.owners import new_claim_name, part_path, remove_abandoned_of
from pipeline.files.regular_files import open_regular
from pipeline.manifests.rows import (
    COLUMNS,
    ID_BYTES,
    ROOT,
    SPLIT_ALIASES,
    SPLITS,
    TIMES,
    Clip,
    ManifestError,
    RowParser,
    foreign_path,
    wrong_id,
)
from pipeline.text import text_files

__all__ = [
    "COLUMNS",
    "ID_BYTES",
    "ROOT",
    "SPLITS",
    "SPLIT_ALIASES",
    "TIMES",
    "Clip",
    "Manifest",
    "ManifestError",
    "foreign_path",
    "inside",
    "read_manifest",
    "shard_ranges",
    "write_clips",
    "write_manifest",
    "wrong_id",
]

# Rows that are checked together.
BATCH = 4096

# Bytes that are read and decoded together.
BLOCK = 1 << 20

# Most bytes of a line.
LONGEST = 16 << 20


@dataclass(frozen=True)
class Manifest:
    """A manifest as read.

    Attributes:
        path: its file.
        root: the folder that no path may leave.
        clips: its clips, in the order of the rows.
        sha256: the checksum of the file's bytes.
        columns: names of the columns, in the file's order.
    """

    path: Path
    root: Path
    clips: tuple[Clip, ...]
    sha256: str
    columns: tuple[str, ...]


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Read a manifest and check every row.

    No video is looked at: a million rows would be a million disk accesses.

    Args:
        path: the CSV file.
        root: the folder that paths are relative to and may not leave; default: the one in the
            column `root`, or else the file's folder.

    Raises:
        ManifestError: a rule is broken. The message names file, line and column.
    """
    path = Path(path)
    return _read(path, None if root is None else Path(root), shown_path=path)


def _read(path: Path, root: Path | None, shown_path: Path) -> Manifest:
    """Read a manifest that errors call `shown_path`."""
    digest = hashlib.sha256()
    parser = None
    with _open(path, shown_path) as file, _garbage_collection_off():
        for lines, records in _records(file, shown_path, digest):
            if parser is None:
                parser = RowParser(shown_path, path.parent, lines[0], records[0], root)
                lines, records = lines[1:], records[1:]
            if records:
                parser.take(lines, records)

    if parser is None:
        header = ",".join(COLUMNS)
        raise ManifestError(
            f"{shown_path}, line 1: the file is empty; write the header {header} and one row per "
            "clip"
        )
    if not parser.clips:
        raise ManifestError(
            f"{shown_path}, line 2: no clips below the header; write one row per clip"
        )
    clips = tuple(parser.clips)
    return Manifest(shown_path, parser.root, clips, digest.hexdigest(), parser.columns)


@contextmanager
def _garbage_collection_off() -> Iterator[None]:
    """Stop Python from searching a million new objects for cycles, of which there are none."""
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()


def _open(path: Path, shown_path: Path):
    try:
        return os.fdopen(open_regular(path), "rb")
    except FileNotFoundError:
        raise ManifestError(
            f"{shown_path}: no such file; `vidgraph manifest folder` makes a manifest"
        ) from None
    except IsADirectoryError:
        raise ManifestError(
            f"{shown_path}: a folder, expected a CSV file; `vidgraph manifest folder` makes one"
        ) from None


def _records(file, shown_path: Path, digest) -> Iterator[tuple[array, list[list[str]]]]:
    """Yield (lines on which they begin, cells) of records, up to BATCH together.

    Blank lines are left out. The ManifestError about what is not CSV comes after the records
    before it.
    """
    reader = csv.reader(chain.from_iterable(_blocks(file, shown_path, digest)), strict=True)
    line = 1
    while True:
        lines, records = array("q"), []
        first_line, problem = line, None
        try:
            for cells in islice(reader, BATCH):
                if cells:
                    lines.append(line)
                    records.append(cells)
                line = reader.line_num + 1
        except csv.Error as error:
            problem = ManifestError(
                f'{shown_path}, line {line}: not CSV ({error}); put "…" around a cell that holds '
                "a comma, quote or line break, double the quotes inside, end lines with LF"
            )
        except ManifestError as error:
            problem = error

        if records:
            yield lines, records
        if problem:
            raise problem from None
        # No line was read: the end of the file.
        if line == first_line:
            return


def _blocks(file, shown_path: Path, digest) -> Iterator[Iterable[str]]:
    """Yield the decoded lines of a binary file, some thousands together.

    `digest` receives every byte.
    """
    number = 0
    while True:
        block = _some_lines(file, shown_path, number)
        if not block:
            return
        data = b"".join(block)
        digest.update(data)
        if number == 0:
            _check_first_line(data, shown_path)
            data = text_files.without_mark(data)
            block[0] = text_files.without_mark(block[0])

        try:
            text = data.decode()
        except UnicodeDecodeError:
            text = None
        if text is None or "\0" in text:
            # Line by line, to find the line of the bad byte.
            yield _decode_each(block, number, shown_path)
        else:
            yield io.StringIO(text, newline="\n")
        number += len(block)


def _check_first_line(data: bytes, shown_path: Path) -> None:
    """Refuse UTF-16, and a table whose cells are not separated by commas."""
    if text_files.is_utf16(data):
        raise ManifestError(
            f"{shown_path}, line 1: UTF-16 text; save the file as UTF-8 (in a spreadsheet: CSV "
            "UTF-8)"
        )
    first = text_files.without_mark(data).partition(b"\n")[0].decode("utf-8", "replace")
    separator = text_files.other_separator(first, COLUMNS)
    if separator:
        found = first.strip()[:200]
        raise ManifestError(
            f"{shown_path}, line 1, column clip: missing from the header {found!r}; expected "
            f"{','.join(COLUMNS)}: {text_files.separator_advice(separator)}"
        )


def _some_lines(file, shown_path: Path, number: int) -> list[bytes]:
    """Read the next whole lines, after `number` lines. ManifestError if one is too long."""
    data = file.read(BLOCK)
    # The block most likely ends within a line: read that line to its end.
    if data and not data.endswith(b"\n"):
        data += file.readline(LONGEST)
        if len(data) >= LONGEST and not data.endswith(b"\n"):
            line = number + data.count(b"\n") + 1
            raise ManifestError(
                f"{shown_path}, line {line}: no end of the line within {LONGEST:,} bytes; "
                "expected a CSV file"
            )
    return io.BytesIO(data).readlines()


def _decode_each(block: list[bytes], number: int, shown_path: Path) -> Iterator[str]:
    """Decode lines one by one, after `number` lines. ManifestError about the first bad byte."""
    for line, raw in enumerate(block, number + 1):
        if b"\0" in raw:
            raise ManifestError(
                f"{shown_path}, line {line}: a NUL byte, expected text; save the file as UTF-8 CSV"
            )
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            byte = f"byte {error.start + 1} of the line (0x{raw[error.start]:02x})"
            raise ManifestError(
                f"{shown_path}, line {line}: {byte} is not UTF-8; save the file as UTF-8"
            ) from None


def inside(root: str | Path, clip: Clip) -> Path:
    """Return where a clip's path leads on the disk.

    `read_manifest` works paths out in the text alone. Call this once per clip, before opening
    the file.

    Args:
        root: the folder that the path may not leave.
        clip: the clip.

    Raises:
        ManifestError: a link leads out of `root`.
    """
    # Path.resolve raises where a link leads to itself.
    target = Path(os.path.realpath(clip.place))
    root = Path(root).resolve()
    if not target.is_relative_to(root):
        raise ManifestError(
            f"clip {clip.clip}: {clip.path} is a link to {target}, outside {root}; "
            "write the real path in the manifest and pass --root with a folder above it"
        )
    return target


def write_manifest(
    path: str | Path, rows: Iterable[Mapping[str, object]], root: str | Path | None = None
) -> Manifest:
    """Write a manifest and read it back.

    The file appears whole or not at all, and only if `read_manifest` accepts it.

    Args:
        path: the CSV file; it is replaced if it exists.
        rows: clip, path, split, label and further columns, the same in all rows. `label` is text
            or a list of classes; None is an empty cell.
        root: the folder that no path may leave; default: the file's folder.

    Returns:
        The manifest as read back.

    Raises:
        ManifestError: there is no row, the rows have different columns, or one breaks a rule.
    """
    path = Path(path)
    # Rows may come from a generator: only the first is kept, for its columns.
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ManifestError(f"{path}: no clips to write; expected at least one row")
    columns = [name for name in COLUMNS + TIMES if name in first]
    columns += [name for name in first if name not in COLUMNS + TIMES]

    path.parent.mkdir(parents=True, exist_ok=True)
    remove_abandoned_of(path)
    part = part_path(path, new_claim_name())
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in chain([first], rows):
                if row.keys() != first.keys():
                    raise ManifestError(
                        f"{path}, clip {row.get('clip')!r}: columns {list(row)}, expected "
                        f"{columns} as in the first row"
                    )
                writer.writerow([_cell(row[name]) for name in columns])
            file.flush()
            os.fsync(file.fileno())
        # Read back before it gets its name: what cannot be read does not replace an older file.
        manifest = _read(part, None if root is None else Path(root), shown_path=path)
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)
    return manifest


def _cell(value: object) -> object:
    if not isinstance(value, (list, tuple)):
        return value
    for label in value:
        if ";" in label:
            raise ManifestError(
                f"class {label!r}: ';' separates classes in a manifest; rename the class"
            )
    return ";".join(value)


def write_clips(path: Path, clips: Sequence[Clip], root: Path | None = None) -> None:
    """Write clips as a manifest, and sync it.

    Args:
        path: the CSV file.
        clips: its rows.
        root: paths below it are written relative to it; None writes whole paths.
    """
    extra = list(dict.fromkeys(name for clip in clips for name in clip.extra))
    prefix = None if root is None else os.path.join(root, "")
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, *TIMES, *extra))
        for clip in clips:
            place = clip.place
            if prefix and place.startswith(prefix):
                place = place.removeprefix(prefix)
            row = [clip.clip, place, clip.split, ";".join(clip.labels)]
            for second in (clip.start, clip.end):
                row.append("" if second is None else repr(second))
            row += [clip.extra.get(name, "") for name in extra]
            writer.writerow(row)
        file.flush()
        os.fsync(file.fileno())


def shard_ranges(num_clips: int, per_shard: int) -> list[range]:
    """Divide clips into shards, by their position alone.

    Args:
        num_clips: clips of the manifest, from 0.
        per_shard: clips of a shard, from 1.

    Returns:
        The positions of each shard's clips: contiguous, `per_shard` long, the last one shorter.

    Raises:
        ValueError: a number is too small.
    """
    if num_clips < 0 or per_shard < 1:
        raise ValueError(
            "shards: expected clips from 0 and at least 1 clip per shard, "
            f"got {num_clips} clips, {per_shard} per shard"
        )
    firsts = range(0, num_clips, per_shard)
    return [range(first, min(first + per_shard, num_clips)) for first in firsts]
