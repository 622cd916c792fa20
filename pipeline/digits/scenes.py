"""What a task provides, and one video after the other from it: drawn on a canvas, shrunk to frames,
with boxes.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from pipeline.digits.images import INK, Images


@dataclass(frozen=True)
class Scene:
    """What happens in a video: corners int [F,n,2], the (x,y) of each digit's tile in canvas
    pixels; classes [n]; the label.
    """

    corners: np.ndarray
    classes: np.ndarray
    label: str


@dataclass(frozen=True)
class Scenes:
    """What happens in several videos.

    corners int [B,F,n,2]: the (x,y) of each digit's tile in canvas pixels. classes int [B,n]. rows
    int [B,n]: which of the images each digit is. chosen bool [B,n]: the digits that the label is
    about. labels int [B]: into the task's `labels`.
    """

    corners: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    chosen: np.ndarray
    labels: np.ndarray


class Task(Protocol):
    """What can happen in a video: a frozen dataclass of options with these.

    `canvas` is the side of what is drawn, `tile` that of a digit on it, `size` that of a frame, to
    which the canvas is shrunk, `shown` that of a digit in a frame, rounded; all in pixels.
    `stretch`: the contrast of each frame is stretched before that. `labels` are the names of the
    labels by their numbers, `guess` the accuracy of one who knows which digits are there.
    """

    name: ClassVar[str]
    frames: int
    digits: int
    canvas: int
    tile: int
    size: int
    shown: int
    stretch: bool
    labels: tuple[str, ...]
    guess: float

    def scenes(self, images: Images, seed: int, split: str, indices: np.ndarray) -> Scenes:
        """The videos `indices` [B] of a split, whose images these are. ValueError for a class
        without images.
        """
        ...


@dataclass(frozen=True)
class Video:
    """frames uint8 [F,S,S,3] RGB; boxes float32 [F,n,4], the digits' tiles as xyxy in pixels;
    classes int [n]; label.
    """

    frames: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    label: str


def video(task: Task, images: Images, seed: int, split: str, index: int) -> Video:
    """Video `index` of a split. images: those of the split, at any size."""
    scenes = task.scenes(images, seed, split, np.array([index]))
    tiles = images.resized(task.tile).pixels[scenes.rows[0]]
    frames = draw(scenes.corners[0], tiles, task.canvas)
    if task.stretch:
        frames = stretch(frames)
    label = task.labels[int(scenes.labels[0])]
    rgb = np.repeat(shrink(frames, task.size)[..., None], 3, axis=-1)
    return Video(rgb, boxes_of(task, scenes.corners[0]), scenes.classes[0], label)


def videos(task: Task, images: Images, seed: int, split: str, indices: range) -> Iterator[Video]:
    """Some videos of a split, one after the other; `images` are resized once."""
    tiles = images.resized(task.tile)
    return (video(task, tiles, seed, split, index) for index in indices)


def boxes_of(task: Task, corners: np.ndarray) -> np.ndarray:
    """The tiles' boxes in pixels of the frame: corners [...,2] in pixels of the canvas -> float32
    [...,4], xyxy.
    """
    return (np.concatenate([corners, corners + task.tile], -1) * (task.size / task.canvas)).astype(
        np.float32
    )


def draw(corners: np.ndarray, tiles: np.ndarray, canvas: int) -> np.ndarray:
    """Digits on black: corners [F,n,2] (x,y), tiles uint8 [n,s,s] -> uint8 [F,canvas,canvas].

    Painted in order, digit 0 first: where a later digit has ink (`INK` or more) it hides what is
    below, without blending.
    """
    frames = np.zeros((len(corners), canvas, canvas), np.uint8)
    side = np.arange(tiles.shape[1])
    time = np.arange(len(corners))[:, None, None]
    for k, tile in enumerate(tiles):
        rows = corners[:, k, 1, None, None] + side[:, None]  # [F,s,1]
        columns = corners[:, k, 0, None, None] + side  # [F,1,s]
        frames[time, rows, columns] = np.where(tile >= INK, tile, frames[time, rows, columns])
    return frames


def stretch(frames: np.ndarray) -> np.ndarray:
    """Each frame's darkest pixel becomes 0 and its brightest 255, uint8 [F,S,S] (scipy's imresize
    did, spec 6.1).
    """
    low, high = (
        part(frames, axis=(1, 2), keepdims=True).astype(np.float64) for part in (np.min, np.max)
    )
    return np.floor((frames - low) * (255 / np.maximum(high - low, 1)) + 0.5).astype(np.uint8)


def shrink(frames: np.ndarray, size: int) -> np.ndarray:
    """Frames uint8 [F,S,S] at `size` × `size` pixels, by Pillow's bilinear filter (antialiased
    where it shrinks).
    """
    if frames.shape[1] == size:
        return frames
    return np.stack(
        [
            np.asarray(Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR))
            for frame in frames
        ]
    )
