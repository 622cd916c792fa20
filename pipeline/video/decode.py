"""Open a clip's video to read frames [K,H,W,3] uint8 RGB by number, as a player shows them.

Frame k of a file is the k-th frame that a player shows, in order of time. One pass over the
container's packets (read, not decoded; `video_file.scan`) says how many there are and when each is
shown. It also says whether the container holds what it promises, because decord plays a file that
was cut short as a shorter one.

The same pass says whether decord finds the right frames. It does if every key frame needs none
before it and has the same number in the file as in time. Otherwise decord 0.6 returns neighbours
or repeats frames without a message. That happens with open groups of pictures (the default of
x265), intra refresh, edit lists, and B-frames in AVI, WMV and MPEG.

PyAV decodes in place of decord:

- where decord would miss frames;
- where its FFmpeg logs an error: decord returns what the codec made up for damaged data, while
  PyAV sees the codec's mark on such a frame;
- where its old FFmpeg shifts colours by half a line (`video_file.ScannedVideo.same_colours`);
- where decord is not installed: it has no wheels for ARM and macOS.

Where both decode, their frames are equal bit by bit (PyAV 17 and later; PyAV 14 to 16 overlook
BT.709). So "decord" in a cache's configuration says which frames it holds, not which library read
them. On another kind of CPU, FFmpeg itself rounds colours differently, by up to 3 of 255 levels.

Frames are turned and mirrored by the display matrix, and have square pixels (`orientation.py`).
decord and torchcodec only turn. PyAV decodes videos that are mirrored, have several video tracks,
or change their size.
"""

import importlib
import math
from contextlib import suppress
from dataclasses import replace
from fractions import Fraction
from pathlib import Path

import numpy as np

from pipeline.manifests.manifest import Clip
from pipeline.video.decord_reader import ffmpeg_log, open_decord, why_no_decord
from pipeline.video.frame_reader import (
    DECODERS,
    FrameReader,
    TruncatedVideo,
    decode_error,
    stated_fps,
)
from pipeline.video.orientation import PIXEL_ASPECTS
from pipeline.video.picture_folder import FolderReader
from pipeline.video.pyav_reader import PyavReader
from pipeline.video.torchcodec_reader import open_torchcodec, open_torchcodec_cuda, why_no_cuda
from pipeline.video.video_file import scan

__all__ = ["ffmpeg_versions", "open_clip", "why_no_decord", "write_video"]

OPENERS = {
    "decord": open_decord,
    "pyav": PyavReader,
    "torchcodec": open_torchcodec,
    "torchcodec-cuda": open_torchcodec_cuda,
}


def open_clip(
    clip: Clip,
    decoder: str = "decord",
    allow_truncated: bool = False,
    pixel_aspect: str = "displayed",
    frame_pattern: str = "",
) -> FrameReader:
    """Open a clip's file, or its folder of pictures.

    Containers that promise nothing (MPEG-TS, live WebM) are never found truncated.

    Args:
        clip: `start` and `end` (seconds, None for the file's own) cut it to the frames that a
            player shows within [start, end).
        decoder: "decord" (PyAV where decord is absent or would err), "pyav", "torchcodec", or
            "torchcodec-cuda", which decodes on the GPU.
        allow_truncated: read a file that ends early, as far as it goes.
        pixel_aspect: "displayed" gives pixels that are not square the width that a player gives
            them; "stored" leaves every stored pixel as it is.
        frame_pattern: a glob that chooses the pictures of a folder (see `pictures.frame_files`).

    Returns:
        The reader; use it in a `with` statement.

    Raises:
        TruncatedVideo: the container promises more than it holds.
        DecodeError: the clip cannot be read for another reason.
        ValueError: the decoder is unknown or not installed, or an option is wrong.
    """
    if decoder not in DECODERS:
        raise ValueError(f"decoder: expected one of {', '.join(DECODERS)}, got {decoder!r}")
    if pixel_aspect not in PIXEL_ASPECTS:
        raise ValueError(
            f"pixel_aspect: expected one of {', '.join(PIXEL_ASPECTS)}, got {pixel_aspect!r}"
        )
    # A wrong column fps is an error even where the file cannot be read.
    stated_fps(clip)

    path = Path(clip.path)
    try:
        if path.is_dir():
            return FolderReader(clip, frame_pattern)
        if not path.is_file():
            hint = ""
            if "\\" in path.name:
                hint = r"; its path has backslashes: write / between folders"
            raise decode_error(clip, f"there is no such file{hint}")
    except OSError as error:
        raise decode_error(clip, f"it cannot be read ({error.strerror})") from None

    video = scan(clip)
    if video.contents.missing and not allow_truncated:
        raise TruncatedVideo(clip.clip, path, video.contents.missing)
    if not video.contents.times:
        raise decode_error(clip, "no frame in it")
    if video.shape and pixel_aspect == "stored":
        video = replace(video, shape=replace(video.shape, aspect=1.0))
    return OPENERS[decoder](clip, video)


def require_decoder(decoder: str) -> None:
    """Refuse a decoder that cannot work in this process, before a cache is made.

    Args:
        decoder: one of DECODERS.

    Raises:
        ValueError: it decodes on a GPU, and there is none.
    """
    if decoder == "torchcodec-cuda":
        reason = why_no_cuda()
        if reason:
            raise ValueError(reason)


def ffmpeg_versions() -> dict[str, str]:
    """Return the FFmpeg that each decoder brings: {"PyAV": version, "decord": version}.

    A decoder that does not load here is left out.
    """
    versions = {}
    # `vidgraph env` names whatever a broken build raises.
    with suppress(Exception):
        av = importlib.import_module("av")
        libraries = []
        for name in ("libavcodec", "libavformat", "libswscale"):
            libraries.append(f"{name} {'.'.join(map(str, av.library_versions[name]))}")
        versions["PyAV"] = f"{av.ffmpeg_version_info} ({', '.join(libraries)})"
    if not why_no_decord():
        versions["decord"] = ffmpeg_log().version
    return versions


def write_video(path: str | Path, frames: np.ndarray, fps: float) -> None:
    """Write an MP4 file that is close to the original frames.

    The codec is H.264 where PyAV has it, else MPEG-4.

    Args:
        path: the file; an existing one is replaced.
        frames: [F,H,W,3] uint8 RGB; H and W even, because both codecs halve the colours.
        fps: frames per second, above 0.

    Raises:
        ValueError: no frame, another shape or dtype, an odd height or width, or a bad fps.
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
            "pixel"
        )
    if not (math.isfinite(fps) and fps > 0):
        raise ValueError(f"{path}: expected fps above 0, got {fps}")

    if "libx264" in av.codecs_available:
        codec, options = "libx264", {"preset": "ultrafast", "crf": "12"}
    else:
        codec, options = "mpeg4", {"qmin": "2", "qmax": "2"}
    with av.open(str(path), "w", format="mp4") as container:
        stream = container.add_stream(codec, rate=Fraction(fps).limit_denominator(60_000))
        stream.width, stream.height, stream.pix_fmt = width, height, "yuv420p"
        stream.options = options
        # Starting threads takes longer than encoding a small video.
        stream.codec_context.thread_count = 1
        for pixels in frames:
            container.mux(stream.encode(av.VideoFrame.from_ndarray(pixels, format="rgb24")))
        container.mux(stream.encode())
