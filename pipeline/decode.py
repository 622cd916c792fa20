"""Clip + frame numbers -> frames [K,H,W,3] uint8 RGB, upright. The only file that imports a video decoder.

Frame k of a file is the k-th that a player would show, in order of time. One pass over the container's packets (read, not
decoded) says how many there are, when each is shown, and whether the container holds what it promises: decord plays a file cut
short as a shorter one. The same pass says whether decord can be trusted to find a frame. It can if every key frame needs none
before it and has the same number in the file's order as in time. Else (open groups of pictures, as x265 makes by default; intra
refresh; B-frames in AVI, WMV, MPEG; edit lists) decord 0.6 returns neighbours or repeats frames, without a word, and PyAV
decodes instead. So it does when decord's FFmpeg logs an error: decord returns what the codec made up for damaged data, while
PyAV shows the codec's mark on such a frame. Where both decode, their frames are equal bit by bit (PyAV 18).
"""

import atexit
import ctypes
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, field
from fractions import Fraction
from functools import cache
from importlib import import_module
from operator import index
from pathlib import Path

import numpy as np

from pipeline.container import Contents, Packet, between, contents, starts_afresh
from pipeline.images import ENDINGS, MAX_PIXELS, frame_files, read_picture
from pipeline.manifest import Clip

# FFmpeg's names of what a clip's file may be. Among the others are lists of files (HLS, DASH, ffconcat) that it would follow
# anywhere, cameras, screens and text.
CONTAINERS = (
    "3g2,3gp,apng,asf,av1,avi,dirac,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,live_flv,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,"
    "mpegvideo,mxf,nsv,nut,obu,ogg,rm,vc1,vvc,wav,webm,wtv,yuv4mpegpipe"
)
END_SLACK = 0.5  # seconds by which a clip may end after its file: lists round


@dataclass(frozen=True)
class VideoInfo:
    """A clip as it will be read: `frames` it has, `fps` on average (0: unknown), `width` and `height` upright in pixels.

    `first` is the number in the file of the clip's frame 0; it is not 0 where the manifest's `start` cuts the clip. `until` is
    the second at which the file's last frame ends, 0 where that is unknown.
    """

    frames: int
    fps: float
    width: int
    height: int
    first: int = 0
    until: float = field(default=0.0, compare=False)


def beyond_end(clip: Clip, info: VideoInfo) -> str:
    """What looks wrong with a clip's `end` if it lies more than END_SLACK beyond the file's, in words; "" if nothing does."""
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


class Reader(ABC):
    """Frames of one clip by number. Built inside the process that uses it; `info` is known from the start."""

    def __init__(self, clip: Clip, info: VideoInfo):
        self.clip, self.info = clip, info

    def read(self, numbers: Iterable[int]) -> np.ndarray:
        """The frames [len,H,W,3] uint8 RGB at `numbers`, which count from `info.first`, in any order, repeats allowed.

        Each distinct frame is decoded once. ValueError for a number outside 0..frames-1, DecodeError if one cannot be decoded.
        """
        numbers = np.fromiter(map(index, numbers), np.int64)
        outside = numbers[(numbers < 0) | (numbers >= self.info.frames)]
        if len(outside):
            raise ValueError(f"{self.clip.clip}: expected frame numbers 0 to {self.info.frames - 1}, got {outside[0]}")
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

    def __enter__(self) -> "Reader":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


def open_clip(clip: Clip, decoder: str = "decord", allow_truncated: bool = False, frame_pattern: str = "") -> Reader:
    """A reader of the clip's file, or of its folder of frames (images in natural order: 2.jpg before 10.jpg).

    `decoder` is decord, pyav or torchcodec. `clip.start` and `clip.end` (seconds, None for the file's own) cut it to the frames
    that a player shows within [start, end). TruncatedVideo if the container promises more than it holds, unless
    `allow_truncated`; DecodeError for whatever else cannot be read; ValueError for a decoder that is unknown or not installed.
    Containers that promise nothing (MPEG-TS, live WebM) cannot be found truncated. Pixels are taken as square.
    `frame_pattern` chooses the pictures of a folder by their names (`images.frame_files`).
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
    path = Path(clip.path)
    try:
        if path.is_dir():
            return _FolderReader(clip, frame_pattern)
        if not path.is_file():
            hint = r"; its path has backslashes: write / between folders" if "\\" in path.name else ""
            raise _failed(clip, f"there is no such file{hint}")
    except OSError as error:
        raise _failed(clip, f"it cannot be read ({error.strerror})") from None
    held = scan(clip)
    if held.missing and not allow_truncated:
        raise TruncatedVideo(clip.clip, path, held.missing)
    if not held.times:
        raise _failed(clip, "no frame in it")
    return DECODERS[decoder](clip, held)


def _failed(clip: Clip, reason: str) -> DecodeError:
    return DecodeError(clip.clip, clip.path, reason)


def _open(clip: Clip):
    """PyAV's container and its video stream, to be decoded by one thread (several workers share the cores)."""
    import av

    try:
        # Titles in an unknown encoding are no reason to refuse a video.
        container = av.open(str(clip.path), metadata_errors="replace", container_options={"format_whitelist": CONTAINERS})
    except av.FFmpegError as error:
        raise _failed(clip, f"FFmpeg cannot open it: not a video, or cut short ({error.strerror})") from None
    stream = container.streams.best("video")
    if stream is None or stream.codec_context is None:
        container.close()
        raise _failed(
            clip, "no video stream in it" if stream is None else "no decoder for its video stream, or its header is cut short"
        )
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a frame may claim more than the container does
    return container, stream


def scan(clip: Clip) -> Contents:
    """Reads every packet once. DecodeError if the file does not open, or claims frames larger than MAX_PIXELS."""
    import av

    container, stream = _open(clip)
    with container:
        codec = stream.codec_context
        if not codec.width * codec.height:  # FFmpeg itself takes back sizes beyond its arithmetic
            raise _failed(clip, "it tells no frame size, or an impossible one")
        if codec.width * codec.height > MAX_PIXELS:
            raise _failed(clip, f"claims frames of {codec.width}x{codec.height} pixels; expected {MAX_PIXELS:,} pixels at most")
        packets, ends, stopped = [], {}, ""
        try:
            for packet in container.demux():
                if packet.size == 0:  # the end of a stream
                    continue
                which, stamp = packet.stream_index, packet.pts
                if stamp is not None:
                    end = stamp + (packet.duration or 0)
                    ends[which] = max(ends.get(which, end), end)
                if which == stream.index:
                    key = packet.is_keyframe
                    fresh = key and (codec.name != "h264" or starts_afresh(memoryview(packet), codec.extradata))
                    packets.append(Packet(stamp, key, fresh, packet.is_discard, packet.is_corrupt))
        except av.FFmpegError as error:
            stopped = f"reading stopped after {len(packets)} frames ({error.strerror})"
        ends = {which: end * float(container.streams[which].time_base) for which, end in ends.items()}
        return contents(container, stream, packets, ends, stopped)


def _within(clip: Clip, times: list[float], until: float) -> tuple[int, int]:
    """(number of the first frame, how many) of the clip's part of the file; DecodeError if it has none there."""
    try:
        return between(times, until, clip.start, clip.end)
    except ValueError as error:
        raise _failed(clip, str(error)) from None


def _info(clip: Clip, held: Contents, width: int, height: int) -> VideoInfo:
    first, frames = _within(clip, held.times, held.until)
    return VideoInfo(frames, held.fps, width, height, first, held.until)


class _PyavReader(Reader):
    """Decodes forward from the last key frame before the first frame asked for, telling frames by their time stamps."""

    def __init__(self, clip: Clip, held: Contents):
        import av

        self._held = held
        container, stream = _open(clip)
        with container:
            try:
                frame = next(container.decode(stream))
            except (av.FFmpegError, StopIteration) as error:
                reason = f"its first frame cannot be decoded ({getattr(error, 'strerror', 'no data')})"
                raise _failed(clip, reason) from None
        self._size = frame.width, frame.height
        self._turns = round(frame.rotation / 90) % 4  # quarter turns counter-clockwise
        width, height = self._size if self._turns % 2 == 0 else self._size[::-1]
        super().__init__(clip, _info(clip, held, width, height))

    def _decode(self, numbers: list[int]) -> np.ndarray:
        before = [stamp for number, stamp in self._held.keys if 0 < number <= numbers[0]]
        if before:
            try:
                return self._decode_from(before[-1], numbers)
            except DecodeError:
                pass  # some streams can only be joined at their start
        return self._decode_from(None, numbers)

    def _decode_from(self, stamp: int | None, numbers: list[int]) -> np.ndarray:
        """Decodes from the key frame with that time stamp, None for the start of the file.

        Opens the file anew: after a pass over a whole file, not every container finds back to its first frame.
        """
        import av

        frames = np.empty((len(numbers), self.info.height, self.info.width, 3), np.uint8)
        place = {number: k for k, number in enumerate(numbers)}
        container, stream = _open(self.clip)
        with container:
            try:
                if stamp is not None:
                    container.seek(stamp, stream=stream)
                for count, frame in enumerate(self._frames(container, stream)):
                    number = self._held.number.get(frame.pts) if self._held.number else count
                    if frame.is_corrupt:
                        raise _failed(self.clip, f"its data are damaged at frame {number}")
                    if number in place:
                        frames[place.pop(number)] = self._upright(frame)
                        if not place:
                            return frames
            except av.FFmpegError as error:
                raise _failed(self.clip, f"decoding stopped before frame {min(place)} ({error.strerror})") from None
        raise _failed(self.clip, f"frame {min(place)} cannot be decoded")

    def _frames(self, container, stream):
        for packet in container.demux(stream):
            if not (packet.is_corrupt and self._held.missing):  # the end of a file cut short, which was allowed
                yield from packet.decode()

    def _upright(self, frame) -> np.ndarray:
        """RGB [H,W,3] of the first frame's size, which a stream may change on its way."""
        width, height = self._size
        return np.rot90(frame.reformat(width=width, height=height, format="rgb24").to_ndarray(), self._turns)


def _decord_where_it_can_be_trusted(clip: Clip, held: Contents) -> Reader:
    """A _DecordReader, or a _PyavReader for what decord cannot open (AV1), cannot find its way in, or could not be heard on."""
    decord = _module("decord")
    if held.steady and _complaints() is not None:
        try:
            return _DecordReader(clip, held)
        except (decord.DECORDError, RuntimeError):
            pass
    return _PyavReader(clip, held)


class _DecordReader(Reader):
    """decord; asks a _PyavReader for a second opinion when its FFmpeg complains."""

    def __init__(self, clip: Clip, held: Contents):
        decord = _module("decord")
        self._held = held
        # The share of frames that decord may replace by an earlier one: none. It takes 0 itself for "any".
        self._video = decord.VideoReader(str(clip.path), num_threads=1, fault_tol=1e-6)
        height, width = self._video.get_batch([]).shape[1:3]
        super().__init__(clip, _info(clip, held, width, height))

    def _decode(self, numbers: list[int]) -> np.ndarray:
        decord, heard = _module("decord"), _complaints().heard
        heard.clear()
        try:
            frames = self._video.get_batch(numbers).asnumpy()
            if not heard:
                return frames
        except (decord.DECORDError, decord.DECORDLimitReachedError):
            pass
        return _PyavReader(self.clip, self._held)._decode(numbers)


class _Complaints:
    """What decord's own FFmpeg logs about damaged data; decord passes none of it on. `util` is its libavutil."""

    def __init__(self, util: ctypes.CDLL):
        self.heard: list[bytes] = []
        # av_log's callback: source, level, format, its values. Kept here, for FFmpeg does not keep it alive.
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(self._hear)
        util.av_log_set_callback(self._callback)
        atexit.register(util.av_log_set_callback, util.av_log_default_callback)

    def _hear(self, _source: int, level: int, words: bytes, _values: int) -> None:
        # Frames patched up by error concealment are announced at a level below errors.
        if level <= 16 or words.startswith(b"concealing"):  # AV_LOG_ERROR
            self.heard.append(words)


@cache
def _complaints() -> _Complaints | None:
    """The one listener of this process; None where decord's libavutil is not beside it, so that decord cannot be heard."""
    package = Path(_module("decord").__file__).parent
    found = [*package.parent.glob("decord.libs/libavutil*"), *package.rglob("libavutil*")]
    return _Complaints(ctypes.CDLL(str(found[0]))) if found else None


class _TorchcodecReader(Reader):
    """torchcodec. Damage that its FFmpeg conceals stays unseen."""

    def __init__(self, clip: Clip, held: Contents):
        decoders = _module("torchcodec.decoders")
        try:
            self._video = decoders.VideoDecoder(str(clip.path), dimension_order="NHWC", num_ffmpeg_threads=1, seek_mode="exact")
        except (RuntimeError, ValueError) as error:
            raise _failed(clip, f"torchcodec cannot open it ({_first_line(error)})") from None
        size = self._video.metadata
        super().__init__(clip, _info(clip, held, size.width, size.height))
        if len(self._video) < len(held.times) or (len(self._video) > len(held.times) and not held.missing):
            raise _failed(clip, f"torchcodec counts {len(self._video)} frames in it, FFmpeg {len(held.times)}; choose pyav")

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            return self._video.get_frames_at(numbers).data.numpy()
        except (RuntimeError, ValueError, IndexError) as error:
            raise _failed(self.clip, f"torchcodec stopped ({_first_line(error)})") from None


class _FolderReader(Reader):
    """A folder of images of one size. Its frame rate is the manifest's column `fps`, and 0 without one."""

    def __init__(self, clip: Clip, pattern: str = ""):
        self.clip = clip
        try:
            self._images = frame_files(clip.path, pattern)
        except ValueError as error:
            raise _failed(clip, str(error)) from None
        rate = (getattr(clip, "extra", None) or {}).get("fps", "")
        fps = float(rate) if re.fullmatch(r"\d+(\.\d+)?", rate) else 0.0
        if not self._images:
            raise _failed(self.clip, f"no image in the folder; expected frames such as 00001.jpg ({', '.join(ENDINGS)})")
        first, frames = 0, len(self._images)
        if clip.start or clip.end is not None:
            if not fps:
                raise _failed(self.clip, "start and end need the frame rate of the folder: add a column fps to the manifest")
            first, frames = _within(clip, [k / fps for k in range(frames)], frames / fps)
        height, width = self._pixels(self._images[0]).shape[:2]
        until = len(self._images) / fps if fps else 0.0
        super().__init__(clip, VideoInfo(frames, fps, width, height, first, until))

    def _decode(self, numbers: list[int]) -> np.ndarray:
        frames = np.empty((len(numbers), self.info.height, self.info.width, 3), np.uint8)
        for k, number in enumerate(numbers):
            pixels = self._pixels(self._images[number])
            if pixels.shape != frames.shape[1:]:
                expected, came = (f"{shape[1]}x{shape[0]}" for shape in (frames.shape[1:], pixels.shape))
                raise _failed(self.clip, f"{self._images[number].name}: expected {expected} pixels, got {came}")
            frames[k] = pixels
        return frames

    def _pixels(self, path: Path) -> np.ndarray:
        """One image [H,W,3] RGB, upright."""
        try:
            return read_picture(path)
        except (OSError, ValueError) as error:
            raise _failed(self.clip, f"{path.name}: {_first_line(error)}") from None


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _module(name: str):
    """A decoder's module, imported only when it is chosen."""
    try:
        return import_module(name)
    except (ImportError, OSError, RuntimeError) as error:  # torchcodec raises the last where FFmpeg's libraries are missing
        package = name.split(".")[0]
        advice = " and FFmpeg's shared libraries" if package == "torchcodec" else ""
        others = ", ".join(sorted(set(DECODERS) - {package}))
        cure = f"pip install {package}{advice}, or choose another ({others})"
        raise ValueError(f"decoder {package} does not load ({_first_line(error)}): {cure}") from None


DECODERS = {"decord": _decord_where_it_can_be_trusted, "pyav": _PyavReader, "torchcodec": _TorchcodecReader}


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Writes `frames` [F,H,W,3] uint8 RGB as an MP4 (H.264 where PyAV has it, else MPEG-4), close to the original.

    ValueError for another shape or dtype, no frame, odd height or width (both codecs halve the colours), or fps not above 0.
    """
    import av

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(f"{path}: expected frames [F,H,W,3] uint8, got {list(frames.shape)} {frames.dtype}")
    height, width = frames.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(f"{path}: expected an even height and width, got {height}x{width}; crop or pad by one pixel")
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: expected fps above 0, got {fps}")
    h264 = "libx264" in av.codecs_available
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream("libx264" if h264 else "mpeg4", rate=Fraction(fps).limit_denominator(60_000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = {"preset": "ultrafast", "crf": "12"} if h264 else {"qmin": "2", "qmax": "2"}
        stream.codec_context.thread_count = 1  # starting threads takes longer than encoding a small video
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
