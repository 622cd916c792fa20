"""Images of handwritten digits: where they come from, their splits, single ones on a canvas."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.manifests.manifest import SPLITS

# A digit's pixel below this (of 255) is transparent, as in RSTG's generator of SyncMNIST.
INK = 10
# What fraction of the images of each class each split gets.
FRACTIONS = {"train": 0.6, "val": 0.2, "test": 0.2}


@dataclass(frozen=True)
class Images:
    """Images of handwritten digits.

    Attributes:
        name: where they come from.
        pixels: uint8 [n,s,s], bright ink on black.
        classes: int [n], 0 to 9.
    """

    name: str
    pixels: np.ndarray
    classes: np.ndarray

    def resized(self, side: int) -> "Images":
        """Return the same digits at `side` × `side` pixels.

        The filter is bicubic; it is antialiased where it shrinks.
        """
        if self.pixels.shape[1:] == (side, side):
            return self
        tiles = []
        for pixels in self.pixels:
            tile = Image.fromarray(pixels).resize((side, side), Image.Resampling.BICUBIC)
            tiles.append(np.asarray(tile))
        return Images(self.name, np.stack(tiles), self.classes)

    def only(self, rows: np.ndarray) -> "Images":
        """Return the images in these rows."""
        return Images(self.name, self.pixels[rows], self.classes[rows])

    def rows_of(self, classes: np.ndarray) -> list[np.ndarray]:
        """Return the rows of the images of each class.

        Args:
            classes: int [k].

        Returns:
            k arrays of rows.

        Raises:
            ValueError: a class has no image.
        """
        rows = []
        for number in classes:
            rows.append(np.flatnonzero(self.classes == number))
            if not len(rows[-1]):
                raise ValueError(
                    f"images {self.name}: none of class {int(number)}; expected digits of every "
                    "class that a task uses"
                )
        return rows

    def pick(self, classes: np.ndarray, rng: np.random.Generator) -> np.ndarray:
        """Pick one random image of each class.

        Args:
            classes: int [k]; a class may repeat.
            rng: where random numbers come from.

        Returns:
            int [k], rows of the images.

        Raises:
            ValueError: a class has no image.
        """
        return np.array([rows[rng.integers(len(rows))] for rows in self.rows_of(classes)])


def load_images(name: str = "sklearn", folder: str | Path | None = None) -> dict[str, Images]:
    """Load real handwritten digits by split.

    No image is in two splits. So a test video shows writing that no training video shows.

    Args:
        name: "sklearn": the 1,797 digits of 8×8 pixels that come with scikit-learn; 60, 20 and
            20 % of each class are train, val and test. "mnist": 28×28 pixels from torchvision,
            which needs a network the first time. Its test images are the split test; the last
            tenth of its training images is val.
        folder: where torchvision stores MNIST; default ~/.cache/vidgraph.

    Returns:
        The images of the splits train, val and test.

    Raises:
        ValueError: the name is unknown.
    """
    if name == "sklearn":
        from sklearn.datasets import load_digits

        digits = load_digits()
        # Its values go from 0 to 16.
        pixels = np.rint(digits.images * (255 / 16)).astype(np.uint8)
        return split_images(Images(name, pixels, digits.target))
    if name == "mnist":
        from torchvision.datasets import MNIST

        root = str(folder or Path.home() / ".cache" / "vidgraph")
        train = MNIST(root, train=True, download=True)
        test = MNIST(root, train=False, download=True)
        images = Images(name, train.data.numpy(), train.targets.numpy())
        total = len(train.data)
        first_val = total * 9 // 10
        return {
            "train": images.only(np.arange(first_val)),
            "val": images.only(np.arange(first_val, total)),
            "test": Images(name, test.data.numpy(), test.targets.numpy()),
        }
    raise ValueError(f"images {name!r}: expected sklearn or mnist")


def split_images(images: Images) -> dict[str, Images]:
    """Divide images into splits, at random but always in the same way.

    Args:
        images: the images of all splits.

    Returns:
        The images of each split; it has FRACTIONS[split] of every class.
    """
    parts: dict[str, list[np.ndarray]] = {split: [] for split in SPLITS}
    rng = np.random.default_rng(0)
    for number in np.unique(images.classes):
        rows = rng.permutation(np.flatnonzero(images.classes == number))
        val = round(len(rows) * FRACTIONS["train"])
        test = round(len(rows) * (FRACTIONS["train"] + FRACTIONS["val"]))
        for split, part in zip(SPLITS, np.split(rows, [val, test]), strict=True):
            parts[split].append(part)
    return {split: images.only(np.sort(np.concatenate(rows))) for split, rows in parts.items()}


def single_digits(
    images: Images, count: int, canvas: int, rng: np.random.Generator
) -> tuple[np.ndarray, np.ndarray]:
    """Make pictures of one digit at a random position, for pre-training.

    Args:
        images: the digits; they keep their size.
        count: number of pictures.
        canvas: side of a picture in pixels.
        rng: where random numbers come from.

    Returns:
        Pictures uint8 [count,canvas,canvas,3] and their classes int [count].

    Raises:
        ValueError: the digits are larger than the canvas.
    """
    side = images.pixels.shape[1]
    if side > canvas:
        raise ValueError(
            f"digits of {side} pixels do not fit a canvas of {canvas}; resize them, or take a "
            "larger canvas"
        )
    rows = rng.integers(len(images.pixels), size=count)
    # [count,1,1] each, to broadcast over the rows and columns of a digit.
    y, x = rng.integers(0, canvas - side + 1, (2, count, 1, 1))
    frames = np.zeros((count, canvas, canvas), np.uint8)
    pictures = np.arange(count)[:, None, None]
    offsets = np.arange(side)
    frames[pictures, y + offsets[:, None], x + offsets] = images.pixels[rows]
    return np.repeat(frames[..., None], 3, axis=-1), images.classes[rows]
