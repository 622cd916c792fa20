"""Kinetics (400, 600, 700): CSV lists `label,youtube_id,time_start,time_end,split`.

Downloads call the ten seconds of a clip ID_000010_000020.mp4, in one folder, in folders of
classes, or both in folders of splits. A file called ID alone is taken for the whole video; then
the manifest's `start` and `end` are the clip, unless `trimmed`. The test list may have no labels.

Videos vanish from the site, so no copy is complete and copies differ; so do the lists. The
official order of the classes is the alphabetical one.
"""

import re
from pathlib import Path

from pipeline.manifests.datasets.annotation_files import find, read_table
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.labels import is_no_label
from pipeline.manifests.manifest import SPLIT_ALIASES, SPLITS, ManifestError

CLASSES = (400, 600, 700)
_LISTS = {"train": "train", "val": "val|validate|validation", "test": "test"}
_COLUMNS = ("youtube_id", "time_start", "time_end")
_ID = re.compile(r"[\w-]{1,64}", re.ASCII)


def read(lists: str | Path, trimmed: bool = False) -> Dataset:
    """Read the official lists.

    Args:
        lists: one CSV file with a column `split`, or a folder of lists (train.csv,
            kinetics-400_val.csv, ...). A list that is missing is left out, but one must be there.
        trimmed: files called ID alone are the clips themselves.

    Raises:
        ManifestError: no list, or one has another form.
    """
    lists = Path(lists)
    entries: list[DatasetClip] = []
    if lists.is_file():
        official = {}
        entries = _entries(lists, "", trimmed)
    else:
        official = dict.fromkeys(SPLITS)
        for split, words in _LISTS.items():
            pattern = rf"(kinetics[-_]?[0-9_-]*)?({words})\.csv"
            path = find(lists, pattern, f"{split}.csv")
            if path:
                entries += _entries(path, split, trimmed)
    if not entries:
        raise ManifestError(
            f"{lists}: no list of clips such as train.csv; download it, or name the file itself"
        )

    classes = set()
    for entry in entries:
        classes.update(entry.labels)
    # The lists were revised: the nearest official number names the data set.
    expected = min(CLASSES, key=lambda count: abs(count - len(classes)))
    return Dataset(
        name=f"kinetics-{expected}",
        classes=tuple(sorted(classes)),
        entries=entries,
        official=official,
        num_classes=expected,
        layout="called ID_000010_000020.mp4, in folders of classes or splits if there are any",
        depth=2,
    )


def _entries(path: Path, list_split: str, trimmed: bool) -> list[DatasetClip]:
    """Return the clips of one list.

    list_split: the split of all its rows; "" if its rows have a column `split`.
    """
    columns = _COLUMNS if list_split else (*_COLUMNS, "split")
    entries = []
    # Clips share their tuples of labels.
    labels: dict[str, tuple[str, ...]] = {"": ()}
    for number, row in read_table(path, columns):
        where = f"{path}, line {number}"
        youtube, name = row["youtube_id"].strip(), row.get("label", "").strip()
        if not _ID.fullmatch(youtube):
            expected = "expected letters, digits, - and _"
            raise ManifestError(f"{where}, column youtube_id: {expected}, got {youtube[:60]!r}")
        start = _seconds(row["time_start"], f"{where}, column time_start")
        end = _seconds(row["time_end"], f"{where}, column time_end")
        if end <= start:
            expected = f"expected seconds after the start ({start})"
            raise ManifestError(f"{where}, column time_end: {expected}, got {end}")

        split = list_split or _split(row["split"], where)
        # Some lists write a withheld label so.
        if split == "test" and is_no_label(name):
            name = ""
        if split != "test" and not name:
            raise ManifestError(
                f"{where}, column label: expected a class, which only test clips may lack"
            )

        clip = f"{youtube}_{start:06d}_{end:06d}"
        hints = (name, name.replace(" ", "_"), split) if name else (split,)
        times = () if trimmed else (float(start), float(end))
        label = labels.setdefault(name, (name,))
        entries.append(DatasetClip(clip, split, label, (clip, youtube), *times, hints=hints))
    return entries


def _seconds(text: str, where: str) -> int:
    """Return whole seconds, which some lists write as 10.0."""
    # isdigit() alone takes "²", which int() refuses.
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
