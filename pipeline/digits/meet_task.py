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
    """Digits of distinct classes bounce around, and exactly one pair meets.

    The label is the unordered pair of the classes that meet. Boxes are the digits' tiles. Those
    of the pair overlap by at least `depth[0]` pixels in both axes in `together` frames or more.
    They never overlap by more than `depth[1]`, so that both digits can be read. All other pairs
    stay `margin` pixels apart throughout.

    Each digit moves in a straight line and is reflected at the edges. Paths are drawn at random,
    all digits alike, until the rules hold. Only then do classes get their paths: nothing but the
    contact reveals the pair. Of the digits in a video, any two are equally likely to be the label.

    Attributes:
        classes: digit classes from 0 on.
        digits: number of digits in a video.
        frames: number of frames of a video.
        canvas: side of a frame, in pixels.
        tile: side of a digit, in pixels.
        speed: slowest and fastest digit, in pixels per frame.
        together: in how many frames the pair overlaps, at least.
        depth: least and greatest overlap of the pair, in pixels.
        margin: distance of all other pairs, in pixels.
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
        numbers = [*self.speed, *self.depth]
        numbers += [value for name, value in vars(self).items() if name not in ("speed", "depth")]
        all_numbers = all(type(number) in (int, float) for number in numbers)
        if not all_numbers or len(self.speed) != 2 or len(self.depth) != 2:
            raise ValueError(
                f"meet: expected numbers, and two of them for speed and depth; got {self}"
            )
        if not 2 <= self.digits <= self.classes <= 10:
            raise ValueError(
                f"meet: expected 2 <= digits <= classes <= 10, got {self.digits} digits of "
                f"{self.classes} classes"
            )
        fits = 0 < self.tile < self.canvas
        if not (fits and 1 <= self.together <= self.frames and 0 < self.depth[0] <= self.depth[1]):
            raise ValueError(
                "meet: expected tile below canvas, together up to frames, depth from 1 and "
                f"rising; got {self}"
            )

    @property
    def size(self) -> int:
        """The side of a frame: the canvas is not shrunk."""
        return self.canvas

    @property
    def shown(self) -> int:
        """The side of a digit in a frame."""
        return self.tile

    @property
    def labels(self) -> tuple[str, ...]:
        """The labels by their numbers: "0-1", "0-2", …"""
        return tuple(f"{low}-{high}" for low, high in self._pairs())

    @property
    def guess(self) -> float:
        """The accuracy of a guess by somebody who only knows which digits are in the video."""
        return 1 / comb(self.digits, 2)

    def _pairs(self) -> list[tuple[int, int]]:
        return list(combinations(range(self.classes), 2))

    def scene(self, number: int, rng: np.random.Generator) -> Scene:
        """Make a scene with a given label.

        Args:
            number: position in `labels`.
            rng: where random numbers come from.

        Raises:
            ValueError: no random paths obey the rules.
        """
        pair = np.array(self._pairs()[number])
        corners, meeting = self._paths(rng)
        others = np.setdiff1d(np.arange(self.digits), meeting)
        other_classes = np.setdiff1d(np.arange(self.classes), pair)
        classes = np.empty(self.digits, int)
        classes[meeting] = rng.permutation(pair)
        classes[others] = rng.permutation(other_classes)[: len(others)]
        return Scene(corners, classes, self.labels[number])

    def scenes(self, images: Images, seed: int, split: str, indices: np.ndarray) -> Scenes:
        """Choose what happens in some videos; see `Task.scenes`.

        The label of a video is its index modulo the number of labels, so labels are balanced.
        """
        numbers = np.asarray(indices, np.int64) % len(self.labels)
        scenes, rows = [], []
        for number, index in zip(numbers, indices, strict=True):
            # A generator per video, so that a video depends on its index alone.
            rng = np.random.default_rng([seed, SPLITS.index(split), int(index)])
            scene = self.scene(int(number), rng)
            scenes.append(scene)
            rows.append(images.pick(scene.classes, rng))

        corners = np.stack([scene.corners for scene in scenes])
        classes = np.stack([scene.classes for scene in scenes])
        pairs = np.array(self._pairs())[numbers]
        chosen = (classes[..., None] == pairs[:, None]).any(-1)
        return Scenes(corners, classes, np.stack(rows), chosen, numbers)

    def _paths(
        self, rng: np.random.Generator, tries: int = 256, rounds: int = 500
    ) -> tuple[np.ndarray, np.ndarray]:
        """Return corners [F,n,2] that obey the rules, and the two digits that meet.

        About one in 140 random paths does, so `tries` of them are made at a time.
        """
        for _ in range(rounds):
            corners = self._bounce(rng, tries)
            meets, apart = self.relations(corners)
            # Exactly one pair meets, and every pair either meets or stays apart.
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
        """Return corners int [count,F,n,2] of digits that bounce between the edges."""
        room = self.canvas - self.tile
        start = rng.random((count, 1, self.digits, 2)) * room
        speed = rng.uniform(*self.speed, (count, 1, self.digits))
        angle = rng.uniform(0, 2 * np.pi, (count, 1, self.digits))
        step = np.stack([speed * np.cos(angle), speed * np.sin(angle)], -1)
        # A reflection at an edge folds the straight line back.
        straight = start + step * np.arange(self.frames)[:, None, None]
        return np.rint(np.abs((straight + room) % (2 * room) - room)).astype(int)

    def relations(self, corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """Return which pairs of digits meet, and which stay apart, by the rules.

        Args:
            corners: [...,F,n,2].

        Returns:
            Two bool arrays [...,pairs], in the order of `itertools.combinations`. A pair may do
            neither.
        """
        i, j = np.triu_indices(self.digits, 1)
        distance = np.abs(corners[..., i, :] - corners[..., j, :]).max(-1)
        gap = distance - self.tile  # [...,F,pairs], negative where tiles overlap
        deep_enough = (gap <= -self.depth[0]).sum(-2) >= self.together
        not_too_deep = (gap >= -self.depth[1]).all(-2)
        return deep_enough & not_too_deep, (gap >= self.margin).all(-2)
