"""Boxes that people, or another detector, wrote down: Something-Else's JSON, GOS's JSON, or our
CSV. The content tells which.

Something-Else   {clip: [{"labels": [{"box2d": {"x1": .., "y1": .., "x2": .., "y2": ..},
                 "standard_category": ".."}, ..]}, ..]}, pixels; within a frame the objects by
                 category, hands last (the order of STIN's slots)
GOS              {clip: [[[x1, y1, x2, y2], ..], ..]}, in [0,1] of the frame; in the order of the
                 file
CSV              a header with clip, frame, x1, y1, x2, y2 and, if wanted, score and label, and one
                 row per box; pixels of the upright frame, or in [0,1] of it if no number of the
                 file is above 1.5; by falling score, else in the order of the file. Further columns
                 are not looked at

Entry k of a clip's list, and frame k of the CSV, is frame k of the video file, counted from 0
(picture k+1 of a folder that counts from 1). A frame without an entry, or after the end of the
list, has no boxes. A score that is not given is 1.

A box may reach beyond the right or lower edge by a tenth of the frame's side (rounding, a
detector's overhang), and is clipped. One that reaches further fails its clip, because it was
probably measured in a larger picture, such as the original of a smaller video. Boxes of a larger
picture never reach beyond the left or upper edge: where one does, boxes of the clip may reach
beyond the right and lower edge by twice as much, up to half the side.
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

UNITS = ("pixels", "fraction")
CORNERS = ("x1", "y1", "x2", "y2")
COLUMNS = ("clip", "frame", *CORNERS)
# part of the frame's side; a corner further outside was measured in another frame in any case
OUTSIDE = 0.5
# the limit to the right and below, if no box of the clip reaches beyond the left or upper edge
OVERHANG = 0.1
# times as far as beyond the left and upper edge may boxes reach beyond the right and lower one
BOTH_WAYS = 2

_GAP = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True)
class ClipBoxes:
    """One clip's boxes as they were written: frames [M] ascending, boxes [M,4], scores [M]; `unit`
    pixels or fraction.
    """

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    unit: str


class Annotations:
    """The first N boxes of each frame, by score where there are scores. A clip that the file does
    not list is an error.
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
        self.annotated_height, self.allow_missing, self.overhang = (
            annotated_height,
            allow_missing,
            overhang,
        )
        self.where = files[0] if len(files) == 1 else files[0].parent
        self.clips: dict[str, ClipBoxes | str] = {}
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
        """Nothing to move: the boxes are read, not computed."""
        return self

    def propose(self, frames, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """boxes [K,N,4] in [0,1] of the whole frame, scores [K,N], -1 where there are fewer than N;
        `frames` is not looked at.

        MissingBoxes for a clip that is not listed (unless `allow_missing`: no boxes); BoxesError
        where its entry is malformed.
        """
        boxes = np.zeros((len(numbers), self.num_boxes, 4), dtype=np.float32)
        scores = np.full((len(numbers), self.num_boxes), -1, dtype=np.float32)
        name = self._name_of(clip)
        there = self.clips.get(name)
        if there is None:
            if self.allow_missing:
                return boxes, scores
            hint = (
                "add it, choose the key (clip or stem) by which it is listed, or set allow_missing"
            )
            raise MissingBoxes(clip.clip, self.where, f"no boxes under {name!r}; {hint}")
        if isinstance(there, str):
            raise BoxesError(clip.clip, self.where, there)
        whole = self._fractions(there, clip.clip, info)
        for row, number in enumerate(numbers):
            first, end = np.searchsorted(there.frames, (number, number + 1))
            best = first + np.argsort(-there.scores[first:end], kind="stable")[: self.num_boxes]
            boxes[row, : len(best)], scores[row, : len(best)] = whole[best], there.scores[best]
        return boxes, scores

    def remark(self, clip, info, numbers) -> str:
        """What looks wrong with a clip's boxes although they can be used, in words; "" if nothing.

        numbers: the frames in the file at which boxes are looked for.
        """
        there = self.clips.get(self._name_of(clip))
        if not isinstance(there, ClipBoxes) or not len(there.frames):
            return ""
        annotated = np.unique(there.frames)
        if not np.isin(annotated, np.asarray(numbers)).any():
            some = ", ".join(map(str, annotated[:3].tolist())) + (
                ", …" if len(annotated) > 3 else ""
            )
            return (
                f"no box: none of its {len(annotated):,} frames with boxes ({some}) is one of the "
                f"{len(numbers):,} that are "
                "looked at; give boxes for every frame (interpolate them), or count frames as the "
                "video does, from 0"
            )
        asked = np.isin(there.frames, np.asarray(numbers))
        if not (there.boxes[asked, 2:] > there.boxes[asked, :2]).all(1).any():
            return (
                f"no box with an area at the {len(numbers):,} frames that are looked at, such as "
                f"{there.boxes[asked][0].round(3).tolist()}; expected corners x1, y1, x2, y2, not "
                f"width and height"
            )
        held, last = info.first + info.frames, int(annotated[-1])
        if getattr(clip, "end", None) is None and last >= held + max(2, held // 20):
            return f"has boxes up to frame {last}, the video only frames 0 to {held - 1}: were they drawn at another frame rate?"
        return ""

    def _name_of(self, clip) -> str:
        """The name under which the file lists a clip."""
        return clip.clip if self.key == "clip" else Path(clip.path).stem

    def _fractions(self, there: ClipBoxes, clip: str, info) -> np.ndarray:
        """boxes [M,4] in [0,1] of the frame, clipped; BoxesError where a corner is far outside:
        another unit was meant.
        """
        unit = self.unit or there.unit
        whole = there.boxes.astype(np.float64)
        if unit == "pixels":
            scale = info.height / self.annotated_height if self.annotated_height else 1.0
            whole = whole * scale / [info.width, info.height, info.width, info.height]
        left = max(0.0, -whole.min()) if len(whole) else 0.0
        most = max(
            self.overhang, min(OUTSIDE, BOTH_WAYS * left * (1 + 1e-6))
        )  # boxes are kept in float32
        far = np.flatnonzero(((whole < -OUTSIDE) | (whole > 1 + most)).any(1))
        if len(far):
            box, frame = (
                [round(value, 3) for value in there.boxes[far[0]].tolist()],
                there.frames[far[0]],
            )
            size = f"{info.width}x{info.height} pixels"
            measured = (
                f", scaled from the height {self.annotated_height},"
                if self.annotated_height
                else ""
            )
            raise BoxesError(
                clip,
                self.where,
                f"frame {frame}: box {box} ({unit}){measured} lies outside a frame of {size}; "
                f"give the height of the frames it "
                "was measured in (--set proposal_options.annotated_height=HEIGHT), or say unit, "
                "or overhang if boxes stick out",
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
    """The source "annotations".

    file: a .json or .csv file, or a folder of them (Something-Else comes in parts), read once.
    num_boxes: N, the first of each frame. key: clips are listed by their id ("clip"), or by their
    file's or folder's name without its ending ("stem"). unit: "pixels" or "fraction" (of the
    frame); "": as the top of this file says. annotated_height: height in pixels of the frames in
    which pixels were measured, where that is not the video's (Something-Else: 240, while its frames
    are often extracted at 256); 0: the video's own. allow_missing: a clip that is not listed has no
    boxes, instead of failing. overhang: by which part of the frame's side a box may stick out to
    the right or below and be clipped, before it fails its clip. ValueError, with the place, for a
    file that cannot be read; one clip's malformed JSON entry fails that clip only.
    """
    for name, value, least in (
        ("num_boxes", num_boxes, 1),
        ("annotated_height", annotated_height, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"proposals 'annotations': {name}={value!r}; expected a whole number from {least}"
            )
    if (
        isinstance(overhang, bool)
        or not isinstance(overhang, (int, float))
        or not 0 <= overhang <= OUTSIDE
    ):
        raise ValueError(
            f"proposals 'annotations': overhang={overhang!r}; expected a number from 0 to {OUTSIDE}"
        )
    for name, value, choices in (("key", key, ("clip", "stem")), ("unit", unit, ("", *UNITS))):
        if value not in choices:
            raise ValueError(
                f"proposals 'annotations': {name}={value!r}; expected one of "
                f"{', '.join(c for c in choices if c)}"
            )
    path = Path(file)
    files = (
        sorted(p for p in path.iterdir() if p.suffix in (".json", ".csv"))
        if path.is_dir()
        else [path]
    )
    if not files or files[0].suffix not in (".json", ".csv"):
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

    One member at a time: all of Something-Else as Python objects would need tens of gigabytes.
    """
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
            if more := text.startswith(",", at):
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
            shape = (
                "labels, each with box2d of x1, y1, x2, y2"
                if objects
                else "a list of boxes [x1, y1, x2, y2]"
            )
            return f"frame {frame}: expected {shape} ({type(error).__name__}: {error})"
        frames.extend([frame] * len(found))
        rows.extend(found)
    boxes = _numbers(rows)
    if boxes is None:
        bad = next(k for k, row in enumerate(rows) if _numbers([row]) is None)
        return f"frame {frames[bad]}: expected a box of four numbers with x1 <= x2 and y1 <= y2, got {str(rows[bad])[:80]}"
    scores = np.ones(len(boxes), dtype=np.float32)
    return ClipBoxes(
        np.array(frames, dtype=np.int32), boxes, scores, "pixels" if objects else "fraction"
    )


def _labelled(entry: dict) -> list[list[float]]:
    """The boxes of a frame of Something-Else, objects by category first, hands last."""
    labels = sorted(
        entry["labels"], key=lambda label: str(label.get("standard_category", ""))
    )  # "0000" < "0001" < "hand"
    return [[label["box2d"][corner] for corner in CORNERS] for label in labels]


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
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    if missing := [name for name in COLUMNS if name not in header]:
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
        reason = (
            f"{len(row)} cells, expected {len(header)}" if isinstance(error, IndexError) else error
        )
        raise ValueError(f"{path}: line {reader.line_num}: {reason}") from error
    tables = {clip: np.array(numbers).reshape(-1, 6) for clip, numbers in values.items()}
    unit = (
        "fraction"
        if all(table[:, 1:5].max() <= 1 + OUTSIDE for table in tables.values())
        else "pixels"
    )
    for clip, table in tables.items():
        table = table[np.argsort(table[:, 0], kind="stable")]
        yield (
            clip,
            ClipBoxes(
                table[:, 0].astype(np.int32),
                table[:, 1:5].astype(np.float32),
                table[:, 5].astype(np.float32),
                unit,
            ),
        )


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
