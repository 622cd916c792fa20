"""The tasks "sync3", "sync5" (RSTG's SyncMNIST, spec 6.1) and "multisync" (DyReg's MultiSyncMNIST,
spec 6.2 and 10).

Digits wander at random; some of them take the same steps. Which? All numbers come from a `Counter`,
a batch at a time.
"""

from collections import Counter as Tally
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from math import comb, factorial, prod
from typing import ClassVar

import numpy as np

from pipeline.digits.counted_random import Counter
from pipeline.digits.images import Images
from pipeline.digits.scenes import Scenes

CLASSES = 10


@dataclass(frozen=True)
class SyncDigits:
    """Digits 0 and 1 take the same steps; the label is the unordered pair of their classes, or
    "none" (46 labels).

    Digit 0 is image `index` of the split, over and over; the others are random images of classes
    that all differ. Digits start anywhere. Before every frame, the first one too, each takes a
    whole step per axis: at least -`reach`, below `reach`, and never to a place above `canvas - tile
    - 2`. Those that move together draw one step from the range that suits both, and stay where they
      are on an axis without such a step. In one of `none_in` videos all move on their own. Digits 0
      and 1 are painted
    below the others.

    `digits` in a video, `frames`, `canvas` and `tile` (sides, pixels), `size` of a frame.
    `stretch`: frames are stretched in contrast before they are shrunk, as the released generator's
    `imresize` did; MNIST's frames hardly change by it. `classes`: only digits below this number, an
    easier task with fewer labels.
    """

    digits: int = 5
    frames: int = 10
    canvas: int = 100
    tile: int = 28
    size: int = 64
    reach: int = 10
    none_in: int = 92
    stretch: bool = True
    classes: int = CLASSES

    name: ClassVar[str] = "sync5"
    most_digits: ClassVar[int] = CLASSES

    def __post_init__(self) -> None:
        numbers = [value for name, value in vars(self).items() if name != "stretch"]
        if not all(type(v) is int for v in numbers) or type(self.stretch) is not bool:
            raise ValueError(
                f"{self.name}: expected whole numbers, and true or false for stretch; got {self}"
            )
        if not (
            2 <= self.digits <= self.most_digits
            and min(self.frames, self.reach, self.size) >= 1
            and self.none_in >= 2
        ):
            most = f"2 to {self.most_digits} digits"
            raise ValueError(
                f"{self.name}: expected {most}, frames, reach and size from 1, none_in from 2; "
                f"got {self}"
            )
        distinct = min(self.digits, self.most_digits) if self.most_digits == CLASSES else 2
        if not distinct <= self.classes <= CLASSES:
            raise ValueError(
                f"{self.name}: expected classes from {distinct} to {CLASSES}, got {self}"
            )
        if not (1 <= self.tile <= self.canvas - 2 and self.size <= self.canvas):
            raise ValueError(
                f"{self.name}: expected a canvas 2 pixels wider than a tile, and no smaller than "
                f"size; got {self}"
            )

    @property
    def shown(self) -> int:
        """The side of a digit's tile in a frame, rounded: 18 of 64 pixels, as the paper says."""
        return round(self.tile * self.size / self.canvas)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of their numbers: "0-1", "0-2", "1-2", "0-3", … "8-9", "none"."""
        return (
            *(f"{j}-{i}" for i in range(self.classes) for j in range(i)),
            "none",
        )  # number i(i-1)/2 + j for i > j

    @property
    def guess(self) -> float:
        """The accuracy of one who knows which digits are there, and no more."""
        return max((1 - 1 / self.none_in) / comb(self.digits, 2), 1 / self.none_in)

    def scenes(self, images: Images, seed: int, split: str, indices: np.ndarray) -> Scenes:
        """See `Task.scenes`. ValueError for a class without images, or an index below 0."""
        draws = Counter(("digits", seed, split), indices)
        classes, rows = self._who(images, np.asarray(indices, np.int64), draws)
        chosen = self._chosen(draws) & (draws.below(self.none_in, 1) != 0)
        return Scenes(
            self._paths(chosen, draws),
            classes,
            rows,
            chosen,
            label_numbers(classes, chosen, self.classes),
        )

    def _who(
        self, images: Images, indices: np.ndarray, draws: Counter
    ) -> tuple[np.ndarray, np.ndarray]:
        """Classes and rows, int [B,n] each."""
        usable = np.flatnonzero(images.classes < self.classes)
        if not len(usable):
            raise ValueError(f"images {images.name}: none of a class below {self.classes}")
        row = usable[indices % len(usable)]
        first = images.classes[row].astype(np.int64)
        keys = draws.bits(self.classes) | np.uint64(1)
        keys[np.arange(len(row)), first] = (
            0  # sorts it to the front, and the other nine at random behind
        )
        classes = keys.argsort(axis=1)[:, : self.digits]
        rows = random_rows(images, classes, draws, self.classes)
        rows[:, 0] = row
        return classes, rows

    def _chosen(self, draws: Counter) -> np.ndarray:
        """Which digits move together unless none do: bool [B,n], or [1,n] where it is the same in
        all videos.
        """
        return np.arange(self.digits)[None] < 2

    def _paths(self, chosen: np.ndarray, draws: Counter) -> np.ndarray:
        """Corners int [B,F,n,2]; the digits `chosen` [B,n] take the same steps."""
        last = self.canvas - self.tile - 1
        some = chosen[..., None]
        corners = draws.below(last + 1, self.digits, 2)
        path = []
        for _ in range(self.frames):
            low, high = (
                np.clip(-corners, -self.reach, self.reach),
                np.clip(last - corners, -self.reach, self.reach),
            )
            alone = low + draws.below(high - low, self.digits, 2)
            shared_low = np.where(some, low, -self.reach).max(1, keepdims=True)
            room = np.where(some, high, self.reach).min(1, keepdims=True) - shared_low
            shared = np.where(room > 0, shared_low + draws.below(np.maximum(room, 1), 1, 2), 0)
            corners = corners + np.where(some, shared, alone)
            path.append(corners)
        return np.stack(path, 1)


@dataclass(frozen=True)
class Sync3(SyncDigits):
    """`SyncDigits` with three digits, RSTG's easier set."""

    digits: int = 3

    name: ClassVar[str] = "sync3"


@dataclass(frozen=True)
class MultiSyncDigits(SyncDigits):
    """Some of the digits take the same steps; the label is the smallest and the largest of their
    classes (56 labels).

    Classes are drawn with replacement, so that the two may be equal. No generator was released; not
    stated in the paper are: that 2 to all of the digits move together, each number and each of its
    subsets equally likely, that in one of `none_in` videos none do, how digits hide each other,
    `canvas`, `tile` and `stretch` (spec 10). Digits move as those of `SyncDigits`.
    """

    canvas: int = 256
    size: int = 128
    none_in: int = 56
    stretch: bool = False

    name: ClassVar[str] = "multisync"
    most_digits: ClassVar[int] = 100

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of their numbers: those of `SyncDigits`, then "0-0", "1-1", …
        "9-9".
        """
        return (*super().labels, *(f"{c}-{c}" for c in range(self.classes)))

    @property
    def guess(self) -> float:
        """The accuracy of one who knows which digits are there, and no more."""
        sizes = range(2, self.digits + 1)
        total = 0.0
        for classes in combinations_with_replacement(range(self.classes), self.digits):
            labels = Tally[tuple[int, int]]()
            for (low, high), share in _ends(classes, sizes):
                labels[low, high] += share
            likely = (
                factorial(self.digits)
                / prod(factorial(m) for m in Tally(classes).values())
                / self.classes**self.digits
            )
            total += likely * max((1 - 1 / self.none_in) * max(labels.values()), 1 / self.none_in)
        return total

    def _who(
        self, images: Images, indices: np.ndarray, draws: Counter
    ) -> tuple[np.ndarray, np.ndarray]:
        classes = draws.below(self.classes, self.digits)
        return classes, random_rows(images, classes, draws, self.classes)

    def _chosen(self, draws: Counter) -> np.ndarray:
        count = 2 + draws.below(self.digits - 1, 1)
        order = draws.bits(self.digits).argsort(axis=1)
        return order.argsort(axis=1) < count


def _ends(classes: tuple[int, ...], sizes: range) -> Iterator[tuple[tuple[int, int], float]]:
    """The smallest and the largest class, in rising `classes`, of every subset of those sizes, with
    its share.
    """
    for size in sizes:
        for a, b in combinations(range(len(classes)), 2):
            yield (
                (classes[a], classes[b]),
                comb(b - a - 1, size - 2) / comb(len(classes), size) / len(sizes),
            )


def label_numbers(classes: np.ndarray, chosen: np.ndarray, count: int = CLASSES) -> np.ndarray:
    """Labels int [B] of the digits `chosen` among `classes`, both [B,n], of which there are `count`
    (spec 6.1, 6.2).

    i(i-1)/2 + j for the largest class i and the smallest j below it, 45 for no digits, 46 + i for i
    = j: 45 is the number of pairs of 10 classes.
    """
    none = comb(count, 2)
    high = np.where(chosen, classes, -1).max(1)
    low = np.where(chosen, classes, count).min(1)
    return np.where(
        high < 0, none, np.where(high == low, none + 1 + high, high * (high - 1) // 2 + low)
    )


def random_rows(
    images: Images, classes: np.ndarray, draws: Counter, count: int = CLASSES
) -> np.ndarray:
    """A random image of each class: classes [B,n], of which there are `count` -> rows int [B,n].
    ValueError for a class without images."""
    rows = images.rows_of(np.arange(count))
    counts = np.array([len(some) for some in rows])
    starts = counts.cumsum() - counts
    return np.concatenate(rows)[starts[classes] + draws.below(counts[classes], classes.shape[1])]
