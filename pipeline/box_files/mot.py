"""MOTChallenge's text: frame, object, left, top, width, height in pixels, confidence, and more.

One file is one clip: its name, or the folder above `gt` or `det`. Frames count from 1. An object of
-1 is unknown. In `gt` files (nine columns) a confidence of 0 marks a box to leave out, and the
eighth column is the class. Confidences below 0 are a detector's logits, but for -1, which is none.
"""

import csv
import io
import math
from collections.abc import Iterator
from pathlib import Path

from pipeline.box_files.table import (
    BoxCollector,
    ClassNames,
    ClipBoxes,
    ReadOptions,
    from_size,
    is_number,
)

INSIDE = ("gt", "det")
TRUTH_COLUMNS = 9


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield the clip of a file with its boxes.

    Args:
        path: the file, which names the clip.
        text: its text.
        names: numbers the classes.
        options: `count_from` and `class_names`; class k of the file is name k - 1.

    Raises:
        ValueError: a malformed row, with its line.
    """
    clip = path.parent.parent.name if path.parent.name in INSIDE else path.stem
    names.add_listed(options.class_names)
    rows = [(k, row) for k, row in enumerate(csv.reader(io.StringIO(text)), 1) if row]
    collector = BoxCollector(names, "pixels")
    collector.see(clip, options.count_from if options.count_from is not None else 1)
    # A detector's probabilities are never below 0; one logit says that all are logits.
    logits = any(_confidence(row) not in (None, -1) and _confidence(row) < 0 for _, row in rows)
    for line, row in rows:
        try:
            _add(collector, clip, row, logits, options)
        except (ValueError, IndexError) as error:
            reason = f"{len(row)} cells" if isinstance(error, IndexError) else error
            raise ValueError(
                f"{path}: line {line}: {reason}; expected frame, object, left, top, width, height "
                f"and confidence"
            ) from error
    yield from collector.finish(1 if options.count_from is None else options.count_from)


def _confidence(row: list[str]) -> float | None:
    """The seventh number of a row; None where there is none, which `_add` then says."""
    return float(row[6]) if len(row) > 6 and is_number(row[6]) else None


def _add(
    collector: BoxCollector, clip: str, row: list[str], logits: bool, options: ReadOptions
) -> None:
    frame, track = int(float(row[0])), int(float(row[1]))
    corners = from_size(row[2:6])
    confidence = float(row[6]) if len(row) > 6 else -1
    if len(row) == TRUTH_COLUMNS and confidence == 0:
        collector.see(clip, frame)
        return
    score = confidence
    if logits:
        score = 1 / (1 + math.exp(-confidence))
    elif confidence == -1:
        score = 1.0
    name = None
    if len(row) > 7 and float(row[7]) >= 1 and len(row) == TRUTH_COLUMNS:
        number = int(float(row[7]))
        name = str(number)
        if number <= len(options.class_names):
            name = options.class_names[number - 1]
    collector.add(clip, frame, corners, score, name, track)
