"""Something-Something V2, and the splits of its videos that Something-Else made (spec 6.3, 6.4).

Lists are JSON: [{"id", "label", "template": "Holding [something]", "placeholders": [..]}, ..]; the
class is the template without its brackets, its id stands in labels.json. Videos are ID.webm (or
folders of frames ID/%06d.jpg). Something-Else's lists have the same form and labels of their own:
`PROTOCOLS` names its files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.datasets.annotation_files import (
    find,
    read_json,
    read_lines,
    require,
    text_of,
)
from pipeline.manifests.manifest import ManifestError

FPS = 12.0


@dataclass(frozen=True)
class SplitLists:
    """Which lists there are: patterns of their names, an example of each for messages, clips that
    each should have.
    """

    folder: str
    labels: tuple[str, str]  # (pattern, example)
    lists: Mapping[str, tuple[str, str]]  # split -> (pattern, example)
    official: Mapping[str, int | None]
    classes: int


def _official() -> SplitLists:
    prefix, names = (
        r"(something-something-v2-)?",
        {"train": "train", "val": "validation", "test": "test"},
    )
    lists = {split: (prefix + name + r"\.json", f"{name}.json") for split, name in names.items()}
    return SplitLists(
        "",
        (prefix + r"labels\.json", "labels.json"),
        lists,
        {"train": 168_913, "val": 24_777, "test": 27_157},
        174,
    )


def _else(
    folder: str,
    labels: str,
    train: str,
    val: str,
    counts: tuple[int | None, int | None],
    classes: int,
) -> SplitLists:
    lists = {"train": (rf"{train}\.json", f"{train}.json"), "val": (rf"{val}\.json", f"{val}.json")}
    return SplitLists(
        folder,
        (rf"{labels}\.json", f"{labels}.json"),
        lists,
        dict(zip(("train", "val"), counts, strict=True)),
        classes,
    )


# The file names of Something-Else's release; figures of 6.4 and of its paper. None: we know no
# figure.
PROTOCOLS = {
    "official": _official(),
    "compositional": _else("compositional", "labels", "train", "validation", (54_919, 57_876), 174),
    "compositional-shuffled": _else(
        "compositional_shuffled", "labels", "train", "validation", (None, None), 174
    ),
    "one-object": _else(
        "compositional_oneobject", "labels", "train", "validation", (None, None), 166
    ),
    "few-shot-base": _else(
        "fewshot", "base_labels", "base_training_set", "base_validation_set", (112_397, 12_467), 88
    ),
    "few-shot-5": _else(
        "fewshot",
        "finetune_labels",
        "finetune_5shot_training",
        "finetune_5shot_validation",
        (430, None),
        86,
    ),
    "few-shot-10": _else(
        "fewshot",
        "finetune_labels",
        "finetune_10shot_train",
        "finetune_10shot_validation",
        (860, None),
        86,
    ),
}


def read(folder: str | Path, protocol: str = "official", answers: bool = False) -> Dataset:
    """The dataset of a protocol's lists in `folder` (or in its sub-folder of Something-Else's name
    for it).

    `answers`: label the test clips from test-answers.csv ("id;class" lines), which newer downloads
    have; else they have no label. Lists that are not there are left out, but one must be.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    chosen, folder = PROTOCOLS[protocol], Path(folder)
    if chosen.folder and (folder / chosen.folder).is_dir():
        folder = folder / chosen.folder
    classes = _classes(require(folder, *chosen.labels))
    known = {name: (name,) for name in classes}
    told = _answers(folder, known) if answers else {}
    entries = []
    for split, (pattern, example) in chosen.lists.items():
        if path := find(folder, pattern, example):
            entries += _entries(path, split, known, told)
    if not entries:
        raise ManifestError(
            f"{folder}: no list of clips such as {chosen.lists['train'][1]}; download it into the "
            f"folder"
        )
    name = "something-something-v2" + (f", {protocol}" if chosen.folder else "")
    layout = "called ID.webm, or a folder of frames called like the id"
    return Dataset(name, classes, entries, chosen.official, chosen.classes, layout, fps=FPS)


def _classes(path: Path) -> tuple[str, ...]:
    """The classes in the order of the ids that labels.json gives them, as numbers or as text."""
    table = read_json(path, dict)
    for name, number in table.items():
        if isinstance(number, bool) or not str(number).isascii() or not str(number).isdigit():
            raise ManifestError(
                f"{path}: class {name!r}: expected a whole number from 0, got {number!r}; "
                f"download the file again"
            )
    ordered = sorted(table, key=lambda name: int(table[name]))
    if not table or [int(table[name]) for name in ordered] != list(range(len(table))):
        raise ManifestError(
            f"{path}: expected ids 0 to {len(table) - 1}, each once; is it the official file?"
        )
    return tuple(ordered)


def _entries(
    path: Path, split: str, known: dict[str, tuple[str, ...]], told: dict[str, tuple[str, ...]]
) -> list[DatasetClip]:
    """The clips of one list; test clips have the labels that `told` knows."""
    entries = []
    for k, item in enumerate(read_json(path, list)):
        clip = text_of(item, "id", path, k)
        if split == "test":
            labels = told.get(clip, ())
            if told and not labels:
                raise ManifestError(
                    f"{path}, entry {k + 1}: clip {clip} is not in test-answers.csv; leave "
                    f"--test-answers out"
                )
        else:
            name = text_of(item, "template", path, k).replace("[", "").replace("]", "")
            if (labels := known.get(name)) is None:
                raise ManifestError(
                    f"{path}, entry {k + 1}: class {name!r} is not in the list of labels; are "
                    f"both of one release?"
                )
        entries.append(DatasetClip(clip, split, labels, (clip,)))
    return entries


def _answers(folder: Path, known: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    path = require(folder, r"(something-something-v2-)?test-answers\.csv", "test-answers.csv")
    told = {}
    for number, line in read_lines(path):
        clip, _, name = (part.strip() for part in line.partition(";"))
        if name not in known:
            raise ManifestError(
                f"{path}, line {number}: expected id;class with a class of labels.json, got "
                f"{line[:80]!r}"
            )
        told[clip] = known[name]
    return told
