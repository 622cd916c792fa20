"""Our CSV: a header with clip, frame, x1, y1, x2, y2, and one row per box.

`second` may stand in place of `frame`. If wanted, there are also score, class (a name), track (a
whole number per object of a clip, from 0), and width and height of the frame that a box was
measured in, in pixels. Empty cells of class and track say that nothing is known. Other columns are
ignored. Numbers are pixels of the upright frame, or in [0,1] of it if none in the file is above
1.5. Boxes come by falling score, else in the file's order.
"""

import csv
import io
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.box_files.table import (
    CORNERS,
    BoxCollector,
    ClassNames,
    ClipBoxes,
    ReadOptions,
    in_parts,
)
from pipeline.text import text_files as texts

COLUMNS = ("clip", "frame", *CORNERS)
MORE = ("score", "class", "track", "width", "height")


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of a file with its boxes.

    Args:
        path: the file, for messages.
        text: its text.
        names: numbers the classes.
        options: not used; the file says it all.

    Raises:
        ValueError: with line and column, for a malformed row.
    """
    # newline="": quoted cells may hold line ends.
    reader = csv.reader(io.StringIO(text, newline=""))
    header = [name.strip() for name in next(reader, [])]
    by_second = "second" in header and "frame" not in header
    needed = [name.replace("frame", "second") if by_second else name for name in COLUMNS]
    missing = [name for name in needed if name not in header]
    if missing:
        other = texts.other_separator(text.partition("\n")[0], COLUMNS)
        advice = f" ({texts.separator_advice(other)})" if other else ""
        raise ValueError(
            f"{path}: line 1: no column {', '.join(missing)}{advice}; expected "
            f"{','.join(COLUMNS)} and, if wanted, {', '.join(MORE)}"
        )
    place = {name: header.index(name) for name in (*needed, *MORE) if name in header}
    sized = "width" in place and "height" in place
    collector = BoxCollector(names, "fraction" if sized else "", seconds=by_second)
    try:
        for row in reader:
            if row:
                _add(collector, {name: row[k] for name, k in place.items()}, sized)
    except (ValueError, IndexError, csv.Error) as error:
        reason = error
        if isinstance(error, IndexError):
            reason = f"{len(row)} cells, expected {len(header)}"
        raise ValueError(f"{path}: line {reader.line_num}: {reason}") from error
    yield from collector.finish()


def _add(collector: BoxCollector, cells: Mapping[str, str], sized: bool) -> None:
    """Add the box of a row; ValueError names the column."""
    frame = _number(cells, "second" if collector.seconds else "frame")
    if not 0 <= frame < 2**31 or not (collector.seconds or frame.is_integer()):
        column = (
            "second: expected a number from 0"
            if collector.seconds
            else ("frame: expected a whole number from 0")
        )
        raise ValueError(f"column {column}, got {frame}")
    corners = [_number(cells, name) for name in CORNERS]
    if sized:
        corners = in_parts(corners, (_number(cells, "width"), _number(cells, "height")))
    score = _number(cells, "score") if "score" in cells else 1.0
    if not 0 <= score < float("inf"):
        raise ValueError(f"column score: expected a finite number from 0, got {score}")
    track = None
    if cells.get("track", "").strip():
        track = _number(cells, "track")
        if not (track.is_integer() and -1 <= track < 2**31):
            raise ValueError(f"column track: expected a whole number from 0, got {track}")
        track = int(track)
    try:
        collector.add(cells["clip"], frame, corners, score, cells.get("class", "").strip(), track)
    except ValueError as error:
        raise ValueError(f"columns x1 to y2: {error}") from None


def _number(cells: Mapping[str, str], column: str) -> float:
    try:
        return float(cells[column])
    except ValueError:
        raise ValueError(f"column {column}: expected a number, got {cells[column]!r}") from None
