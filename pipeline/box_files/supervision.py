"""What supervision's `CSVSink` and `JSONSink` write: a row per box, in pixels.

Columns are x_min, y_min, x_max, y_max, class_id, confidence, tracker_id, what the detector adds
(class_name), and what the user adds. One of `frame`, `frame_number`, `frame_index`, `frame_id` must
be among these, or `second`. `clip` or `video` names the clip; else the file's name does.
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.box_files.coco import parsed
from pipeline.box_files.table import BoxCollector, ClassNames, ClipBoxes, ReadOptions

EDGES = ("x_min", "y_min", "x_max", "y_max")
FRAMES = ("frame", "frame_number", "frame_index", "frame_id")
CLIPS = ("clip", "video", "video_id")


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of a file with its boxes.

    Args:
        path: the file, which names the clip where no column does.
        text: its text, CSV or JSON.
        names: numbers the classes.
        options: `count_from` and `class_names`.

    Raises:
        ValueError: no column of frames, or a malformed row with its number.
    """
    is_json = path.suffix == ".json"
    rows: Iterable[Mapping] = parsed(path, text) if is_json else csv.DictReader(io.StringIO(text))
    rows = list(rows)
    first = rows[0] if rows else {}
    frame_key = next((key for key in (*FRAMES, "second") if key in first), None)
    if rows and frame_key is None:
        raise ValueError(
            f"{path}: no column of frames; add one while writing, such as "
            f"sink.append(detections, custom_data={{'frame': number}})"
        )
    names.add_listed(options.class_names)
    clip_key = next((key for key in CLIPS if key in first), None)
    collector = BoxCollector(names, "pixels", seconds=frame_key == "second")
    for number, row in enumerate(rows, 1):
        try:
            clip = str(row[clip_key]) if clip_key else path.stem
            _add(collector, clip, float(row[frame_key]), row, options)
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: box {number}: {reason}") from error
    # Its own generators count from 0.
    yield from collector.finish(options.count_from or 0)


def _add(
    collector: BoxCollector, clip: str, frame: float, row: Mapping[str, Any], options: ReadOptions
) -> None:
    corners = [float(row[edge]) for edge in EDGES]
    score = float(row["confidence"]) if _is_given(row.get("confidence")) else 1.0
    track = None
    if _is_given(row.get("tracker_id")):
        track = int(float(row["tracker_id"]))
    name = row.get("class_name")
    if not _is_given(name) and _is_given(row.get("class_id")):
        number = int(float(row["class_id"]))
        listed = options.class_names
        name = listed[number] if 0 <= number < len(listed) else str(number)
    collector.add(clip, frame, corners, score, str(name) if _is_given(name) else None, track)


def _is_given(cell: Any) -> bool:
    return cell is not None and str(cell).strip() not in ("", "None")
