"""Action Genome's pickles, `person_bbox.pkl` and `object_bbox_and_relationship.pkl`.

Both are tables by picture, "VIDEO.mp4/000089.png"; pictures count from 1. A person's boxes are
corners in pixels with scores, an object's are x, y, width, height in pixels, None where it is not
visible. `bbox_size` of the person's table is the frame's size; it also holds for the objects. The
relations are not boxes, and are left.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline.box_files.names import clip_and_frame
from pipeline.box_files.table import (
    BoxCollector,
    ClassNames,
    ClipBoxes,
    ReadOptions,
    checked_corners,
    from_size,
    in_parts,
)
from pipeline.networks.array_pickle import read_arrays

PERSON = "person"


def read_files(
    paths: Sequence[Path], names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of one or both files with its boxes.

    Args:
        paths: the files.
        names: numbers the classes.
        options: `count_from`, 1 by default.

    Raises:
        ValueError: a file is no such table, or would run code.
    """
    tables = [(path, _table(path)) for path in paths]
    sizes = {}
    for _, table in tables:
        for picture, entry in table.items():
            if isinstance(entry, dict) and entry.get("bbox_size") is not None:
                sizes[picture] = tuple(map(float, entry["bbox_size"]))

    every = {picture for _, table in tables for picture in table}
    sized = every <= sizes.keys()
    collector = BoxCollector(names, "fraction" if sized else "pixels")
    for path, table in tables:
        for picture, entry in table.items():
            try:
                clip, frame = clip_and_frame(picture)
                collector.see(clip, frame)
                for name, score, corners in _boxes(entry):
                    if sized:
                        corners = in_parts(corners, sizes[picture])
                    collector.add(clip, frame, corners, score, name)
            except (ValueError, TypeError, KeyError, AttributeError) as error:
                reason = f"no {error}" if isinstance(error, KeyError) else error
                raise ValueError(f"{path}: {picture}: {reason}") from error
    yield from collector.finish(1 if options.count_from is None else options.count_from)


def _table(path: Path) -> dict[str, Any]:
    try:
        table = read_arrays(path)
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: no pickle of tables and arrays ({error})") from error
    if not isinstance(table, dict) or not all(isinstance(key, str) for key in table):
        raise ValueError(f"{path}: expected a table by pictures, as Action Genome's files have")
    return table


def _boxes(entry: Any) -> Iterator[tuple[str, float, tuple[float, ...]]]:
    """Class, score and corners in pixels of every box of a picture."""
    if isinstance(entry, dict):
        boxes = _rows(entry["bbox"])
        scores = _rows(entry.get("bbox_score", ()))
        corners_of = checked_corners if entry.get("bbox_mode", "xyxy") == "xyxy" else from_size
        for k, box in enumerate(boxes):
            score = float(scores[k]) if k < len(scores) else 1.0
            yield PERSON, score, corners_of(box)
        return
    for one in entry:
        if one.get("bbox") is not None:
            yield str(one["class"]), 1.0, from_size(_rows(one["bbox"]))


def _rows(values: Any) -> list:
    """A tensor, an array, a tuple or a list as a list."""
    return values.tolist() if hasattr(values, "tolist") else list(values)
