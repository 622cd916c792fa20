"""Boxes of a clip as arrays, the names of their classes, and what collects them from a file."""

import math
import re
from array import array
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

CORNERS = ("x1", "y1", "x2", "y2")
UNITS = ("pixels", "fraction")

# A number above this is no part of a frame's side. Boxes may stick out by half of it.
LARGEST_PART = 1.5
# int16 numbers the classes in a cache.
MOST_CLASSES = 32767


@dataclass(frozen=True)
class ClipBoxes:
    """One clip's boxes as they were written.

    Attributes:
        frames: [M] the frame number in the file that each box belongs to, ascending. Seconds, as
            floats, where `seconds`.
        boxes: [M,4] xyxy.
        scores: [M].
        unit: "pixels" or "fraction" (of the frame).
        classes: [M] numbers of `ClassNames`, -1 for none; None if no box has a class.
        tracks: [M] the object that each box is, -1 for none; None if no box has one.
        annotated: ascending: every frame that was looked at, with boxes or without.
        seconds: whether frames are told by the second.
        objects: how many objects have slots of their own: object k belongs in row k. 0 where boxes
            have no slots.
    """

    frames: np.ndarray
    boxes: np.ndarray
    scores: np.ndarray
    unit: str
    classes: np.ndarray | None = None
    tracks: np.ndarray | None = None
    annotated: np.ndarray = field(default_factory=lambda: np.zeros(0))
    seconds: bool = False
    objects: int = 0


@dataclass(frozen=True)
class ReadOptions:
    """What a file does not say itself.

    Attributes:
        format: the name of a format; "" lets the content tell.
        count_from: the number of a clip's first frame, 0 or 1, in formats that number pictures;
            None: 0 if any clip of the file has a frame 0, else 1.
        class_names: names of classes that the file numbers from 0.
        classes: for Something-Else: "role" (hand, object) or "category" (the object's name).
        images: the COCO file with the `images` of a list of results.
    """

    format: str = ""
    count_from: int | None = None
    class_names: tuple[str, ...] = ()
    classes: str = "role"
    images: Path | None = None


class ClassNames:
    """The names of classes, numbered as they come; `order` renumbers them in the end.

    Args:
        listed: names in an order that stays, such as a file's own list.
    """

    def __init__(self, listed: Sequence[str] = ()):
        self._numbers: dict[str, int] = {}
        self.add_listed(listed)

    def add_listed(self, names: Sequence[str]) -> None:
        """Add names of a file's own list, whether boxes have them or not."""
        for name in names:
            self.number(name)
        self.listed = len(self._numbers)

    def number(self, name: str | None) -> int:
        """Return the number of a name, a new one if it is new; -1 for None or ""."""
        if not name:
            return -1
        number = self._numbers.setdefault(str(name), len(self._numbers))
        if number > MOST_CLASSES:
            raise ValueError(f"more than {MOST_CLASSES:,} classes of boxes, such as {name!r}")
        return number

    def ordered(self) -> tuple[tuple[str, ...], np.ndarray]:
        """Return the names in their final order, and the new number of each old one.

        Listed names stay in front. The others follow in order: numbers by value, then words.
        """
        names = list(self._numbers)
        order = names[: self.listed] + sorted(names[self.listed :], key=_by_value)
        new = {name: k for k, name in enumerate(order)}
        return tuple(order), np.array([new[name] for name in names], np.int16)


def _by_value(name: str) -> tuple[int, int, str]:
    is_number = name.isascii() and name.isdigit()
    return (0, int(name), name) if is_number else (1, 0, name)


class BoxCollector:
    """Takes the boxes of a file, in any order, and gives those of each clip.

    Args:
        names: numbers the classes.
        unit: "pixels", "fraction", or "" for a unit that the largest number of the file decides.
        seconds: whether frames are told by the second.
    """

    def __init__(self, names: ClassNames, unit: str = "", seconds: bool = False):
        self.names, self.unit, self.seconds = names, unit, seconds
        # Per clip: frame, x1, y1, x2, y2, score, class, track, one after the other.
        self._values: dict[str, array] = {}
        self._looked_at: dict[str, array] = {}
        self._track_names: dict[str, dict[Any, int]] = {}

    def see(self, clip: str, frame: float) -> None:
        """Note that a frame was looked at, whether it has boxes or not."""
        self._values.setdefault(clip, array("d"))
        self._looked_at.setdefault(clip, array("d")).append(frame)

    def add(
        self,
        clip: str,
        frame: float,
        corners: Sequence[float],
        score: float = 1.0,
        class_name: str | None = None,
        track: Any = None,
    ) -> None:
        """Add a box.

        Args:
            clip: the clip's name.
            frame: the frame's number, or its second.
            corners: x1, y1, x2, y2.
            score: from 0.
            class_name: None or "" for none.
            track: what names the object in its clip. Whole numbers from 0 stay, other names are
                numbered as they come; None or -1 for none.

        Raises:
            ValueError: a number that no box has. The reader adds the place.
        """
        x1, y1, x2, y2 = checked_corners(corners)
        if not 0 <= score < math.inf:
            raise ValueError(f"expected a finite score from 0, got {score}")
        if not 0 <= frame < 2**31:
            raise ValueError(f"expected a frame from 0, got {frame}")
        number = -1 if track is None else self._track(clip, track)
        row = (frame, x1, y1, x2, y2, score, self.names.number(class_name), number)
        self._values.setdefault(clip, array("d")).extend(row)

    def _track(self, clip: str, track: Any) -> int:
        if isinstance(track, int) and -1 <= track < 2**31:
            return track
        known = self._track_names.setdefault(clip, {})
        return known.setdefault(track, len(known))

    def finish(self, first: int = 0) -> Iterator[tuple[str, ClipBoxes]]:
        """Yield every clip with its boxes.

        Args:
            first: the number of a clip's first frame, which becomes 0.

        Raises:
            ValueError: a frame comes before the first.
        """
        tables = {clip: np.array(row).reshape(-1, 8) for clip, row in self._values.items()}
        unit = self.unit
        if not unit:
            # One unit for the whole file: a clip of small boxes near the corner says nothing.
            largest = max((t[:, 1:5].max() for t in tables.values() if len(t)), default=0)
            unit = "pixels" if largest > LARGEST_PART else "fraction"
        for clip, table in tables.items():
            table = table[np.argsort(table[:, 0], kind="stable")]
            looked_at = np.array(self._looked_at.get(clip, ()))
            frames, annotated = table[:, 0] - first, np.union1d(table[:, 0], looked_at) - first
            if len(annotated) and annotated[0] < 0:
                raise ValueError(
                    f"clip {clip!r} has a frame {annotated[0] + first:g}, expected numbers from "
                    f"{first}; say count_from=0"
                )
            if not self.seconds:
                frames, annotated = frames.astype(np.int32), annotated.astype(np.int32)
            yield (
                clip,
                ClipBoxes(
                    frames,
                    table[:, 1:5].astype(np.float32),
                    table[:, 5].astype(np.float32),
                    unit,
                    _known(table[:, 6], np.int16),
                    _known(table[:, 7], np.int32),
                    annotated,
                    self.seconds,
                ),
            )

    def first_number(self, options: ReadOptions) -> int:
        """Return the number of a clip's first frame: the options', or 0 if a clip has a frame 0."""
        if options.count_from is not None:
            return options.count_from
        for values in self._values.values():
            if 0 in values[::8]:
                return 0
        for looked_at in self._looked_at.values():
            if 0 in looked_at:
                return 0
        return 1


def _known(column: np.ndarray, dtype: type) -> np.ndarray | None:
    """Labels of boxes; None if no box has one."""
    return column.astype(dtype) if (column >= 0).any() else None


def checked_corners(corners: Sequence[float]) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2; ValueError unless they are finite numbers of a box."""
    if len(corners) != 4:
        raise ValueError(f"expected a box of four numbers, got {str(list(corners))[:80]}")
    try:
        x1, y1, x2, y2 = map(float, corners)
    except (TypeError, ValueError):
        raise ValueError(f"expected a box of four numbers, got {str(corners)[:80]}") from None
    if not (math.isfinite(x1 + y1 + x2 + y2) and x1 <= x2 and y1 <= y2):
        raise ValueError(
            f"expected finite numbers with x1 <= x2 and y1 <= y2, got {x1}, {y1}, {x2}, {y2}"
        )
    return x1, y1, x2, y2


def from_size(box: Sequence[float]) -> tuple[float, float, float, float]:
    """Return x1, y1, x2, y2 of a box x, y, width, height; ValueError for anything else."""
    try:
        x, y, width, height = map(float, box)
    except (TypeError, ValueError):
        raise ValueError(f"expected x, y, width, height, got {str(box)[:80]}") from None
    return checked_corners((x, y, x + width, y + height))


def in_parts(corners: Sequence[float], size: Sequence[float]) -> tuple[float, ...]:
    """Return corners in pixels as parts of a frame of `size` (width, height) in pixels."""
    width, height = map(float, size)
    if not (width > 0 and height > 0):
        raise ValueError(f"expected a frame's width and height above 0, got {width:g}x{height:g}")
    x1, y1, x2, y2 = corners
    return x1 / width, y1 / height, x2 / width, y2 / height


_TIMES = re.compile(r"[+-]?\d+(\.\d*)?([eE][+-]?\d+)?")


def is_number(text: str) -> bool:
    """Whether a cell of a text file is a number."""
    return _TIMES.fullmatch(text.strip()) is not None
