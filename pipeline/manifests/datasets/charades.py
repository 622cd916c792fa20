"""Charades: Charades_v1_train.csv, Charades_v1_test.csv, and videos ID.mp4 or folders ID of frames.

The column `actions` is "c092 11.90 21.20;c147 0.00 12.60": class, first and last second; it may
be empty. The classes are c000 to c156. Their codes are the labels here, since their names belong
to the data set. The test list is the papers' validation set.

A video's target is the set of its classes. A training view is short, and STRG does not say what
its labels are. `window` cuts the training videos into pieces of that length, each with the labels
of the actions that overlap it.
"""

import math
from pathlib import Path

from pipeline.manifests.datasets.annotation_files import find, read_lines, read_table
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.manifest import ManifestError

OFFICIAL = {"train": 7_985, "val": 1_863}
CLASSES = tuple(f"c{k:03d}" for k in range(157))
FPS = 24.0
_LISTS = {"train": "Charades_v1_train.csv", "val": "Charades_v1_test.csv"}

# Class, first second, last second.
Action = tuple[str, float, float]

# First second, and last second or None for the video's end.
Piece = tuple[float, float | None]


def read(folder: str | Path, window: float = 0.0) -> Dataset:
    """Read the official files.

    Args:
        folder: their folder. A list that is missing is left out, but one must be there.
        window: seconds of the pieces of a training video; 0 for whole videos. Piece k of video ID
            is called ID_000k. The last piece ends with the video and overlaps the one before it,
            so that all have one length. A video shorter than a window is one piece.

    Raises:
        ManifestError: no list, or one has another form.
        ValueError: `window` is not a number of seconds.
    """
    if not (window >= 0 and math.isfinite(window)):
        raise ValueError(f"window: expected seconds, or 0 for whole videos, got {window}")
    _check_classes(find(folder, r"Charades_v1_classes\.txt", "Charades_v1_classes.txt"))

    entries: list[DatasetClip] = []
    counted = {}
    for split, name in _LISTS.items():
        path = find(folder, name.replace(".", r"\."), name)
        if path is None:
            continue
        for number, row in read_table(path, ("id", "actions", "length")):
            counted[split] = counted.get(split, 0) + 1
            where = f"{path}, line {number}"
            clip = row["id"].strip()
            actions = _actions(row["actions"], where)
            if window and split == "train":
                pieces = _pieces(window, _seconds(row["length"], where))
                entries += _piece_entries(clip, split, actions, pieces)
            else:
                entries.append(DatasetClip(clip, split, _labels(actions), (clip,)))
    if not entries:
        raise ManifestError(
            f"{folder}: no list of clips such as Charades_v1_train.csv; download it into the folder"
        )

    layout = "called ID.mp4, or a folder of frames called like the id"
    return Dataset(
        name="charades",
        classes=CLASSES,
        entries=entries,
        official=OFFICIAL,
        num_classes=len(CLASSES),
        layout=layout,
        fps=FPS,
        counted=counted,
    )


def _piece_entries(
    clip: str, split: str, actions: list[Action], pieces: list[Piece]
) -> list[DatasetClip]:
    """Return one entry for each piece of a video, with the actions that overlap it."""
    entries = []
    for k, (start, end) in enumerate(pieces):
        overlapping = []
        for action in actions:
            _, first, last = action
            if last > start and (end is None or first < end):
                overlapping.append(action)
        name, labels = f"{clip}_{k:04d}", _labels(overlapping)
        entries.append(DatasetClip(name, split, labels, (clip,), start or None, end))
    return entries


def _labels(actions: list[Action]) -> tuple[str, ...]:
    return tuple(sorted({code for code, _, _ in actions}))


def _pieces(window: float, length: float) -> list[Piece]:
    """Cut a video of `length` seconds into pieces.

    The end of the last one is None, the file's own, which may differ from the list's by a frame.
    """
    starts = [k * window for k in range(int(length // window))]
    # A rest below a hundredth of a second is rounding of the list's length.
    if starts and length - starts[-1] - window > 0.01:
        starts.append(length - window)
    if len(starts) < 2:
        return [(0.0, None)]
    pieces: list[Piece] = [(round(start, 3), round(start + window, 3)) for start in starts[:-1]]
    return [*pieces, (round(starts[-1], 3), None)]


def _actions(text: str, where: str) -> list[Action]:
    """Return the actions of a cell. ManifestError for another form or an unknown class."""
    if not text.strip():
        return []
    actions = []
    for part in text.split(";"):
        words = part.split()
        if len(words) != 3 or words[0] not in CLASSES:
            expected = "expected 'c092 11.90 21.20' (a class c000 to c156, seconds)"
            raise ManifestError(f"{where}, column actions: {expected}, got {part[:60]!r}")
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
    """Check Charades_v1_classes.txt ("c000 Holding some clothes" lines), if it is there."""
    if path is None:
        return
    codes = tuple(line.split()[0] for _, line in read_lines(path))
    if codes != CLASSES:
        raise ManifestError(
            f"{path}: expected the classes c000 to c156, in this order; download the file again"
        )
