"""Something-Something V2, and the splits of its videos that Something-Else made.

Lists are JSON: [{"id", "label", "template": "Holding [something]", "placeholders": [..]}, ..].
The class is the template without its brackets; labels.json holds its id. Videos are ID.webm, or
folders of frames ID/%06d.jpg. Something-Else's lists have the same form and labels of their own;
`PROTOCOLS` names its files.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from pipeline.manifests.datasets.annotation_files import (
    find,
    read_json,
    read_lines,
    require,
    text_of,
)
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.manifest import ManifestError

FPS = 12.0


@dataclass(frozen=True)
class SplitLists:
    """The lists of a protocol.

    Attributes:
        folder: the sub-folder in which Something-Else's release has them, "" for none.
        labels: (pattern of the file name, example for messages) of the classes.
        lists: split -> (pattern of the file name, example for messages).
        official: split -> how many clips it should have, None if we know no figure.
        classes: how many classes there should be.
    """

    folder: str
    labels: tuple[str, str]
    lists: Mapping[str, tuple[str, str]]
    official: Mapping[str, int | None]
    classes: int


def _official() -> SplitLists:
    """Return the lists of the data set itself."""
    prefix = r"(something-something-v2-)?"
    return SplitLists(
        folder="",
        labels=(prefix + r"labels\.json", "labels.json"),
        lists={
            "train": (prefix + r"train\.json", "train.json"),
            "val": (prefix + r"validation\.json", "validation.json"),
            "test": (prefix + r"test\.json", "test.json"),
        },
        official={"train": 168_913, "val": 24_777, "test": 27_157},
        classes=174,
    )


def _something_else(
    folder: str, names: tuple[str, str, str], counts: tuple[int | None, int | None], classes: int
) -> SplitLists:
    """Return the lists of one of Something-Else's splits.

    names: of the files of labels, training and validation, without ".json".
    """
    labels, train, val = ((rf"{name}\.json", f"{name}.json") for name in names)
    official = dict(zip(("train", "val"), counts, strict=True))
    return SplitLists(folder, labels, {"train": train, "val": val}, official, classes)


_PLAIN = ("labels", "train", "validation")
_BASE = ("base_labels", "base_training_set", "base_validation_set")
_FIVE = ("finetune_labels", "finetune_5shot_training", "finetune_5shot_validation")
_TEN = ("finetune_labels", "finetune_10shot_train", "finetune_10shot_validation")

# File names and figures of Something-Else's release and paper; None where we know no figure.
PROTOCOLS = {
    "official": _official(),
    "compositional": _something_else("compositional", _PLAIN, (54_919, 57_876), 174),
    "compositional-shuffled": _something_else("compositional_shuffled", _PLAIN, (None, None), 174),
    "one-object": _something_else("compositional_oneobject", _PLAIN, (None, None), 166),
    "few-shot-base": _something_else("fewshot", _BASE, (112_397, 12_467), 88),
    "few-shot-5": _something_else("fewshot", _FIVE, (430, None), 86),
    "few-shot-10": _something_else("fewshot", _TEN, (860, None), 86),
}


def read(folder: str | Path, protocol: str = "official", answers: bool = False) -> Dataset:
    """Read the lists of a protocol.

    Args:
        folder: their folder, or the folder above Something-Else's. A list that is missing is left
            out, but one must be there.
        protocol: a key of `PROTOCOLS`.
        answers: label the test clips from test-answers.csv ("id;class" lines), which newer
            downloads have. Else they have no label.

    Raises:
        ManifestError: no list, or one has another form.
        ValueError: another protocol.
    """
    if protocol not in PROTOCOLS:
        raise ValueError(f"protocol: expected one of {', '.join(PROTOCOLS)}, got {protocol!r}")
    chosen, folder = PROTOCOLS[protocol], Path(folder)
    if chosen.folder and (folder / chosen.folder).is_dir():
        folder = folder / chosen.folder

    classes = _classes(require(folder, *chosen.labels))
    # Clips share their tuples of labels.
    known = {name: (name,) for name in classes}
    test_labels = _answers(folder, known) if answers else {}
    entries = []
    for split, (pattern, example) in chosen.lists.items():
        path = find(folder, pattern, example)
        if path and split == "test":
            entries += _test_entries(path, test_labels)
        elif path:
            entries += _entries(path, split, known)
    if not entries:
        example = chosen.lists["train"][1]
        raise ManifestError(
            f"{folder}: no list of clips such as {example}; download it into the folder"
        )

    name = "something-something-v2"
    if chosen.folder:
        name = f"{name}, {protocol}"
    return Dataset(
        name=name,
        classes=classes,
        entries=entries,
        official=chosen.official,
        num_classes=chosen.classes,
        layout="called ID.webm, or a folder of frames called like the id",
        fps=FPS,
    )


def _classes(path: Path) -> tuple[str, ...]:
    """Return the classes in the order of their ids, which labels.json gives as number or text."""
    table = read_json(path, dict)
    for name, number in table.items():
        # isdigit() alone takes "²", which int() refuses.
        digits = str(number)
        if isinstance(number, bool) or not (digits.isascii() and digits.isdigit()):
            raise ManifestError(
                f"{path}: class {name!r}: expected a whole number from 0, got {number!r}; "
                "download the file again"
            )
    ordered = sorted(table, key=lambda name: int(table[name]))
    ids = [int(table[name]) for name in ordered]
    if not table or ids != list(range(len(table))):
        raise ManifestError(
            f"{path}: expected ids 0 to {len(table) - 1}, each once; is it the official file?"
        )
    return tuple(ordered)


def _entries(path: Path, split: str, known: dict[str, tuple[str, ...]]) -> list[DatasetClip]:
    """Return the clips of a list with labels."""
    entries = []
    for k, item in enumerate(read_json(path, list)):
        clip = text_of(item, "id", path, k)
        name = text_of(item, "template", path, k).replace("[", "").replace("]", "")
        if name not in known:
            raise ManifestError(
                f"{path}, entry {k + 1}: class {name!r} is not in the list of labels; are "
                "both of one release?"
            )
        entries.append(DatasetClip(clip, split, known[name], (clip,)))
    return entries


def _test_entries(path: Path, labels: dict[str, tuple[str, ...]]) -> list[DatasetClip]:
    """Return the clips of the test list, with the labels of test-answers.csv if there are any."""
    entries = []
    for k, item in enumerate(read_json(path, list)):
        clip = text_of(item, "id", path, k)
        if labels and clip not in labels:
            raise ManifestError(
                f"{path}, entry {k + 1}: clip {clip} is not in test-answers.csv; leave "
                "--test-answers out"
            )
        entries.append(DatasetClip(clip, "test", labels.get(clip, ()), (clip,)))
    return entries


def _answers(folder: Path, known: dict[str, tuple[str, ...]]) -> dict[str, tuple[str, ...]]:
    """Return the labels of the test clips from test-answers.csv."""
    path = require(folder, r"(something-something-v2-)?test-answers\.csv", "test-answers.csv")
    labels = {}
    for number, line in read_lines(path):
        clip, _, name = (part.strip() for part in line.partition(";"))
        if name not in known:
            expected = "expected id;class with a class of labels.json"
            raise ManifestError(f"{path}, line {number}: {expected}, got {line[:80]!r}")
        labels[clip] = known[name]
    return labels
