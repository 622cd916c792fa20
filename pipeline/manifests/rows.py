"""The rows of a manifest become Clips: what a row may hold, and the error where it does not.

Rows come some thousands at a time. Their columns are checked as a whole first, which is many
times faster. If anything in them is unusual, they are taken one by one, by the same rules, so
that the error is about the first row that breaks one.
"""

import math
import os
import re
from array import array
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import count, repeat
from operator import itemgetter
from pathlib import Path
from typing import NoReturn

from pipeline.text.text_files import cell_separator, separator_advice

SPLITS = ("train", "val", "test")
SPLIT_ALIASES = {
    "training": "train",
    "validation": "val",
    "valid": "val",
    "dev": "val",
    "eval": "val",
    "testing": "test",
}
COLUMNS = ("clip", "path", "split", "label")
TIMES = ("start", "end")
# The folder that paths start from, the same in every row: of a manifest that lies elsewhere.
ROOT = "root"

# Shards store clip ids as UTF-8 of this length, so that a row's id is found without a
# variable-length heap.
ID_BYTES = 200

# Characters that would break a one-line message, a fixed-length id or a terminal. Format
# characters (joiners) belong to some scripts, and are allowed.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")

# Paths are searched for these with a line break before and after each: what os.path.normpath may
# change, and what is absolute or empty.
_UNTIDY = ("\n\n", "\n/", "\n.", "//", "/.", "/\n")

# Parts of text that may belong to a path of another system, or to an address.
_FOREIGN = (":/", "\\", "\n~", "\n$", "\n%", ":\n")


class ManifestError(ValueError):
    """A manifest, or a folder to make one from, breaks a rule.

    The message says where, what was expected, what came and what to do.
    """


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of a manifest.

    Attributes:
        clip: the id.
        place: the absolute path of the video as text. It is normalised without looking at the
            disk (see `inside`).
        split: "train", "val" or "test".
        labels: class names; empty if the row has none.
        start: seconds in the file, None for its beginning.
        end: seconds in the file, None for its end.
        extra: cells of further columns, by column.
        position: number of the row, from 0.
    """

    clip: str
    place: str
    split: str
    labels: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    extra: Mapping[str, str] = field(default_factory=dict, hash=False)
    position: int = 0

    @property
    def path(self) -> Path:
        """`place` as a new Path; stored Paths of a million clips would fill 300 MB."""
        return Path(self.place)

    def __reduce__(self) -> tuple:
        # A shard is sent with all of its clips, and the default of a dataclass is several times
        # slower.
        times = (self.start, self.end)
        fields = (self.clip, self.place, self.split, self.labels, *times)
        return Clip, (*fields, self.extra, self.position)


class RowParser:
    """Collects the Clips of one manifest from its rows.

    Args:
        file: the manifest, for messages.
        folder: the manifest's folder.
        line: the header's line.
        header: the header's cells.
        root: the folder that paths are relative to and may not leave. None takes the one in the
            column `root`, relative to `folder`, or else `folder` itself.

    Attributes:
        clips: the Clips of all rows so far.
        columns: names of the columns.
        root: the folder that paths start from, without links in its path.

    Raises:
        ManifestError: the header breaks a rule.
    """

    def __init__(
        self, file: Path, folder: Path, line: int, header: list[str], root: Path | None = None
    ):
        self.file, self.folder = file, folder
        self.columns = tuple(_header(file, line, header))
        self.index = {name: k for k, name in enumerate(self.columns)}
        self.further = []
        for k, name in enumerate(self.columns):
            if name not in (*COLUMNS, *TIMES, ROOT):
                self.further.append((k, name))
        self.times = [self.index[name] for name in TIMES if name in self.index]
        self.cells = itemgetter(*(self.index[column] for column in COLUMNS))

        # A root that was given replaces the recorded one.
        self.root_column = self.index.get(ROOT) if root is None else None
        self.recorded_root: str | None = None
        self._set_root(root or folder)

        # Rows share their tuples of labels: at a million rows this saves memory.
        self.labels: dict[str, tuple[str, ...]] = {}
        self.no_extra: dict[str, str] = {}
        self.clips: list[Clip] = []
        # The line on which each clip begins, for the error about a duplicate.
        self.lines = array("q")
        self.ids: set[str] = set()

    def _set_root(self, root: Path) -> None:
        self.root = root.resolve()
        self.prefix = os.path.join(self.root, "")
        # The root as the person spells it, perhaps through a link.
        self.spelled_prefix = os.path.join(os.path.abspath(root), "")

    def take(self, lines: Sequence[int], rows: Sequence[list[str]]) -> None:
        """Add rows.

        Args:
            lines: the lines on which they begin.
            rows: their cells.

        Raises:
            ManifestError: about the first row that breaks a rule.
        """
        if self.root_column is not None:
            self._take_root(lines, rows)
        plain = self._plain(rows)
        if plain is None:
            for line, cells in zip(lines, rows, strict=True):
                self.clips.append(self._clip(cells, line, len(self.clips)))
                self.lines.append(line)
            return

        # `map` builds the clips without a loop in Python: a manifest may have a million rows.
        starts, ends, extras = repeat(None), repeat(None), repeat(self.no_extra)
        if any(self._has_times(cells) for cells in rows):
            starts, ends = zip(*map(self._times, rows, lines), strict=True)
        if self.further:
            extras = map(self._extra, rows)
        self.clips += map(Clip, *plain, starts, ends, extras, count(len(self.clips)))
        self.lines.extend(lines)

    def _take_root(self, lines: Sequence[int], rows: Sequence[list[str]]) -> None:
        """Take the root from the first row, and refuse another one in any row."""
        for line, cells in zip(lines, rows, strict=True):
            # A row that is too short is refused later.
            text = cells[self.root_column] if len(cells) > self.root_column else None
            if text is None or text == self.recorded_root:
                continue
            if self.recorded_root is not None:
                advice = "write one folder above all videos, or pass --root"
                was = repr(self.recorded_root)
                self._fail(
                    line, ROOT, f"expected {was} as in the rows above, got {text!r}; {advice}"
                )
            wrong = foreign_path(text)
            if wrong:
                self._fail(line, ROOT, f"{text!r} is {wrong}")
            if not text.isprintable() and _CONTROL.search(text):
                self._fail(line, ROOT, f"expected a folder, got {text!r}")
            self.recorded_root = text
            if text:
                self._set_root(self.folder / text)

    def _has_times(self, cells: list[str]) -> bool:
        return any(cells[k] for k in self.times)

    def _plain(self, rows: Sequence[list[str]]) -> tuple[Iterable, ...] | None:
        """Return ids, places, splits and labels of rows that obey all rules but those of times.

        None if one of the rows needs a closer look.
        """
        if set(map(len, rows)) != {len(self.columns)}:
            return None
        ids, paths, splits, texts = self.cells(list(zip(*rows, strict=True)))
        new_ids = set(ids)
        if len(new_ids) < len(ids) or not self.ids.isdisjoint(new_ids):
            return None
        if not set(splits).issubset(SPLITS):
            return None
        if not (_plain_ids(ids) and _plain_paths(paths)):
            return None
        for text in set(texts) - self.labels.keys():
            labels, wrong = _classes(text)
            if wrong:
                return None
            self.labels[text] = labels

        self.ids |= new_ids
        places = map(self.prefix.__add__, paths)
        return ids, places, splits, map(self.labels.__getitem__, texts)

    def _clip(self, cells: list[str], line: int, position: int) -> Clip:
        """Return the Clip of one row."""
        if len(cells) != len(self.columns):
            self._fail_for_length(cells, line)
        name, path, split, label = self.cells(cells)

        wrong = wrong_id(name)
        if wrong:
            self._fail(line, "clip", wrong)
        # Aliases are refused, not translated: the file itself must say which split it means.
        if split not in SPLITS:
            word = split.strip().lower()
            meant = SPLIT_ALIASES.get(word, word)
            advice = f"write {meant}" if meant in SPLITS else "write one of these"
            self._fail(line, "split", f"expected {', '.join(SPLITS)}, got {split!r}; {advice}")
        if label not in self.labels:
            classes, wrong = _classes(label)
            if wrong:
                self._fail(line, "label", wrong)
            self.labels[label] = classes

        times = self._times(cells, line)
        place = self._place(path, line)
        extra = self._extra(cells)
        # This search is slow, but it runs once, for the error.
        if name in self.ids:
            first = next(clip for clip in self.clips if clip.clip == name)
            first_line = self.lines[first.position]
            advice = "give each row an id of its own"
            self._fail(line, "clip", f"{name!r} is on line {first_line} too; {advice}")
        self.ids.add(name)
        return Clip(name, place, split, self.labels[label], *times, extra, position)

    def _extra(self, cells: list[str]) -> dict[str, str]:
        if not self.further:
            return self.no_extra
        return {name: cells[k] for k, name in self.further}

    def _place(self, text: str, line: int) -> str:
        """Return the absolute path, with "." and ".." worked out in the text alone.

        Where links lead is found out when the file is opened.
        """
        if not text or (not text.isprintable() and _CONTROL.search(text)):
            expected = f"expected a video or a folder of frames below {self.root}"
            self._fail(line, "path", f"{expected}, got {text!r}")
        foreign = foreign_path(text)
        if foreign:
            self._fail(line, "path", f"{text!r} is {foreign}")

        # Unlike Path.resolve, normpath does not ask the disk.
        path = os.path.normpath(text if text.startswith("/") else self.prefix + text)
        if path.startswith(self.prefix) or path == str(self.root):
            return path
        if path.startswith(self.spelled_prefix):
            return self.prefix + path[len(self.spelled_prefix) :]

        advice = "write a path below it, or pass --root with a folder above both"
        if re.match(r"//[^/]", text):
            advice = f"if it is a network share, mount it; {advice}"
        self._fail(line, "path", f"{text!r} leaves {self.root}; {advice}")

    def _times(self, cells: list[str], line: int) -> tuple[float | None, float | None]:
        start = self._seconds(cells, "start", line)
        end = self._seconds(cells, "end", line)
        if end is not None and end <= (start or 0.0):
            expected = f"expected seconds after the start ({start or 0.0:g})"
            self._fail(line, "end", f"{expected}, got {end:g}; leave it empty for the file's end")
        return start, end

    def _seconds(self, cells: list[str], column: str, line: int) -> float | None:
        text = cells[self.index[column]].strip() if column in self.index else ""
        if not text:
            return None
        try:
            # float() reads 1_0 as ten.
            seconds = math.nan if "_" in text else float(text)
        except ValueError:
            seconds = math.nan
        if not (math.isfinite(seconds) and seconds >= 0.0):
            expected = "expected seconds from 0, such as 12.5, or nothing"
            self._fail(line, column, f"{expected}, got {text!r}")
        return seconds

    def _fail_for_length(self, cells: list[str], line: int) -> NoReturn:
        """Raise for a row of too few or too many cells."""
        expected = len(self.columns)
        column = self.columns[min(len(cells), expected - 1)]
        separator = cell_separator(cells[0], expected) if len(cells) == 1 else ""
        if separator:
            advice = separator_advice(separator)
        else:
            advice = 'put a cell that holds a comma in quotes, as "…"'
        header = ",".join(self.columns)
        self._fail(line, column, f"{len(cells)} cells, expected {expected} ({header}); {advice}")

    def _fail(self, line: int, column: str, message: str) -> NoReturn:
        _fail(self.file, line, column, message)


def _header(file: Path, line: int, cells: list[str]) -> list[str]:
    """Return the names of the columns."""
    columns = [cell.strip() for cell in cells]
    missing = [name for name in COLUMNS if name not in columns]
    if missing:
        found = ",".join(columns)[:200]
        expected = f"{','.join(COLUMNS)}, separated by commas (further columns are kept)"
        _fail(file, line, missing[0], f"missing from the header {found!r}; expected {expected}")
    for k, name in enumerate(columns):
        if not name or name in columns[:k] or _CONTROL.search(name):
            wrong = f"column {k + 1} of the header is empty, repeated or unprintable"
            _fail(file, line, repr(name), f"{wrong}; give every column its own name")
    return columns


def _fail(file: Path, line: int, column: str, message: str) -> NoReturn:
    raise ManifestError(f"{file}, line {line}, column {column}: {message}")


def _classes(text: str) -> tuple[tuple[str, ...], str]:
    """Return (class names, "") of a cell, or ((), what is wrong)."""
    if not text.strip():
        return (), ""
    labels = tuple(part.strip() for part in text.split(";"))
    if "" in labels or len(set(labels)) < len(labels):
        return (), f"an empty or repeated class in {text!r}; write each class once, separated by ;"
    if _CONTROL.search(text):
        return (), f"a control character in {text!r}; write the class in one line of text"
    return labels, ""


def wrong_id(name: str) -> str:
    """Say what is wrong with a clip id.

    Args:
        name: the id.

    Returns:
        What is wrong and what to write instead; "" if nothing is.
    """
    if not name or name != name.strip():
        expected = "expected an id without blanks at its ends"
        return f"{expected}, got {name!r}; write the file's name, for example"
    if not name.isprintable() and _CONTROL.search(name):
        return f"a control character or line break in {name!r}; write an id in one line of text"
    # A character has at most four bytes, so most ids need no encoding.
    if len(name) * 4 > ID_BYTES and len(name.encode()) > ID_BYTES:
        size = f"{len(name.encode())} bytes, expected at most {ID_BYTES}"
        return f"the id {name[:40]!r}… has {size}; write a shorter one"
    return ""


def foreign_path(text: str) -> str:
    """Say whether a path is one of another system.

    Args:
        text: the path as it stands in the manifest.

    Returns:
        The kind of path (Windows, URL, …) and what to write instead; "" for a path of this system.
    """
    advice = "write the path of a file below the manifest's folder, or below --root"
    if re.match(r"[A-Za-z]:([\\/]|$)", text):
        return f"a Windows path with a drive letter; {advice}, with / between folders"
    if text.startswith("\\\\"):
        return f"a Windows path of a network share; mount it, and {advice}, with / between folders"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        no_network = "an address (URL), and nothing is read over the network"
        return f"{no_network}; download the file, and {advice}"
    shell = re.match(r"~[^/]*/|\$\{?[A-Za-z_]\w*\}?/|%[A-Za-z_]\w*%[\\/]", text)
    if shell:
        return f"a path that only a shell understands ({shell[0]}); {advice}"
    return ""


def _plain_ids(names: Sequence[str]) -> bool:
    """Return whether `wrong_id` is sure to find nothing in any of the names."""
    if not all(names) or tuple(map(str.strip, names)) != names:
        return False
    return "".join(names).isprintable() and max(map(len, names)) * 4 <= ID_BYTES


def _plain_paths(paths: Sequence[str]) -> bool:
    """Return whether all are relative, and as os.path.normpath would leave them."""
    if not "".join(paths).isprintable():
        return False
    joined = "\n".join(("", *paths, ""))
    return not any(part in joined for part in _UNTIDY + _FOREIGN)
