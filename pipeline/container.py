"""What a video file's packets say about it before anything is decoded: its frames, their times, and whether any are missing.

Pure arithmetic on what decode.py reads through PyAV; the containers' habits stated here were seen with FFmpeg 8.
"""

import re
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

# FFmpeg's names of the two containers that stamp every frame with the time when it is shown.
MATROSKA = "matroska,webm"
STAMPED = ("mov,mp4,m4a,3gp,3g2,mj2", MATROSKA)


class Packet(NamedTuple):
    """One packet of the video stream: its time stamp, and whether it is

    a key frame by the container's mark; `fresh`, a key frame that needs nothing before it; `hidden`, never shown, by an edit
    list; `cut_off`, longer than what is left of the file.
    """

    stamp: int | None
    key: bool
    fresh: bool
    hidden: bool
    cut_off: bool


@dataclass(frozen=True)
class Contents:
    """A file's video stream. Frame k is the k-th that a player would show.

    `times[k]` is when frame k is shown, in seconds from the start of the file, ascending; `until` when the last one ends. `fps`
    is 0 where it is unknown. `number` maps a time stamp to its frame and is empty where stamps cannot name frames; `keys` are
    (frame number, time stamp) of the key frames, ascending. `steady`: every key frame k is fresh and the k-th packet, so that
    even a decoder which counts packets finds its way. `missing` says in words what the container promises and does not hold.
    `same_colours`: every version of FFmpeg turns its frames into the same RGB.
    """

    fps: float
    times: list[float]
    until: float
    number: dict[int, int]
    keys: list[tuple[int, int]]
    steady: bool
    missing: str
    same_colours: bool = False


def between(times: list[float], until: float, start: float | None, end: float | None) -> tuple[int, int]:
    """(first frame, how many) shown within [start, end) seconds, of frames shown from `times` on and the last one `until`.

    ValueError if there is none.
    """
    start, end = start or 0.0, until if end is None else end
    slack = 1e-3  # Matroska rounds to it; no frame is that short
    if start >= until or end <= start or end <= times[0]:
        raise ValueError(f"no frame between {start:g} and {end:g} s: there are frames from {times[0]:.2f} to {until:.2f} s")
    first = max(0, int(np.searchsorted(times, start + slack, side="right")) - 1)  # what is on screen at `start`
    return first, max(1, int(np.searchsorted(times, end - slack)) - first)


def starts_afresh(data: memoryview, extradata: bytes | None) -> bool:
    """Whether an H.264 key frame, as MP4 and Matroska store it, is an IDR picture.

    Containers also mark recovery points, after which a decoder may need many frames until its picture is right.
    """
    if not extradata or len(extradata) < 5 or extradata[0] != 1:
        return False
    size, at = (extradata[4] & 3) + 1, 0  # bytes of each unit's length
    while at + size < len(data):
        kind = data[at + size] & 31
        if kind in (1, 5):  # a slice of another picture, of an IDR picture
            return kind == 5
        at += size + int.from_bytes(data[at : at + size], "big")
    return False


def contents(container, stream, packets: list[Packet], ends: dict[int, float], stopped: str) -> Contents:
    """The `packets` of PyAV's `stream` in the file's order, and the second at which each stream ends -> Contents.

    `stopped` is why reading ended before the end of the file, "" if it did not.
    """
    total = len(packets)
    cut_off = bool(packets) and packets[-1].cut_off
    whole = packets[:-1] if cut_off else packets
    begins = next((k for k, packet in enumerate(whole) if packet.key), len(whole))  # nothing before it can be decoded
    shown = [packet for packet in whole[begins:] if not packet.hidden]
    stamps = {packet.stamp for packet in shown}
    named = container.format.name in STAMPED and None not in stamps and len(stamps) == len(shown)
    if named and shown and shown[0].key:
        # Leading pictures refer to frames before the first key frame, which are not in the file.
        shown = [packet for packet in shown if packet.stamp >= shown[0].stamp]

    fps = float(stream.average_rate or stream.guessed_rate or 0)
    zero = (container.start_time or 0) / 1e6
    if None in stamps:
        times = [k / (fps or 1) for k in range(len(shown))]
    else:
        tick = float(stream.time_base)
        times = [stamp * tick - zero for stamp in sorted(packet.stamp for packet in shown)]
    step = float(np.median(np.diff(times))) if len(times) > 1 else 1 / (fps or 1)

    number = {stamp: k for k, stamp in enumerate(sorted(packet.stamp for packet in shown))} if named else {}
    keys = sorted((number[packet.stamp], packet.stamp) for packet in shown if packet.key) if named else []
    if cut_off:
        missing = f"the last of {total} frames is cut off"
    else:
        missing = stopped or _shortfall(container, stream, total, times, step, ends)
    in_order = named and all(packet.fresh and number[packet.stamp] == k for k, packet in enumerate(shown) if packet.key)
    # decord makes room for as many frames as the container claims, and ends the process if that cannot be had.
    steady = in_order and len(shown) == total >= stream.frames and not missing
    return Contents(fps, times, times[-1] + step if times else 0.0, number, keys, steady, missing)


def same_colours(codec) -> bool:
    """Whether every version of FFmpeg turns the frames of PyAV's `codec` into the same RGB.

    So it is with 8 bits where chroma is not interpolated: in planes of one size, and in the usual formats (4:2:0, 4:2:2, 4:1:1)
    of an even height. Elsewhere the FFmpeg 4 in decord places chroma half a line off (a smooth picture of an odd height comes
    back with 1.5 to 2.4 times the error of FFmpeg 8), and deep colours round otherwise.
    """
    if codec.format is None:
        return False
    planes = codec.format.components
    if any(plane.bits != 8 for plane in planes):
        return False
    coarse = [plane for plane in planes if (plane.width, plane.height) != (codec.width, codec.height)]
    halved = ((codec.width + 1) // 2, codec.height // 2)
    usual = all(plane.height == codec.height or (plane.width, plane.height) == halved for plane in coarse)
    return not coarse or (usual and codec.height % 2 == 0)


def _shortfall(container, stream, total: int, times: list[float], step: float, ends: dict[int, float]) -> str:
    """What the container promises beyond what it holds, in words; "" if it keeps its promise or makes none.

    Matroska states the end of each stream (a tag that most writers add) or of all together, from time 0. MP4 and AVI count
    frames, but an MP4 may hide some and an AVI leave some out, so that the stream's duration has the last word.
    """
    if stream.frames and total >= stream.frames:
        return ""
    matroska = container.format.name == MATROSKA
    own = _stated_end(stream) if matroska else _stated_duration(container, stream)
    promised = own or (container.duration or 0) / 1e6
    held = ends.get(stream.index, 0.0) if own else max(ends.values(), default=0.0)
    if not matroska:
        held -= (container.start_time or 0) / 1e6 + (times[0] if own and times else 0.0)
    even = len(times) > 1 and float(np.ptp(np.diff(times))) < 0.003  # Matroska rounds to milliseconds
    # A few frames of tolerance: a header may count one frame too many, and the last frame's duration may be unknown. Where
    # neither is possible, one missing frame counts.
    slack = 0.75 * step if matroska and even and (own or len(ends) == 1) else max(2.5 * step, 0.1)
    if promised - held <= slack:
        return ""
    return f"ends after {total} frames at {held:.2f} s; the container promises {promised:.2f} s"


def _stated_end(stream) -> float:
    """Seconds at which a Matroska stream ends by its own tag, 0 without one."""
    tag = next((value for key, value in stream.metadata.items() if key.startswith("DURATION")), "")
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", tag)
    return sum(float(part) * unit for part, unit in zip(clock.groups(), (3600, 60, 1), strict=True)) if clock else 0.0


def _stated_duration(container, stream) -> float:
    """Seconds that the stream lasts by its own header, 0 if it says nothing."""
    # FFmpeg shortens the duration of an AVI to what is there, but not the number of frames.
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    return float(stream.duration * stream.time_base) if stream.duration else 0.0
