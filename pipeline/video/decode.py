"""Clip + frame numbers -> frames [K,H,W,3] uint8 RGB, as a player shows them.

Only this file and video_file.py import a video decoder.

Frame k of a file is the k-th that a player would show, in order of time. One pass over the
container's packets (read, not decoded; video_file.py) says how many there are, when each is shown,
and whether the container holds what it promises: decord plays a file cut short as a shorter one.
The same pass says whether decord can be trusted to find a frame. It can if every key frame needs
none before it and has the same number in the file's order as in time. Else (open groups of
pictures, as x265 makes by default; intra refresh; B-frames in AVI, WMV, MPEG; edit lists) decord
0.6 returns neighbours or repeats frames, without a word, and PyAV decodes instead. So it does when
decord's FFmpeg logs an error: decord returns what the codec made up for damaged data, while PyAV
shows the codec's mark on such a frame. And where decord's old FFmpeg places colours half a line off
(`same_colours` in container.py), or decord is not installed: it has no wheels for ARM and for
macOS.

Where both decode, their frames are equal bit by bit (PyAV 17 and later; PyAV 14 to 16 overlook
BT.709). So "decord" in a cache's configuration says which frames it holds, not which library read
them. On another kind of CPU, FFmpeg itself rounds colours differently, by up to 3 of 255 levels,
whichever library calls it.

Frames are turned and mirrored as the display matrix says, and have square pixels
(`pipeline.video.orientation`). decord and torchcodec only turn: what is mirrored, has several video
tracks, or changes its size on the way is decoded by PyAV.
"""

import atexit
import ctypes
import math
import re
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from functools import cache
from importlib import import_module
from pathlib import Path

import numpy as np

from pipeline.manifests.folder_scan import PICTURES
from pipeline.manifests.manifest import Clip
from pipeline.text.printable import first_line
from pipeline.video.frame_reader import DecodeError, FrameReader, TruncatedVideo, failed
from pipeline.video.orientation import PIXEL_ASPECTS, STRAIGHT, PictureShape, fitted, turned
from pipeline.video.packets import StreamContents, between, stated_picture
from pipeline.video.pictures import frame_files, read_picture
from pipeline.video.video_file import (
    ScannedVideo,
    aspect_of,
    first_shape,
    open_video,
    scan,
    shape_of,
)
from pipeline.views.video_info import VideoInfo


def open_clip(
    clip: Clip,
    decoder: str = "decord",
    allow_truncated: bool = False,
    pixel_aspect: str = "displayed",
    frame_pattern: str = "",
) -> FrameReader:
    """A reader of the clip's file, or of its folder of frames (images in natural order: 2.jpg
    before 10.jpg).

    `decoder` is decord (PyAV where decord is absent or not to be trusted), pyav or torchcodec.
    `clip.start` and `clip.end` (seconds, None for the file's own) cut it to the frames that a
    player shows within [start, end). TruncatedVideo if the container promises more than it holds,
    unless `allow_truncated`; DecodeError for whatever else cannot be read; ValueError for a decoder
    that is unknown or not installed. Containers that promise nothing (MPEG-TS, live WebM) cannot be
    found truncated. `pixel_aspect` "displayed" gives pixels that are not square the width that a
    player gives them; "stored" leaves every stored pixel as it is. `frame_pattern` chooses the
    pictures of a folder by their names (`images.frame_files`).
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
    if pixel_aspect not in PIXEL_ASPECTS:
        raise ValueError(
            f"pixel_aspect: expected one of {', '.join(PIXEL_ASPECTS)}, got {pixel_aspect!r}"
        )
    clip = _with_rate(clip)
    path = Path(clip.path)
    try:
        if path.is_dir():
            return _FolderReader(clip, frame_pattern)
        if not path.is_file():
            hint = (
                r"; its path has backslashes: write / between folders" if "\\" in path.name else ""
            )
            raise failed(clip, f"there is no such file{hint}")
    except OSError as error:
        raise failed(clip, f"it cannot be read ({error.strerror})") from None
    held = scan(clip)
    if held.contents.missing and not allow_truncated:
        raise TruncatedVideo(clip.clip, path, held.contents.missing)
    if not held.contents.times:
        raise failed(clip, "no frame in it")
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
        raise failed(
            clip,
            f"column fps: expected frames a second, such as 25 or 30000/1001, or nothing; got "
            f"{text!r}",
        )
    return replace(clip, extra={**extra, "fps": f"{rate:.9f}"})


def _within(
    clip: Clip, times: list[float], until: float, slack: float | None = None
) -> tuple[int, int]:
    """(number of the first frame, how many) of the clip's part of the file; DecodeError if it has
    none there.
    """
    try:
        return between(times, until, clip.start, clip.end, slack)
    except ValueError as error:
        raise failed(clip, str(error)) from None


def _info(clip: Clip, held: StreamContents, size: tuple[int, int]) -> VideoInfo:
    first, frames = _within(clip, held.times, held.until, held.slack)
    rate = (getattr(clip, "extra", None) or {}).get("fps", "").strip()
    return VideoInfo(frames, float(rate) if rate else held.fps, *size, first, held.until)


class _PyavReader(FrameReader):
    """Decodes forward from the last key frame before the first frame asked for.

    Frames are told by their time stamps, or by the packets that they come from where several
    recordings share one clock.
    """

    def __init__(self, clip: Clip, held: ScannedVideo):
        self._held = held.contents
        self._shape = held.shape or first_shape(clip)
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

        Opens the file anew: after a pass over a whole file, not every container finds back to its
        first frame.
        """
        import av

        frames = np.empty((len(numbers), self.info.height, self.info.width, 3), np.uint8)
        place = {number: k for k, number in enumerate(numbers)}
        container, stream = open_video(self.clip)
        with container:
            try:
                if stamp is not None:
                    container.seek(stamp, stream=stream)
                for count, (frame, aspect) in enumerate(self._frames(container, stream)):
                    number = self._number(frame.pts, count)
                    if frame.is_corrupt and (number is None or number >= 0):
                        raise failed(self.clip, f"its data are damaged at frame {number}")
                    if number in place:
                        frames[place.pop(number)] = self._upright(frame, aspect)
                        if not place:
                            return frames
            except av.FFmpegError as error:
                raise failed(
                    self.clip, f"decoding stopped before frame {min(place)} ({error.strerror})"
                ) from None
        raise failed(self.clip, f"frame {min(place)} cannot be decoded")

    def _number(self, stamp: int | None, count: int) -> int | None:
        """The number of the frame with this time stamp, which is the `count`-th to be decoded."""
        if self._held.number:
            return self._held.number.get(stamp)
        if self._held.places:
            return (
                self._held.places[stamp]
                if stamp is not None and stamp < len(self._held.places)
                else -1
            )
        return count

    def _frames(self, container, stream):
        """(frame, its aspect): decoded from one recording after the other, where there are
        several.
        """
        held, codec, shown = self._held, stream.codec_context, aspect_of(stream)
        by_codec = (
            abs(shown - float(codec.sample_aspect_ratio or 1)) < 1e-6
        )  # else the container says it, for all frames
        aspects: dict[int | None, float] = {}
        size = b""
        count = 0  # of packets, as `scan` counts them
        for packet in container.demux(stream):
            if packet.size:
                k, count = count, count + 1
                # FFmpeg's decoder of MPEG-2 forgets the frame that it still holds when the size
                # changes.
                before, size = size, stated_picture(codec.name, memoryview(packet)) or size
                if k in held.joints or (before and before != size):
                    yield from (
                        (frame, aspects.pop(frame.pts, shown)) for frame in codec.decode(None)
                    )
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
        """RGB [H,W,3] as it is shown, at the size of the clip's first picture, which a stream may
        change on its way.
        """
        if self._shape.aspect == 1.0:
            aspect = 1.0
        shape = shape_of(self.clip, frame, aspect, self._shape.turn)
        pixels = turned(frame.reformat(format="rgb24").to_ndarray(), shape.turn)
        return fitted(pixels, shape.shown, self._size)


def _decord_where_it_can_be_trusted(clip: Clip, held: ScannedVideo) -> FrameReader:
    """A _DecordReader; a _PyavReader, with the same frames, where decord is of no use.

    That is where it is not installed, cannot open the file (AV1), cannot find its way in it, reads
    another track, does not turn its pictures, or has other colours.
    """
    told = held.contents
    if (
        told.steady
        and told.same_colours
        and held.alone
        and _decord_turns(held.shape)
        and not why_no_decord()
    ):
        decord = _module("decord")
        try:
            return _DecordReader(clip, held)
        except (decord.DECORDError, RuntimeError):
            pass
    return _PyavReader(clip, held)


@cache
def why_no_decord() -> str:
    """Why this process decodes with PyAV what it would decode with decord, in words; "" where
    decord is of use.
    """
    try:
        import_module("decord")
    except ModuleNotFoundError as error:
        if error.name == "decord":
            return "not installed"
        return f"installed, but does not load: {first_line(error)}"
    except (
        Exception
    ) as error:  # a library for another machine or of another FFmpeg raises whatever it likes
        return f"installed, but does not load: {first_line(error)}"
    if _complaints() is None:
        return "installed, but its FFmpeg is not beside it, so that its errors would not be heard"
    return ""


def ffmpeg_versions() -> dict[str, str]:
    """The FFmpeg that each decoder which loads here brings with it: name -> version."""
    found = {}
    with suppress(Exception):  # whatever a broken build raises, it is named elsewhere
        av = import_module("av")
        parts = (
            f"{name} {'.'.join(map(str, av.library_versions[name]))}"
            for name in ("libavcodec", "libavformat", "libswscale")
        )
        found["PyAV"] = f"{av.ffmpeg_version_info} ({', '.join(parts)})"
    if not why_no_decord():
        found["decord"] = _complaints().version
    return found


def _decord_turns(shape: PictureShape | None) -> bool:
    """Whether decord shows pictures of this shape upright, or in a size that gives it away.

    It knows the matrix of the container, not that of the stream (a message of H.264 and HEVC).
    """
    return shape is not None and (
        shape.turn == STRAIGHT
        or (shape.turn[1] != 0 and shape.width != shape.height and not shape.mirrored)
    )


class _DecordReader(FrameReader):
    """decord; a _PyavReader takes over when its FFmpeg complains, or gives pictures of another size
    than the first.
    """

    def __init__(self, clip: Clip, held: ScannedVideo):
        decord = _module("decord")
        self._held, self._complaints = held, _complaints()
        # decord decodes ahead: what it says later may be about any frame of this file
        self._complaints.heard.clear()
        # The share of frames that decord may replace by an earlier one: none. It takes 0 itself for
        # "any".
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
    """What decord's own FFmpeg logs about damaged data and sizes; decord passes none of it on.
    `util` is its libavutil.
    """

    def __init__(self, util: ctypes.CDLL):
        self.heard: list[bytes] = []
        # av_log's callback: source, level, format, its values. Kept here, for FFmpeg does not keep
        # it alive.
        self._callback = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_int, ctypes.c_char_p, ctypes.c_void_p
        )(self._hear)
        util.av_log_set_callback(self._callback)
        util.av_version_info.restype = ctypes.c_char_p
        self.version = util.av_version_info().decode(errors="replace")
        atexit.register(util.av_log_set_callback, util.av_log_default_callback)

    def _hear(self, _source: int, level: int, words: bytes, _values: int) -> None:
        # Frames patched up by error concealment, and frames of another size, which decord stretches
        # to that of the first, are announced at levels below errors. The latter is "Changing video
        # frame properties on the fly" in other versions.
        if level <= 16 or words.startswith(
            (b"concealing", b"Changing frame prop", b"Changing video frame")
        ):  # AV_LOG_ERROR
            self.heard.append(words)


@cache
def _complaints() -> _Complaints | None:
    """The one listener of this process; None where decord's libavutil is not beside it, so that
    decord cannot be heard.
    """
    package = Path(_module("decord").__file__).parent
    found = [*package.parent.glob("decord.libs/libavutil*"), *package.rglob("libavutil*")]
    return _Complaints(ctypes.CDLL(str(found[0]))) if found else None


def _torchcodec_where_it_can_be_trusted(clip: Clip, held: ScannedVideo) -> FrameReader:
    """A _TorchcodecReader, or a _PyavReader for what torchcodec does not show as a player does:
    mirrored, or joined.
    """
    decoders = _module("torchcodec.decoders")
    shape = held.shape
    if held.contents.plain and shape and not shape.mirrored:
        reader = _TorchcodecReader(clip, held, decoders)
        if reader.turns == (shape.turn != STRAIGHT):
            return reader
    return _PyavReader(clip, held)


class _TorchcodecReader(FrameReader):
    """torchcodec; a _PyavReader takes over where it stops, as at a change of size. Damage that
    FFmpeg conceals stays unseen.
    """

    def __init__(self, clip: Clip, held: ScannedVideo, decoders):
        options = {
            "dimension_order": "NHWC",
            "num_ffmpeg_threads": 1,
            "seek_mode": "exact",
            "stream_index": held.stream,
        }
        try:
            self._video = decoders.VideoDecoder(str(clip.path), **options)
        except (RuntimeError, ValueError) as error:
            raise failed(clip, f"torchcodec cannot open it ({first_line(error)})") from None
        self._held = held
        super().__init__(clip, _info(clip, held.contents, held.shape.shown))
        self.turns = bool(
            self._video.metadata.rotation
        )  # by the container's matrix, the only one that it knows
        promised, missing = len(held.contents.times), held.contents.missing
        if len(self._video) < promised or (len(self._video) > promised and not missing):
            raise failed(
                clip,
                f"torchcodec counts {len(self._video)} frames in it, FFmpeg {promised}; choose "
                f"pyav",
            )

    def _decode(self, numbers: list[int]) -> np.ndarray:
        try:
            frames = self._video.get_frames_at(numbers).data.numpy()
        except (RuntimeError, ValueError, IndexError):
            return _PyavReader(self.clip, self._held)._decode(numbers)
        size = self.info.width, self.info.height
        return (
            frames
            if frames.shape[2:0:-1] == size
            else np.stack([fitted(pixels, size, size) for pixels in frames])
        )


class _FolderReader(FrameReader):
    """A folder of images of one size. Its frame rate is the manifest's column `fps`, and 0 without
    one.
    """

    def __init__(self, clip: Clip, pattern: str = ""):
        self.clip = clip
        try:
            self._images = frame_files(clip.path, pattern)
        except ValueError as error:
            raise failed(clip, str(error)) from None
        rate = (getattr(clip, "extra", None) or {}).get("fps", "")
        fps = float(rate) if re.fullmatch(r"\d+(\.\d+)?", rate) else 0.0
        if not self._images:
            raise failed(
                self.clip,
                f"no image in the folder; expected frames such as 00001.jpg ({', '.join(PICTURES)})",
            )
        first, frames = 0, len(self._images)
        if clip.start or clip.end is not None:
            if not fps:
                raise failed(
                    self.clip,
                    "start and end need the frame rate of the folder: add a column fps to the "
                    "manifest",
                )
            first, frames = _within(clip, [k / fps for k in range(frames)], frames / fps)
        height, width = self._pixels(self._images[0]).shape[:2]
        until = len(self._images) / fps if fps else 0.0
        super().__init__(clip, VideoInfo(frames, fps, width, height, first, until))

    def _decode(self, numbers: list[int]) -> np.ndarray:
        frames = np.empty((len(numbers), self.info.height, self.info.width, 3), np.uint8)
        for k, number in enumerate(numbers):
            pixels = self._pixels(self._images[number])
            if pixels.shape != frames.shape[1:]:
                expected, came = (
                    f"{shape[1]}x{shape[0]}" for shape in (frames.shape[1:], pixels.shape)
                )
                raise failed(
                    self.clip,
                    f"{self._images[number].name}: expected {expected} pixels, got {came}",
                )
            frames[k] = pixels
        return frames

    def _pixels(self, path: Path) -> np.ndarray:
        """One image [H,W,3] RGB, upright."""
        try:
            return read_picture(path)
        except (OSError, ValueError) as error:
            raise failed(self.clip, f"{path.name}: {first_line(error)}") from None


def _module(name: str):
    """A decoder's module, imported only when it is chosen."""
    try:
        return import_module(name)
    except (
        ImportError,
        OSError,
        RuntimeError,
    ) as error:  # torchcodec raises the last where FFmpeg's libraries are missing
        package = name.split(".")[0]
        advice = " and FFmpeg's shared libraries" if package == "torchcodec" else ""
        others = ", ".join(sorted(set(DECODERS) - {package}))
        cure = f"pip install {package}{advice}, or choose another ({others})"
        raise ValueError(f"decoder {package} does not load ({first_line(error)}): {cure}") from None


DECODERS = {
    "decord": _decord_where_it_can_be_trusted,
    "pyav": _PyavReader,
    "torchcodec": _torchcodec_where_it_can_be_trusted,
}


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Writes `frames` [F,H,W,3] uint8 RGB as an MP4 (H.264 where PyAV has it, else MPEG-4), close
    to the original.

    ValueError for another shape or dtype, no frame, odd height or width (both codecs halve the
    colours), or fps not above 0.
    """
    import av

    frames = np.asarray(frames)
    if frames.dtype != np.uint8 or frames.ndim != 4 or frames.shape[3] != 3 or not len(frames):
        raise ValueError(
            f"{path}: expected frames [F,H,W,3] uint8, got {list(frames.shape)} {frames.dtype}"
        )
    height, width = frames.shape[1:3]
    if height % 2 or width % 2 or not height or not width:
        raise ValueError(
            f"{path}: expected an even height and width, got {height}x{width}; crop or pad by one "
            f"pixel"
        )
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: expected fps above 0, got {fps}")
    h264 = "libx264" in av.codecs_available
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(
            "libx264" if h264 else "mpeg4", rate=Fraction(fps).limit_denominator(60_000)
        )
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = (
            {"preset": "ultrafast", "crf": "12"} if h264 else {"qmin": "2", "qmax": "2"}
        )
        stream.codec_context.thread_count = (
            1  # starting threads takes longer than encoding a small video
        )
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
