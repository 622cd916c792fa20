"""The JSON of Something-Else and of GOS: one object, whose members are clips.

Something-Else   {clip: [{"labels": [{"box2d": {"x1": .., "y1": .., "x2": .., "y2": ..},
                 "category": "cup", "standard_category": "0000"}, ..]}, ..]}, in pixels.
GOS              {clip: [[[x1, y1, x2, y2], ..], ..]}, in [0,1] of the frame, in the file's order.

Entry k of a clip's list is frame k of the video. Something-Else calls objects "0000", "0001" and
hands "hand". Over a whole clip they have slots: objects by category, hands last, as in STIN. The
second box of a category in one frame is an object of its own.
"""

import json
import re
from array import array
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from pipeline.box_files.table import CORNERS, ClassNames, ClipBoxes, ReadOptions

_GAP = re.compile(r"[ \t\n\r]*")
# The two roles, as STIN and STLT number them.
ROLES = ("hand", "object")


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes | str]]:
    """Yield every clip of a file with its boxes, or with what is wrong with them.

    Args:
        path: the file, for messages.
        text: its text.
        names: numbers the classes.
        options: `classes` says which classes Something-Else's boxes have.

    Raises:
        ValueError: the file is no JSON object; with the place.
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
            yield clip, _clip_boxes(entries, names, options)
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


def _clip_boxes(entries, names: ClassNames, options: ReadOptions) -> ClipBoxes | str:
    """One clip's JSON value as arrays, or one line that says what is wrong with it."""
    if not isinstance(entries, list):
        return f"expected a list with one entry per frame, got {type(entries).__name__}"
    labelled = any(isinstance(entry, dict) for entry in entries)
    frames, rows, labels = array("i"), [], []
    for frame, entry in enumerate(entries):
        try:
            found = _labelled(entry) if labelled else [(box, "", "") for box in entry]
        except (KeyError, TypeError, AttributeError) as error:
            shape = "a list of boxes [x1, y1, x2, y2]"
            if labelled:
                shape = "labels, each with box2d of x1, y1, x2, y2"
            return f"frame {frame}: expected {shape} ({type(error).__name__}: {error})"
        frames.extend([frame] * len(found))
        rows += [box for box, _, _ in found]
        labels += [label for _, *label in found]
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
    frame_numbers, annotated = np.array(frames, dtype=np.int32), np.arange(len(entries))
    if not labelled:
        return ClipBoxes(frame_numbers, boxes, scores, "fraction", annotated=annotated)
    tracks, objects = _slots(frame_numbers, [category for category, _ in labels])
    classes = np.array([names.number(_class_of(*label, options)) for label in labels], np.int16)
    return ClipBoxes(
        frame_numbers,
        boxes,
        scores,
        "pixels",
        classes,
        tracks,
        annotated,
        objects=objects,
    )


def _labelled(entry: dict) -> list[tuple[list[float], str, str]]:
    """The boxes of a frame of Something-Else with category and name; hands last."""
    # As text: "0000" < "0001" < "hand".
    labels = sorted(entry["labels"], key=_category)
    boxes = []
    for label in labels:
        box = label["box2d"]
        corners = [box[corner] for corner in CORNERS]
        boxes.append((corners, _category(label), str(label.get("category") or "")))
    return boxes


def _category(label: dict) -> str:
    return str(label.get("standard_category", ""))


def _class_of(category: str, name: str, options: ReadOptions) -> str:
    """The class of a box, by its role or by the name of the object."""
    role = "hand" if "hand" in category else "object"
    return name or role if options.classes == "category" else role


def _slots(frames: np.ndarray, categories: list[str]) -> tuple[np.ndarray, int]:
    """The slot of each box in its clip [M], and how many slots the clip has.

    Boxes of a frame are in the order of their categories.
    """
    identities: list[tuple[str, int]] = []
    before: tuple[int, str] | None = None
    for frame, category in zip(frames.tolist(), categories, strict=True):
        again = identities[-1][1] + 1 if before == (frame, category) else 0
        identities.append((category, again))
        before = (frame, category)
    # Hands come last whatever else objects are called.
    order = sorted(set(identities), key=lambda one: ("hand" in one[0], *one))
    slot_of = {identity: slot for slot, identity in enumerate(order)}
    return np.array([slot_of[one] for one in identities], np.int32), len(order)


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
