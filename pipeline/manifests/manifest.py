"""A manifest (a CSV file that lists clips) -> validated Clips, and clips -> shards.

data_manifests/README.md says what the columns mean. Every rule is checked when the manifest is
read; no video is opened.
"""

import csv
import gc
import hashlib
import io
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from decimal import Decimal
from itertools import chain, islice, pairwise
from pathlib import Path

from pipeline.files.owners import new_claim_name, part_path, remove_abandoned_of
from pipeline.files.regular_files import open_regular
from pipeline.manifests.rows import (
    COLUMNS,
    ID_BYTES,
    SPLIT_ALIASES,
    SPLITS,
    TIMES,
    Clip,
    ManifestError,
    RowParser,
    foreign_path,
    wrong_id,
)
from pipeline.text import text_files as texts

__all__ = [
    "COLUMNS",
    "ID_BYTES",
    "SPLITS",
    "SPLIT_ALIASES",
    "TIMES",
    "Clip",
    "Manifest",
    "ManifestError",
    "about_withheld",
    "foreign_path",
    "inside",
    "is_no_label",
    "label_ids",
    "number_of",
    "read_manifest",
    "shard_ranges",
    "withheld",
    "write_manifest",
    "wrong_id",
]

# What programs write in place of a missing label, in lower case.
_NO_LABEL = {"?", "na", "n/a", "#n/a", "<na>", "nan", "null"}
_PERHAPS_NO_LABEL = {
    "none",
    "-",
    "--",
    "hidden",
    "missing",
    "undefined",
    "unknown",
    "unlabeled",
    "unlabelled",
    "withheld",
}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")

# Rarer words, which may name a class too.
_PERHAPS_NO_LABEL |= {
    "_",
    "*",
    "<unk>",
    "ignore",
    "n.a.",
    "nil",
    "no label",
    "no_label",
    "not available",
}
_PERHAPS_NO_LABEL |= {"tba", "tbd", "unannotated", "unk", "unspecified"}

BATCH = 4096  # rows that are checked together
BLOCK = 1 << 20  # bytes that are read and decoded together
LONGEST = 16 << 20  # bytes of a line


@dataclass(frozen=True)
class Manifest:
    """A manifest as read: its file, the folder no path may leave, its clips in order, the file's
    sha256, its header.
    """

    path: Path
    root: Path
    clips: tuple[Clip, ...]
    sha256: str
    columns: tuple[str, ...]


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Reads and checks every row; `root` (default: the manifest's folder) is what paths are
    relative to and may not leave.

    ManifestError names file, line and column. No video is looked at: a million rows would be a
    million disk accesses.
    """
    path = Path(path)
    return _read(path, path.parent if root is None else Path(root), shown=path)


def _read(path: Path, root: Path, shown: Path) -> Manifest:
    """read_manifest for a file that errors call `shown`."""
    digest, rows = hashlib.sha256(), None
    with _open(path, shown) as file, _no_search_for_garbage():
        for lines, records in _records(file, shown, digest):
            if rows is None:
                rows = RowParser(shown, root, lines[0], records[0])
                lines, records = lines[1:], records[1:]
            if records:
                rows.take(lines, records)
    if rows is None:
        raise ManifestError(
            f"{shown}, line 1: the file is empty; write the header {','.join(COLUMNS)} and one "
            f"row per clip"
        )
    if not rows.clips:
        raise ManifestError(f"{shown}, line 2: no clips below the header; write one row per clip")
    return Manifest(shown, rows.root, tuple(rows.clips), digest.hexdigest(), rows.columns)


@contextmanager
def _no_search_for_garbage() -> Iterator[None]:
    """A million new objects make Python look through all of them several times, for cycles that
    there are none of.
    """
    was = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was:
            gc.enable()


def _open(path: Path, shown: Path):
    try:
        return os.fdopen(open_regular(path), "rb")
    except FileNotFoundError:
        raise ManifestError(
            f"{shown}: no such file; `vidgraph manifest folder` makes a manifest"
        ) from None
    except IsADirectoryError:
        raise ManifestError(
            f"{shown}: a folder, expected a CSV file; `vidgraph manifest folder` makes one"
        ) from None


def _records(file, shown: Path, digest) -> Iterator[tuple[array, list[list[str]]]]:
    """(lines on which they begin, cells) of the records of a CSV file, up to BATCH together; blank
    lines are left out.

    ManifestError for what is not CSV, after the records before it.
    """
    reader = csv.reader(chain.from_iterable(_blocks(file, shown, digest)), strict=True)
    line = 1
    while True:
        lines, records, begun, wrong = array("q"), [], line, None
        try:
            for cells in islice(reader, BATCH):
                if cells:
                    lines.append(line)
                    records.append(cells)
                line = reader.line_num + 1
        except csv.Error as error:
            advice = 'put "…" around a cell that holds a comma, quote or line break, double the quotes inside, end lines with LF'
            wrong = ManifestError(f"{shown}, line {line}: not CSV ({error}); {advice}")
        except ManifestError as error:
            wrong = error
        if records:
            yield lines, records
        if wrong:
            raise wrong from None
        if line == begun:
            return


def _blocks(file, shown: Path, digest) -> Iterator[Iterable[str]]:
    """The lines of a binary file, decoded, some thousands together; `digest` sees every byte."""
    number = 0
    while block := _some_lines(file, shown, number):
        whole = b"".join(block)
        digest.update(whole)
        if number == 0:
            if texts.is_utf16(whole):
                raise ManifestError(
                    f"{shown}, line 1: UTF-16 text; save the file as UTF-8 (in a spreadsheet: CSV "
                    f"UTF-8)"
                )
            whole = texts.without_mark(whole)
            block[0] = texts.without_mark(block[0])
            first = block[0].decode("utf-8", "replace")
            if words := texts.other_separator(first, COLUMNS):
                header = (
                    f"missing from the header {first.strip()[:200]!r}; expected {','.join(COLUMNS)}"
                )
                raise ManifestError(
                    f"{shown}, line 1, column clip: {header}: {texts.separator_advice(words)}"
                )
        try:
            text = whole.decode()
        except UnicodeDecodeError:
            text = "\0"
        yield _lines(block, number, shown) if "\0" in text else io.StringIO(text, newline="\n")
        number += len(block)


def _some_lines(file, shown: Path, number: int) -> list[bytes]:
    """The next whole lines of a file. ManifestError for a line longer than LONGEST."""
    data = file.read(BLOCK)
    if data and not data.endswith(b"\n"):
        data += file.readline(LONGEST)
        if len(data) >= LONGEST and not data.endswith(b"\n"):
            line = number + data.count(b"\n") + 1
            raise ManifestError(
                f"{shown}, line {line}: no end of the line within {LONGEST:,} bytes; expected a "
                f"CSV file"
            )
    return io.BytesIO(data).readlines()


def _lines(block: list[bytes], number: int, shown: Path) -> Iterator[str]:
    """Decodes lines one by one, so that a bad byte has a line number, after `number` lines;
    ManifestError for the first.
    """
    for at, raw in enumerate(block, number + 1):
        if b"\0" in raw:
            raise ManifestError(
                f"{shown}, line {at}: a NUL byte, expected text; save the file as UTF-8 CSV"
            )
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8"
            raise ManifestError(f"{shown}, line {at}: {wrong}; save the file as UTF-8") from None


def inside(root: str | Path, clip: Clip) -> Path:
    """Where the clip's path leads on the disk; ManifestError if a link takes it out of `root`.

    read_manifest works paths out in the text alone, so this is for whoever opens the file, once per
    clip.
    """
    target, root = (
        Path(os.path.realpath(clip.place)),
        Path(root).resolve(),
    )  # Path.resolve raises where a link leads to itself
    if not target.is_relative_to(root):
        raise ManifestError(
            f"clip {clip.clip}: {clip.path} is a link to {target}, outside {root}; "
            f"write the real path in the manifest and pass --root with a folder above it"
        )
    return target


def write_manifest(path: str | Path, rows: Iterable[Mapping[str, object]]) -> Manifest:
    """Writes rows (clip, path, split, label and whatever else all of them have) and returns them as
    read back.

    `label` is text or a list of classes; None is an empty cell. The file appears whole or not at
    all, and only if read_manifest accepts it: ManifestError otherwise.
    """
    path = Path(path)
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ManifestError(f"{path}: no clips to write; expected at least one row")
    columns = [name for name in COLUMNS + TIMES if name in first] + [
        name for name in first if name not in COLUMNS + TIMES
    ]
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
        manifest = _read(part, path.parent, shown=path)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
    _sync_folder(path.parent)
    return manifest


def _cell(value: object) -> object:
    if isinstance(value, (list, tuple)):
        if broken := [label for label in value if ";" in label]:
            raise ManifestError(
                f"class {broken[0]!r}: ';' separates classes in a manifest; rename the class"
            )
        return ";".join(value)
    return value


def _sync_folder(folder: Path) -> None:
    """Makes a rename durable: the new name is in the folder's own data."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def shard_ranges(num_clips: int, per_shard: int) -> list[range]:
    """Clip positions of each shard: contiguous, `per_shard` long, the last one shorter; fixed by
    position alone.
    """
    if num_clips < 0 or per_shard < 1:
        raise ValueError(
            f"shards: expected clips from 0 and at least 1 clip per shard, got {num_clips} clips, "
            f"{per_shard} per shard"
        )
    return [
        range(first, min(first + per_shard, num_clips)) for first in range(0, num_clips, per_shard)
    ]


def label_ids(labels: Iterable[str]) -> dict[str, int]:
    """Class name -> class id, in the order of ids.

    Labels that are all whole numbers from 0 (`7`, `7.0`) keep them. Others count up: numbers by
    their value, then names in alphabetical order. ManifestError where two labels are the same
    number.
    """
    numbers = {name: number_of(name) for name in set(labels)}
    ordered = sorted((value, name) for name, value in numbers.items() if value is not None)
    for (value, one), (again, other) in pairwise(ordered):
        if value == again:
            plain = f"{value.normalize():f}"
            odd = one if other == plain else other
            raise ManifestError(
                f"label {odd!r}: another label is the same number; write {plain} in every row"
            )
    names = sorted(name for name, value in numbers.items() if value is None)
    if not names and all(value >= 0 and value == int(value) for value, _ in ordered):
        return {name: int(value) for value, name in ordered}
    return {name: k for k, name in enumerate([*(name for _, name in ordered), *names])}


def number_of(label: str) -> Decimal | None:
    """The number that a label is, as it is written (`10`, `-1`, `2.0`, `.5`); None for a name."""
    return Decimal(label) if len(label) <= 40 and _NUMBER.fullmatch(label) else None


def withheld(manifest: Manifest) -> dict[str, list[Clip]]:
    """Labels that stand for a missing label, each with the clips that have it.

    -1, ?, NA, NaN, None and null always; words that may name a class (none, unknown, missing) and
    other numbers below 0 where no clip of train has them.
    """
    labels = {label for clip in manifest.clips for label in clip.labels}
    learned = {label for clip in manifest.clips if clip.split == "train" for label in clip.labels}
    found = {label: [] for label in sorted(labels) if is_no_label(label, label in learned)}
    for clip in manifest.clips if found else ():
        for label in found.keys() & set(clip.labels):
            found[label].append(clip)
    return found


def is_no_label(label: str, learned: bool = True) -> bool:
    """Whether a label stands for a missing one. If a clip of train has it (`learned`), words and
    most numbers are classes.
    """
    number, word = number_of(label), label.lower()
    if (
        number == -1 or word in _NO_LABEL or label == "None"
    ):  # as Python writes it; "none" may be what a clip shows
        return True
    return not learned and (word in _PERHAPS_NO_LABEL or (number is not None and number < 0))


def about_withheld(label: str, clips: Sequence[Clip]) -> str:
    """The message about a label that `withheld` found, with what to do."""
    splits = ", ".join(split for split in SPLITS if any(clip.split == split for clip in clips))
    return (
        f"label {label!r} ({len(clips):,} clips of {splits}) reads like a label that is not "
        f"known, not like a class: leave the "
        f"cell empty, or train with --set 'data.no_label=[\"{label}\"]'; if it is a class, name "
        f"it in a class list"
    )
