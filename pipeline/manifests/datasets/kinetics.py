"""Kinetics (400, 600, 700): CSV lists `label,youtube_id,time_start,time_end,split`; the test list
may have no label.

Downloads call the ten seconds of a clip ID_000010_000020.mp4, in one folder, in folders of classes,
or both in folders of splits. A file that is called ID alone is taken for the whole video, of which
the manifest's `start` and `end` are the clip, unless `trimmed`. Videos vanish from the site, so
that no copy is complete and copies differ; so do the lists. The official order of the classes is
the alphabetical one.
"""

import re
from pathlib import Path

from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.datasets.annotation_files import find, read_table
from pipeline.manifests.labels import is_no_label
from pipeline.manifests.manifest import SPLIT_ALIASES, SPLITS, ManifestError

CLASSES = (400, 600, 700)
_LISTS = {"train": "train", "val": "val|validate|validation", "test": "test"}
_COLUMNS = ("youtube_id", "time_start", "time_end")
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


def read(lists: str | Path, trimmed: bool = False) -> Dataset:
    """The dataset of one CSV file with a column `split`, or of the lists in a folder (train.csv,
    kinetics-400_val.csv, ...).

    `trimmed`: files called ID alone are the clips themselves.
    """
    lists = Path(lists)
    files = {"": lists} if lists.is_file() else _files(lists)
    entries = [entry for split, path in files.items() for entry in _entries(path, split, trimmed)]
    if not entries:
        raise ManifestError(
            f"{lists}: no list of clips such as train.csv; download it, or name the file itself"
        )
    classes = tuple(sorted({label for entry in entries for label in entry.labels}))
    official = dict.fromkeys(SPLITS) if lists.is_dir() else {}
    expected = min(CLASSES, key=lambda count: abs(count - len(classes)))
    layout = "called ID_000010_000020.mp4, in folders of classes or splits if there are any"
    return Dataset(f"kinetics-{expected}", classes, entries, official, expected, layout, depth=2)


def _files(folder: Path) -> dict[str, Path]:
    found = {}
    for split, words in _LISTS.items():
        if path := find(folder, rf"(kinetics[-_]?[0-9_-]*)?({words})\.csv", f"{split}.csv"):
            found[split] = path
    return found


def _entries(path: Path, split: str, trimmed: bool) -> list[DatasetClip]:
    """The clips of one list, whose split is `split`, or told by its rows where that is ""."""
    entries, labels = [], {}
    for number, row in read_table(path, _COLUMNS if split else (*_COLUMNS, "split")):
        where = f"{path}, line {number}"
        youtube, name = row["youtube_id"].strip(), row.get("label", "").strip()
        if not _ID.fullmatch(youtube):
            raise ManifestError(
                f"{where}, column youtube_id: expected letters, digits, - and _, got "
                f"{youtube[:60]!r}"
            )
        start, end = (
            _seconds(row[column], f"{where}, column {column}")
            for column in ("time_start", "time_end")
        )
        if end <= start:
            raise ManifestError(
                f"{where}, column time_end: expected seconds after the start ({start}), got {end}"
            )
        its = split or _split(row["split"], where)
        if its == "test" and is_no_label(name):  # how some lists write a label that is withheld
            name = ""
        if its != "test" and not name:
            raise ManifestError(
                f"{where}, column label: expected a class, which only test clips may lack"
            )
        tag = f"{youtube}_{start:06d}_{end:06d}"
        hints = (name, name.replace(" ", "_"), its) if name else (its,)
        whole = () if trimmed else (float(start), float(end))
        entries.append(
            DatasetClip(
                tag,
                its,
                labels.setdefault(name, (name,) if name else ()),
                (tag, youtube),
                *whole,
                hints=hints,
            )
        )
    return entries


def _seconds(text: str, where: str) -> int:
    """Whole seconds, which some lists write as 10.0."""
    digits = text.strip().removesuffix(".0")
    if not (digits.isascii() and digits.isdigit() and len(digits) <= 6):
        raise ManifestError(f"{where}: expected whole seconds, got {text[:60]!r}")
    return int(digits)


def _split(text: str, where: str) -> str:
    name = text.strip().lower()
    name = {"validate": "val", **SPLIT_ALIASES}.get(name, name)
    if name not in SPLITS:
        raise ManifestError(
            f"{where}, column split: expected {', '.join(SPLITS)} or validate, got {text[:60]!r}"
        )
    return name
