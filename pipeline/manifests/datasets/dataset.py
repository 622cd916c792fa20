"""What the official files of a data set say, and the classes that a mirror changes."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.manifests.manifest import ManifestError, wrong_id
from pipeline.text.counted import counted

ORDERS = ("official", "alphabetical")

# "right" is an adverb in "pulling it right out", which a mirror does not change.
_SIDE = re.compile(r"\b(left|right)\b(?! out\b)")

# What a cell of a manifest, or a line of a class list, cannot hold.
_UNFIT = re.compile("[;\x00-\x1f\x7f-\x9f\u2028\u2029]")


@dataclass(slots=True)
class DatasetClip:
    """One clip of an official file.

    Attributes:
        clip: the id.
        split: "train", "val" or "test".
        labels: its classes.
        names: what its video may be called, without the ending, or its folder of frames; the best
            name first.
        start: seconds in the file, None for its beginning.
        end: seconds in the file, None for its end.
        hints: folders that tell its video from others of the same name: the label's, the split's.
        extra: cells of further columns, by column.
    """

    clip: str
    split: str
    labels: tuple[str, ...]
    names: tuple[str, ...]
    start: float | None = None
    end: float | None = None
    hints: tuple[str, ...] = ()
    extra: Mapping[str, str] = field(default_factory=dict)


@dataclass
class Dataset:
    """What the official files of a data set say.

    Attributes:
        name: how messages call it.
        classes: class names in the official order.
        entries: the clips.
        official: split -> how many clips it should have, None if we know no figure. A split that
            the data set does not have has no key.
        num_classes: how many classes there should be, None if we know no figure.
        layout: how its videos are called, in words.
        depth: how many folders below the top one its videos may lie.
        fps: frame rate of folders of frames, None if unknown.
        counted: split -> clips in its list, before any was cut into windows.
        notes: what a person should know, one line each.

    Raises:
        ManifestError: a class or an id cannot stand in a manifest, or a class is a duplicate.
    """

    name: str
    classes: tuple[str, ...]
    entries: list[DatasetClip]
    official: Mapping[str, int | None]
    num_classes: int | None
    layout: str
    depth: int = 0
    fps: float | None = None
    counted: dict[str, int] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        # Charades counts its lists before it cuts videos into windows.
        if not self.counted:
            for entry in self.entries:
                self.counted[entry.split] = self.counted.get(entry.split, 0) + 1

        for name in self.classes:
            if not name or name != name.strip() or _UNFIT.search(name):
                raise ManifestError(
                    f"{self.name}: class {name!r}: expected one line of text without ';'; correct "
                    "the official file"
                )
        for entry in self.entries:
            wrong = wrong_id(entry.clip)
            if wrong:
                raise ManifestError(f"{self.name}: {wrong}; correct the official file")

        listed = set()
        for name in self.classes:
            if name in listed:
                raise ManifestError(
                    f"{self.name}: duplicate class {name!r}; download the list of classes again"
                )
            listed.add(name)

    def in_order(self, order: str) -> tuple[str, ...]:
        """Return the classes in the order of their ids.

        Args:
            order: "official" or "alphabetical".
        """
        if order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
        return tuple(sorted(self.classes)) if order == "alphabetical" else self.classes

    def absent(self) -> tuple[str, ...]:
        """Return the splits whose list is missing."""
        return tuple(split for split in self.official if split not in self.counted)

    def differences(self) -> list[str]:
        """Return one line for each count that is not the official one."""
        lines = []
        for split, expected in self.official.items():
            count = self.counted.get(split)
            # A list that is missing is no difference: `absent` names it.
            if count and expected and count != expected:
                what = f"the {split} list has {counted(count, 'clip')}"
                lines.append(_difference(what, count, expected))

        count = len(self.classes)
        if self.num_classes and count != self.num_classes:
            lines.append(_difference(counted(count, "class", "classes"), count, self.num_classes))
        return lines


def _difference(what: str, count: int, expected: int) -> str:
    if count < expected:
        by_how_many = f"{expected - count:,} are missing"
    else:
        by_how_many = f"{count - expected:,} too many"
    return f"{what}, officially {expected:,}: {by_how_many}"


def protected(classes: tuple[str, ...]) -> tuple[str, ...]:
    """Return the classes that a mirrored video would not show: those that name left or right.

    GOS never mirrors them; Something-Something has six.

    Args:
        classes: class names.
    """
    return tuple(filter(_SIDE.search, classes))


def mirrored_pairs(classes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """Return the pairs of classes that a mirror exchanges (EAN: `data.swap_on_flip` of a recipe).

    Args:
        classes: class names.
    """
    exchange = {"left": "right", "right": "left"}
    pairs = []
    for name in protected(classes):
        other = _SIDE.sub(lambda side: exchange[side[1]], name)
        # A few-shot split may hold one class of a pair; a pair is listed once.
        if other in classes and (other, name) not in pairs:
            pairs.append((name, other))
    return tuple(pairs)
