"""Read a clip that is a folder of pictures, one per frame."""

from pathlib import Path

import numpy as np

from pipeline.manifests.folder_scan import PICTURES
from pipeline.manifests.manifest import Clip
from pipeline.text.printable import first_line
from pipeline.video.frame_reader import FrameReader, decode_error, frames_of_clip, stated_fps
from pipeline.video.pictures import frame_files, read_picture
from pipeline.views.video_info import VideoInfo


class FolderReader(FrameReader):
    """Reads a folder of pictures of one size.

    The frame rate is the manifest's column fps; 0 without one.
    """

    def __init__(self, clip: Clip, pattern: str = ""):
        self.clip = clip
        try:
            self._pictures = frame_files(clip.path, pattern)
        except ValueError as error:
            raise decode_error(clip, str(error)) from None
        if not self._pictures:
            suffixes = ", ".join(PICTURES)
            raise decode_error(
                clip, f"no image in the folder; expected frames such as 00001.jpg ({suffixes})"
            )

        fps = stated_fps(clip) or 0.0
        total = len(self._pictures)
        first, frames = 0, total
        if clip.start or clip.end is not None:
            if not fps:
                raise decode_error(
                    clip,
                    "start and end need the frame rate of the folder: add a column fps to the "
                    "manifest",
                )
            first, frames = frames_of_clip(clip, [k / fps for k in range(total)], total / fps)

        height, width = self._pixels(self._pictures[0]).shape[:2]
        until = total / fps if fps else 0.0
        super().__init__(clip, VideoInfo(frames, fps, width, height, first, until))

    def _decode(self, numbers: list[int]) -> np.ndarray:
        width, height = self.info.width, self.info.height
        frames = np.empty((len(numbers), height, width, 3), np.uint8)
        for k, number in enumerate(numbers):
            path = self._pictures[number]
            pixels = self._pixels(path)
            if pixels.shape != frames.shape[1:]:
                raise decode_error(
                    self.clip,
                    f"{path.name}: expected {width}x{height} pixels, got "
                    f"{pixels.shape[1]}x{pixels.shape[0]}",
                )
            frames[k] = pixels
        return frames

    def _pixels(self, path: Path) -> np.ndarray:
        """Return one picture [H,W,3] RGB, upright."""
        try:
            return read_picture(path)
        except (OSError, ValueError) as error:
            raise decode_error(self.clip, f"{path.name}: {first_line(error)}") from None
