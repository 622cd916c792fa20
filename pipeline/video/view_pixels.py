"""The pixels of a clip's views, made in a decode worker: sample, decode once, crop and resize.

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
from pipeline.video.frame_reader import DecodeError, FrameReader
from pipeline.video.kept_video import open_window
from pipeline.video.video_identity import mark_video
from pipeline.views.sampling import Sampling, View, views_of
from pipeline.views.video_info import VideoInfo


@dataclass(frozen=True)
class ClipOpener:
    """How to open the videos of a manifest.

    Attributes:
        root: the folder that no clip may leave, not even through a link.
        decoder: "decord", "pyav", "torchcodec" or "torchcodec-cuda"; see `decode.open_clip`.
        allow_truncated: read files that were cut short, as far as they go.
        pixel_aspect: "displayed" or "stored"; see `decode.open_clip`.
        frame_pattern: a glob for the pictures of a folder; "" where they are one series.
        source_fps: frame rate of every clip whose column fps is empty; None takes the file's.
    """

    root: Path
    decoder: str = "decord"
    allow_truncated: bool = False
    pixel_aspect: str = "displayed"
    frame_pattern: str = ""
    source_fps: float | None = None

    def open(self, clip: Clip, again: bool | None = None) -> FrameReader:
        """Open a clip.

        Args:
            clip: the clip.
            again: whether the next clip that is opened here is of the same video; None if nobody
                knows.

        Raises:
            DecodeError: it cannot be read, or a link leads out of the root.
        """
        try:
            inside(self.root, clip)
            _check_pictures_inside(self.root, clip)
        except ManifestError as error:
            raise DecodeError(clip.clip, clip.path, str(error)) from None
        if self.source_fps and not clip.extra.get("fps", "").strip():
            clip = replace(clip, extra={**clip.extra, "fps": f"{self.source_fps:.9f}"})
        options = self.decoder, self.allow_truncated, self.pixel_aspect, self.frame_pattern
        if again is None:
            return open_clip(clip, *options)
        return open_window(clip, lambda one: open_clip(one, *options), options, again)

    def open_as(self, clip: Clip, size: tuple[int, int]) -> FrameReader:
        """Open a clip whose features were extracted from frames of a known size.

        Caches older than `pixel_aspect` hold features of stored pixels, whatever their shape.

        Args:
            clip: the clip.
            size: (width, height) of its frames when they were extracted.

        Returns:
            A reader of frames of that size if there is one, else of frames as displayed.
        """
        reader = self.open(clip)
        if (reader.info.width, reader.info.height) == size or self.pixel_aspect == "stored":
            return reader

        stored = replace(self, pixel_aspect="stored").open(clip)
        if (stored.info.width, stored.info.height) == size:
            reader, stored = stored, reader
        stored.close()
        return reader


def _check_pictures_inside(root: Path, clip: Clip) -> None:
    """Raise ManifestError if a link in a folder of pictures leads out of the root."""
    # Opening the folder later reports what is wrong with it.
    with suppress(OSError):
        if clip.path.is_dir():
            for entry in os.scandir(clip.path):
                if entry.is_symlink():
                    inside(root, replace(clip, place=entry.path))


@dataclass(frozen=True)
class ProbeClip:
    """A task for a worker: return the VideoInfo of a clip.

    Attributes:
        clip: the clip.
        opener: how to open it.
        again: whether the next task is of the same video.
    """

    clip: Clip
    opener: ClipOpener
    again: bool = False

    def run(self) -> VideoInfo:
        """Open the clip, and return its size, length and frame rate."""
        with self.opener.open(self.clip, self.again) as reader:
            return reader.info


@dataclass
class ClipPixels:
    """What a worker returns for one clip.

    Attributes:
        info: the clip's size, length and frame rate.
        views: its views; V of them.
        pixels: V arrays [F,h,w,3] uint8 RGB, cropped, resized and mirrored as the view says.
        numbers: the frames of the file (from 0, ascending) at which some view has a feature step.
        frames: these frames whole, [K,h',w',3] uint8; None when no source of boxes needs them.
        seconds: how long decoding and resizing took.
        video: the mark of the file, see `video_identity`.
        times: V arrays [T], when the frame of each feature step is shown, in seconds from the start
            of the file; -1 if unknown.
    """

    info: VideoInfo
    views: list[View]
    pixels: list[np.ndarray]
    numbers: tuple[int, ...] = ()
    frames: np.ndarray | None = None
    seconds: float = field(default=0.0, compare=False)
    video: str = ""
    times: list[np.ndarray] = field(default_factory=list)


@dataclass(frozen=True)
class DecodeViews:
    """A task for a worker: return the pixels of a clip's views.

    Attributes:
        clip: the clip.
        opener: how to open it.
        sampling: which views the clip has.
        seed: of the random choices in `sampling`.
        steps: T, the number of feature steps; whole frames are needed at these only.
        frame_size: short side of whole frames in pixels; None when nobody needs them.
        resize: "pil" gives whole frames that size; "device" leaves them as they were decoded.
        only: (group, number) of the views to make; empty for all.
        again: whether the next task is of the same video, which then stays open.
        kin: the same for tasks that go faster in one worker (`pipeline.workers.affinity`).
    """

    clip: Clip
    opener: ClipOpener
    sampling: Sampling
    seed: int
    steps: int
    frame_size: int | None = None
    resize: str = "pil"
    only: tuple[tuple[str, int], ...] = ()
    again: bool = False
    kin: str = ""

    def run(self) -> ClipPixels:
        """Choose the views, decode each frame once, and cut the views from the frames."""
        started = time.perf_counter()
        with self.opener.open(self.clip, self.again) as reader:
            info = reader.info
            video = mark_video(self.clip.path)
            views = self._views(info)
            wanted = sorted(set().union(*(view.frames for view in views)))
            images = dict(zip(wanted, map(Image.fromarray, reader.read(wanted)), strict=True))
            times = [reader.seconds(step_frames(view, self.steps)) for view in views]

        pixels = [_crop(images, view) for view in views]
        steps = sorted(set().union(*(step_frames(view, self.steps) for view in views)))
        frames = None
        if self.frame_size is not None:
            whole = [images[k] for k in steps]
            if self.resize == "pil":
                height, width = short_side(info.height, info.width, self.frame_size)
                size = width, height
                whole = [image.resize(size, Image.Resampling.BILINEAR) for image in whole]
            frames = np.stack(list(map(np.asarray, whole)))

        numbers = tuple(info.first + k for k in steps)
        seconds = time.perf_counter() - started
        return ClipPixels(info, views, pixels, numbers, frames, seconds, video, times)

    def _views(self, info: VideoInfo) -> list[View]:
        try:
            views = views_of(self.sampling, info, self.clip.clip, self.clip.labels, self.seed)
        except ValueError as error:
            # No frame, or no frame rate where one is needed: only this clip fails.
            raise DecodeError(self.clip.clip, self.clip.path, str(error)) from None
        if self.only:
            views = [view for view in views if (view.group, view.number) in self.only]
        return views


def run_task(task: ProbeClip | DecodeViews) -> VideoInfo | ClipPixels:
    """Run a task in a worker process.

    Raises:
        DecodeError: with an attribute `seconds`, which is how long the attempt took.
    """
    started = time.perf_counter()
    try:
        return task.run()
    except DecodeError as error:
        error.seconds = time.perf_counter() - started
        raise


def step_frames(view: View, steps: int) -> tuple[int, ...]:
    """Return the frame of each feature step: every (F/T)-th frame of a view, from the first.

    GOS, supplement 2: frames 0, 2, ..., 30 of 32 frames for 16 steps.

    Args:
        view: a view of F frames.
        steps: T.

    Returns:
        T frame numbers of the clip.
    """
    count = len(view.frames)
    return tuple(view.frames[t * count // steps] for t in range(steps))


def short_side(height: int, width: int, size: int) -> tuple[int, int]:
    """Return (height, width) in pixels after scaling the shorter side to `size`."""
    scale = size / min(height, width)
    return max(1, round(height * scale)), max(1, round(width * scale))


def _crop(images: dict[int, Image.Image], view: View) -> np.ndarray:
    """Return a view's crop of each of its frames, [F,h,w,3]."""
    x, y, width, height = view.crop
    out_height, out_width = view.size
    box = (x, y, x + width, y + height)
    # A frame that repeats in the view is resized once.
    resized = {}
    for k in set(view.frames):
        image = images[k].resize((out_width, out_height), Image.Resampling.BILINEAR, box=box)
        resized[k] = np.asarray(image)
    stack = np.stack([resized[k] for k in view.frames])
    return np.ascontiguousarray(stack[:, :, ::-1]) if view.flip else stack
