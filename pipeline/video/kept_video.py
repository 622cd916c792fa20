"""A video that stays open in a process while one clip after the other is a window of it.

Reading the packets of a long video takes longer than decoding a window of it. `open_window` does so
once, and keeps the frames that were decoded last: where windows overlap, each frame is decoded
once. One video is kept at a time. The frames are those that a reader of the clip alone gives.
"""

import os
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.video.frame_reader import DecodeError, FrameReader, clip_info

# Bytes of decoded frames that a process keeps: 46 of 1280x720, 185 of 640x360.
KEPT_BYTES = 128 << 20


@dataclass
class _KeptVideo:
    """A video that is open, and its frames that were decoded last.

    Attributes:
        identity: its file, how it is opened, and the file's size and date.
        reader: reads the whole file.
        frames: frame number -> pixels [H,W,3], the latest last.
        bytes: of all `frames`.
    """

    identity: tuple
    reader: FrameReader
    frames: "OrderedDict[int, np.ndarray]" = field(default_factory=OrderedDict)
    bytes: int = 0

    def read(self, numbers: list[int]) -> np.ndarray:
        """Return frames of the file; the numbers are distinct and ascending."""
        missing = [number for number in numbers if number not in self.frames]
        decoded = self.reader._decode(missing) if missing else None
        if len(missing) == len(numbers):
            self._keep(numbers, decoded)
            return decoded

        new = {number: k for k, number in enumerate(missing)}
        frames = []
        for number in numbers:
            frames.append(decoded[new[number]] if number in new else self.frames[number])
        stacked = np.stack(frames)
        self._keep(numbers, stacked)
        return stacked

    def _keep(self, numbers: list[int], frames: np.ndarray) -> None:
        """Remember the last of some frames, as far as there is room."""
        if not len(frames):
            return
        most = KEPT_BYTES // frames[0].nbytes
        for number, pixels in list(zip(numbers, frames, strict=True))[-most:] if most else ():
            known = self.frames.pop(number, None)
            # A copy, because a part of an array would hold all of it.
            self.frames[number] = pixels.copy() if known is None else known
            if known is None:
                self.bytes += pixels.nbytes
        while self.bytes > KEPT_BYTES:
            _, pixels = self.frames.popitem(last=False)
            self.bytes -= pixels.nbytes

    def close(self) -> None:
        self.frames.clear()
        self.reader.close()


# At most one: that of the clips that this process works on.
_kept: list[_KeptVideo] = []


class WindowReader(FrameReader):
    """Reads a clip from a video that stays open."""

    def __init__(self, clip: Clip, video: _KeptVideo, again: bool):
        whole = video.reader.info
        info = clip_info(clip, video.reader.contents, (whole.width, whole.height))
        super().__init__(clip, info, video.reader.contents)
        self._kept, self._again = video, again

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            return self._kept.read(numbers)
        except DecodeError as error:
            raise type(error)(self.clip.clip, self.clip.path, error.reason) from None

    def close(self) -> None:
        """Close the video, unless the next clip is a window of it."""
        if not self._again:
            close_kept()


def open_window(
    clip: Clip, open_clip: Callable[[Clip], FrameReader], options: tuple, again: bool
) -> FrameReader:
    """Open a clip whose video may be open already.

    Args:
        clip: the clip.
        open_clip: opens a clip alone.
        options: what `open_clip` does beside the clip; another value opens the video anew.
        again: whether the next clip is of the same video, which then stays open.

    Returns:
        The reader; use it in a `with` statement.

    Raises:
        DecodeError: the clip cannot be read.
    """
    try:
        status = os.stat(clip.path)
    except OSError:
        return open_clip(clip)
    file = (status.st_dev, status.st_ino, status.st_size, status.st_mtime_ns)
    # The manifest may state another frame rate for each clip; it counts in the clip's own info.
    identity = (clip.place, file, options)
    if _kept and _kept[0].identity != identity:
        close_kept()
    if not _kept:
        if not again or os.path.isdir(clip.path):
            return open_clip(clip)
        _kept.append(_KeptVideo(identity, open_clip(replace(clip, start=None, end=None))))
    try:
        return WindowReader(clip, _kept[0], again)
    except DecodeError:
        # This window lies outside the video; the next one may not.
        if not again:
            close_kept()
        raise


def close_kept() -> None:
    """Close the video that is kept, if there is one."""
    while _kept:
        _kept.pop().close()
