"""One clip's pixels, made in a decode worker: sample the views, decode their frames once, crop and
resize.

Imports no torch, so that a worker process starts in a fraction of a second and stays small.
"""

import os
import time
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.manifests.manifest import Clip, ManifestError, inside
from pipeline.video.decode import open_clip
from pipeline.video.frame_reader import DecodeError
from pipeline.video.video_identity import mark_video
from pipeline.views.sampling import Sampling, View, views_of
from pipeline.views.video_info import VideoInfo


@dataclass(frozen=True)
class ClipOpener:
    """How a clip's file is opened: the folder it may not leave, the decoder, whether a file cut
    short is taken as it is.

    `pixel_aspect`: "displayed" or "stored", see `decode.open_clip`. `frame_pattern`: which pictures
    of a folder are its frames (a glob; "" where they are one series). `source_fps`: the frame rate
    of every clip for which the manifest has none in its column `fps`, whatever its file says; None:
    the rate of the file.
    """

    root: Path
    decoder: str = "decord"
    allow_truncated: bool = False
    pixel_aspect: str = "displayed"
    frame_pattern: str = ""
    source_fps: float | None = None

    def open(self, clip: Clip):
        """A reader of `clip`; DecodeError if it cannot be read, or a link takes its path out of the
        root.
        """
        try:
            inside(self.root, clip)
            _pictures_inside(self.root, clip)
        except ManifestError as error:
            raise DecodeError(clip.clip, clip.path, str(error)) from None
        if self.source_fps and not clip.extra.get("fps", "").strip():
            clip = replace(clip, extra={**clip.extra, "fps": f"{self.source_fps:.9f}"})
        return open_clip(
            clip, self.decoder, self.allow_truncated, self.pixel_aspect, self.frame_pattern
        )

    def open_as(self, clip: Clip, size: tuple[int, int]):
        """As `open`, for frames that were (width, height) when they were extracted.

        Caches older than `pixel_aspect` hold stored pixels, whatever their shape.
        """
        reader = self.open(clip)
        if (reader.info.width, reader.info.height) != size and self.pixel_aspect != "stored":
            stored = replace(self, pixel_aspect="stored").open(clip)
            if (stored.info.width, stored.info.height) == size:
                reader, stored = stored, reader
            stored.close()
        return reader


def _pictures_inside(root: Path, clip: Clip) -> None:
    """ManifestError if a link in a folder of frames leads out of the root."""
    with suppress(OSError):  # whoever opens it says so
        for entry in os.scandir(clip.path) if clip.path.is_dir() else ():
            if entry.is_symlink():
                inside(root, replace(clip, place=entry.path))


@dataclass(frozen=True)
class ProbeClip:
    """Asks a worker for a clip's VideoInfo only."""

    clip: Clip
    opening: ClipOpener

    def run(self) -> VideoInfo:
        with self.opening.open(self.clip) as reader:
            return reader.info


@dataclass
class ClipPixels:
    """What a worker returns for one clip.

    `pixels[v]` [F,h,w,3] uint8 RGB is view v cropped, resized and mirrored where it says so.
    `numbers` are the frames of the file, counted from 0 and ascending, that some view's feature
    step looks at; `frames` [K,h',w',3] uint8 are these, whole, or None when no source of boxes
    asked for pixels. `seconds` is the time that decoding and resizing took, `video` the mark of the
    file (`pipeline.video.video_identity`).
    """

    info: VideoInfo
    views: list[View]
    pixels: list[np.ndarray]
    numbers: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    seconds: float = field(default=0.0, compare=False)
    video: str = ""


@dataclass(frozen=True)
class DecodeViews:
    """Asks a worker for the pixels of all views of a clip.

    `steps` is T, the number of feature steps; the whole frames are wanted at these only.
    `frame_size` is their short side in pixels, None when nobody looks at whole frames. `only`:
    groups and numbers of the views that are wanted, () for all.
    """

    clip: Clip
    opening: ClipOpener
    sampling: Sampling
    seed: int
    steps: int
    frame_size: int | None = None
    only: tuple[tuple[str, int], ...] = ()

    def run(self) -> ClipPixels:
        begun = time.perf_counter()
        with self.opening.open(self.clip) as reader:
            info, video = reader.info, mark_video(self.clip.path)
            try:
                views = views_of(self.sampling, info, self.clip.clip, self.clip.labels, self.seed)
            except ValueError as error:  # no frame, or no frame rate where one is needed: this clip's failure, not the run's
                raise DecodeError(self.clip.clip, self.clip.path, str(error)) from None
            views = [
                view for view in views if not self.only or (view.group, view.number) in self.only
            ]
            wanted = sorted({number for view in views for number in view.frames})
            images = dict(zip(wanted, map(Image.fromarray, reader.read(wanted)), strict=True))
        pixels = [_crop(images, view) for view in views]
        steps = sorted({number for view in views for number in step_frames(view, self.steps)})
        frames = None
        if self.frame_size is not None:
            height, width = short_side(info.height, info.width, self.frame_size)
            frames = np.stack(
                [
                    np.asarray(images[k].resize((width, height), Image.Resampling.BILINEAR))
                    for k in steps
                ]
            )
        numbers = tuple(info.first + k for k in steps)
        return ClipPixels(info, views, pixels, numbers, frames, time.perf_counter() - begun, video)


def run_task(task: "ProbeClip | DecodeViews"):
    """What a worker process does with a task; exceptions travel back as results, with the `seconds`
    that they took.
    """
    begun = time.perf_counter()
    try:
        return task.run()
    except DecodeError as error:
        error.seconds = time.perf_counter() - begun
        raise


def step_frames(view: View, steps: int) -> tuple[int, ...]:
    """The frame at each of the T feature steps: every (F/T)-th of the view's, from the first (0, 2,
    …, 30; GOS supp. 2).
    """
    count = len(view.frames)
    return tuple(view.frames[t * count // steps] for t in range(steps))


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """(height, width) in whole pixels after scaling the shorter side to `size`, the aspect kept."""
    scale = size / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _crop(images: dict[int, Image.Image], view: View) -> np.ndarray:
    """The view's crop of each of its frames [F,h,w,3]; a frame that repeats is resized once."""
    x, y, width, height = view.crop
    out_height, out_width = view.size
    box = (x, y, x + width, y + height)
    resized = {
        k: np.asarray(images[k].resize((out_width, out_height), Image.Resampling.BILINEAR, box=box))
        for k in set(view.frames)
    }
    stack = np.stack([resized[k] for k in view.frames])
    return np.ascontiguousarray(stack[:, :, ::-1]) if view.flip else stack
