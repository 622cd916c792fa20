"""Which format a file of boxes has, and every clip of a file or folder."""

import hashlib
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.box_files import (
    action_genome,
    ava,
    coco,
    fiftyone,
    mot,
    rows,
    something_else,
    supervision,
    yolo,
)
from pipeline.box_files.file_text import bytes_of, text_of
from pipeline.box_files.table import ClassNames, ClipBoxes, ReadOptions, is_number

# Formats of one file each, which may hold many clips.
READERS = {
    "something-else": something_else.read,
    "gos": something_else.read,
    "csv": rows.read,
    "coco": coco.read,
    "ava": ava.read,
    "mot": mot.read,
    "supervision": supervision.read,
    "fiftyone": fiftyone.read,
}
FORMATS = (*READERS, "yolo", "action-genome")
# The file's name says which clip it is about, so it counts for the checksum.
NAMED = ("mot", "yolo", "supervision", "fiftyone")
SUFFIXES = (".json", ".csv", ".txt", ".pkl")
# In a folder with such files, others are not boxes.
FIRST = (".json", ".csv")
# Files that lie beside boxes and are none.
NOT_BOXES = ("classes.txt", "readme.txt", "train.txt", "val.txt", "test.txt", "metadata.json")

_FIRST_KEY = re.compile(r'\s*\{\s*"((?:[^"\\]|\\.)*)"')
_FIRST_OBJECT = re.compile(r"\s*\[\s*\{")


@dataclass(frozen=True)
class BoxTable:
    """The boxes of all clips of a file or folder.

    Attributes:
        clips: clip -> its boxes, or one line that says what is wrong with them.
        class_names: the names of the classes by their numbers.
        renumber: the final number of each number in `ClipBoxes.classes`.
        sha256: of the files' bytes.
        slots: whether the objects of every clip have slots.
    """

    clips: dict[str, ClipBoxes | str]
    class_names: tuple[str, ...]
    renumber: np.ndarray
    sha256: str
    slots: bool


def read_boxes(path: str | Path, options: ReadOptions) -> BoxTable:
    """Read a file of boxes, or a folder of them.

    Args:
        path: a file of one of FORMATS, or a folder.
        options: what the files do not say.

    Returns:
        The boxes of all clips.

    Raises:
        ValueError: a file cannot be read, is of no known format, or has a malformed entry, with
            the place; or two files list one clip.
    """
    path = Path(path)
    files = _files_of(path)
    # One checksum over all files: it stands for these boxes in a cache's fingerprint.
    digest, names = hashlib.sha256(), ClassNames()
    clips: dict[str, ClipBoxes | str] = {}
    for where, found in _clips_of(path, files, digest, names, options):
        for clip, boxes in found:
            if clip in clips:
                raise ValueError(
                    f"{where}: clip {clip!r} is listed twice; expected once in all files together"
                )
            clips[clip] = boxes
    if options.images is not None:
        text_of(Path(options.images), digest)
    class_names, renumber = names.ordered()
    tables = [boxes for boxes in clips.values() if isinstance(boxes, ClipBoxes)]
    # A clip without boxes has no objects, and spoils no slots.
    slots = any(boxes.objects for boxes in tables)
    slots = slots and all(boxes.objects or not len(boxes.frames) for boxes in tables)
    return BoxTable(clips, class_names, renumber, digest.hexdigest(), slots)


def _files_of(path: Path) -> list[Path]:
    """The files to read, in order."""
    if not path.is_dir():
        if path.suffix not in SUFFIXES:
            raise ValueError(
                f"{path}: expected a file of boxes ({', '.join(SUFFIXES)}), or a folder of them"
            )
        return [path]
    if (path / "samples.json").is_file():
        return [path / "samples.json"]
    for suffixes, everywhere in ((FIRST, False), ((".pkl",), False), ((".txt",), True)):
        inside = path.rglob("*") if everywhere else path.iterdir()
        found = [
            file
            for file in inside
            if file.suffix in suffixes and file.name.lower() not in NOT_BOXES
        ]
        if found:
            return sorted(found)
    raise ValueError(
        f"{path}: no file of boxes in this folder; expected {', '.join(SUFFIXES)} files"
    )


def _clips_of(
    path: Path, files: Sequence[Path], digest, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[Path, Iterator[tuple[str, ClipBoxes | str]]]]:
    """Yield (file or folder, its clips)."""
    if files[0].suffix == ".pkl":
        for file in files:
            digest.update(bytes_of(file))
        yield path, action_genome.read_files(files, names, options)
        return

    folder = path if path.is_dir() else path.parent
    together = []
    for file in files:
        text = text_of(file, digest)
        kind = options.format or format_of(file, text)
        if kind in NAMED:
            digest.update(file.relative_to(folder).as_posix().encode())
        if file.name == "samples.json" and (file.parent / fiftyone.FRAMES).is_file():
            digest.update(bytes_of(file.parent / fiftyone.FRAMES))
        if kind == "yolo":
            together.append((file, text))
        elif kind in READERS:
            yield file, READERS[kind](file, text, names, options)
        else:
            raise ValueError(f"{file}: {kind} boxes are in .pkl files")
    if together:
        # Whether a sixth number is a track is seen in all files together.
        yield folder, yolo.read_folder(folder, together, names, options)


def format_of(path: Path, text: str) -> str:
    """Return the name of a text file's format, by its content.

    Args:
        path: the file; its ending counts.
        text: its text.
    """
    if path.suffix == ".json":
        return _json_format(text)
    line = text.lstrip("\ufeff").partition("\n")[0]
    cells = [cell.strip() for cell in line.split(",")]
    if path.suffix == ".txt" and len(cells) == 1:
        return "yolo"
    if set(supervision.EDGES) <= set(cells):
        return "supervision"
    numbers = [is_number(cell) for cell in cells]
    if len(cells) >= 6 and all(numbers[:6]):
        inside = all(0 <= float(cell) <= 1 for cell in cells[2:6])
        return "ava" if inside and len(cells) <= 8 else "mot"
    if len(cells) >= 2 and all(numbers[1:2]) and not numbers[0]:
        return "ava"
    return "csv"


def _json_format(text: str) -> str:
    start = text[:4096].lstrip("\ufeff")
    if _FIRST_OBJECT.match(start):
        return "supervision" if '"x_min"' in start else "coco"
    first = _FIRST_KEY.match(start)
    if first and first[1] in coco.KEYS:
        return "coco"
    if first and first[1] in fiftyone.KEYS:
        return "fiftyone"
    return "something-else"
