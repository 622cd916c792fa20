"""The task "meet": which two digits touch?"""

from dataclasses import dataclass
from itertools import combinations
from math import comb
from typing import ClassVar

import numpy as np

from pipeline.digits.images import Images
from pipeline.digits.scenes import Scene, Scenes
from pipeline.manifests.manifest import SPLITS


@dataclass(frozen=True)
class Meet:
    """Digits of distinct classes bounce about; exactly one pair meets; the label is the unordered
    pair of its classes.

    Boxes are the digits' tiles. Those of the pair overlap by at least `depth[0]` pixels in both
    axes in `together` frames or more, and never by more than `depth[1]`, so that both can be read;
    all other pairs stay `margin` pixels apart throughout. Each digit moves in a straight line at a
    speed in `speed` pixels per frame and is reflected at the edges. Paths are drawn until the rules
    hold, all digits by the same law, and only then do classes get their paths: nothing but who
    touches tells the pair. Of the `digits` classes in a video, any two are equally likely to be the
    label.

    `classes` digit classes from 0, `digits` in a video, `frames`, `canvas` and `tile` (sides,
    pixels).
    """

    name: ClassVar[str] = "meet"
    stretch: ClassVar[bool] = False
    classes: int = 5
    digits: int = 4
    frames: int = 8
    canvas: int = 64
    tile: int = 16
    speed: tuple[float, float] = (1.0, 4.0)
    together: int = 4
    depth: tuple[int, int] = (3, 8)
    margin: int = 3

    def __post_init__(self) -> None:
        numbers = [
            *self.speed,
            *self.depth,
            *(v for name, v in vars(self).items() if name not in ("speed", "depth")),
        ]
        if (
            not all(type(v) in (int, float) for v in numbers)
            or len(self.speed) != 2
            or len(self.depth) != 2
        ):
            raise ValueError(
                f"meet: expected numbers, and two of them for speed and depth; got {self}"
            )
        if not 2 <= self.digits <= self.classes <= 10:
            raise ValueError(
                f"meet: expected 2 <= digits <= classes <= 10, got {self.digits} digits of "
                f"{self.classes} classes"
            )
        if not (
            0 < self.tile < self.canvas
            and 1 <= self.together <= self.frames
            and 0 < self.depth[0] <= self.depth[1]
        ):
            raise ValueError(
                f"meet: expected tile below canvas, together up to frames, depth from 1 and "
                f"rising; got {self}"
            )

    @property
    def size(self) -> int:
        """The side of a frame: the canvas is shown as it is."""
        return self.canvas

    @property
    def shown(self) -> int:
        """The side of a digit's tile in a frame."""
        return self.tile

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels in the order of their numbers: "0-1", "0-2", …"""
        return tuple(f"{a}-{b}" for a, b in combinations(range(self.classes), 2))

    @property
    def guess(self) -> float:
        """The accuracy of one who knows which digits are there, and no more."""
        return 1 / comb(self.digits, 2)

    def scene(self, number: int, rng: np.random.Generator) -> Scene:
        """A scene whose label is `labels[number]`. ValueError when no paths obey the rules."""
        pair = np.array(list(combinations(range(self.classes), 2))[number])
        corners, places = self._paths(rng)
        classes = np.empty(self.digits, int)
        others = np.setdiff1d(np.arange(self.digits), places)
        classes[places] = rng.permutation(pair)
        classes[others] = rng.permutation(np.setdiff1d(np.arange(self.classes), pair))[
            : len(others)
        ]
        return Scene(corners, classes, self.labels[number])

    def scenes(self, images: Images, seed: int, split: str, indices: np.ndarray) -> Scenes:
        """See `Task.scenes`. Labels take turns, so that classes are balanced: `index` modulo their
        number.
        """
        numbers = np.asarray(indices, np.int64) % len(self.labels)
        rngs = [np.random.default_rng([seed, SPLITS.index(split), int(index)]) for index in indices]
        made = [self.scene(int(number), rng) for number, rng in zip(numbers, rngs, strict=True)]
        rows = [images.pick(scene.classes, rng) for scene, rng in zip(made, rngs, strict=True)]
        pairs = np.array(list(combinations(range(self.classes), 2)))[numbers]
        classes = np.stack([scene.classes for scene in made])
        chosen = (classes[..., None] == pairs[:, None]).any(-1)
        return Scenes(
            np.stack([scene.corners for scene in made]), classes, np.stack(rows), chosen, numbers
        )

    def _paths(
        self, rng: np.random.Generator, tries: int = 256, rounds: int = 500
    ) -> tuple[np.ndarray, np.ndarray]:
        """Corners [F,n,2] that obey the rules, and the two digits that meet. `tries` at a time:
        about one in 140 does.
        """
        for _ in range(rounds):
            corners = self._bounce(rng, tries)
            meets, apart = self.relations(corners)
            good = (meets.sum(-1) == 1) & (meets | apart).all(-1)
            if good.any():
                k = int(good.argmax())
                pairs = np.array(list(combinations(range(self.digits), 2)))
                return corners[k], pairs[meets[k].argmax()]
        raise ValueError(
            f"meet: no paths in {tries * rounds:,} tries; give the digits more room, or less "
            f"margin, than {self}"
        )

    def _bounce(self, rng: np.random.Generator, count: int) -> np.ndarray:
        """Corners int [count,F,n,2] of digits that start anywhere and bounce between the edges."""
        room = self.canvas - self.tile
        start = rng.random((count, 1, self.digits, 2)) * room
        speed = rng.uniform(*self.speed, (count, 1, self.digits))
        angle = rng.uniform(0, 2 * np.pi, (count, 1, self.digits))
        step = np.stack([speed * np.cos(angle), speed * np.sin(angle)], -1)
        free = start + step * np.arange(self.frames)[:, None, None]
        return np.rint(np.abs((free + room) % (2 * room) - room)).astype(int)

    def relations(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Which pairs meet and which stay apart, as the rules define it: corners [...,F,n,2] -> two
        bool [...,pairs].

        Pairs are in the order of `itertools.combinations`; one may do neither.
        """
        i, j = np.triu_indices(self.digits, 1)
        gap = (
            np.abs(corners[..., i, :] - corners[..., j, :]).max(-1) - self.tile
        )  # [...,F,pairs], below 0: overlap
        meets = ((gap <= -self.depth[0]).sum(-2) >= self.together) & (gap >= -self.depth[1]).all(-2)
        return meets, (gap >= self.margin).all(-2)
