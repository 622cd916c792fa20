"""AVA's CSV, without a header: video, second, x1, y1, x2, y2 in [0,1], action, and more.

The eighth column is the person's number where it holds whole numbers, else the detector's score.
Boxes are of people. A person has one row per action: it is one box here, and actions, which may be
several, are no classes of boxes. A row with a video and a second alone says that nobody is there.
"""

import csv
import io
from collections.abc import Iterator
from pathlib import Path

from pipeline.box_files.table import BoxCollector, ClassNames, ClipBoxes, ReadOptions

PERSON = "person"


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of a file with its boxes, by the second.

    Args:
        path: the file, for messages.
        text: its text.
        names: numbers the classes; there is one.
        options: not used.

    Raises:
        ValueError: a malformed row, with its line.
    """
    rows = [(k, row) for k, row in enumerate(csv.reader(io.StringIO(text)), 1) if row]
    last = [row[7].strip() for _, row in rows if len(row) > 7 and row[7].strip()]
    has_tracks = bool(last) and all(cell.lstrip("-").isdigit() for cell in last)
    collector = BoxCollector(names, "fraction", seconds=True)
    seen = set()
    for line, row in rows:
        try:
            clip, second = row[0].strip(), float(row[1])
            collector.see(clip, second)
            corners = tuple(map(float, row[2:6])) if any(map(str.strip, row[2:6])) else None
            more = row[7].strip() if len(row) > 7 else ""
            # The same box again is another action of the same person.
            if corners is None or (clip, second, corners, more) in seen:
                continue
            seen.add((clip, second, corners, more))
            track = int(more) if has_tracks and more else None
            score = float(more) if more and not has_tracks else 1.0
            collector.add(clip, second, corners, score, PERSON, track)
        except (ValueError, IndexError) as error:
            reason = f"{len(row)} cells" if isinstance(error, IndexError) else error
            raise ValueError(
                f"{path}: line {line}: {reason}; expected video, second, x1, y1, x2, y2, action "
                f"and, if wanted, person or score"
            ) from error
    yield from collector.finish()
