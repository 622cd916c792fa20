"""What every reader of frames offers, and the errors for clips that cannot be read.

Loads no decoder before a reader asks for it.
"""

import importlib
import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from fractions import Fraction
from operator import index
from pathlib import Path

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.text.printable import first_line
from pipeline.video.packets import StreamContents
from pipeline.video.timeline import frames_between
from pipeline.views.video_info import VideoInfo

DECODERS = ("decord", "pyav", "torchcodec", "torchcodec-cuda")
# Seconds by which a clip's end may lie after the end of its file: annotations are rounded.
END_SLACK = 0.5


class DecodeError(Exception):
    """A clip that cannot be read. Can be pickled.

    Attributes:
        clip: the clip's id.
        path: its file or folder.
        reason: why it cannot be read, in one line.
    """

    def __init__(self, clip: str, path: str | Path, reason: str):
        super().__init__(clip, str(path), reason)
        self.clip, self.path, self.reason = clip, str(path), reason

    def __str__(self) -> str:
        return f"{self.clip}: {self.path}: {self.reason}"


class TruncatedVideo(DecodeError):
    """The container holds less than it promises."""


class DecodeTimeout(DecodeError):
    """Decoding took longer than the time limit."""


class DecoderDied(DecodeError):
    """The process that decoded the clip ended."""


class FrameReader(ABC):
    """Reads frames of one clip by number, in the process that created it.

    Attributes:
        clip: the clip.
        info: its number of frames, frame rate and size, known before anything is read.
        contents: the file's video stream; None for a folder of pictures.
    """

    def __init__(self, clip: Clip, info: VideoInfo, contents: StreamContents | None = None):
        self.clip, self.info, self.contents = clip, info, contents

    def seconds(self, numbers: Iterable[int]) -> np.ndarray:
        """Return when frames are shown.

        Args:
            numbers: frame numbers of the clip.

        Returns:
            Float32 seconds from the start of the file; -1 in a folder without a frame rate.
        """
        in_file = [self.info.first + number for number in numbers]
        if self.contents is not None:
            found = [self.contents.times[number] for number in in_file]
        elif self.info.fps:
            found = [number / self.info.fps for number in in_file]
        else:
            found = [-1.0] * len(in_file)
        return np.array(found, np.float32)

    def read(self, numbers: Iterable[int]) -> np.ndarray:
        """Read frames.

        Each distinct frame is decoded once.

        Args:
            numbers: frame numbers of the clip, 0 to `info.frames` - 1, in any order; they may
                repeat.

        Returns:
            [len(numbers),H,W,3] uint8 RGB.

        Raises:
            ValueError: a number is outside the clip.
            DecodeError: a frame cannot be decoded.
        """
        numbers = np.fromiter(map(index, numbers), np.int64)
        outside = numbers[(numbers < 0) | (numbers >= self.info.frames)]
        if len(outside):
            raise ValueError(
                f"{self.clip.clip}: expected frame numbers 0 to {self.info.frames - 1}, got "
                f"{outside[0]}"
            )
        distinct, position = np.unique(numbers, return_inverse=True)
        if not len(distinct):
            return np.empty((0, self.info.height, self.info.width, 3), np.uint8)

        # A clip may begin in the middle of its file.
        frames = self._decode((distinct + self.info.first).tolist())
        return frames if np.array_equal(distinct, numbers) else frames[position]

    @abstractmethod
    def _decode(self, numbers: list[int]) -> np.ndarray:
        """Return these frames of the file; the numbers are distinct and ascending."""

    def close(self) -> None:
        """Close the file."""
        self._video = None

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def decode_error(clip: Clip, reason: str) -> DecodeError:
    """Return the error for a clip that cannot be read."""
    return DecodeError(clip.clip, clip.path, reason)


def import_decoder(name: str):
    """Import a decoder's module when it is first needed.

    Raises:
        ValueError: it is not installed or does not load; the message says what to do.
    """
    try:
        return importlib.import_module(name)
    # torchcodec raises RuntimeError where FFmpeg's libraries are missing.
    except (ImportError, OSError, RuntimeError) as error:
        package = name.split(".")[0]
        libraries = " and FFmpeg's shared libraries" if package == "torchcodec" else ""
        others = ", ".join(decoder for decoder in DECODERS if package not in decoder)
        raise ValueError(
            f"decoder {package} does not load ({first_line(error)}): pip install "
            f"{package}{libraries}, or choose another ({others})"
        ) from None


def stated_fps(clip: Clip) -> float | None:
    """Return the frame rate in the manifest's column fps, None where the column is empty.

    Raises:
        DecodeError: the column holds no frame rate.
    """
    text = clip.extra.get("fps", "").strip()
    if not text:
        return None
    try:
        # Fraction would read 1_0 as ten.
        rate = float(Fraction(text.replace("_", " ")))
    except (ValueError, ZeroDivisionError, OverflowError):
        rate = 0.0
    if not (math.isfinite(rate) and rate > 0):
        raise decode_error(
            clip,
            "column fps: expected frames a second, such as 25 or 30000/1001, or nothing; got "
            f"{text!r}",
        )
    # Caches hold rates with nine decimals.
    return round(rate, 9)


def clip_info(clip: Clip, contents: StreamContents, size: tuple[int, int]) -> VideoInfo:
    """Describe the part of a file that a clip covers.

    Args:
        clip: `start` and `end` (seconds) cut it from the file; its column fps wins over the file.
        contents: the file's video stream.
        size: (width, height) of its frames on the screen.

    Raises:
        DecodeError: no frame lies between start and end.
    """
    first, frames = frames_of_clip(clip, contents.times, contents.until, contents.slack)
    fps = stated_fps(clip)
    if fps is None:
        fps = contents.fps
    width, height = size
    return VideoInfo(frames, fps, width, height, first, contents.until)


def frames_of_clip(
    clip: Clip, times: list[float], until: float, slack: float | None = None
) -> tuple[int, int]:
    """Return (number in the file of the clip's first frame, number of its frames).

    Raises:
        DecodeError: no frame lies between the clip's start and end.
    """
    try:
        return frames_between(times, until, clip.start, clip.end, slack)
    except ValueError as error:
        raise decode_error(clip, str(error)) from None


def beyond_end(clip: Clip, info: VideoInfo) -> str:
    """Say what looks wrong with a clip that ends after its file.

    Args:
        clip: a row of a manifest; `end` is in seconds.
        info: its video; `until` is the end of the file, in seconds.

    Returns:
        One line, which guesses the unit of `end` (frames, milliseconds). "" if the clip ends
        within the file or at most END_SLACK seconds after it.
    """
    latest = info.until + END_SLACK
    if clip.end is None or not info.until or clip.end <= latest:
        return ""
    message = (
        f"ends at {clip.end:g} s, {clip.end - info.until:.2f} s beyond the end of the video "
        f"({info.until:.2f} s); start and end are seconds"
    )
    if info.fps and clip.end / info.fps <= latest:
        return f"{message}: are these frame numbers, or milliseconds?"
    if clip.end / 1000 <= latest:
        return f"{message}: are these milliseconds?"
    return f"{message} in the file"
