"""Boxes that people, or another detector, wrote down: Something-Else's JSON, GOS's JSON, or our
CSV. The content tells which.

Something-Else   {clip: [{"labels": [{"box2d": {"x1": .., "y1": .., "x2": .., "y2": ..},
                 "standard_category": ".."}, ..]}, ..]}, in pixels. Within a frame, objects come by
                 category and hands last (the order of STIN's slots).
GOS              {clip: [[[x1, y1, x2, y2], ..], ..]}, in [0,1] of the frame, in the file's order.
CSV              a header with clip, frame, x1, y1, x2, y2 and, if wanted, score; one row per box;
                 other columns are ignored. Numbers are pixels of the upright frame, or in [0,1] of
                 it if none in the file is above 1.5. Boxes come by falling score, else in the
                 file's order.

Entry k of a clip's list, and frame k of the CSV, is frame k of the video file, counted from 0. In
a folder whose pictures count from 1 it is picture k+1. A frame without an entry, or after the end
of the list, has no boxes. A score that is not given is 1.

A box may reach beyond the right or lower edge by a tenth of the frame's side (rounding, a
detector's overhang), and is clipped. One that reaches further fails its clip: it was probably
measured in a larger picture, such as the original of a smaller video. Boxes of a larger picture
never reach beyond the left or upper edge. Where one does, boxes of the clip may reach beyond the
right and lower edge by twice as much, up to half the side.
"""

import csv
import hashlib
import io
import json
import math
import re
from array import array
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.files.regular_files import opened
from pipeline.proposals import BoxesError, MissingBoxes
from pipeline.text import text_files as texts

SUFFIXES = (".json", ".csv")
UNITS = ("pixels", "fraction")
CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("clip", "frame", *CORNERS)

# Parts of the frame's side. A corner further outside than this was measured in another frame.
OUTSIDE = 0.5
# The limit to the right and below, if no box of the clip reaches beyond the left or upper edge.
OVERHANG = 0.1
# Boxes may reach beyond the right and lower edge this many times as far as beyond the others.
BOTH_WAYS = 2

_GAP = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class ClipBoxes:
    """One clip's boxes as they were written.

    Attributes:
        frames: [M] frame numbers in the file, ascending.
        boxes: [M,4] xyxy.
        scores: [M].
        unit: "pixels" or "fraction" (of the frame).
    """

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    unit: str


class Annotations:
    """The first N boxes of each frame, by score where there are scores.

    Args:
        files: JSON and CSV files, read once.
        num_boxes, key, unit, annotated_height, allow_missing, overhang: see `build`.

    Raises:
        ValueError: a file cannot be read, or two of them list one clip.
    """

    frame_size = None
    in_view = False

    def __init__(
        self,
        files: list[Path],
        num_boxes: int,
        key: str,
        unit: str,
        annotated_height: int,
        allow_missing: bool,
        overhang: float = OVERHANG,
    ):
        self.num_boxes, self.key, self.unit = num_boxes, key, unit
        self.annotated_height = annotated_height
        self.allow_missing, self.overhang = allow_missing, overhang
        self.where = files[0] if len(files) == 1 else files[0].parent
        self.clips: dict[str, ClipBoxes | str] = {}
        # One checksum over all files: it stands for these boxes in a cache's fingerprint.
        digest = hashlib.sha256()
        for file in files:
            read = _csv_clips if file.suffix == ".csv" else _json_clips
            for clip, boxes in read(file, _text_of(file, digest)):
                if clip in self.clips:
                    raise ValueError(
                        f"{file}: clip {clip!r} is listed twice; expected once in all files "
                        f"together"
                    )
                self.clips[clip] = boxes
        self.weights_sha256 = digest.hexdigest()

    def to(self, device, precision: str = "fp32") -> "Annotations":
        """Return itself: the boxes are read, not computed."""
        return self

    def propose(self, frames, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """Look up the boxes of some frames; `frames`, their pixels, are not looked at.

        Returns:
            boxes [K,N,4] in [0,1] of the whole frame, and scores [K,N], -1 where a frame has fewer
            than N boxes.

        Raises:
            MissingBoxes: the clip is not listed, and `allow_missing` is not set.
            BoxesError: the clip's entry is malformed.
        """
        boxes = np.zeros((len(numbers), self.num_boxes, 4), dtype=np.float32)
        scores = np.full((len(numbers), self.num_boxes), -1, dtype=np.float32)
        name = self._name_of(clip)
        listed = self.clips.get(name)
        if listed is None:
            if self.allow_missing:
                return boxes, scores
            hint = (
                "add it, choose the key (clip or stem) by which it is listed, or set allow_missing"
            )
            raise MissingBoxes(clip.clip, self.where, f"no boxes under {name!r}; {hint}")
        if isinstance(listed, str):
            raise BoxesError(clip.clip, self.where, listed)

        whole = self._fractions(listed, clip.clip, info)
        for row, number in enumerate(numbers):
            first, end = np.searchsorted(listed.frames, (number, number + 1))
            # Stable: boxes of equal score stay in the file's order.
            order = np.argsort(-listed.scores[first:end], kind="stable")
            best = first + order[: self.num_boxes]
            boxes[row, : len(best)], scores[row, : len(best)] = whole[best], listed.scores[best]
        return boxes, scores

    def remark(self, clip, info, numbers) -> str:
        """Say what looks wrong with a clip's boxes although they can be used.

        Args:
            clip: as for `propose`.
            info: as for `propose`.
            numbers: the frames in the file at which boxes are looked for.

        Returns:
            One line; "" if nothing looks wrong.
        """
        listed = self.clips.get(self._name_of(clip))
        if not isinstance(listed, ClipBoxes) or not len(listed.frames):
            return ""
        annotated = np.unique(listed.frames)
        asked = np.isin(listed.frames, np.asarray(numbers))
        if not asked.any():
            some = ", ".join(map(str, annotated[:3].tolist())) + ", …" * (len(annotated) > 3)
            return (
                f"no box: none of its {len(annotated):,} frames with boxes ({some}) is one of the "
                f"{len(numbers):,} that are looked at; give boxes for every frame (interpolate "
                f"them), or count frames as the video does, from 0"
            )

        boxes = listed.boxes[asked]
        if not (boxes[:, 2:] > boxes[:, :2]).all(1).any():
            return (
                f"no box with an area at the {len(numbers):,} frames that are looked at, such as "
                f"{boxes[0].round(3).tolist()}; expected corners x1, y1, x2, y2, not width and "
                f"height"
            )

        end, last = info.first + info.frames, int(annotated[-1])
        # A clip that the manifest cuts short leaves boxes after its end.
        if getattr(clip, "end", None) is None and last >= end + max(2, end // 20):
            return (
                f"has boxes up to frame {last}, the video only frames 0 to {end - 1}: were they "
                f"drawn at another frame rate?"
            )
        return ""

    def _name_of(self, clip) -> str:
        """The name under which the file lists a clip."""
        return clip.clip if self.key == "clip" else Path(clip.path).stem

    def _fractions(self, listed: ClipBoxes, clip: str, info) -> np.ndarray:
        """Boxes [M,4] in [0,1] of the frame, clipped. BoxesError where a corner is far outside:
        another unit was meant.
        """
        unit = self.unit or listed.unit
        whole = listed.boxes.astype(np.float64)
        if unit == "pixels":
            scale = info.height / self.annotated_height if self.annotated_height else 1.0
            whole = whole * scale / [info.width, info.height, info.width, info.height]

        left = max(0.0, -whole.min()) if len(whole) else 0.0
        both_ways = BOTH_WAYS * left * (1 + 1e-6)  # boxes are kept in float32
        most = max(self.overhang, min(OUTSIDE, both_ways))
        far = np.flatnonzero(((whole < -OUTSIDE) | (whole > 1 + most)).any(1))
        if len(far):
            box = [round(value, 3) for value in listed.boxes[far[0]].tolist()]
            scaled = ""
            if self.annotated_height:
                scaled = f", scaled from the height {self.annotated_height},"
            raise BoxesError(
                clip,
                self.where,
                f"frame {listed.frames[far[0]]}: box {box} ({unit}){scaled} lies outside a frame "
                f"of {info.width}x{info.height} pixels; give the height of the frames it was "
                "measured in (--set proposal_options.annotated_height=HEIGHT), or say unit, or "
                "overhang if boxes stick out",
            )
        return whole.clip(0, 1)


def build(
    file: str,
    num_boxes: int = 10,
    key: str = "clip",
    unit: str = "",
    annotated_height: int = 0,
    allow_missing: bool = False,
    overhang: float = OVERHANG,
) -> Annotations:
    """Build the source "annotations".

    Args:
        file: a .json or .csv file, or a folder of them (Something-Else comes in parts).
        num_boxes: N, the first of each frame.
        key: clips are listed by their id ("clip"), or by the name of their file or folder without
            its ending ("stem").
        unit: "pixels" or "fraction" (of the frame); "" as the top of this file says.
        annotated_height: height in pixels of the frames in which pixels were measured, where that
            is not the video's; 0 is the video's. Something-Else: 240, while its frames are often
            extracted at 256.
        allow_missing: a clip that is not listed has no boxes, instead of failing.
        overhang: part of the frame's side by which a box may stick out to the right or below. It
            is clipped; one that sticks out further fails its clip.

    Raises:
        ValueError: a bad value, or a file that cannot be read, with the place. A malformed JSON
            entry of one clip fails that clip only.
    """
    for name, value, least in (
        ("num_boxes", num_boxes, 1),
        ("annotated_height", annotated_height, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"proposals 'annotations': {name}={value!r}; expected a whole number from {least}"
            )
    is_number = isinstance(overhang, (int, float)) and not isinstance(overhang, bool)
    if not is_number or not 0 <= overhang <= OUTSIDE:
        raise ValueError(
            f"proposals 'annotations': overhang={overhang!r}; expected a number from 0 to {OUTSIDE}"
        )
    for name, value, choices in (("key", key, ("clip", "stem")), ("unit", unit, ("", *UNITS))):
        if value not in choices:
            expected = ", ".join(filter(None, choices))
            raise ValueError(
                f"proposals 'annotations': {name}={value!r}; expected one of {expected}"
            )

    path = Path(file)
    files = [path]
    if path.is_dir():
        files = sorted(found for found in path.iterdir() if found.suffix in SUFFIXES)
    if not files or files[0].suffix not in SUFFIXES:
        raise ValueError(f"{path}: expected a .json or .csv file of boxes, or a folder of them")
    return Annotations(files, num_boxes, key, unit, annotated_height, allow_missing, overhang)


def _text_of(path: Path, digest) -> str:
    """The text of a file, whose bytes go into `digest`."""
    try:
        with opened(path) as file:
            data = file.readall()
        digest.update(data)
        return texts.decoded(data, path, "a text file of boxes")
    except OSError as error:
        raise ValueError(
            f"{path}: cannot be read ({error.strerror}); expected a file of boxes"
        ) from error


def _json_clips(path: Path, text: str) -> Iterator[tuple[str, "ClipBoxes | str"]]:
    """Every clip of a JSON file with its boxes, or with what is wrong with them. ValueError where
    the file is no JSON object.
    """
    # One member at a time: all of Something-Else as Python objects would need tens of gigabytes.
    decode = json.JSONDecoder().raw_decode
    try:
        at = _past("{", text, _GAP.match(text).end())
        more = not text.startswith("}", at)
        while more:
            start = at
            clip, at = decode(text, at)
            if not isinstance(clip, str):
                raise json.JSONDecodeError("no clip id in quotes here", text, start)
            at = _past(":", text, _GAP.match(text, at).end())
            entries, at = decode(text, at)
            yield clip, _compact(entries)
            at = _GAP.match(text, at).end()
            more = text.startswith(",", at)
            if more:
                at = _past(",", text, at)
        at = _past("}", text, at)
        if at != len(text):
            raise json.JSONDecodeError("more after the end of the object", text, at)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(
            f"{path}: {place}: {error.msg}; expected JSON, one object of clips"
        ) from error
    except RecursionError as error:
        raise ValueError(
            f"{path}: nested too deeply; expected JSON, one object of clips"
        ) from error


def _past(symbol: str, text: str, at: int) -> int:
    """The place after `symbol`, which must be at `at`, and the white space behind it."""
    if not text.startswith(symbol, at):
        raise json.JSONDecodeError(f"no {symbol!r} here", text, at)
    return _GAP.match(text, at + 1).end()


def _compact(entries) -> "ClipBoxes | str":
    """One clip's JSON value as arrays, or one line that says what is wrong with it."""
    if not isinstance(entries, list):
        return f"expected a list with one entry per frame, got {type(entries).__name__}"
    objects = any(isinstance(entry, dict) for entry in entries)
    frames, rows = array("i"), []
    for frame, entry in enumerate(entries):
        try:
            found = _labelled(entry) if objects else list(entry)
        except (KeyError, TypeError, AttributeError) as error:
            shape = "a list of boxes [x1, y1, x2, y2]"
            if objects:
                shape = "labels, each with box2d of x1, y1, x2, y2"
            return f"frame {frame}: expected {shape} ({type(error).__name__}: {error})"
        frames.extend([frame] * len(found))
        rows.extend(found)
    boxes = _numbers(rows)
    if boxes is None:
        bad = 0
        while _numbers([rows[bad]]) is not None:
            bad += 1
        return (
            f"frame {frames[bad]}: expected a box of four numbers with x1 <= x2 and y1 <= y2, got "
            f"{str(rows[bad])[:80]}"
        )
    scores = np.ones(len(boxes), dtype=np.float32)
    unit = "pixels" if objects else "fraction"
    return ClipBoxes(np.array(frames, dtype=np.int32), boxes, scores, unit)


def _labelled(entry: dict) -> list[list[float]]:
    """The boxes of a frame of Something-Else, objects by category first, hands last."""
    # As text: "0000" < "0001" < "hand".
    labels = sorted(entry["labels"], key=lambda label: str(label.get("standard_category", "")))
    boxes = []
    for label in labels:
        box = label["box2d"]
        boxes.append([box[corner] for corner in CORNERS])
    return boxes


def _numbers(rows: list) -> np.ndarray | None:
    """Rows of four finite numbers, none of them turned inside out, as float32 [M,4]; None if one of
    them is not.
    """
    try:
        boxes = np.array(rows, dtype=np.float64).reshape(len(rows), 4)
    except (TypeError, ValueError):
        return None
    good = np.isfinite(boxes).all() and (boxes[:, :2] <= boxes[:, 2:]).all()
    return boxes.astype(np.float32) if good else None


def _csv_clips(path: Path, text: str) -> Iterator[tuple[str, ClipBoxes]]:
    """Every clip of a CSV file with its boxes. ValueError, with line and column, for a malformed
    row.
    """
    # newline="": quoted cells may hold line ends.
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    missing = [name for name in COLUMNS if name not in header]
    if missing:
        other = texts.other_separator(text.partition("\n")[0], COLUMNS)
        advice = f" ({texts.separator_advice(other)})" if other else ""
        raise ValueError(
            f"{path}: line 1: no column {', '.join(missing)}{advice}; expected "
            f"{','.join(COLUMNS)} and, if wanted, score"
        )
    wanted = [(header.index(name), name) for name in (*COLUMNS[1:], "score") if name in header]
    clip_at, values = header.index("clip"), defaultdict(lambda: array("d"))
    try:
        for row in reader:
            if row:
                values[row[clip_at]].extend(_row(row, wanted))
    except (ValueError, IndexError, csv.Error) as error:
        reason = error
        if isinstance(error, IndexError):
            reason = f"{len(row)} cells, expected {len(header)}"
        raise ValueError(f"{path}: line {reader.line_num}: {reason}") from error
    tables = {clip: np.array(numbers).reshape(-1, 6) for clip, numbers in values.items()}
    # One unit for the whole file: a clip of small boxes near the corner says nothing by itself.
    unit = "fraction"
    for table in tables.values():
        if table[:, 1:5].max() > 1 + OUTSIDE:
            unit = "pixels"
    for clip, table in tables.items():
        table = table[np.argsort(table[:, 0], kind="stable")]
        frames, boxes, scores = table[:, 0], table[:, 1:5], table[:, 5]
        boxes, scores = boxes.astype(np.float32), scores.astype(np.float32)
        yield clip, ClipBoxes(frames.astype(np.int32), boxes, scores, unit)


def _row(row: list[str], wanted: list[tuple[int, str]]) -> list[float]:
    """frame, x1, y1, x2, y2, score of a row; ValueError names the column."""
    numbers = []
    for place, name in wanted:
        try:
            numbers.append(float(row[place]))
        except ValueError:
            raise ValueError(f"column {name}: expected a number, got {row[place]!r}") from None
    frame, x1, y1, x2, y2, score = (*numbers, 1.0)[:6]
    if not (0 <= frame < 2**31 and frame.is_integer()):
        raise ValueError(f"column frame: expected a whole number from 0, got {frame}")
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 <= x2 and y1 <= y2):
        raise ValueError(
            f"columns x1 to y2: expected finite numbers with x1 <= x2 and y1 <= y2, got {x1}, "
            f"{y1}, {x2}, {y2}"
        )
    if not 0 <= score < math.inf:
        raise ValueError(f"column score: expected a finite number from 0, got {score}")
    return [frame, x1, y1, x2, y2, score]
