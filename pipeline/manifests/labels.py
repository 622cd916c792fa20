"""Labels of a manifest: their class ids, and labels that stand for a missing one."""

import re
from collections.abc import Iterable, Sequence
from decimal import Decimal
from itertools import pairwise

from pipeline.manifests.manifest import Manifest
from pipeline.manifests.rows import SPLITS, Clip, ManifestError
from pipeline.text.counted import counted

# What programs write in place of a missing label, in lower case.
_NO_LABEL = {"?", "na", "n/a", "#n/a", "<na>", "nan", "null"}

# Words that may stand for a missing label or name a class, in lower case.
_PERHAPS_NO_LABEL = {
    *("none", "-", "--", "hidden", "missing", "undefined", "unknown", "unlabeled", "unlabelled"),
    *("withheld", "_", "*", "<unk>", "ignore", "n.a.", "nil", "no label", "no_label"),
    *("not available", "tba", "tbd", "unannotated", "unk", "unspecified"),
}
_NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)")


def label_ids(labels: Iterable[str]) -> dict[str, int]:
    """Number the classes.

    Labels that are all whole numbers from 0 (`7`, `7.0`) keep their numbers. Others count up:
    numbers by their value, then names in alphabetical order.

    Args:
        labels: class names, in any order, with duplicates.

    Returns:
        Class name -> class id, in the order of ids.

    Raises:
        ManifestError: two labels are the same number.
    """
    numbers, names = [], []
    for name in set(labels):
        value = number_of(name)
        if value is None:
            names.append(name)
        else:
            numbers.append((value, name))
    numbers.sort()
    names.sort()

    for (value, one), (next_value, other) in pairwise(numbers):
        if value == next_value:
            plain = f"{value.normalize():f}"
            odd = one if other == plain else other
            raise ManifestError(
                f"label {odd!r}: another label is the same number; write {plain} in every row"
            )
    if not names and all(value >= 0 and value == int(value) for value, _ in numbers):
        return {name: int(value) for value, name in numbers}
    ordered = [name for _, name in numbers] + names
    return {name: k for k, name in enumerate(ordered)}


def number_of(label: str) -> Decimal | None:
    """Return the number that a label is.

    Args:
        label: a label as it is written, such as `10`, `-1`, `2.0` or `.5`.

    Returns:
        The number, or None for a name.
    """
    # A longer one is no number that a person wrote, and Decimal would take its time.
    if len(label) <= 40 and _NUMBER.fullmatch(label):
        return Decimal(label)
    return None


def withheld(manifest: Manifest) -> dict[str, list[Clip]]:
    """Find the labels that stand for a missing label.

    -1, ?, NA, NaN, None and null always do. Words that may name a class (none, unknown, missing)
    and other numbers below 0 do where no clip of train has them.

    Args:
        manifest: the manifest.

    Returns:
        Label -> the clips that have it.
    """
    labels, learned = set(), set()
    for clip in manifest.clips:
        labels.update(clip.labels)
        if clip.split == "train":
            learned.update(clip.labels)

    found = {}
    for label in sorted(labels):
        if is_no_label(label, label in learned):
            found[label] = []
    if found:
        for clip in manifest.clips:
            for label in found.keys() & set(clip.labels):
                found[label].append(clip)
    return found


def is_no_label(label: str, learned: bool = True) -> bool:
    """Return whether a label stands for a missing one.

    Args:
        label: the label.
        learned: whether a clip of train has it. Then words and most numbers are classes.
    """
    number, word = number_of(label), label.lower()
    # Python writes None for a missing value; "none" may be what a clip shows.
    if number == -1 or word in _NO_LABEL or label == "None":
        return True
    if learned:
        return False
    return word in _PERHAPS_NO_LABEL or (number is not None and number < 0)


def about_withheld(label: str, clips: Sequence[Clip]) -> str:
    """Return the message about a label that stands for a missing one, with what to do.

    Args:
        label: a key of what `withheld` returned.
        clips: the clips that have it.
    """
    used = {clip.split for clip in clips}
    splits = ", ".join(split for split in SPLITS if split in used)
    return (
        f"label {label!r} ({counted(len(clips), 'clip')} of {splits}) "
        "reads like a label that is not known, not like a class: "
        f"leave the cell empty, or train with --set 'data.no_label=[\"{label}\"]'; "
        "if it is a class, name it in a class list"
    )
