"""What a task provides, and how one video is made from it: draw on a canvas, shrink, add boxes."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import ClassVar, Protocol

import numpy as np
from PIL import Image

from pipeline.digits.images import INK, Images


@dataclass(frozen=True)
class Scene:
    """What happens in one video of F frames and n digits.

    Attributes:
        corners: int [F,n,2], top left corner (x,y) of each digit's tile, in canvas pixels.
        classes: int [n].
        label: name of the label.
    """

    corners: np.ndarray
    classes: np.ndarray
    label: str


@dataclass(frozen=True)
class Scenes:
    """What happens in B videos of F frames and n digits.

    Attributes:
        corners: int [B,F,n,2], top left corner (x,y) of each digit's tile, in canvas pixels.
        classes: int [B,n].
        rows: int [B,n], which image each digit is.
        chosen: bool [B,n], the digits that the label is about.
        labels: int [B], positions in the task's `labels`.
    """

    corners: np.ndarray
    classes: np.ndarray
    rows: np.ndarray
    chosen: np.ndarray
    labels: np.ndarray


class Task(Protocol):
    """What can happen in a video. A task is a frozen dataclass of options with these attributes.

    Attributes:
        name: the name of the task.
        frames: number of frames of a video.
        digits: number of digits in a video.
        canvas: side of the square on which digits are drawn, in pixels.
        tile: side of a digit on the canvas, in pixels.
        size: side of a frame, in pixels; the canvas is shrunk to it.
        shown: side of a digit in a frame, in pixels, rounded.
        stretch: stretch the contrast of each canvas before it is shrunk.
        labels: the names of the labels by their numbers.
        guess: accuracy of a guess by somebody who only knows which digits are in the video.
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
        """Choose what happens in some videos of a split.

        Args:
            images: the images of the split.
            seed: with the split and an index, it determines a video.
            split: "train", "val" or "test".
            indices: int [B], numbers of the videos, from 0.

        Raises:
            ValueError: a class has no image, or an index is below 0.
        """
        ...


@dataclass(frozen=True)
class Video:
    """One video.

    Attributes:
        frames: uint8 [F,S,S,3] RGB.
        boxes: float32 [F,n,4], the digits' tiles as xyxy in pixels of the frame.
        classes: int [n].
        label: name of the label.
    """

    frames: np.ndarray
    boxes: np.ndarray
    classes: np.ndarray
    label: str


def video(task: Task, images: Images, seed: int, split: str, index: int) -> Video:
    """Make one video.

    Args:
        task: what can happen.
        images: the images of the split, at any size.
        seed: see `Task.scenes`.
        split: "train", "val" or "test".
        index: number of the video in the split, from 0.
    """
    scenes = task.scenes(images, seed, split, np.array([index]))
    tiles = images.resized(task.tile).pixels[scenes.rows[0]]
    frames = draw(scenes.corners[0], tiles, task.canvas)
    if task.stretch:
        frames = stretch(frames)
    label = task.labels[int(scenes.labels[0])]
    rgb = np.repeat(shrink(frames, task.size)[..., None], 3, axis=-1)
    return Video(rgb, boxes_of(task, scenes.corners[0]), scenes.classes[0], label)


def videos(task: Task, images: Images, seed: int, split: str, indices: range) -> Iterator[Video]:
    """Make several videos, one after the other.

    Args:
        task: what can happen.
        images: the images of the split, at any size; they are resized once.
        seed: see `Task.scenes`.
        split: "train", "val" or "test".
        indices: numbers of the videos in the split.

    Returns:
        An iterator that makes each video when it is asked for.
    """
    tiles = images.resized(task.tile)
    return (video(task, tiles, seed, split, index) for index in indices)


def boxes_of(task: Task, corners: np.ndarray) -> np.ndarray:
    """Return the digits' boxes in a frame.

    Args:
        task: its canvas, tile and size matter.
        corners: [...,2], (x,y) in pixels of the canvas.

    Returns:
        float32 [...,4], xyxy in pixels of the frame.
    """
    boxes = np.concatenate([corners, corners + task.tile], -1) * (task.size / task.canvas)
    return boxes.astype(np.float32)


def draw(corners: np.ndarray, tiles: np.ndarray, canvas: int) -> np.ndarray:
    """Draw digits on black, in order: digit 0 is at the bottom.

    Where a later digit has ink (`INK` or more), it hides what is below, without blending.

    Args:
        corners: int [F,n,2], (x,y) of each tile.
        tiles: uint8 [n,s,s].
        canvas: side of the canvas in pixels.

    Returns:
        uint8 [F,canvas,canvas].
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
    """Stretch the contrast: each frame's darkest pixel becomes 0 and its brightest 255.

    RSTG's released generator does so, through scipy's `imresize`.

    Args:
        frames: uint8 [F,S,S].

    Returns:
        uint8 [F,S,S].
    """
    low = np.min(frames, axis=(1, 2), keepdims=True).astype(np.float64)
    high = np.max(frames, axis=(1, 2), keepdims=True).astype(np.float64)
    scaled = (frames - low) * (255 / np.maximum(high - low, 1))
    return np.floor(scaled + 0.5).astype(np.uint8)


def shrink(frames: np.ndarray, size: int) -> np.ndarray:
    """Shrink frames by Pillow's antialiased bilinear filter.

    Args:
        frames: uint8 [F,S,S].
        size: the new side in pixels.

    Returns:
        uint8 [F,size,size].
    """
    if frames.shape[1] == size:
        return frames
    small = []
    for frame in frames:
        image = Image.fromarray(frame).resize((size, size), Image.Resampling.BILINEAR)
        small.append(np.asarray(image))
    return np.stack(small)
