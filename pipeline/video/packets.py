"""What the packets of a video file say before decoding: its frames, their times, what is missing.

Pure arithmetic on what `video_file.py` reads through PyAV. The habits of containers that are
stated here were seen with FFmpeg 8.
"""

import re
from dataclasses import dataclass, field
from itertools import pairwise

import numpy as np

from pipeline.text.counted import counted
from pipeline.video.bitstream import Packet
from pipeline.video.timeline import Recordings, find_recordings, middle_step, rounding_slack

# FFmpeg's names of the two containers that stamp every frame with the time when it is shown.
MATROSKA = "matroska,webm"
STAMPED = ("mov,mp4,m4a,3gp,3g2,mj2", MATROSKA)
# Streams whose clock may restart anywhere. They state no duration: FFmpeg derives one from the
# packets that are there.
BROADCAST = ("mpegts", "mpeg")
# Containers that state no duration either. FFmpeg guesses theirs from bit rates or last pages.
SILENT = (
    *BROADCAST,
    *("ogg", "h261", "h263", "h264", "hevc", "vvc", "m4v", "mjpeg", "mpegvideo", "vc1"),
    *("dirac", "obu", "av1"),
)
# Seconds by which sound may begin away from the picture and still belong to the same recording.
SOUND_OFFSET = 10


@dataclass(frozen=True)
class StreamContents:
    """A file's video stream. Frame k is the k-th that a player would show.

    Attributes:
        fps: frames per second; 0 where unknown.
        times: when each frame is shown, in seconds from the start of the file, ascending.
        until: when the last frame ends, in seconds.
        frame_of_stamp: time stamp -> frame number; empty where stamps do not identify frames.
        keys: (frame number, time stamp) of each key frame, ascending.
        countable: every key frame k is fresh and is the k-th packet. A decoder that counts
            packets then finds its way.
        missing: what the container promises and does not hold, in words; "" if nothing.
        slack: by how many seconds a time may miss the frame that it means.
        frame_of_packet: packet -> frame number, -1 for a packet that shows none. Filled where
            stamps order the frames but do not identify them; empty where the decoder gives the
            frames in order.
        undecodable: packets whose reference frames are not in the file.
        boundaries: packets that begin the second recording and later ones.
    """

    fps: float
    times: list[float]
    until: float
    frame_of_stamp: dict[int, int]
    keys: list[tuple[int, int]]
    countable: bool
    missing: str
    slack: float = 1e-3
    frame_of_packet: list[int] = field(default_factory=list)
    undecodable: frozenset[int] = frozenset()
    boundaries: frozenset[int] = frozenset()

    @property
    def continuous(self) -> bool:
        """Whether the stream is one recording, all of which can be decoded."""
        return not (self.undecodable or self.boundaries)


def stream_contents(
    container,
    stream,
    packets: list[Packet],
    ends: dict[int, float],
    stopped: str,
    whole: bool = False,
    begins: dict[int, float] | None = None,
) -> StreamContents:
    """Work out what a video stream holds.

    Args:
        container: PyAV's container.
        stream: PyAV's video stream in it.
        packets: the packets of the stream, in the order of the file.
        ends: index of each stream, sound included -> the second at which it ends.
        stopped: why reading ended before the end of the file; "" if it did not.
        whole: the file has all the bytes that its header states.
        begins: index of each stream -> the second at which it begins.

    Returns:
        The frames, their times, and what is missing.
    """
    tick = float(stream.time_base)
    kind = container.format.name
    total = len(packets)
    cut_off = bool(packets) and packets[-1].cut_off
    complete = packets[:-1] if cut_off else packets

    # In AVI, time stamps only say the decoding order. Of one recording, a decoder gives the
    # frames in the right order anyway.
    recordings = find_recordings(complete, tick, kind in BROADCAST, kind != "avi")
    shown = [packets[k] for k in recordings.shown]
    header = _header_rates(stream)

    zero = _zero(container, stream, recordings, tick, begins or {})
    if recordings.times is None:
        rate = header[0] if header else 1.0
        times = [k / rate for k in range(len(shown))]
    else:
        times = [time * tick - zero for time in sorted(recordings.times)]
    step = _frame_step(times, shown, header, tick)
    until = 0.0
    if times:
        until = times[-1] + _last_duration(shown, recordings, tick, step)

    identified = _stamps_identify_frames(kind, recordings, shown)
    frame_of_stamp, keys = {}, []
    if identified:
        stamps = sorted(packet.stamp for packet in shown)
        frame_of_stamp = {stamp: k for k, stamp in enumerate(stamps)}
        keys = sorted((frame_of_stamp[p.stamp], p.stamp) for p in shown if p.key)
    frame_of_packet = []
    if not identified and (kind in BROADCAST or recordings.undecodable or recordings.boundaries):
        frame_of_packet = recordings.frame_of_packet(total)

    if cut_off:
        missing = f"the last of {total} frames is cut off"
    elif stopped:
        missing = stopped
    else:
        held = dict(ends)
        if times and len(recordings) == 1:
            # The last packet may not state its duration.
            held[stream.index] = max(held.get(stream.index, 0.0), until + zero)
        missing = _shortfall(container, stream, total, times, step, held, whole)

    # decord allocates memory for as many frames as the container claims. If that fails, it ends
    # the whole process.
    all_shown = len(shown) == total >= stream.frames and not missing
    countable = identified and all_shown and _keys_in_place(shown, frame_of_stamp)
    return StreamContents(
        frame_rate(header, len(times), _shown_seconds(times, until, step, tick), step, tick),
        times,
        until,
        frame_of_stamp,
        keys,
        countable,
        missing,
        rounding_slack(times, tick),
        frame_of_packet,
        frozenset() if identified else recordings.undecodable,
        recordings.boundaries,
    )


def _stamps_identify_frames(kind: str, recordings: Recordings, shown: list[Packet]) -> bool:
    """Return whether each frame has a time stamp of its own."""
    stamps = {packet.stamp for packet in shown}
    distinct = None not in stamps and len(stamps) == len(shown)
    return kind in STAMPED and distinct and len(recordings) == 1


def _keys_in_place(shown: list[Packet], frame_of_stamp: dict[int, int]) -> bool:
    """Return whether each key frame is fresh, and has the same number in file and in time."""
    for k, packet in enumerate(shown):
        if packet.key and not (packet.fresh and frame_of_stamp[packet.stamp] == k):
            return False
    return True


def _zero(container, stream, recordings: Recordings, tick: float, begins: dict) -> float:
    """Return the second of the stream's clock that is second 0 of the clip."""
    times = recordings.times
    # Of the decoding order, only the steps count.
    if times is not None and not recordings.ordered:
        return min(times, default=0) * tick
    if len(recordings) > 1:
        return _earliest_begin(stream.index, recordings.first_tick * tick, begins)
    # An elementary stream has no start: FFmpeg counts its time stamps.
    if container.start_time is None and times:
        return min(times) * tick
    return (container.start_time or 0) / 1e6


def _earliest_begin(index: int, begin: float, begins: dict[int, float]) -> float:
    """Return when the first of several recordings begins: with its sound, if that is earlier."""
    earliest = begin
    for other, second in begins.items():
        if other != index and abs(second - begin) < SOUND_OFFSET:
            earliest = min(earliest, second)
    return earliest


def _header_rates(stream) -> list[float]:
    """Return the frame rates that the header states, or that FFmpeg derives from it."""
    rates = (stream.average_rate, stream.guessed_rate, getattr(stream, "base_rate", None))
    return [float(rate) for rate in rates if rate]


def frame_rate(header: list[float], frames: int, seconds: float, step: float, tick: float) -> float:
    """Return the frames per second of a stream.

    A header's rate is exact (30000/1001) while time stamps are rounded. It is taken where both
    lead to the same end within half a frame. Elsewhere it is a clock (1000 in WebM, Matroska and
    FLV), a maximum, or the rate of fields.

    Args:
        header: rates that the header states, best first.
        frames: number of frames.
        seconds: for how long they are shown.
        step: seconds between frames.
        tick: seconds to which time stamps are rounded.

    Returns:
        Frames per second, 0 where neither the header nor the stamps say anything.
    """
    if not (frames and seconds > 0):
        return header[0] if header else 0.0
    for rate in header:
        if abs(frames / rate - seconds) <= step / 2 + 2 * tick:
            return rate
    return frames / seconds


def _shown_seconds(times: list[float], until: float, step: float, tick: float) -> float:
    """Return for how long the frames are shown.

    Where frames come at even steps, the last one counts as one step, whatever it lasts.
    """
    if not times:
        return 0.0
    if len(times) > 2 and float(np.ptp(np.diff(times))) <= 2 * tick + 0.01 * step:
        return times[-1] - times[0] + (times[-1] - times[0]) / (len(times) - 1)
    return until - times[0]


def _frame_step(times: list[float], shown: list[Packet], header: list[float], tick: float) -> float:
    """Return the seconds between frames: by their times, a stated duration, or the header."""
    step = middle_step(times)
    if not step and shown:
        step = shown[0].duration * tick
    if not step:
        step = 1 / header[0] if header else 1.0
    return step


def _last_duration(shown: list[Packet], recordings: Recordings, tick: float, step: float) -> float:
    """Return for how many seconds the last frame is shown.

    A stated duration counts if the durations of most frames fit their time stamps: it may be
    that of the container's clock. Else the last frame lasts as long as its neighbours.
    """
    if not recordings.times:
        return step
    durations = (packet.duration for packet in shown)
    order = sorted(zip(recordings.times, durations, strict=True))
    stated = order[-1][1] * tick
    if len(order) == 1:
        return stated or step

    misses = []
    for (earlier, duration), (later, _) in pairwise(order):
        misses.append(abs(later - earlier - duration))
    fits = float(np.median(misses)) * tick <= 0.1 * step + tick
    return stated if stated and fits else step


def _shortfall(
    container,
    stream,
    total: int,
    times: list[float],
    step: float,
    ends: dict[int, float],
    whole: bool = False,
) -> str:
    """Return what the container promises beyond what it holds, in words; "" if nothing.

    Matroska states from time 0 when each stream ends (a tag that most writers add), or when all
    end. MP4 and AVI count frames, but an MP4 may hide some and an AVI may leave some out. So
    their durations decide.
    """
    if container.format.name in SILENT or (stream.frames and total >= stream.frames):
        return ""

    matroska = container.format.name == MATROSKA
    all_streams = (container.duration or 0) / 1e6
    if matroska:
        this_stream = _stated_end(stream)
        # The tag may have been copied together with the frames of a longer file.
        if this_stream and all_streams:
            this_stream = min(this_stream, all_streams)
    else:
        this_stream = _stated_duration(container, stream)
    promised = this_stream or all_streams

    held = max(ends.values(), default=0.0)
    if this_stream:
        held = ends.get(stream.index, 0.0)
    if not matroska:
        begin = (container.start_time or 0) / 1e6
        held -= begin + (times[0] if this_stream and times else 0.0)

    # A few frames of tolerance: a header may count one frame too many, and the last frame's
    # duration may be unknown. Where neither is possible, one missing frame counts. Matroska
    # rounds times to milliseconds, so even steps vary by up to 3 ms.
    even = len(times) > 1 and float(np.ptp(np.diff(times))) < 0.003
    exact = matroska and not whole and even and (this_stream or len(ends) == 1)
    tolerance = 0.75 * step if exact else max(2.5 * step, 0.1)
    if promised - held <= tolerance:
        return ""
    return (
        f"ends after {counted(total, 'frame')} at {held:.2f} s; the container promises "
        f"{promised:.2f} s"
    )


def _stated_end(stream) -> float:
    """Return the second at which a Matroska stream ends by its own tag, 0 without one.

    A tag with a language is another program's, perhaps copied from a longer file.
    """
    tag = stream.metadata.get("DURATION", "")
    if not tag:
        for key, value in stream.metadata.items():
            if key.startswith("DURATION"):
                tag = value
                break
    clock = re.fullmatch(r"(\d+):(\d+):(\d+(?:\.\d+)?)", tag)
    if clock is None:
        return 0.0
    hours, minutes, seconds = clock.groups()
    return float(hours) * 3600 + float(minutes) * 60 + float(seconds)


def _stated_duration(container, stream) -> float:
    """Return the seconds that the stream lasts by its own header, 0 if it says nothing."""
    # FFmpeg shortens the duration of an AVI to what is there, but not the number of frames.
    if container.format.name == "avi" and stream.frames and stream.average_rate:
        return float(stream.frames / stream.average_rate)
    return float(stream.duration * stream.time_base) if stream.duration else 0.0
