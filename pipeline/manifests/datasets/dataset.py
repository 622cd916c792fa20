"""The papers' datasets: their official files, as they are downloaded, -> rows of a manifest. One
file per dataset.

Annotations are read here, names of videos are looked up in one listing of their folder
(`find_media`), and no video is opened. What a file says is data: only a name that the listing has
becomes a path.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.manifests.manifest import ManifestError, wrong_id

ORDERS = ("official", "alphabetical")

# "right" is an adverb in "pulling it right out", which a mirror does not change.
_SIDE = re.compile(r"\b(left|right)\b(?! out\b)")
_UNFIT = re.compile(
    "[;\x00-\x1f\x7f-\x9f\u2028\u2029]"
)  # what a cell of a manifest, or a line of a class list, cannot hold


@dataclass(slots=True)
class DatasetClip:
    """One clip of an annotation file.

    `names`: how its video may be called, without the ending, the best first; or its folder of
    frames. `start`, `end`: seconds in the file. `hints`: folders that tell it from others of its
    name (the label's, the split's).
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
    """What the official files of a dataset say.

    `classes` are in the official order. `official`: clips that each split should have, None where
    we know no figure, and no key where there is no such split; `num_classes` likewise. `counted`:
    clips in each list that was there, before any was cut into windows. `layout` says in words how
    its videos are called; they lie at most `depth` folders below the top one. `fps`: frame rate of
    folders of frames, None if unknown. `notes`: what a person should know, one line each.
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
        if not self.counted:
            for entry in self.entries:
                self.counted[entry.split] = self.counted.get(entry.split, 0) + 1
        for name in self.classes:
            if not name or name != name.strip() or _UNFIT.search(name):
                raise ManifestError(
                    f"{self.name}: class {name!r}: expected one line of text without ';'; mend "
                    f"the official file"
                )
        for entry in self.entries:
            if wrong := wrong_id(entry.clip):
                raise ManifestError(f"{self.name}: {wrong}; mend the official file")
        if len(set(self.classes)) < len(self.classes):
            twice = next(name for k, name in enumerate(self.classes) if name in self.classes[:k])
            raise ManifestError(
                f"{self.name}: class {twice!r} is listed twice; download the list of classes again"
            )

    def in_order(self, order: str) -> tuple[str, ...]:
        """The classes in the "official" or the "alphabetical" order of their ids."""
        if order not in ORDERS:
            raise ValueError(f"order: expected one of {', '.join(ORDERS)}, got {order!r}")
        return tuple(sorted(self.classes)) if order == "alphabetical" else self.classes

    def absent(self) -> tuple[str, ...]:
        """The splits whose list was not there."""
        return tuple(split for split in self.official if not self.counted.get(split))

    def differences(self) -> list[str]:
        """One line for each count that is not the official one."""
        counts = [
            (f"the {split} list has", self.counted.get(split), self.official[split])
            for split in self.official
        ]
        counts = [
            (f"{what} {count:,} clips", count, expected)
            for what, count, expected in counts
            if count and expected
        ]
        counts += [
            (
                f"{len(self.classes):,} classes",
                len(self.classes),
                self.num_classes or len(self.classes),
            )
        ]
        return [
            f"{what}, officially {expected:,}: {_by_how_many(count, expected)}"
            for what, count, expected in counts
            if count != expected
        ]


def _by_how_many(count: int, expected: int) -> str:
    return (
        f"{expected - count:,} are missing"
        if count < expected
        else f"{count - expected:,} too many"
    )


def protected(classes: tuple[str, ...]) -> tuple[str, ...]:
    """The classes that a mirrored video would not show: those that name a side, left or right (spec
    1.8: six of Something-Something's)."""
    return tuple(name for name in classes if _SIDE.search(name))


def mirrored_pairs(classes: tuple[str, ...]) -> tuple[tuple[str, str], ...]:
    """The pairs of classes that a mirror exchanges (`data.swap_on_flip` of a recipe, EAN's way;
    spec 5.5).
    """
    exchange = {"left": "right", "right": "left"}
    pairs = []
    for name in protected(classes):
        other = _SIDE.sub(lambda side: exchange[side[1]], name)
        if other in classes and (other, name) not in pairs:
            pairs.append((name, other))
    return tuple(pairs)
