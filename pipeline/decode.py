"""Clip + frame numbers -> frames [K,H,W,3] uint8 RGB, as a player shows them. The only file that imports a video decoder.

Frame k of a file is the k-th that a player would show, in order of time. One pass over the container's packets (read, not
decoded) says how many there are, when each is shown, and whether the container holds what it promises: decord plays a file cut
short as a shorter one. The same pass says whether decord can be trusted to find a frame. It can if every key frame needs none
before it and has the same number in the file's order as in time. Else (open groups of pictures, as x265 makes by default; intra
refresh; B-frames in AVI, WMV, MPEG; edit lists) decord 0.6 returns neighbours or repeats frames, without a word, and PyAV
decodes instead. So it does when decord's FFmpeg logs an error: decord returns what the codec made up for damaged data, while
PyAV shows the codec's mark on such a frame. And where decord's old FFmpeg places colours half a line off (`same_colours` in
container.py), or decord is not installed: it has no wheels for ARM and for macOS.

Where both decode, their frames are equal bit by bit (PyAV 17 and later; PyAV 14 to 16 overlook BT.709). So "decord" in a
cache's configuration says which frames it holds, not which library read them. On another kind of CPU, FFmpeg itself rounds
colours differently, by up to 3 of 255 levels, whichever library calls it.

Frames are turned and mirrored as the display matrix says, and have square pixels (`pipeline.upright`). decord and torchcodec
only turn: what is mirrored, has several video tracks, or changes its size on the way is decoded by PyAV.
"""

import atexit
import ctypes
import math
import re
from abc import ABC, abstractmethod
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from fractions import Fraction
from functools import cache
from importlib import import_module
from operator import index
from pathlib import Path

import numpy as np

from pipeline.container import (
    Contents,
    Packet,
    between,
    contents,
    same_colours,
    shows_nothing,
    starts_afresh,
    stated_picture,
    stated_size,
)
from pipeline.images import ENDINGS, MAX_PIXELS, frame_files, orientation_of, read_picture
from pipeline.manifest import Clip
from pipeline.upright import EXIF_TURNS, PIXEL_ASPECTS, QUARTERS, STRAIGHT, Shape, Turn, fitted, turn_of, turned

# FFmpeg's names of what a clip's file may be. Among the others are lists of files (HLS, DASH, ffconcat) that it would follow
# anywhere, cameras, screens and text.
CONTAINERS = (
    "3g2,3gp,apng,asf,av1,avi,dirac,dv,flv,gif,gxf,h261,h263,h264,hevc,ivf,live_flv,m4v,matroska,mjpeg,mov,mp4,mpeg,mpegts,"
    "mpegvideo,mxf,nsv,nut,obu,ogg,rm,vc1,vvc,wav,webm,wtv,yuv4mpegpipe"
)
FIRST_PACKETS = 64  # of a stream, among which its first picture is
HEAD = 4096  # bytes at a file's begin that say how long it is
END_SLACK = 0.5  # seconds by which a clip may end after its file: lists round


@dataclass(frozen=True)
class VideoInfo:
    """A clip as it will be read: `frames` it has, `fps` on average (0: unknown), `width` and `height` as shown, in pixels.

    `fps` is the manifest's where it has a column `fps`, else frames by the seconds for which they are shown. `first` is the
    number in the file of the clip's frame 0; it is not 0 where the manifest's `start` cuts the clip. `until` is the second at
    which the file's last frame ends, 0 where that is unknown.
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


@dataclass(frozen=True)
class Held:
    """A video file as `scan` found it: what its packets say, which stream they are of, and how its pictures are shown.

    `shape` is None where the first picture cannot be decoded. `alone`: the file has no other video stream.
    """

    contents: Contents
    stream: int
    shape: Shape | None
    alone: bool


def open_clip(
    clip: Clip,
    decoder: str = "decord",
    allow_truncated: bool = False,
    pixel_aspect: str = "displayed",
    frame_pattern: str = "",
) -> Reader:
    """A reader of the clip's file, or of its folder of frames (images in natural order: 2.jpg before 10.jpg).

    `decoder` is decord (PyAV where decord is absent or not to be trusted), pyav or torchcodec. `clip.start` and `clip.end`
    (seconds, None for the file's own) cut it to the frames that a player shows within [start, end). TruncatedVideo if the
    container promises more than it holds, unless `allow_truncated`; DecodeError for whatever else cannot be read; ValueError
    for a decoder that is unknown or not installed. Containers that promise nothing (MPEG-TS, live WebM) cannot be found
    truncated. `pixel_aspect` "displayed" gives pixels that are not square the width that a player gives them; "stored" leaves
    every stored pixel as it is.
    `frame_pattern` chooses the pictures of a folder by their names (`images.frame_files`).
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
    if pixel_aspect not in PIXEL_ASPECTS:
        raise ValueError(f"pixel_aspect: expected one of {', '.join(PIXEL_ASPECTS)}, got {pixel_aspect!r}")
    clip = _with_rate(clip)
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
    if held.contents.missing and not allow_truncated:
        raise TruncatedVideo(clip.clip, path, held.contents.missing)
    if not held.contents.times:
        raise _failed(clip, "no frame in it")
    if held.shape and pixel_aspect == "stored":
        held = replace(held, shape=replace(held.shape, aspect=1.0))
    return DECODERS[decoder](clip, held)


def _with_rate(clip: Clip) -> Clip:
    """The clip with its column `fps` as a decimal number. DecodeError where it is no rate."""
    extra = getattr(clip, "extra", None) or {}
    text = extra.get("fps", "").strip()
    if not text:
        return clip
    try:
        rate = float(Fraction(text.replace("_", " ")))  # Fraction reads 1_0 as ten
    except (ValueError, ZeroDivisionError, OverflowError):
        rate = 0.0
    if not (math.isfinite(rate) and rate > 0):
        raise _failed(clip, f"column fps: expected frames a second, such as 25 or 30000/1001, or nothing; got {text!r}")
    return replace(clip, extra={**extra, "fps": f"{rate:.9f}"})


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
    stream, pictures = _video_stream(container)
    if stream is None or stream.codec_context is None:
        container.close()
        if stream is None:
            reason = "no video stream in it, only a cover picture" if pictures else "no video stream in it"
        else:
            reason = "no decoder for its video stream, or its header is cut short"
        raise _failed(clip, reason)
    stream.codec_context.thread_count = 1
    stream.codec_context.options = {"max_pixels": str(MAX_PIXELS)}  # a frame may claim more than the container does
    return container, stream


def _video_stream(container) -> tuple:
    """(the video stream that a player shows, or None; how many pictures are attached, such as a cover)."""
    from av.stream import Disposition

    films = [stream for stream in container.streams.video if not stream.disposition & Disposition.attached_pic]
    best = container.streams.best("video")
    if best is not None and best.disposition & Disposition.attached_pic:
        best = next((stream for stream in films if stream.disposition & Disposition.default), films[0] if films else None)
    return best, len(container.streams.video) - len(films)


def scan(clip: Clip) -> Held:
    """Reads every packet once. DecodeError if the file does not open, or claims frames larger than MAX_PIXELS."""
    import av

    container, stream = _open(clip)
    with container:
        codec = stream.codec_context
        if not codec.width * codec.height:  # FFmpeg itself takes back sizes beyond its arithmetic
            raise _failed(clip, "it tells no frame size, or an impossible one")
        if codec.width * codec.height > MAX_PIXELS:
            raise _failed(clip, f"claims frames of {codec.width}x{codec.height} pixels; expected {MAX_PIXELS:,} pixels at most")
        packets, begins, ends, stopped, first = [], {}, {}, "", _First(clip, stream)
        try:
            for packet in container.demux():
                if packet.size == 0:  # the end of a stream
                    continue
                which, stamp = packet.stream_index, packet.pts
                if stamp is not None:
                    end = stamp + (packet.duration or 0)
                    begins.setdefault(which, stamp)
                    ends[which] = max(ends.get(which, end), end)
                if which == stream.index:
                    packets.append(_described(packet, codec))
                    first.look(packet)
        except av.FFmpegError as error:
            stopped = f"reading stopped after {len(packets)} frames ({error.strerror})"
        seconds = {which: float(container.streams[which].time_base) for which in ends}
        begins = {which: begin * seconds[which] for which, begin in begins.items()}
        ends = {which: end * seconds[which] for which, end in ends.items()}
        held = contents(container, stream, packets, ends, stopped, _is_whole(clip), begins)
        held = replace(held, same_colours=same_colours(codec))
        return Held(held, stream.index, first.shape, len(container.streams.video) == 1)


def _described(packet, codec) -> Packet:
    """What `contents` looks at of one of PyAV's packets."""
    key, data = packet.is_keyframe, memoryview(packet)
    fresh = key and (codec.name != "h264" or starts_afresh(data, codec.extradata))
    hidden = packet.is_discard or shows_nothing(codec.name, data)
    return Packet(packet.pts, key, fresh, hidden, packet.is_corrupt, packet.dts, packet.duration or 0)


def _is_whole(clip: Clip) -> bool:
    """Whether the file says how many bytes it has, and has them."""
    with suppress(OSError), open(clip.path, "rb") as file:
        size = stated_size(file.read(HEAD))
        return size is not None and file.seek(0, 2) >= size
    return False


class _First:
    """Decodes the first packets of a stream until there is a picture, for what it says about how it is shown."""

    def __init__(self, clip: Clip, stream):
        self.clip, self.stream, self.left, self.shape = clip, stream, FIRST_PACKETS, None

    def look(self, packet) -> None:
        """Takes the next packet of the stream."""
        import av

        if not self.left or not (packet.is_keyframe or self.left < FIRST_PACKETS):
            return
        self.left -= 1
        try:
            for frame in packet.decode():
                known = _exif_turn(packet) if self.stream.codec_context.name == "mjpeg" else None
                self.shape, self.left = _shape(self.clip, frame, _aspect(self.stream), known), 0
                return
        except av.FFmpegError:
            self.left = 0  # whoever decodes says why


def _exif_turn(packet) -> Turn | None:
    """The turn that a JPEG's own metadata ask for, None where they ask for none."""
    return EXIF_TURNS.get(orientation_of(bytes(packet)))


def _shape(clip: Clip, frame, aspect: float, known: Turn | None = None) -> Shape:
    """How one of PyAV's frames is shown: by its matrix, or by the turn that is `known` where PyAV cannot tell.

    DecodeError for a matrix or an aspect that nothing can be shown by.
    """
    try:
        matrix = frame.side_data.get("DISPLAYMATRIX")
    except ValueError:  # PyAV refuses all of a frame's side data if one of them is of a kind that it does not know
        turn = known or QUARTERS[round(frame.rotation / 90) % 4]
    else:
        try:
            turn = turn_of(bytes(matrix) if matrix is not None else None)
        except ValueError as error:
            raise _failed(clip, str(error)) from None
    shape = Shape(frame.width, frame.height, turn, aspect)
    width, height = shape.shown
    if not 1 <= width * height <= MAX_PIXELS:
        raise _failed(clip, f"claims pixels {aspect:g} times as wide as high: {width}x{height} pixels on the screen")
    return shape


def _aspect(stream) -> float:
    """Width by height of a stored pixel: the container's word, else the codec's; 1 where neither says anything."""
    return float(stream.sample_aspect_ratio or 0) or 1.0


def _within(clip: Clip, times: list[float], until: float, slack: float | None = None) -> tuple[int, int]:
    """(number of the first frame, how many) of the clip's part of the file; DecodeError if it has none there."""
    try:
        return between(times, until, clip.start, clip.end, slack)
    except ValueError as error:
        raise _failed(clip, str(error)) from None


def _info(clip: Clip, held: Contents, size: tuple[int, int]) -> VideoInfo:
    first, frames = _within(clip, held.times, held.until, held.slack)
    rate = (getattr(clip, "extra", None) or {}).get("fps", "").strip()
    return VideoInfo(frames, float(rate) if rate else held.fps, *size, first, held.until)


class _PyavReader(Reader):
    """Decodes forward from the last key frame before the first frame asked for.

    Frames are told by their time stamps, or by the packets that they come from where several recordings share one clock.
    """

    def __init__(self, clip: Clip, held: Held):
        self._held = held.contents
        self._shape = held.shape or _first_shape(clip)
        self._size = self._shape.shown
        super().__init__(clip, _info(clip, self._held, self._size))

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
                for count, (frame, aspect) in enumerate(self._frames(container, stream)):
                    number = self._number(frame.pts, count)
                    if frame.is_corrupt and (number is None or number >= 0):
                        raise _failed(self.clip, f"its data are damaged at frame {number}")
                    if number in place:
                        frames[place.pop(number)] = self._upright(frame, aspect)
                        if not place:
                            return frames
            except av.FFmpegError as error:
                raise _failed(self.clip, f"decoding stopped before frame {min(place)} ({error.strerror})") from None
        raise _failed(self.clip, f"frame {min(place)} cannot be decoded")

    def _number(self, stamp: int | None, count: int) -> int | None:
        """The number of the frame with this time stamp, which is the `count`-th to be decoded."""
        if self._held.number:
            return self._held.number.get(stamp)
        if self._held.places:
            return self._held.places[stamp] if stamp is not None and stamp < len(self._held.places) else -1
        return count

    def _frames(self, container, stream):
        """(frame, its aspect): decoded from one recording after the other, where there are several."""
        held, codec, shown = self._held, stream.codec_context, _aspect(stream)
        by_codec = abs(shown - float(codec.sample_aspect_ratio or 1)) < 1e-6  # else the container says it, for all frames
        aspects: dict[int | None, float] = {}
        size = b""
        count = 0  # of packets, as `scan` counts them
        for packet in container.demux(stream):
            if packet.size:
                k, count = count, count + 1
                # FFmpeg's decoder of MPEG-2 forgets the frame that it still holds when the size changes.
                before, size = size, stated_picture(codec.name, memoryview(packet)) or size
                if k in held.joints or (before and before != size):
                    yield from ((frame, aspects.pop(frame.pts, shown)) for frame in codec.decode(None))
                    codec.flush_buffers()
                # Of a file cut short, which was allowed, the last packet is not whole.
                if k in held.unfed or (packet.is_corrupt and held.missing):
                    continue
                if held.places:
                    packet.pts = k
            pts = packet.pts
            decoded = packet.decode()
            if by_codec and pts is not None:
                aspects[pts] = float(codec.sample_aspect_ratio or 1)
            yield from ((frame, aspects.pop(frame.pts, shown)) for frame in decoded)

    def _upright(self, frame, aspect: float) -> np.ndarray:
        """RGB [H,W,3] as it is shown, at the size of the clip's first picture, which a stream may change on its way."""
        if self._shape.aspect == 1.0:
            aspect = 1.0
        shape = _shape(self.clip, frame, aspect, self._shape.turn)
        pixels = turned(frame.reformat(format="rgb24").to_ndarray(), shape.turn)
        return fitted(pixels, shape.shown, self._size)


def _first_shape(clip: Clip) -> Shape:
    """How the first picture of a file is shown. DecodeError if it cannot be decoded."""
    import av

    container, stream = _open(clip)
    with container:
        try:
            frame = next(container.decode(stream))
        except (av.FFmpegError, StopIteration) as error:
            reason = f"its first frame cannot be decoded ({getattr(error, 'strerror', 'no data')})"
            raise _failed(clip, reason) from None
        return _shape(clip, frame, _aspect(stream))


def _decord_where_it_can_be_trusted(clip: Clip, held: Held) -> Reader:
    """A _DecordReader; a _PyavReader, with the same frames, where decord is of no use.

    That is where it is not installed, cannot open the file (AV1), cannot find its way in it, reads another track, does not
    turn its pictures, or has other colours.
    """
    told = held.contents
    if told.steady and told.same_colours and held.alone and _decord_turns(held.shape) and not why_no_decord():
        decord = _module("decord")
        try:
            return _DecordReader(clip, held)
        except (decord.DECORDError, RuntimeError):
            pass
    return _PyavReader(clip, held)


@cache
def why_no_decord() -> str:
    """Why this process decodes with PyAV what it would decode with decord, in words; "" where decord is of use."""
    try:
        import_module("decord")
    except ModuleNotFoundError as error:
        if error.name == "decord":
            return "not installed"
        return f"installed, but does not load: {_first_line(error)}"
    except Exception as error:  # a library for another machine or of another FFmpeg raises whatever it likes
        return f"installed, but does not load: {_first_line(error)}"
    if _complaints() is None:
        return "installed, but its FFmpeg is not beside it, so that its errors would not be heard"
    return ""


def ffmpeg_versions() -> dict[str, str]:
    """The FFmpeg that each decoder which loads here brings with it: name -> version."""
    found = {}
    with suppress(Exception):  # whatever a broken build raises, it is named elsewhere
        av = import_module("av")
        parts = (
            f"{name} {'.'.join(map(str, av.library_versions[name]))}" for name in ("libavcodec", "libavformat", "libswscale")
        )
        found["PyAV"] = f"{av.ffmpeg_version_info} ({', '.join(parts)})"
    if not why_no_decord():
        found["decord"] = _complaints().version
    return found


def _decord_turns(shape: Shape | None) -> bool:
    """Whether decord shows pictures of this shape upright, or in a size that gives it away.

    It knows the matrix of the container, not that of the stream (a message of H.264 and HEVC).
    """
    return shape is not None and (
        shape.turn == STRAIGHT or (shape.turn[1] != 0 and shape.width != shape.height and not shape.mirrored)
    )


class _DecordReader(Reader):
    """decord; a _PyavReader takes over when its FFmpeg complains, or gives pictures of another size than the first."""

    def __init__(self, clip: Clip, held: Held):
        decord = _module("decord")
        self._held, self._complaints = held, _complaints()
        self._complaints.heard.clear()  # decord decodes ahead: what it says later may be about any frame of this file
        # The share of frames that decord may replace by an earlier one: none. It takes 0 itself for "any".
        self._video = decord.VideoReader(str(clip.path), num_threads=1, fault_tol=1e-6)
        height, width = self._video.get_batch([]).shape[1:3]
        if (width, height) != held.shape.upright:
            raise RuntimeError(f"decord gives {width}x{height} pixels")
        super().__init__(clip, _info(clip, held.contents, held.shape.shown))

    def _decode(self, numbers: list[int]) -> np.ndarray:
        decord = _module("decord")
        try:
            frames = self._video.get_batch(numbers).asnumpy()
            if not self._complaints.heard:
                size = self.info.width, self.info.height
                if frames.shape[2:0:-1] == size:
                    return frames
                return np.stack([fitted(pixels, size, size) for pixels in frames])
        except (decord.DECORDError, decord.DECORDLimitReachedError):
            pass
        return _PyavReader(self.clip, self._held)._decode(numbers)


class _Complaints:
    """What decord's own FFmpeg logs about damaged data and sizes; decord passes none of it on. `util` is its libavutil."""

    def __init__(self, util: ctypes.CDLL):
        self.heard: list[bytes] = []
        # av_log's callback: source, level, format, its values. Kept here, for FFmpeg does not keep it alive.
        self._callback = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p)(self._hear)
        util.av_log_set_callback(self._callback)
        util.av_version_info.restype = ctypes.c_char_p
        self.version = util.av_version_info().decode(errors="replace")
        atexit.register(util.av_log_set_callback, util.av_log_default_callback)

    def _hear(self, _source: int, level: int, words: bytes, _values: int) -> None:
        # Frames patched up by error concealment, and frames of another size, which decord stretches to that of the first, are
        # announced at levels below errors. The latter is "Changing video frame properties on the fly" in other versions.
        if level <= 16 or words.startswith((b"concealing", b"Changing frame prop", b"Changing video frame")):  # AV_LOG_ERROR
            self.heard.append(words)


@cache
def _complaints() -> _Complaints | None:
    """The one listener of this process; None where decord's libavutil is not beside it, so that decord cannot be heard."""
    package = Path(_module("decord").__file__).parent
    found = [*package.parent.glob("decord.libs/libavutil*"), *package.rglob("libavutil*")]
    return _Complaints(ctypes.CDLL(str(found[0]))) if found else None


def _torchcodec_where_it_can_be_trusted(clip: Clip, held: Held) -> Reader:
    """A _TorchcodecReader, or a _PyavReader for what torchcodec does not show as a player does: mirrored, or joined."""
    decoders = _module("torchcodec.decoders")
    shape = held.shape
    if held.contents.plain and shape and not shape.mirrored:
        reader = _TorchcodecReader(clip, held, decoders)
        if reader.turns == (shape.turn != STRAIGHT):
            return reader
    return _PyavReader(clip, held)


class _TorchcodecReader(Reader):
    """torchcodec; a _PyavReader takes over where it stops, as at a change of size. Damage that FFmpeg conceals stays unseen."""

    def __init__(self, clip: Clip, held: Held, decoders):
        options = {"dimension_order": "NHWC", "num_ffmpeg_threads": 1, "seek_mode": "exact", "stream_index": held.stream}
        try:
            self._video = decoders.VideoDecoder(str(clip.path), **options)
        except (RuntimeError, ValueError) as error:
            raise _failed(clip, f"torchcodec cannot open it ({_first_line(error)})") from None
        self._held = held
        super().__init__(clip, _info(clip, held.contents, held.shape.shown))
        self.turns = bool(self._video.metadata.rotation)  # by the container's matrix, the only one that it knows
        promised, missing = len(held.contents.times), held.contents.missing
        if len(self._video) < promised or (len(self._video) > promised and not missing):
            raise _failed(clip, f"torchcodec counts {len(self._video)} frames in it, FFmpeg {promised}; choose pyav")

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            frames = self._video.get_frames_at(numbers).data.numpy()
        except (RuntimeError, ValueError, IndexError):
            return _PyavReader(self.clip, self._held)._decode(numbers)
        size = self.info.width, self.info.height
        return frames if frames.shape[2:0:-1] == size else np.stack([fitted(pixels, size, size) for pixels in frames])


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


DECODERS = {"decord": _decord_where_it_can_be_trusted, "pyav": _PyavReader, "torchcodec": _torchcodec_where_it_can_be_trusted}


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
