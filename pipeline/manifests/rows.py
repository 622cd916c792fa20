"""The rows of a manifest -> Clips: what a row may hold, and what is said where it does not.

Rows come some thousands at a time. Their columns are looked at as a whole first, which is many
times faster; where something in them is not plain they are taken one by one, by the same rules, so
that the message is about the first that breaks one.
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
# shards store clip ids as UTF-8 of this length, so that a row's id is found without a
# variable-length heap
ID_BYTES = 200

# What would break a one-line message, a fixed-length id or a terminal. Format characters (joiners)
# belong to some scripts.
_CONTROL = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029]")
# Among paths with a line break before and after each: what os.path.normpath may change, and what is
# absolute or empty.
_UNTIDY = ("\n\n", "\n/", "\n.", "//", "/.", "/\n")
# Parts of text that may belong to a path of another system, or to an address.
_FOREIGN = (":/", "\\", "\n~", "\n$", "\n%", ":\n")


class ManifestError(ValueError):
    """A manifest, or a folder to make one from, breaks a rule; says where, what was expected, what
    came and what to do.
    """


@dataclass(frozen=True, slots=True)
class Clip:
    """One row of a manifest.

    `place` is where the video lies: an absolute path as text, normalised without looking at the
    disk (see `inside`). `labels` is empty where none is given. `start` and `end` are seconds in the
    file, None for the file's own. `extra` has the further columns. `position` is the row, from 0.
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
        """`place`, made into a Path each time it is asked for: of a million clips they would fill
        300 MB.
        """
        return Path(self.place)

    def __reduce__(self) -> tuple:
        """What a dataclass does by itself is several times slower, and a shard travels with all of
        its clips.
        """
        return Clip, (
            self.clip,
            self.place,
            self.split,
            self.labels,
            self.start,
            self.end,
            self.extra,
            self.position,
        )


class RowParser:
    """The Clips of one manifest, as its rows come in.

    `shown` is what errors call the file; `line` is the header's. ManifestError if the header breaks
    a rule.
    """

    def __init__(self, shown: Path, root: Path, line: int, header: list[str]):
        self.shown = shown
        self.columns = tuple(_header(shown, line, header))
        self.index = {name: k for k, name in enumerate(self.columns)}
        self.further = [
            (k, name) for k, name in enumerate(self.columns) if name not in COLUMNS + TIMES
        ]
        self.times = [self.index[name] for name in TIMES if name in self.index]
        self.root = root.resolve()
        self.spelled = os.path.join(
            os.path.abspath(root), ""
        )  # the root as the person spells it, perhaps through a link
        self.prefix = os.path.join(self.root, "")
        self.cells = itemgetter(*(self.index[column] for column in COLUMNS))
        self.labels: dict[
            str, tuple[str, ...]
        ] = {}  # rows share their tuples: at a million rows this is memory
        self.no_extra: dict[str, str] = {}
        self.clips: list[Clip] = []
        self.lines = array("q")  # on which each begins, for a message about a duplicate
        self.seen: set[str] = set()

    def take(self, lines: Sequence[int], rows: Sequence[list[str]]) -> None:
        """Adds rows, which begin on `lines`; ManifestError for the first that breaks a rule."""
        plain = self._plain(rows)
        if plain is None:
            for line, cells in zip(lines, rows, strict=True):
                self.clips.append(self._clip(cells, line, len(self.clips)))
                self.lines.append(line)
            return
        timed = any(cells[k] for k in self.times for cells in rows)
        starts, ends = (
            zip(*map(self._times, rows, lines), strict=True)
            if timed
            else (repeat(None), repeat(None))
        )
        extras = map(self._extra, rows) if self.further else repeat(self.no_extra)
        self.clips += map(Clip, *plain, starts, ends, extras, count(len(self.clips)))
        self.lines.extend(lines)

    def _plain(self, rows: Sequence[list[str]]) -> tuple[Iterable, ...] | None:
        """Ids, places, splits and labels of rows that all pass, but for their times; None if one
        needs a closer look.
        """
        if set(map(len, rows)) != {len(self.columns)}:
            return None
        names, paths, splits, texts = self.cells(list(zip(*rows, strict=True)))
        fresh = set(names)
        if (
            len(fresh) < len(names)
            or not self.seen.isdisjoint(fresh)
            or not set(splits).issubset(SPLITS)
        ):
            return None
        if not (_plain_ids(names) and _plain_paths(paths)):
            return None
        for text in set(texts) - self.labels.keys():
            self.labels[text], wrong = _classes(text)
            if wrong:
                del self.labels[text]
                return None
        self.seen |= fresh
        return names, map(self.prefix.__add__, paths), splits, map(self.labels.__getitem__, texts)

    def _clip(self, cells: list[str], line: int, position: int) -> Clip:
        """The Clip of one row that begins on `line`."""
        if len(cells) != len(self.columns):
            came = f"{len(cells)} cells, expected {len(self.columns)} ({','.join(self.columns)})"
            where = self.columns[len(cells)] if len(cells) < len(self.columns) else self.columns[-1]
            other = cell_separator(cells[0], len(self.columns)) if len(cells) == 1 else ""
            advice = (
                separator_advice(other)
                if other
                else 'put a cell that holds a comma in quotes, as "…"'
            )
            _fail(self.shown, line, where, f"{came}; {advice}")
        name, path, split, label = self.cells(cells)
        if wrong := wrong_id(name):
            _fail(self.shown, line, "clip", wrong)
        if split not in SPLITS:
            meant = SPLIT_ALIASES.get(split.strip().lower(), split.strip().lower())
            write = f"write {meant}" if meant in SPLITS else "write one of these"
            _fail(
                self.shown, line, "split", f"expected {', '.join(SPLITS)}, got {split!r}; {write}"
            )
        if label not in self.labels:
            classes, wrong = _classes(label)
            if wrong:
                _fail(self.shown, line, "label", wrong)
            self.labels[label] = classes
        start, end = self._times(cells, line)
        clip = Clip(
            name,
            self._place(path, line),
            split,
            self.labels[label],
            start,
            end,
            self._extra(cells),
            position,
        )
        if name in self.seen:
            first = self.lines[next(c.position for c in self.clips if c.clip == name)]
            _fail(
                self.shown,
                line,
                "clip",
                f"{name!r} is on line {first} too; give each row an id of its own",
            )
        self.seen.add(name)
        return clip

    def _extra(self, cells: list[str]) -> dict[str, str]:
        return {name: cells[k] for k, name in self.further} if self.further else self.no_extra

    def _place(self, text: str, line: int) -> str:
        """The absolute path, "." and ".." worked out in the text alone; where links lead is seen
        when the file is opened.
        """
        if not text or (not text.isprintable() and _CONTROL.search(text)):
            _fail(
                self.shown,
                line,
                "path",
                f"expected a video or a folder of frames below {self.root}, got {text!r}",
            )
        if foreign := foreign_path(text):
            _fail(self.shown, line, "path", f"{text!r} is {foreign}")
        path = os.path.normpath(text if text.startswith("/") else self.prefix + text)
        if path.startswith(self.prefix) or path == str(self.root):
            return path
        if path.startswith(self.spelled):
            return self.prefix + path[len(self.spelled) :]
        advice = "write a path below it, or pass --root with a folder above both"
        if re.match(r"//[^/]", text):
            advice = f"if it is a network share, mount it; {advice}"
        _fail(self.shown, line, "path", f"{text!r} leaves {self.root}; {advice}")

    def _times(self, cells: list[str], line: int) -> tuple[float | None, float | None]:
        start, end = (self._seconds(cells, column, line) for column in TIMES)
        if end is not None and end <= (start or 0.0):
            _fail(
                self.shown,
                line,
                "end",
                f"expected seconds after the start ({start or 0.0:g}), got {end:g}; leave it "
                f"empty for the file's end",
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
            _fail(
                self.shown,
                line,
                column,
                f"expected seconds from 0, such as 12.5, or nothing, got {text!r}",
            )
        return seconds


def _header(shown: Path, line: int, cells: list[str]) -> list[str]:
    columns = [cell.strip() for cell in cells]
    if missing := [name for name in COLUMNS if name not in columns]:
        found = ",".join(columns)[:200]
        _fail(
            shown,
            line,
            missing[0],
            f"missing from the header {found!r}; expected {','.join(COLUMNS)}, separated by "
            f"commas (further columns are kept)",
        )
    for k, name in enumerate(columns):
        if not name or name in columns[:k] or _CONTROL.search(name):
            _fail(
                shown,
                line,
                repr(name),
                f"column {k + 1} of the header is empty, repeated or unprintable; give every "
                f"column its own name",
            )
    return columns


def _fail(shown: Path, line: int, column: str, said: str) -> NoReturn:
    raise ManifestError(f"{shown}, line {line}, column {column}: {said}")


def _classes(text: str) -> tuple[tuple[str, ...], str]:
    """(classes, "") of a cell: none if it is blank, else what stands between the semicolons; or
    ((), what is wrong).
    """
    if not text.strip():
        return (), ""
    labels = tuple(part.strip() for part in text.split(";"))
    if "" in labels or len(set(labels)) < len(labels):
        return (), f"an empty or repeated class in {text!r}; write each class once, separated by ;"
    if _CONTROL.search(text):
        return (), f"a control character in {text!r}; write the class in one line of text"
    return labels, ""


def wrong_id(name: str) -> str:
    """What is wrong with a clip id and what to write instead; "" if nothing is."""
    if not name or name != name.strip():
        return f"expected an id without blanks at its ends, got {name!r}; write the file's name, for example"
    if not name.isprintable() and _CONTROL.search(name):
        return f"a control character or line break in {name!r}; write an id in one line of text"
    if len(name) * 4 > ID_BYTES and len(name.encode()) > ID_BYTES:
        return f"the id {name[:40]!r}… has {len(name.encode())} bytes, expected at most {ID_BYTES}; write a shorter one"
    return ""


def foreign_path(text: str) -> str:
    """What kind of foreign path it is (Windows, URL) and what to write instead; "" for a path of
    this system.
    """
    below = "write the path of a file below the manifest's folder, or below --root"
    if re.match(r"[A-Za-z]:([\\/]|$)", text):
        return f"a Windows path with a drive letter; {below}, with / between folders"
    if text.startswith("\\\\"):
        return f"a Windows path of a network share; mount it, and {below}, with / between folders"
    if re.match(r"[A-Za-z][A-Za-z0-9+.-]*://", text):
        return f"an address (URL), and nothing is read over the network; download the file, and {below}"
    if shell := re.match(r"~[^/]*/|\$\{?[A-Za-z_]\w*\}?/|%[A-Za-z_]\w*%[\\/]", text):
        return f"a path that only a shell understands ({shell[0]}); {below}"
    return ""


def _plain_ids(names: Sequence[str]) -> bool:
    """Whether `wrong_id` is sure to find nothing."""
    return (
        all(names)
        and tuple(map(str.strip, names)) == names
        and "".join(names).isprintable()
        and max(map(len, names)) * 4 <= ID_BYTES
    )


def _plain_paths(paths: Sequence[str]) -> bool:
    """Whether all are relative, and as os.path.normpath would leave them."""
    joined = "\n".join(("", *paths, ""))
    return "".join(paths).isprintable() and not any(part in joined for part in _UNTIDY + _FOREIGN)
