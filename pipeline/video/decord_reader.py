"""Read frames with decord, and find out from its FFmpeg whether it can be believed.

decord returns what the codec made up for damaged data, and passes none of FFmpeg's messages on.
So this module listens to the log of decord's own FFmpeg. After a message, PyAV decodes instead.
"""

import atexit
import ctypes
import importlib
from functools import cache
from pathlib import Path

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.text.printable import first_line
from pipeline.video.frame_reader import FrameReader, clip_info, import_decoder
from pipeline.video.orientation import STRAIGHT, PictureShape, fit_all
from pipeline.video.pyav_reader import PyavReader
from pipeline.video.video_file import ScannedVideo

# FFmpeg's level of log messages about errors; more serious ones have a lower level.
_AV_LOG_ERROR = 16
# Messages at less serious levels that matter: frames repaired by error concealment, and frames of
# another size, which decord stretches to the first one's. The latter message is "Changing video
# frame properties on the fly" in other versions.
_WARNINGS = (b"concealing", b"Changing frame prop", b"Changing video frame")
# The fraction of frames that decord may replace by an earlier one: none. decord itself reads 0 as
# "any".
_REPLACED_FRAMES = 1e-6


class DecordReader(FrameReader):
    """Reads with decord; PyAV takes over when FFmpeg logs damage or a change of size."""

    def __init__(self, clip: Clip, video: ScannedVideo):
        decord = import_decoder("decord")
        self._scanned, self._log = video, ffmpeg_log()
        self._instead: PyavReader | None = None
        # decord decodes ahead: a later message may concern any frame of this file.
        self._log.messages.clear()
        self._video = decord.VideoReader(str(clip.path), num_threads=1, fault_tol=_REPLACED_FRAMES)
        height, width = self._video.get_batch([]).shape[1:3]
        if (width, height) != video.shape.oriented_size:
            raise RuntimeError(f"decord gives {width}x{height} pixels")
        info = clip_info(clip, video.contents, video.shape.display_size)
        super().__init__(clip, info, video.contents)

    def _decode(self, numbers: list[int]) -> np.ndarray:
        if self._instead is not None:
            return self._instead._decode(numbers)
        decord = import_decoder("decord")
        try:
            frames = self._video.get_batch(numbers).asnumpy()
            if not self._log.messages:
                return fit_all(frames, (self.info.width, self.info.height))
        except (decord.DECORDError, decord.DECORDLimitReachedError):
            pass
        # From now on PyAV decodes this file: nobody knows which frames the damage reaches.
        self._video, self._instead = None, PyavReader(self.clip, self._scanned)
        return self._instead._decode(numbers)


def open_decord(clip: Clip, video: ScannedVideo) -> FrameReader:
    """Open a clip with decord where that is safe, else with PyAV, which gives the same frames.

    PyAV decodes where decord is not installed, cannot open the file (AV1), loses count of frames,
    would read another track, does not turn the pictures, or converts colours differently.
    """
    usable = video.contents.countable and video.same_colours and video.alone
    if usable and _turns_correctly(video.shape) and not why_no_decord():
        decord = import_decoder("decord")
        try:
            return DecordReader(clip, video)
        except (decord.DECORDError, RuntimeError):
            pass
    return PyavReader(clip, video)


def _turns_correctly(shape: PictureShape | None) -> bool:
    """Return whether decord shows pictures upright, or in a size that reveals that it does not.

    decord reads the display matrix of the container, not that of the stream (a message of H.264
    and HEVC).
    """
    if shape is None:
        return False
    if shape.orientation == STRAIGHT:
        return True
    return shape.swaps_sides and shape.width != shape.height and not shape.mirrored


@cache
def why_no_decord() -> str:
    """Say why PyAV replaces decord in this process.

    Returns:
        The reason in words; "" where decord can be used.
    """
    try:
        importlib.import_module("decord")
    except ModuleNotFoundError as error:
        if error.name == "decord":
            return "not installed"
        return f"installed, but does not load: {first_line(error)}"
    except Exception as error:
        # A library for another machine or another FFmpeg raises all kinds of errors.
        return f"installed, but does not load: {first_line(error)}"
    if ffmpeg_log() is None:
        return "installed, but its FFmpeg is not beside it, so that its errors would not be heard"
    return ""


class FFmpegLog:
    """Collects what decord's own FFmpeg logs about damaged data and changes of size.

    Attributes:
        messages: the messages since somebody last cleared the list.
        version: the version of this FFmpeg.
    """

    def __init__(self, libavutil: ctypes.CDLL):
        self.messages: list[bytes] = []
        # av_log's callback takes: source, level, format, values. FFmpeg does not keep the object
        # alive, so this class does.
        callback_type = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
        )
        self._callback = callback_type(self._receive)
        libavutil.av_log_set_callback(self._callback)
        libavutil.av_version_info.restype = ctypes.c_char_p
        self.version = libavutil.av_version_info().decode(errors="replace")
        atexit.register(libavutil.av_log_set_callback, libavutil.av_log_default_callback)

    def _receive(self, _source: int, level: int, message: bytes, _values: int) -> None:
        if level <= _AV_LOG_ERROR or message.startswith(_WARNINGS):
            self.messages.append(message)


@cache
def ffmpeg_log() -> FFmpegLog | None:
    """Return the one log of this process, None where decord's libavutil is not beside it."""
    package = Path(import_decoder("decord").__file__).parent
    libraries = [*package.parent.glob("decord.libs/libavutil*"), *package.rglob("libavutil*")]
    return FFmpegLog(ctypes.CDLL(str(libraries[0]))) if libraries else None
