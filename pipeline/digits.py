"""Generated digit videos: handwritten digits that move over a black canvas, with their boxes and a label.

A task says what happens (`Meet.scene`); drawing, boxes, splits and files are the same for all tasks. Which video comes out
depends on (task, images, seed, split, index) alone: never on how many are made, in which order, or by how many processes.
"""

import csv
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from itertools import combinations
from math import comb
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.manifest import SPLITS, write_manifest
from pipeline.pool import Pool

INK = 10  # 0..255: a digit's pixel below this is transparent (SyncMNIST, spec 6.1)
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the images of each class
PER_MESSAGE = 50  # videos that a worker process writes before it reports
BOX_COLUMNS = ("clip", "frame", "x1", "y1", "x2", "y2")  # [0,1] of the frame


@dataclass(frozen=True)
class Images:
    """Handwritten digits: pixels uint8 [n,s,s], ink bright on black; classes int [n]. `name` says where they are from."""

    name: str
    pixels: np.ndarray
    classes: np.ndarray

    def resized(self, side: int) -> "Images":
        """The same digits at `side` × `side` pixels (bicubic, antialiased where it shrinks)."""
        if self.pixels.shape[1:] == (side, side):
            return self
        tiles = [Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC) for tile in self.pixels]
        return Images(self.name, np.stack([np.asarray(tile) for tile in tiles]), self.classes)

    def only(self, rows: np.ndarray) -> "Images":
        """Those of these rows."""
        return Images(self.name, self.pixels[rows], self.classes[rows])

    def pick(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """One random digit of each class asked for: classes [k] -> uint8 [k,s,s]. ValueError for a class without images."""
        rows = [np.flatnonzero(self.classes == c) for c in classes]
        if missing := [int(c) for c, some in zip(classes, rows, strict=True) if not len(some)]:
            raise ValueError(f"images {self.name}: none of class {missing[0]}; expected digits of every class that a task uses")
        return self.pixels[[some[rng.integers(len(some))] for some in rows]]


def load_images(name: str = "sklearn", folder: str | Path | None = None) -> dict[str, Images]:
    """Real handwritten digits by split: no image is in two splits, so that a test video shows writing never trained on.

    name: "sklearn" (the 1,797 digits of 8×8 pixels that come with scikit-learn; 60, 20, 20 % of each class) or "mnist"
    (28×28 pixels; torchvision fetches it into `folder`, which needs a network the first time; its test images are the split
    test, the last tenth of the others is val). ValueError for another name.
    """
    if name == "sklearn":
        from sklearn.datasets import load_digits

        found = load_digits()
        return split_images(Images(name, np.rint(found.images * (255 / 16)).astype(np.uint8), found.target))
    if name == "mnist":
        from torchvision.datasets import MNIST

        root = str(folder or Path.home() / ".cache" / "vidgraph")
        train, test = (MNIST(root, train=part, download=True) for part in (True, False))
        images, last = Images(name, train.data.numpy(), train.targets.numpy()), len(train.data) * 9 // 10
        return {
            "train": images.only(np.arange(last)),
            "val": images.only(np.arange(last, len(train.data))),
            "test": Images(name, test.data.numpy(), test.targets.numpy()),
        }
    raise ValueError(f"images {name!r}: expected sklearn or mnist")


def split_images(images: Images) -> dict[str, Images]:
    """`SHARES` of every class to each split, drawn at random once and for all."""
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    rng = np.random.default_rng(0)
    for c in np.unique(images.classes):
        rows = rng.permutation(np.flatnonzero(images.classes == c))
        train, val = (round(len(rows) * share) for share in (SHARES["train"], SHARES["train"] + SHARES["val"]))
        for split, some in zip(SPLITS, (rows[:train], rows[train:val], rows[val:]), strict=True):
            parts[split].append(some)
    return {split: images.only(np.sort(np.concatenate(rows))) for split, rows in parts.items()}


@dataclass(frozen=True)
class Scene:
    """What happens in a video: corners int [F,n,2], the (x,y) of each digit's tile in canvas pixels; classes [n]; the label."""

    corners: np.ndarray
    classes: np.ndarray
    label: str


@dataclass(frozen=True)
class Video:
    """frames uint8 [F,S,S,3] RGB; boxes float32 [F,n,4], the digits' tiles as xyxy in pixels; classes int [n]; label."""

    frames: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    label: str


@dataclass(frozen=True)
class Meet:
    """Digits of distinct classes bounce about; exactly one pair meets; the label is the unordered pair of its classes.

    Boxes are the digits' tiles. Those of the pair overlap by at least `depth[0]` pixels in both axes in `together` frames or
    more, and never by more than `depth[1]`, so that both can be read; all other pairs stay `margin` pixels apart throughout.
    Each digit moves in a straight line at a speed in `speed` pixels per frame and is reflected at the edges. Paths are drawn
    until the rules hold, all digits by the same law, and only then do classes get their paths: nothing but who touches tells
    the pair. Of the `digits` classes in a video, any two are equally likely to be the label.

    `classes` digit classes from 0, `digits` in a video, `frames`, `canvas` and `tile` (sides, pixels).
    """

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
        numbers = [*self.speed, *self.depth, *(v for name, v in vars(self).items() if name not in ("speed", "depth"))]
        if not all(type(v) in (int, float) for v in numbers) or len(self.speed) != 2 or len(self.depth) != 2:
            raise ValueError(f"meet: expected numbers, and two of them for speed and depth; got {self}")
        if not 2 <= self.digits <= self.classes <= 10:
            raise ValueError(f"meet: expected 2 <= digits <= classes <= 10, got {self.digits} digits of {self.classes} classes")
        if not (0 < self.tile < self.canvas and 1 <= self.together <= self.frames and 0 < self.depth[0] <= self.depth[1]):
            raise ValueError(f"meet: expected tile below canvas, together up to frames, depth from 1 and rising; got {self}")

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
        classes[others] = rng.permutation(np.setdiff1d(np.arange(self.classes), pair))[: len(others)]
        return Scene(corners, classes, self.labels[number])

    def _paths(self, rng: np.random.Generator, tries: int = 256, rounds: int = 500) -> tuple[np.ndarray, np.ndarray]:
        """Corners [F,n,2] that obey the rules, and the two digits that meet. `tries` at a time: about one in 140 does."""
        for _ in range(rounds):
            corners = self._bounce(rng, tries)
            meets, apart = self.relations(corners)
            good = (meets.sum(-1) == 1) & (meets | apart).all(-1)
            if good.any():
                k = int(good.argmax())
                pairs = np.array(list(combinations(range(self.digits), 2)))
                return corners[k], pairs[meets[k].argmax()]
        raise ValueError(f"meet: no paths in {tries * rounds:,} tries; give the digits more room, or less margin, than {self}")

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
        """Which pairs meet and which stay apart, as the rules define it: corners [...,F,n,2] -> two bool [...,pairs].

        Pairs are in the order of `itertools.combinations`; one may do neither.
        """
        i, j = np.triu_indices(self.digits, 1)
        gap = np.abs(corners[..., i, :] - corners[..., j, :]).max(-1) - self.tile  # [...,F,pairs], below 0: overlap
        meets = ((gap <= -self.depth[0]).sum(-2) >= self.together) & (gap >= -self.depth[1]).all(-2)
        return meets, (gap >= self.margin).all(-2)


TASKS = {"meet": Meet}


def video(task: Meet, images: Images, seed: int, split: str, index: int) -> Video:
    """Video `index` of a split. Its label is number `index` modulo the number of labels, so that classes are balanced.

    images: those of the split, at any size. Each of a scene's digits is a random image of its class.
    """
    rng = np.random.default_rng([seed, SPLITS.index(split), index])
    scene = task.scene(index % len(task.labels), rng)
    tiles = images.resized(task.tile).pick(scene.classes, rng)
    boxes = np.concatenate([scene.corners, scene.corners + task.tile], -1).astype(np.float32)
    return Video(draw(scene.corners, tiles, task.canvas), boxes, scene.classes, scene.label)


def draw(corners: np.ndarray, tiles: np.ndarray, canvas: int) -> np.ndarray:
    """Digits on black, as RGB: corners [F,n,2] (x,y), tiles uint8 [n,s,s] -> uint8 [F,canvas,canvas,3].

    Painted in order, digit 0 first: where a later digit has ink (`INK` or more) it hides what is below, without blending.
    """
    frames = np.zeros((len(corners), canvas, canvas), np.uint8)
    side = np.arange(tiles.shape[1])
    time = np.arange(len(corners))[:, None, None]
    for k, tile in enumerate(tiles):
        rows = corners[:, k, 1, None, None] + side[:, None]  # [F,s,1]
        columns = corners[:, k, 0, None, None] + side  # [F,1,s]
        frames[time, rows, columns] = np.where(tile >= INK, tile, frames[time, rows, columns])
    return np.repeat(frames[..., None], 3, axis=-1)


def videos(task: Meet, images: Images, seed: int, split: str, indices: range) -> Iterator[Video]:
    """Some videos of a split, one after the other; `images` are resized once."""
    tiles = images.resized(task.tile)
    return (video(task, tiles, seed, split, index) for index in indices)


def single_digits(images: Images, count: int, canvas: int, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures of one digit at a random place, for pre-training: uint8 [count,canvas,canvas,3], classes int [count].

    The digits keep the size that `images` has. ValueError if they do not fit.
    """
    side = images.pixels.shape[1]
    if side > canvas:
        raise ValueError(f"digits of {side} pixels do not fit a canvas of {canvas}; resize them, or take a larger canvas")
    rows = rng.integers(len(images.pixels), size=count)
    place = rng.integers(0, canvas - side + 1, (2, count, 1, 1))
    frames = np.zeros((count, canvas, canvas), np.uint8)
    at = np.arange(side)
    frames[np.arange(count)[:, None, None], place[0] + at[:, None], place[1] + at] = images.pixels[rows]
    return np.repeat(frames[..., None], 3, axis=-1), images.classes[rows]


def write_dataset(
    out: str | Path,
    task: Meet,
    splits: Mapping[str, int],
    seed: int = 0,
    workers: int | None = None,
    images: Mapping[str, Images] | None = None,
    fps: float = 8.0,
) -> Path:
    """Writes videos as mp4 files with their boxes, and returns the path of their manifest, OUT/manifest.csv.

    splits: split -> number of videos. `workers` processes write them (default: one per core; 0: this one). OUT/boxes.csv has
    the digits' boxes as the `annotations` source reads them, OUT/digits.json says what was made. The manifest is written last:
    where it and the same digits.json are there, nothing is done. ValueError if OUT holds other videos, or for an unknown split.
    """
    out, images = Path(out), images or load_images()
    if unknown := [split for split in splits if split not in SPLITS]:
        raise ValueError(f"split {unknown[0]!r}: expected {', '.join(SPLITS)}")
    record = {"task": next(name for name, kind in TASKS.items() if isinstance(task, kind)), **asdict(task)}
    record |= {"splits": dict(splits), "seed": seed, "images": images["train"].name, "fps": fps}
    if _is_written(out, json.loads(json.dumps(record))):
        return out / "manifest.csv"
    for split in splits:
        (out / split).mkdir(parents=True, exist_ok=True)
    tiles = {split: images[split].resized(task.tile) for split in splits}
    rows = []
    with open(out / "boxes.csv", "w", newline="", encoding="utf-8") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow(BOX_COLUMNS)
        for split, index, made in _write_all(_Job(out, task, tiles, seed, fps), splits, workers):
            clip, digits = f"{split}-{index:05d}", " ".join(map(str, made.classes))
            table.writerows(_box_rows(clip, made, task.canvas))
            path = _path_of(split, index)
            rows.append({"clip": clip, "path": path, "split": split, "label": made.label, "digits": digits})
    (out / "digits.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return write_manifest(out / "manifest.csv", rows).path


def _is_written(out: Path, record: dict) -> bool:
    """Whether OUT holds the finished videos of `record`; ValueError if it holds others."""
    if not (out / "manifest.csv").exists():
        return False
    try:
        there = json.loads((out / "digits.json").read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError):
        raise ValueError(f"{out}: has a manifest, but no digits.json that says which videos; choose another folder") from None
    if differing := [key for key in record if there.get(key) != record[key]]:
        shown = "; ".join(f"{key} {there.get(key)!r} there, {record[key]!r} asked for" for key in differing)
        raise ValueError(f"{out}: holds other videos ({shown}); choose another folder, or delete it")
    return True


@dataclass(frozen=True)
class _Job:
    """What a process needs to write any of the videos; `tiles` are the images of each split at the task's size."""

    out: Path
    task: Meet
    tiles: dict[str, Images]
    seed: int
    fps: float

    def __call__(self, part: tuple[str, range]) -> list[Video]:
        """Writes some videos of a split; returns them without their frames, which nobody reads in the parent process."""
        from pipeline.decode import write_video

        split, indices = part
        made = []
        for index, one in zip(indices, videos(self.task, self.tiles[split], self.seed, split, indices), strict=True):
            write_video(self.out / _path_of(split, index), one.frames, self.fps)
            made.append(replace(one, frames=one.frames[:0]))
        return made


def _path_of(split: str, index: int) -> str:
    return f"{split}/{index:05d}.mp4"


def _write_all(job: _Job, splits: Mapping[str, int], workers: int | None) -> Iterator[tuple[str, int, Video]]:
    """(split, index, video without frames) of every video, in order, as they are written."""
    workers = (os.cpu_count() or 1) if workers is None else workers
    parts = [
        (split, range(first, min(first + PER_MESSAGE, count)))
        for split, count in splits.items()
        for first in range(0, count, PER_MESSAGE)
    ]
    with Pool(job, min(workers, len(parts))) as pool:
        for (split, indices), made in pool.imap(parts, ahead=2 * max(1, workers)):
            if isinstance(made, Exception):
                raise made
            yield from ((split, index, one) for index, one in zip(indices, made, strict=True))


def _box_rows(clip: str, made: Video, canvas: int) -> Iterator[tuple]:
    for frame, boxes in enumerate((made.boxes / canvas).tolist()):
        yield from ((clip, frame, *box) for box in boxes)
