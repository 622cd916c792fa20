"""A manifest (a CSV file that lists clips) -> validated Clips, and clips -> shards.

data_manifests/README.md says what the columns mean. Every rule is checked when the manifest is read; no video is opened.
"""

import csv
import hashlib
import math
import os
import re
from array import array
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {"training": "train", "validation": "val", "valid": "val", "dev": "val", "eval": "val", "testing": "test"}
COLUMNS = ("clip", "path", "split", "label")
TIMES = ("start", "end")
ID_BYTES = 200  # shards store clip ids as UTF-8 of this length, so that a row's id is found without a variable-length heap

# What would break a one-line message, a fixed-length id or a terminal. Format characters (joiners) belong to some scripts.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")


class ManifestError(ValueError):
    """A manifest, or a folder to make one from, breaks a rule; says where, what was expected, what came and what to do."""


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of a manifest.

    `path` is absolute, normalised without looking at the disk (see `inside`). `labels` is empty where none is given. `start`
    and `end` are seconds in the file, None for the file's own. `extra` has the further columns. `position` is the row, from 0.
    """

    clip: str
    path: Path
    split: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    position: int = 0


@dataclass(frozen=True)
class Manifest:
    """A manifest as read: its file, the folder no path may leave, its clips in order, the file's sha256, its header."""

    path: Path
    root: Path
    clips: tuple[Clip, ...]
    sha256: str
    columns: tuple[str, ...]


def read_manifest(path: str | Path, root: str | Path | None = None) -> Manifest:
    """Reads and checks every row; `root` (default: the manifest's folder) is what paths are relative to and may not leave.

    ManifestError names file, line and column. No video is looked at: a million rows would be a million disk accesses.
    """
    path = Path(path)
    return _read(path, path.parent if root is None else Path(root), shown=path)


def _read(path: Path, root: Path, shown: Path) -> Manifest:
    """read_manifest for a file that errors call `shown`."""
    digest = hashlib.sha256()
    clips: list[Clip] = []
    lines = array("q")  # the line of each clip, for a message about a duplicate
    seen: set[str] = set()
    rows = None
    with _open(path, shown) as file:
        for line, cells in _records(file, shown, digest):
            if rows is None:
                rows = _Rows(shown, root, line, cells)
                continue
            clip = rows.clip(cells, line, len(clips))
            if clip.clip in seen:
                first = lines[next(c.position for c in clips if c.clip == clip.clip)]
                _fail(shown, line, "clip", f"{clip.clip!r} is on line {first} too; give each row an id of its own")
            seen.add(clip.clip)
            clips.append(clip)
            lines.append(line)
    if rows is None:
        raise ManifestError(f"{shown}, line 1: the file is empty; write the header {','.join(COLUMNS)} and one row per clip")
    if not clips:
        raise ManifestError(f"{shown}, line 2: no clips below the header; write one row per clip")
    return Manifest(shown, rows.root, tuple(clips), digest.hexdigest(), rows.columns)


def _open(path: Path, shown: Path):
    try:
        return open(path, "rb")
    except FileNotFoundError:
        raise ManifestError(f"{shown}: no such file; `vidgraph manifest folder` makes a manifest") from None
    except IsADirectoryError:
        raise ManifestError(f"{shown}: a folder, expected a CSV file; `vidgraph manifest folder` makes one") from None


def _records(file, shown: Path, digest) -> Iterator[tuple[int, list[str]]]:
    """(line on which it starts, cells) of every record of a CSV file; blank lines are left out."""
    reader = csv.reader(_lines(file, shown, digest), strict=True)
    while True:
        line = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise ManifestError(
                f'{shown}, line {line}: not CSV ({error}); put "…" around a cell that holds a comma, quote or line break, '
                f"double the quotes inside, end lines with LF"
            ) from None
        if cells:
            yield line, cells


def _lines(file, shown: Path, digest) -> Iterator[str]:
    """The lines of a binary file, decoded one by one so that a bad byte has a line number; `digest` sees every byte."""
    for number, raw in enumerate(file, 1):
        digest.update(raw)
        if number == 1:
            if raw.startswith((b"\xff\xfe", b"\xfe\xff")):
                raise ManifestError(f"{shown}, line 1: UTF-16 text; save the file as UTF-8 (in a spreadsheet: CSV UTF-8)")
            raw = raw.removeprefix(b"\xef\xbb\xbf")  # the mark that spreadsheets put before UTF-8
        if b"\0" in raw:
            raise ManifestError(f"{shown}, line {number}: a NUL byte, expected text; save the file as UTF-8 CSV")
        try:
            yield raw.decode()
        except UnicodeDecodeError as error:
            wrong = f"byte {error.start + 1} of the line (0x{raw[error.start]:02x}) is not UTF-8"
            raise ManifestError(f"{shown}, line {number}: {wrong}; save the file as UTF-8") from None


class _Rows:
    """Turns the cells of a row into a Clip, by the header's columns."""

    def __init__(self, shown: Path, root: Path, line: int, header: list[str]):
        self.shown = shown
        self.columns = tuple(_header(shown, line, header))
        self.index = {name: k for k, name in enumerate(self.columns)}
        self.further = [(k, name) for k, name in enumerate(self.columns) if name not in COLUMNS + TIMES]
        self.times = any(name in self.index for name in TIMES)
        self.root = root.resolve()
        self.spelled = os.path.join(os.path.abspath(root), "")  # the root as the person spells it, perhaps through a link
        self.prefix = os.path.join(self.root, "")
        self.cells = itemgetter(*(self.index[column] for column in COLUMNS))
        self.labels: dict[str, tuple[str, ...]] = {}  # rows share their tuples: at a million rows this is memory
        self.no_extra: dict[str, str] = {}

    def clip(self, cells: list[str], line: int, position: int) -> Clip:
        """The Clip of a row that starts at `line`; ManifestError if it breaks a rule."""
        if len(cells) != len(self.columns):
            came = f"{len(cells)} cells, expected {len(self.columns)} ({','.join(self.columns)})"
            where = self.columns[len(cells)] if len(cells) < len(self.columns) else self.columns[-1]
            _fail(self.shown, line, where, f'{came}; put a cell that holds a comma in quotes, as "…"')
        name, path, split, label = self.cells(cells)
        if wrong := wrong_id(name):
            _fail(self.shown, line, "clip", wrong)
        if split not in SPLITS:
            meant = SPLIT_ALIASES.get(split.strip().lower(), split.strip().lower())
            write = f"write {meant}" if meant in SPLITS else "write one of these"
            _fail(self.shown, line, "split", f"expected {', '.join(SPLITS)}, got {split!r}; {write}")
        if label not in self.labels:
            self.labels[label] = self._labels(label, line)
        start, end = self._times(cells, line) if self.times else (None, None)
        extra = {column: cells[k] for k, column in self.further} if self.further else self.no_extra
        return Clip(name, Path(self._path(path, line)), split, self.labels[label], start, end, extra, position)

    def _path(self, text: str, line: int) -> str:
        """The absolute path, "." and ".." worked out in the text alone; where links lead is seen when the file is opened."""
        if not text or (not text.isprintable() and _CONTROL.search(text)):
            _fail(self.shown, line, "path", f"expected a video or a folder of frames below {self.root}, got {text!r}")
        path = os.path.normpath(text if text.startswith("/") else self.prefix + text)
        if path.startswith(self.prefix) or path == str(self.root):
            return path
        if path.startswith(self.spelled):
            return self.prefix + path[len(self.spelled) :]
        _fail(
            self.shown,
            line,
            "path",
            f"{text!r} leaves {self.root}; write a path below it, or pass --root with a folder above both",
        )

    def _labels(self, text: str, line: int) -> tuple[str, ...]:
        """The classes of a cell: none if it is blank, else what stands between the semicolons."""
        if not text.strip():
            return ()
        labels = tuple(part.strip() for part in text.split(";"))
        if "" in labels or len(set(labels)) < len(labels):
            _fail(self.shown, line, "label", f"an empty or repeated class in {text!r}; write each class once, separated by ;")
        if _CONTROL.search(text):
            _fail(self.shown, line, "label", f"a control character in {text!r}; write the class in one line of text")
        return labels

    def _times(self, cells: list[str], line: int) -> tuple[float | None, float | None]:
        start, end = (self._seconds(cells, column, line) for column in TIMES)
        if end is not None and end <= (start or 0.0):
            _fail(
                self.shown,
                line,
                "end",
                f"expected seconds after the start ({start or 0.0:g}), got {end:g}; leave it empty for the file's end",
            )
        return start, end

    def _seconds(self, cells: list[str], column: str, line: int) -> float | None:
        text = cells[self.index[column]].strip() if column in self.index else ""
        if not text:
            return None
        try:
            seconds = math.nan if "_" in text else float(text)  # float() reads 1_0 as ten
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds >= 0.0):
            _fail(self.shown, line, column, f"expected seconds from 0, such as 12.5, or nothing, got {text!r}")
        return seconds


def _header(shown: Path, line: int, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    if missing := [name for name in COLUMNS if name not in columns]:
        found = ",".join(columns)[:200]
        _fail(
            shown,
            line,
            missing[0],
            f"missing from the header {found!r}; expected {','.join(COLUMNS)} (further columns are kept)",
        )
    for k, name in enumerate(columns):
        if not name or name in columns[:k] or _CONTROL.search(name):
            _fail(
                shown,
                line,
                repr(name),
                f"column {k + 1} of the header is empty, repeated or unprintable; give every column its own name",
            )
    return columns


def _fail(shown: Path, line: int, column: str, said: str) -> NoReturn:
    raise ManifestError(f"{shown}, line {line}, column {column}: {said}")


def wrong_id(name: str) -> str:
    """What is wrong with a clip id and what to write instead; "" if nothing is."""
    if not name or name != name.strip():
        return f"expected an id without blanks at its ends, got {name!r}; write the file's name, for example"
    if not name.isprintable() and _CONTROL.search(name):
        return f"a control character or line break in {name!r}; write an id in one line of text"
    if len(name) * 4 > ID_BYTES and len(name.encode()) > ID_BYTES:
        return f"the id {name[:40]!r}… has {len(name.encode())} bytes, expected at most {ID_BYTES}; write a shorter one"
    return ""


def inside(root: str | Path, clip: Clip) -> Path:
    """Where the clip's path leads on the disk; ManifestError if a link takes it out of `root`.

    read_manifest works paths out in the text alone, so this is for whoever opens the file, once per clip.
    """
    target, root = clip.path.resolve(), Path(root).resolve()
    if not target.is_relative_to(root):
        raise ManifestError(
            f"clip {clip.clip}: {clip.path} is a link to {target}, outside {root}; "
            f"write the real path in the manifest and pass --root with a folder above it"
        )
    return target


def write_manifest(path: str | Path, rows: Iterable[Mapping[str, object]]) -> Manifest:
    """Writes rows (clip, path, split, label and whatever else all of them have) and returns them as read back.

    `label` is text or a list of classes; None is an empty cell. The file appears whole or not at all, and only if read_manifest
    accepts it: ManifestError otherwise.
    """
    path = Path(path)
    rows = iter(rows)
    first = next(rows, None)
    if first is None:
        raise ManifestError(f"{path}: no clips to write; expected at least one row")
    columns = [name for name in COLUMNS + TIMES if name in first] + [name for name in first if name not in COLUMNS + TIMES]
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.name}.{os.getpid()}.part")
    try:
        with open(part, "w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            writer.writerow(columns)
            for row in chain([first], rows):
                if row.keys() != first.keys():
                    raise ManifestError(
                        f"{path}, clip {row.get('clip')!r}: columns {list(row)}, expected {columns} as in the first row"
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
            raise ManifestError(f"class {broken[0]!r}: ';' separates classes in a manifest; rename the class")
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
    """Clip positions of each shard: contiguous, `per_shard` long, the last one shorter; fixed by position alone."""
    if num_clips < 0 or per_shard < 1:
        raise ValueError(
            f"shards: expected clips from 0 and at least 1 clip per shard, got {num_clips} clips, {per_shard} per shard"
        )
    return [range(first, min(first + per_shard, num_clips)) for first in range(0, num_clips, per_shard)]


def label_ids(labels: Iterable[str]) -> dict[str, int]:
    """Class name -> class id, in the order of ids. Labels that are all whole numbers keep them; others are numbered by name."""
    names = set(labels)
    if not names or not all(name.isascii() and name.isdigit() for name in names):
        return {name: k for k, name in enumerate(sorted(names))}
    ids = {name: int(name) for name in sorted(names, key=lambda name: (int(name), name))}
    if len(set(ids.values())) < len(ids):
        twice = next(name for name in ids if name != str(int(name)))
        raise ManifestError(f"label {twice!r}: another label is the same number; write {int(twice)} in every row")
    return ids
