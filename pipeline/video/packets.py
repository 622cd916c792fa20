"""What a video file's packets say about it before anything is decoded: its frames, their times, and
whether any are missing.

Pure arithmetic on what decode.py reads through PyAV; the containers' habits stated here were seen
with FFmpeg 8.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise
from typing import NamedTuple

import numpy as np

from pipeline.video.timeline import Recordings, middle_step, parts_of

# FFmpeg's names of the two containers that stamp every frame with the time when it is shown.
MATROSKA = "matroska,webm"
STAMPED = ("mov,mp4,m4a,3gp,3g2,mj2", MATROSKA)
# Streams whose clock may be set anew anywhere. They state no duration: FFmpeg works one out from
# what is there.
BROADCAST = ("mpegts", "mpeg")
# Containers that state nothing either. FFmpeg guesses the durations of these from their bit rates
# or their last pages.
SILENT = (
    *BROADCAST,
    "ogg",
    "h261",
    "h263",
    "h264",
    "hevc",
    "vvc",
    "m4v",
    "mjpeg",
    "mpegvideo",
    "vc1",
    "dirac",
    "obu",
    "av1",
)


class Packet(NamedTuple):
    """One packet of the video stream: its time stamp, and whether it is

    a key frame by the container's mark; `fresh`, a key frame that needs nothing before it;
    `hidden`, never shown, by an edit list or by the codec; `cut_off`, longer than what is left of
    the file. `decoded`: its place in the order of decoding, in ticks. `duration`: how long it is
    shown, in ticks, 0 where the file does not say.
    """

    stamp: int | None
    key: bool
    fresh: bool
    hidden: bool
    cut_off: bool
    decoded: int | None = None
    duration: int = 0


@dataclass(frozen=True)
class StreamContents:
    """A file's video stream. Frame k is the k-th that a player would show.

    `times[k]` is when frame k is shown, in seconds from the start of the file, ascending; `until`
    when the last one ends. `fps` is 0 where it is unknown. `number` maps a time stamp to its frame
    and is empty where stamps cannot name frames; `keys` are (frame number, time stamp) of the key
    frames, ascending. `steady`: every key frame k is fresh and the k-th packet, so that even a
    decoder which counts packets finds its way. `missing` says in words what the container promises
    and does not hold. `same_colours`: every version of FFmpeg turns its frames into the same RGB.

    `slack` is how far, in seconds, a time may be from a frame's and still mean that frame.

    Where stamps cannot name frames but can order them, `places[p]` is the frame of packet p, -1 for
    a packet that shows none. It is empty where frames come in their order. Packets in `unfed`
    cannot be decoded, because what they refer to is not in the file. At the packets in `joints`
    another recording begins.
    """

    fps: float
    times: list[float]
    until: float
    number: dict[int, int]
    keys: list[tuple[int, int]]
    steady: bool
    missing: str
    slack: float = 1e-3
    places: list[int] = field(default_factory=list)
    unfed: frozenset[int] = frozenset()
    joints: frozenset[int] = frozenset()
    same_colours: bool = False

    @property
    def plain(self) -> bool:
        """Whether the stream is one recording, all of which can be decoded."""
        return not (self.unfed or self.joints)


def between(
    times: list[float],
    until: float,
    start: float | None,
    end: float | None,
    slack: float | None = None,
) -> tuple[int, int]:
    """(first frame, how many) shown within [start, end) seconds, of frames shown from `times` on
    and the last one `until`.

    `slack`: see `slack_of`. None for `start` or `end` is the first or the last frame. ValueError if
    there is none.
    """
    slack = slack_of(times) if slack is None else slack
    since, till = start or 0.0, until if end is None else end
    if since >= until or till <= since or till <= times[0]:
        raise ValueError(
            f"no frame between {since:g} and {till:g} s: there are frames from {times[0]:.2f} to "
            f"{until:.2f} s"
        )
    first = (
        0 if start is None else max(0, int(np.searchsorted(times, since + slack, side="right")) - 1)
    )  # on screen then
    last = len(times) if end is None else int(np.searchsorted(times, till - slack))
    return first, max(1, last - first)


def slack_of(times: list[float], tick: float = 0.0) -> float:
    """Seconds by which a time that a person writes may miss a frame's: it is rounded, as are the
    stamps, to a `tick`.

    A millisecond, but less than half of what a frame lasts.
    """
    step = middle_step(times)
    return min(1e-3, max(step / 4, min(0.52 * tick, step / 2))) if step else 1e-3


def starts_afresh(data: memoryview, extradata: bytes | None) -> bool:
    """Whether an H.264 key frame, as MP4 and Matroska store it, is an IDR picture.

    Containers also mark recovery points, after which a decoder may need many frames until its
    picture is right.
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


def shows_nothing(codec: str, data: memoryview) -> bool:
    """Whether a packet of VP8 or VP9 holds a picture that is only referred to (an alternative
    reference).
    """
    if not len(data):
        return False
    if codec == "vp8":
        return not data[0] & 0x10
    if codec != "vp9":
        return False
    starts = [0]
    if data[-1] & 0xE0 == 0xC0:  # several frames in one packet, whose sizes stand at its end
        count, width = (data[-1] & 7) + 1, (data[-1] >> 3 & 3) + 1
        index = len(data) - 2 - count * width
        if index >= 0 and data[index] == data[-1]:
            sizes = [
                int.from_bytes(data[at : at + width], "little")
                for at in range(index + 1, len(data) - 1, width)
            ]
            starts = [sum(sizes[:k]) for k in range(count)]
    return not any(start < len(data) and _vp9_shows(data[start]) for start in starts)


def _vp9_shows(first: int) -> bool:
    """Whether a VP9 frame that begins with this byte is shown: marker 2, profile 2, [reserved],
    show_existing, key, show.
    """
    after = 5 if first & 0x30 == 0x30 else 4
    return bool(first >> (7 - after) & 1) or bool(first >> (5 - after) & 1)


def stated_picture(codec: str, data: memoryview) -> bytes:
    """The picture's size as a packet of MPEG-1 or MPEG-2 states it anew; b"" where it states none,
    and of other codecs.
    """
    states = codec in ("mpeg1video", "mpeg2video") and bytes(data[:4]) == b"\0\0\1\xb3"
    return bytes(data[4:7]) if states else b""


def contents(
    container,
    stream,
    packets: list[Packet],
    ends: dict[int, float],
    stopped: str,
    whole: bool = False,
    begins: dict[int, float] | None = None,
) -> StreamContents:
    """The `packets` of PyAV's `stream` in the file's order, and the second at which each stream
    ends -> Contents.

    `stopped` is why reading ended before the end of the file, "" if it did not. `whole`: the file
    is as long as it says. `begins`: the second at which each stream begins.
    """
    total, tick = len(packets), float(stream.time_base)
    cut_off = bool(packets) and packets[-1].cut_off
    kind = container.format.name
    # AVI stamps the order of decoding. Elsewhere a decoder gives the frames of one recording in
    # their order anyway.
    parts = parts_of(packets[:-1] if cut_off else packets, tick, kind in BROADCAST, kind != "avi")
    shown = [packets[k] for k in parts.shown]
    stamps = {packet.stamp for packet in shown}
    named = kind in STAMPED and None not in stamps and len(stamps) == len(shown) and len(parts) == 1

    zero = (container.start_time or 0) / 1e6
    if (
        container.start_time is None and parts.times
    ):  # an elementary stream, whose stamps are counted by FFmpeg
        zero = min(parts.times) * tick
    if len(parts) > 1:
        zero = _begin(stream.index, parts.begins * tick, begins or {})
    header = [float(rate) for rate in _header_rates(stream)]
    if parts.times is None:
        times = [k / (header[0] if header else 1) for k in range(len(shown))]
    else:
        if not parts.ordered:  # of the order of decoding, only the steps count
            zero = min(parts.times, default=0) * tick
        times = [time * tick - zero for time in sorted(parts.times)]
    step = (
        middle_step(times)
        or (shown[0].duration * tick if shown else 0)
        or (1 / header[0] if header else 1.0)
    )
    last = _last_duration(shown, parts, tick, step)
    until = times[-1] + last if times else 0.0

    told = not named and (kind in BROADCAST or parts.unfed or parts.joints)
    number = (
        {stamp: k for k, stamp in enumerate(sorted(packet.stamp for packet in shown))}
        if named
        else {}
    )
    keys = (
        sorted((number[packet.stamp], packet.stamp) for packet in shown if packet.key)
        if named
        else []
    )
    if cut_off:
        missing = f"the last of {total} frames is cut off"
    else:
        held = dict(ends)
        if times and len(parts) == 1:  # its duration may not be stated
            held[stream.index] = max(held.get(stream.index, 0.0), until + zero)
        missing = stopped or _shortfall(container, stream, total, times, step, held, whole)
    in_order = named and all(
        packet.fresh and number[packet.stamp] == k for k, packet in enumerate(shown) if packet.key
    )
    # decord makes room for as many frames as the container claims, and ends the process if that
    # cannot be had.
    steady = in_order and len(shown) == total >= stream.frames and not missing
    return StreamContents(
        rate_of(header, len(times), _seconds(times, until, step, tick), step, tick),
        times,
        until,
        number,
        keys,
        steady,
        missing,
        slack_of(times, tick),
        parts.places(total) if told else [],
        frozenset() if named else parts.unfed,
        parts.joints,
    )


def same_colours(codec) -> bool:
    """Whether every version of FFmpeg turns the frames of PyAV's `codec` into the same RGB.

    So it is with 8 bits where chroma is not interpolated: in planes of one size, and in the usual
    formats (4:2:0, 4:2:2, 4:1:1) of an even height. Elsewhere the FFmpeg 4 in decord places chroma
    half a line off (a smooth picture of an odd height comes back with 1.5 to 2.4 times the error of
    FFmpeg 8), and deep colours round otherwise.
    """
    if codec.format is None:
        return False
    planes = codec.format.components
    if any(plane.bits != 8 for plane in planes):
        return False
    coarse = [
        plane for plane in planes if (plane.width, plane.height) != (codec.width, codec.height)
    ]
    halved = ((codec.width + 1) // 2, codec.height // 2)
    usual = all(
        plane.height == codec.height or (plane.width, plane.height) == halved for plane in coarse
    )
    return not coarse or (usual and codec.height % 2 == 0)


def _header_rates(stream) -> list:
    """The rates that the header states, or that FFmpeg derives from it."""
    rates = (stream.average_rate, stream.guessed_rate, getattr(stream, "base_rate", None))
    return [rate for rate in rates if rate]


def rate_of(header: list[float], frames: int, seconds: float, step: float, tick: float) -> float:
    """Frames per second: `frames` by the `seconds` for which they are shown, 0 where neither says
    anything.

    A header's rate is taken where it comes to the same end within half a frame: 30000/1001 is
    exact, stamps are rounded to a `tick`. Elsewhere it is a clock (1000 in WebM, Matroska and FLV),
    a maximum, or the rate of fields.
    """
    if not (frames and seconds > 0):
        return header[0] if header else 0.0
    for rate in header:
        if abs(frames / rate - seconds) <= step / 2 + 2 * tick:
            return rate
    return frames / seconds


def _seconds(times: list[float], until: float, step: float, tick: float) -> float:
    """Seconds for which frames are shown. Where they come at even steps the last one counts as a
    step, whatever it lasts.
    """
    if len(times) > 2 and float(np.ptp(np.diff(times))) <= 2 * tick + 0.01 * step:
        return times[-1] - times[0] + (times[-1] - times[0]) / (len(times) - 1)
    return until - times[0] if times else 0.0


def _begin(own: int, begin: float, begins: dict[int, float]) -> float:
    """The second at which the first of several recordings begins: what its sound begins with, if
    that is earlier.
    """
    return min(
        [
            begin,
            *(
                second
                for which, second in begins.items()
                if which != own and abs(second - begin) < 10
            ),
        ]
    )


def _last_duration(shown: list[Packet], parts: Recordings, tick: float, step: float) -> float:
    """Seconds for which the last frame is shown: what the file says, if it says of most frames how
    long they are shown.

    Else as long as its neighbours, for a stated duration may be that of the container's clock.
    """
    if not parts.times:
        return step
    order = sorted(zip(parts.times, (packet.duration for packet in shown), strict=True))
    if len(order) == 1:
        return order[0][1] * tick or step
    misses = [
        abs(later - earlier - duration) for (earlier, duration), (later, _) in pairwise(order)
    ]
    stated = order[-1][1] * tick
    return stated if stated and float(np.median(misses)) * tick <= 0.1 * step + tick else step


def _shortfall(
    container,
    stream,
    total: int,
    times: list[float],
    step: float,
    ends: dict[int, float],
    whole: bool = False,
) -> str:
    """What the container promises beyond what it holds, in words; "" if it keeps its promise or
    makes none.

    Matroska states the end of each stream (a tag that most writers add) or of all together, from
    time 0. MP4 and AVI count frames, but an MP4 may hide some and an AVI leave some out, so that
    the stream's duration has the last word.
    """
    if container.format.name in SILENT or (stream.frames and total >= stream.frames):
        return ""
    matroska = container.format.name == MATROSKA
    own = _stated_end(stream) if matroska else _stated_duration(container, stream)
    every = (container.duration or 0) / 1e6
    if matroska and own and every:
        own = min(own, every)  # a tag that was copied with the frames of a longer file
    promised = own or every
    held = ends.get(stream.index, 0.0) if own else max(ends.values(), default=0.0)
    if not matroska:
        held -= (container.start_time or 0) / 1e6 + (times[0] if own and times else 0.0)
    even = (
        len(times) > 1 and float(np.ptp(np.diff(times))) < 0.003
    )  # Matroska rounds to milliseconds
    # A few frames of tolerance: a header may count one frame too many, and the last frame's
    # duration may be unknown. Where neither is possible, one missing frame counts.
    exact = matroska and not whole and even and (own or len(ends) == 1)
    slack = 0.75 * step if exact else max(2.5 * step, 0.1)
    if promised - held <= slack:
        return ""
    return f"ends after {total} frames at {held:.2f} s; the container promises {promised:.2f} s"


def _stated_end(stream) -> float:
    """Seconds at which a Matroska stream ends by its own tag, 0 without one.

    A tag with a language is another program's, and was perhaps copied from a longer file.
    """
    tags = {key: value for key, value in stream.metadata.items() if key.startswith("DURATION")}
    tag = tags.get("DURATION") or next(iter(tags.values()), "")
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", tag)
    return (
        sum(float(part) * unit for part, unit in zip(clock.groups(), (3600, 60, 1), strict=True))
        if clock
        else 0.0
    )


def _stated_duration(container, stream) -> float:
    """Seconds that the stream lasts by its own header, 0 if it says nothing."""
    # FFmpeg shortens the duration of an AVI to what is there, but not the number of frames.
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    return float(stream.duration * stream.time_base) if stream.duration else 0.0


def stated_size(head: bytes) -> int | None:
    """Bytes that a Matroska file has, by its first bytes; None for another file, or one that was
    written live.
    """
    if not head.startswith(b"\x1a\x45\xdf\xa3"):
        return None
    size, at = _length(head, 4)
    if size is None:
        return None
    at += size
    if head[at : at + 4] != b"\x18\x53\x80\x67":
        return None
    size, at = _length(head, at + 4)
    return None if size is None else at + size


def _length(head: bytes, at: int) -> tuple[int | None, int]:
    """(the length of a Matroska element, None where it is left open; where what is so long
    begins).
    """
    if at >= len(head) or not head[at]:
        return None, at
    width = 9 - head[at].bit_length()
    value = int.from_bytes(head[at : at + width], "big") & ((1 << 7 * width) - 1)
    return (None if value == (1 << 7 * width) - 1 or at + width > len(head) else value), at + width
