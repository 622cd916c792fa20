"""Handwritten digits: where they are from, which split each belongs to, and single ones on a
canvas.
"""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.manifests.manifest import SPLITS

INK = 10  # 0..255: a digit's pixel below this is transparent (SyncMNIST, spec 6.1)
SHARES = {"train": 0.6, "val": 0.2, "test": 0.2}  # of the images of each class


@dataclass(frozen=True)
class Images:
    """Handwritten digits: pixels uint8 [n,s,s], ink bright on black; classes int [n]. `name` says
    where they are from.
    """

    name: str
    pixels: np.ndarray
    classes: np.ndarray

    def resized(self, side: int) -> "Images":
        """The same digits at `side` × `side` pixels (bicubic, antialiased where it shrinks)."""
        if self.pixels.shape[1:] == (side, side):
            return self
        tiles = [
            Image.fromarray(tile).resize((side, side), Image.Resampling.BICUBIC)
            for tile in self.pixels
        ]
        return Images(self.name, np.stack([np.asarray(tile) for tile in tiles]), self.classes)

    def only(self, rows: np.ndarray) -> "Images":
        """Those of these rows."""
        return Images(self.name, self.pixels[rows], self.classes[rows])

    def rows_of(self, classes: np.ndarray) -> list[np.ndarray]:
        """For each of the classes the rows of its images. ValueError for a class without images."""
        rows = [np.flatnonzero(self.classes == c) for c in classes]
        if missing := [int(c) for c, some in zip(classes, rows, strict=True) if not len(some)]:
            raise ValueError(
                f"images {self.name}: none of class {missing[0]}; expected digits of every class "
                f"that a task uses"
            )
        return rows

    def pick(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """The row of one random image of each class asked for: classes [k] -> int [k]. ValueError
        as `rows_of`.
        """
        return np.array([some[rng.integers(len(some))] for some in self.rows_of(classes)])


def load_images(name: str = "sklearn", folder: str | Path | None = None) -> dict[str, Images]:
    """Real handwritten digits by split: no image is in two splits, so that a test video shows
    writing never trained on.

    name: "sklearn" (the 1,797 digits of 8×8 pixels that come with scikit-learn; 60, 20, 20 % of
    each class) or "mnist" (28×28 pixels; torchvision fetches it into `folder`, which needs a
    network the first time; its test images are the split test, the last tenth of the others is
    val). ValueError for another name.
    """
    if name == "sklearn":
        from sklearn.datasets import load_digits

        found = load_digits()
        return split_images(
            Images(name, np.rint(found.images * (255 / 16)).astype(np.uint8), found.target)
        )
    if name == "mnist":
        from torchvision.datasets import MNIST

        root = str(folder or Path.home() / ".cache" / "vidgraph")
        train, test = (MNIST(root, train=part, download=True) for part in (True, False))
        images, last = (
            Images(name, train.data.numpy(), train.targets.numpy()),
            len(train.data) * 9 // 10,
        )
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
        train, val = (
            round(len(rows) * share) for share in (SHARES["train"], SHARES["train"] + SHARES["val"])
        )
        for split, some in zip(SPLITS, (rows[:train], rows[train:val], rows[val:]), strict=True):
            parts[split].append(some)
    return {split: images.only(np.sort(np.concatenate(rows))) for split, rows in parts.items()}


def single_digits(
    images: Images, count: int, canvas: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """`count` pictures of one digit at a random place, for pre-training: uint8
    [count,canvas,canvas,3], classes int [count].

    The digits keep the size that `images` has. ValueError if they do not fit.
    """
    side = images.pixels.shape[1]
    if side > canvas:
        raise ValueError(
            f"digits of {side} pixels do not fit a canvas of {canvas}; resize them, or take a "
            f"larger canvas"
        )
    rows = rng.integers(len(images.pixels), size=count)
    place = rng.integers(0, canvas - side + 1, (2, count, 1, 1))
    frames = np.zeros((count, canvas, canvas), np.uint8)
    at = np.arange(side)
    frames[np.arange(count)[:, None, None], place[0] + at[:, None], place[1] + at] = images.pixels[
        rows
    ]
    return np.repeat(frames[..., None], 3, axis=-1), images.classes[rows]
