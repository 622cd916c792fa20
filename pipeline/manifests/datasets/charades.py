"""Charades: Charades_v1_train.csv and Charades_v1_test.csv, videos ID.mp4 or folders of frames
ID/ID-%06d.jpg (spec 6.5).

The column `actions` is "c092 11.90 21.20;c147 0.00 12.60": class, first and last second; it may be
empty. The classes are c000 to c156; their codes are the labels here, since their names are the
dataset's own. The test list is the papers' validation set. A video's target is the set of its
classes. For training on short views, STRG's labels are those of the actions that overlap the view:
`window` cuts the training videos into pieces of that length, each with the labels of its own
actions.
"""

import math
from pathlib import Path

from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.datasets.annotation_files import find, read_lines, read_table
from pipeline.manifests.manifest import ManifestError

OFFICIAL = {"train": 7_985, "val": 1_863}
CLASSES = tuple(f"c{k:03d}" for k in range(157))
FPS = 24.0
_LISTS = {"train": "Charades_v1_train.csv", "val": "Charades_v1_test.csv"}

Action = tuple[str, float, float]


def read(folder: str | Path, window: float = 0.0) -> Dataset:
    """The dataset of the official files in `folder`; a list that is not there is left out, but one
    must be.

    `window`: seconds of the pieces of a training video, 0 for whole videos. The last piece ends
    with the video and overlaps the one before it, so that all are of one length; a video shorter
    than a window is one piece. Piece k of video ID is called ID_000k.
    """
    if not (window >= 0 and math.isfinite(window)):
        raise ValueError(f"window: expected seconds, or 0 for whole videos, got {window}")
    _check_classes(find(folder, r"Charades_v1_classes\.txt", "Charades_v1_classes.txt"))
    entries: list[DatasetClip] = []
    counted = {}
    for split, name in _LISTS.items():
        path = find(folder, name.replace(".", r"\."), name)
        for number, row in read_table(path, ("id", "actions", "length")) if path else ():
            counted[split] = counted.get(split, 0) + 1
            where = f"{path}, line {number}"
            actions = _actions(row["actions"], where)
            pieces = (
                _pieces(window, _seconds(row["length"], where))
                if window and split == "train"
                else []
            )
            entries += _entries(row["id"].strip(), split, actions, pieces)
    if not entries:
        raise ManifestError(
            f"{folder}: no list of clips such as Charades_v1_train.csv; download it into the folder"
        )
    layout = "called ID.mp4, or a folder of frames called like the id"
    return Dataset(
        "charades", CLASSES, entries, OFFICIAL, len(CLASSES), layout, fps=FPS, counted=counted
    )


def _entries(
    clip: str, split: str, actions: list[Action], pieces: list[tuple[float, float | None]]
) -> list[DatasetClip]:
    if not pieces:
        return [DatasetClip(clip, split, _labels(actions), (clip,))]
    return [
        DatasetClip(
            f"{clip}_{k:04d}",
            split,
            _labels([a for a in actions if _overlaps(a, *piece)]),
            (clip,),
            piece[0] or None,
            piece[1],
        )
        for k, piece in enumerate(pieces)
    ]


def _labels(actions: list[Action]) -> tuple[str, ...]:
    return tuple(sorted({code for code, _, _ in actions}))


def _overlaps(action: Action, start: float, end: float | None) -> bool:
    return action[2] > start and (end is None or action[1] < end)


def _pieces(window: float, length: float) -> list[tuple[float, float | None]]:
    """(start, end) in seconds; the last one's end is None, the file's own, which may differ from
    the list's by a frame.
    """
    starts = [k * window for k in range(int(length // window))]
    if starts and length - starts[-1] - window > 0.01:
        starts.append(length - window)
    if len(starts) < 2:
        return [(0.0, None)]
    return [(round(start, 3), round(start + window, 3)) for start in starts[:-1]] + [
        (round(starts[-1], 3), None)
    ]


def _actions(text: str, where: str) -> list[Action]:
    """The actions of a cell; ManifestError for another form or a class that there is not."""
    actions = []
    for part in text.split(";") if text.strip() else ():
        words = part.split()
        if len(words) != 3 or words[0] not in CLASSES:
            raise ManifestError(
                f"{where}, column actions: expected 'c092 11.90 21.20' (a class c000 to c156, "
                f"seconds), got {part[:60]!r}"
            )
        actions.append((words[0], _seconds(words[1], where), _seconds(words[2], where)))
    return actions


def _seconds(text: str, where: str) -> float:
    try:
        value = float(text)
    except ValueError:
        value = math.nan
    if not (math.isfinite(value) and value >= 0):
        raise ManifestError(
            f"{where}: expected seconds from 0, got {text[:60]!r}; download the file again"
        )
    return value


def _check_classes(path: Path | None) -> None:
    """ManifestError if Charades_v1_classes.txt ("c000 Holding some clothes" lines), where it is
    there, lists other classes.
    """
    if path and tuple(line.split()[0] for _, line in read_lines(path)) != CLASSES:
        raise ManifestError(
            f"{path}: expected the classes c000 to c156, in this order; download the file again"
        )
