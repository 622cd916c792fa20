"""What a reader of frames gives, whoever decodes, and how it says that a clip cannot be read. Loads
no decoder.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterable
from operator import index
from pathlib import Path

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.views.video_info import VideoInfo

END_SLACK = 0.5  # seconds by which a clip may end after its file: lists round


def beyond_end(clip: Clip, info: VideoInfo) -> str:
    """What looks wrong with a clip's `end` if it lies more than END_SLACK beyond the file's, in
    words; "" if nothing does.
    """
    if clip.end is None or not info.until or clip.end <= info.until + END_SLACK:
        return ""
    said = f"ends at {clip.end:g} s, {clip.end - info.until:.2f} s beyond the end of the video ({info.until:.2f} s)"
    if info.fps and clip.end / info.fps <= info.until + END_SLACK:
        return f"{said}; start and end are seconds: are these frame numbers, or milliseconds?"
    if clip.end / 1000 <= info.until + END_SLACK:
        return f"{said}; start and end are seconds: are these milliseconds?"
    return f"{said}; start and end are seconds in the file"


class DecodeError(Exception):
    """A clip that cannot be read: its id, its path, and the reason in words. Pickles."""

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
    """Frames of one clip by number. Built inside the process that uses it; `info` is known from the
    start.
    """

    def __init__(self, clip: Clip, info: VideoInfo):
        self.clip, self.info = clip, info

    def read(self, numbers: Iterable[int]) -> np.ndarray:
        """The frames [len,H,W,3] uint8 RGB at `numbers`, which count from `info.first`, in any
        order, repeats allowed.

        Each distinct frame is decoded once. ValueError for a number outside 0..frames-1,
        DecodeError if one cannot be decoded.
        """
        numbers = np.fromiter(map(index, numbers), np.int64)
        outside = numbers[(numbers < 0) | (numbers >= self.info.frames)]
        if len(outside):
            raise ValueError(
                f"{self.clip.clip}: expected frame numbers 0 to {self.info.frames - 1}, got "
                f"{outside[0]}"
            )
        distinct, place = np.unique(numbers, return_inverse=True)
        if not len(distinct):
            return np.empty((0, self.info.height, self.info.width, 3), np.uint8)
        frames = self._decode((distinct + self.info.first).tolist())
        return frames if np.array_equal(distinct, numbers) else frames[place]

    @abstractmethod
    def _decode(self, numbers: list[int]) -> np.ndarray:
        """The frames of the file at `numbers`, distinct and ascending."""

    def close(self) -> None:
        """Lets go of the file."""
        self._video = None

    def __enter__(self) -> "FrameReader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def failed(clip: Clip, reason: str) -> DecodeError:
    return DecodeError(clip.clip, clip.path, reason)
