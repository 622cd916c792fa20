"""The tasks sync3, sync5 (RSTG's SyncMNIST) and multisync (DyReg's MultiSyncMNIST).

Digits move at random, and some of them take the same steps. The label names these. SyncMNIST
follows RSTG's released generator, `create_syncMNIST`. DyReg released no generator: what its paper
and its reader do not state is our choice (see `MultiSyncDigits`).
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import combinations, combinations_with_replacement
from math import comb, factorial, prod
from typing import ClassVar

import numpy as np

from pipeline.digits.counted_random import CountedRandom
from pipeline.digits.images import Images
from pipeline.digits.scenes import Scenes

CLASSES = 10
# Places that a synchronous digit is offered at once; about half of them are near enough.
TRIES = 8


@dataclass(frozen=True)
class SyncDigits:
    """Two digits take the same steps; the label is the unordered pair of their classes, or "none".

    With 10 classes there are 46 labels.

    Digit 0 is image `index` of the split; the images repeat when there are no more. The other
    digits are random images, and all classes differ. Digits 0 and 1 are painted below the others.

    Digits start anywhere. Before every frame, the first one too, each digit takes an integer step
    on each axis: at least -`reach`, below `reach`, and never beyond position `canvas - tile - 2`.
    Digits 0 and 1 take a common step from the range that suits both. On an axis without such a
    step they do not move. In one of `none_in` videos, all digits move on their own.

    Attributes:
        digits: number of digits in a video.
        frames: number of frames of a video.
        canvas: side of the canvas, in pixels.
        tile: side of a digit on the canvas, in pixels.
        size: side of a frame, in pixels.
        reach: the largest step, in canvas pixels.
        none_in: one of so many videos has the label "none".
        stretch: stretch the contrast before shrinking, as the released generator's `imresize`
            does. MNIST's frames hardly change by it.
        classes: only digits below this number, for an easier task with fewer labels.
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
        if {type(number) for number in numbers} != {int} or type(self.stretch) is not bool:
            raise ValueError(
                f"{self.name}: expected whole numbers, and true or false for stretch; got {self}"
            )
        smallest = min(self.frames, self.reach, self.size)
        if not 2 <= self.digits <= self.most_digits or smallest < 1 or self.none_in < 2:
            raise ValueError(
                f"{self.name}: expected 2 to {self.most_digits} digits, frames, reach and size "
                f"from 1, none_in from 2; got {self}"
            )
        # Only multisync draws classes with replacement.
        distinct = self.digits if self.most_digits == CLASSES else 2
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
        """The side of a digit in a frame, rounded: 18 of 64 pixels, as RSTG's paper says."""
        return round(self.tile * self.size / self.canvas)

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels by their numbers: "0-1", "0-2", "1-2", "0-3", … "8-9", "none".

        The pair i > j has the number i(i-1)/2 + j.
        """
        names = []
        for high in range(self.classes):
            names += [f"{low}-{high}" for low in range(high)]
        return (*names, "none")

    @property
    def guess(self) -> float:
        """The accuracy of a guess by somebody who only knows which digits are in the video."""
        return max((1 - 1 / self.none_in) / comb(self.digits, 2), 1 / self.none_in)

    def scenes(self, images: Images, seed: int, split: str, indices: np.ndarray) -> Scenes:
        """Choose what happens in some videos; see `Task.scenes`."""
        # The order of the calls that take random numbers determines the videos.
        key = ("digits", seed, split)
        random = CountedRandom(key, indices)
        classes, rows = self._choose_images(images, np.asarray(indices, np.int64), random)
        synchronous = self._choose_synchronous(random)
        chosen = synchronous & (random.below(self.none_in, 1) != 0)
        start = random.below(self.canvas - self.tile, self.digits, 2)
        start = self._bring_together(start, chosen, CountedRandom((*key, "start"), indices))
        corners = self._move(start, chosen, random)
        labels = label_numbers(classes, chosen, self.classes)
        return Scenes(corners, classes, rows, chosen, labels)

    def _choose_images(
        self, images: Images, indices: np.ndarray, random: CountedRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return classes and rows of the digits, int [B,n] each."""
        usable = np.flatnonzero(images.classes < self.classes)
        if not len(usable):
            raise ValueError(f"images {images.name}: none of a class below {self.classes}")
        row = usable[indices % len(usable)]
        first = images.classes[row].astype(np.int64)

        # The smallest key sorts the class of digit 0 to the front; the other classes follow at
        # random.
        keys = random.bits(self.classes) | np.uint64(1)
        keys[np.arange(len(row)), first] = 0
        classes = keys.argsort(axis=1)[:, : self.digits]
        rows = random_rows(images, classes, random, self.classes)
        rows[:, 0] = row
        return classes, rows

    def _choose_synchronous(self, random: CountedRandom) -> np.ndarray:
        """Return which digits take the same steps: bool [B,n], or [1,n] where always the same."""
        return np.arange(self.digits)[None] < 2

    def _bring_together(
        self, corners: np.ndarray, chosen: np.ndarray, random: CountedRandom
    ) -> np.ndarray:
        """Return where digits start, int [B,n,2], given random places `corners`."""
        return corners

    def _move(self, corners: np.ndarray, chosen: np.ndarray, random: CountedRandom) -> np.ndarray:
        """Return corners int [B,F,n,2]; the digits `chosen` [B,n] take the same steps.

        Args:
            corners: int [B,n,2], where digits start.
            chosen: bool [B,n].
            random: where random numbers come from.
        """
        last = self.canvas - self.tile - 1
        together = chosen[..., None]
        path = []
        for _ in range(self.frames):
            low = np.clip(-corners, -self.reach, self.reach)
            high = np.clip(last - corners, -self.reach, self.reach)
            alone = low + random.below(high - low, self.digits, 2)

            # The range of steps that suits all chosen digits.
            shared_low = np.where(together, low, -self.reach).max(1, keepdims=True)
            shared_high = np.where(together, high, self.reach).min(1, keepdims=True)
            room = shared_high - shared_low
            step = shared_low + random.below(np.maximum(room, 1), 1, 2)
            shared = np.where(room > 0, step, 0)

            corners = corners + np.where(together, shared, alone)
            path.append(corners)
        return np.stack(path, 1)


@dataclass(frozen=True)
class Sync3(SyncDigits):
    """`SyncDigits` with three digits, RSTG's easier data set.

    Attributes:
        digits: number of digits in a video; the other options are those of `SyncDigits`.
    """

    digits: int = 3

    name: ClassVar[str] = "sync3"


@dataclass(frozen=True)
class MultiSyncDigits(SyncDigits):
    """Some digits take the same steps; the label is the smallest and the largest of their classes.

    With 10 classes there are 56 labels: classes are drawn with replacement, so that the two may
    be equal. Digits move as in `SyncDigits`.

    Digits that take the same steps are never more than `max_distance` apart. The first of them
    starts anywhere. Each other one starts at a random place that is near enough to all before it.
    They keep their distances, because they take the same steps.

    DyReg released no generator. The files that its reader opens are named after a largest distance
    of 160 between synchronous digits. What that measures is not said. Here it is the Euclidean
    distance between the middles of two digits, in pixels of the canvas. Further choices of ours:

    - Two to all of the digits take the same steps. Each number, and each subset of that number,
      is equally likely.
    - In one of `none_in` videos no digits do.
    - Digits hide each other as in `SyncDigits`.
    - `canvas`, `tile` and `stretch`. The release halves positions, and its frames have 128 pixels.

    Attributes:
        canvas: side of the canvas, in pixels.
        size: side of a frame, in pixels.
        none_in: one of so many videos has the label "none".
        stretch: stretch the contrast before shrinking.
        max_distance: how far apart synchronous digits are at most, in canvas pixels; 0 sets no
            limit. The other options are those of `SyncDigits`.
    """

    canvas: int = 256
    size: int = 128
    none_in: int = 56
    stretch: bool = False
    max_distance: int = 160

    name: ClassVar[str] = "multisync"
    most_digits: ClassVar[int] = 100

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.max_distance < 0:
            raise ValueError(
                f"{self.name}: expected max_distance from 0, which sets no limit; got {self}"
            )

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels by their numbers: those of `SyncDigits`, then "0-0", "1-1", … "9-9"."""
        return (*super().labels, *(f"{c}-{c}" for c in range(self.classes)))

    @property
    def guess(self) -> float:
        """The accuracy of a guess by somebody who only knows which digits are in the video."""
        sizes = range(2, self.digits + 1)
        total = 0.0
        for classes in combinations_with_replacement(range(self.classes), self.digits):
            labels = Counter[tuple[int, int]]()
            for ends, probability in _label_probabilities(classes, sizes):
                labels[ends] += probability

            # In how many orders these classes can be drawn.
            repeats = prod(factorial(count) for count in Counter(classes).values())
            likely = factorial(self.digits) / repeats / self.classes**self.digits
            total += likely * max((1 - 1 / self.none_in) * max(labels.values()), 1 / self.none_in)
        return total

    def _choose_images(
        self, images: Images, indices: np.ndarray, random: CountedRandom
    ) -> tuple[np.ndarray, np.ndarray]:
        classes = random.below(self.classes, self.digits)
        return classes, random_rows(images, classes, random, self.classes)

    def _choose_synchronous(self, random: CountedRandom) -> np.ndarray:
        count = 2 + random.below(self.digits - 1, 1)
        # The rank of each digit in a random order.
        rank = random.bits(self.digits).argsort(axis=1).argsort(axis=1)
        return rank < count

    def _bring_together(
        self, corners: np.ndarray, chosen: np.ndarray, random: CountedRandom
    ) -> np.ndarray:
        if not self.max_distance:
            return corners
        corners, videos = corners.copy(), np.arange(len(corners))
        first = chosen.argmax(1)
        placed = ~chosen
        placed[videos, first] = True

        # The places in the square around the first digit: no others are near enough.
        around = corners[videos, first][:, None, None]  # [B,1,1,2]
        low = np.maximum(around - self.max_distance, 0)
        high = np.minimum(around + self.max_distance, self.canvas - self.tile - 1)
        # `random` serves nothing else, so other videos cannot change where this one's numbers go.
        while not placed.all():
            tried = low + random.below(high - low + 1, TRIES, self.digits, 2)
            for digit in range(self.digits):
                self._place(digit, tried[:, :, digit], corners, chosen, placed)
        return corners

    def _place(
        self,
        digit: int,
        tried: np.ndarray,
        corners: np.ndarray,
        chosen: np.ndarray,
        placed: np.ndarray,
    ) -> None:
        """Give a digit the first place near enough to all chosen digits before it.

        Args:
            digit: which one.
            tried: int [B,tries,2], places.
            corners: int [B,n,2], written to.
            chosen: bool [B,n].
            placed: bool [B,n], whose places stand; written to.
        """
        before = corners[:, None, :digit] - tried[:, :, None]  # [B,tries,digit,2]
        near = (before**2).sum(-1) <= self.max_distance**2
        fits = (near | ~chosen[:, None, :digit]).all(-1)  # [B,tries]
        ready = placed[:, :digit].all(1) & ~placed[:, digit] & fits.any(1)
        videos = np.flatnonzero(ready)
        corners[videos, digit] = tried[videos, fits[videos].argmax(1)]
        placed[videos, digit] = True


def _label_probabilities(
    classes: tuple[int, ...], sizes: range
) -> Iterator[tuple[tuple[int, int], float]]:
    """Yield (smallest and largest class, probability) of the subsets of ascending `classes`."""
    for size in sizes:
        for a, b in combinations(range(len(classes)), 2):
            # a and b are the ends, so the other size - 2 digits lie between them.
            subsets = comb(b - a - 1, size - 2)
            probability = subsets / comb(len(classes), size) / len(sizes)
            yield (classes[a], classes[b]), probability


def label_numbers(classes: np.ndarray, chosen: np.ndarray, count: int = CLASSES) -> np.ndarray:
    """Number the labels as RSTG and DyReg do.

    With 10 classes, for the largest class i and the smallest class j of the chosen digits:

    - i(i-1)/2 + j where j is below i;
    - 46 + i where i = j;
    - 45, the number of pairs, where no digit is chosen.

    Args:
        classes: int [B,n].
        chosen: bool [B,n], the digits that the label is about.
        count: number of classes.

    Returns:
        int [B].
    """
    none = comb(count, 2)
    high = np.where(chosen, classes, -1).max(1)
    low = np.where(chosen, classes, count).min(1)
    pairs = np.where(high == low, none + 1 + high, high * (high - 1) // 2 + low)
    return np.where(high < 0, none, pairs)


def random_rows(
    images: Images, classes: np.ndarray, random: CountedRandom, count: int = CLASSES
) -> np.ndarray:
    """Pick a random image of each class.

    Args:
        images: the images of a split.
        classes: int [B,n].
        random: where random numbers come from.
        count: number of classes.

    Returns:
        int [B,n], rows of the images.

    Raises:
        ValueError: a class has no image.
    """
    rows = images.rows_of(np.arange(count))
    counts = np.array([len(rows_of_class) for rows_of_class in rows])
    starts = counts.cumsum() - counts
    picks = random.below(counts[classes], classes.shape[1])
    return np.concatenate(rows)[starts[classes] + picks]
