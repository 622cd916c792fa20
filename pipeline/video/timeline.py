"""The recordings in a video stream, and when each frame is shown: arithmetic on time stamps.

Files that are joined byte by byte, and captures whose clock restarts, hold several recordings.
Their time stamps start again or jump. Players show one recording after the other.
"""

from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from pipeline.video.bitstream import Packet

# Seconds by which time stamps may go back without being those of another recording.
BACK = 0.1
# Seconds for which a player waits for the next frame (FFmpeg's bound). After a longer gap, the
# time stamps are those of another clock.
AHEAD = 10.0
# The same bound in steps, for streams that have a frame every few seconds.
AHEAD_STEPS = 10
# The times in a manifest are often rounded to milliseconds.
ROUNDING = 1e-3


@dataclass(frozen=True)
class Recordings:
    """The recordings of a stream, in the order of the file.

    Attributes:
        starts: the packets that begin a recording, the first one included.
        shown: the packets that show a frame, in the order of the file.
        times: when each packet of `shown` is shown, in ticks of one clock; None if unknown.
        undecodable: packets whose reference frames are not in the file.
        first_tick: the tick at which the first recording begins.
        ordered: time stamps say when frames are shown; else only the decoding order is known.
    """

    starts: list[int]
    shown: list[int]
    times: list[int] | None
    undecodable: frozenset[int]
    first_tick: int
    ordered: bool

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def boundaries(self) -> frozenset[int]:
        """The packets that begin the second recording and later ones."""
        return frozenset(self.starts[1:])

    def frame_of_packet(self, total: int) -> list[int]:
        """Return the frame that each of `total` packets shows.

        Returns:
            One frame number per packet, -1 for a packet that shows none. Empty where time
            stamps cannot tell frames apart.
        """
        if not self.ordered or len(set(self.times)) < len(self.times):
            return []
        frames = [-1] * total
        by_time = sorted(range(len(self.shown)), key=self.times.__getitem__)
        for number, k in enumerate(by_time):
            frames[self.shown[k]] = number
        return frames


def find_recordings(
    packets: list[Packet], tick: float, broadcast: bool, stamped: bool = True
) -> Recordings:
    """Find the recordings in a stream.

    Args:
        packets: the packets of the stream, in the order of the file.
        tick: seconds per unit of their time stamps.
        broadcast: a jump ahead means another clock; elsewhere it is a long wait.
        stamped: whether time stamps say when frames are shown.

    Returns:
        The recordings, at least one.
    """
    starts = _recording_starts(packets, tick, broadcast)
    ends = [*starts[1:], len(packets)]
    shown, undecodable = [], set()
    for start, end in zip(starts, ends, strict=True):
        visible, lost = _decodable(packets, start, end)
        shown += visible
        undecodable |= lost

    sortable = all(packets[k].decoded is not None for k in shown)
    ordered = all(packets[k].stamp is not None for k in shown) and (stamped or not sortable)
    if sortable and broadcast and ordered:
        ordered = not _stamps_mixed_up([packets[k] for k in shown], tick)
    if not (ordered or sortable):
        return Recordings(starts, shown, None, frozenset(undecodable), 0, False)

    if ordered:
        clock = [packet.stamp for packet in packets]
    else:
        clock = [packet.decoded for packet in packets]

    # Each recording is moved to where the one before it ends.
    times = []
    first_tick = until = None
    for start, end in zip(starts, ends, strict=True):
        known = sorted(time for time in clock[start:end] if time is not None)
        if not known:
            continue
        if until is None:
            first_tick, shift = known[0], 0
        else:
            shift = until - known[0]
        times += [clock[k] + shift for k in shown if start <= k < end]
        until = known[-1] + shift + max(1, round(middle_step(known)))
    return Recordings(starts, shown, times, frozenset(undecodable), first_tick or 0, ordered)


def frames_between(
    times: list[float],
    until: float,
    start: float | None,
    end: float | None,
    slack: float | None = None,
) -> tuple[int, int]:
    """Find the frames that are shown within [start, end).

    Args:
        times: when each frame is first shown, in seconds, ascending.
        until: when the last frame ends, in seconds.
        start: seconds; None begins with the first frame.
        end: seconds; None ends with the last frame.
        slack: see `rounding_slack`, which None calls.

    Returns:
        (number of the first frame, number of frames). The first frame is the one on screen at
        `start`.

    Raises:
        ValueError: no frame is shown within this interval.
    """
    if slack is None:
        slack = rounding_slack(times)
    since = start or 0.0
    till = until if end is None else end
    if since >= until or till <= since or till <= times[0]:
        raise ValueError(
            f"no frame between {since:g} and {till:g} s: there are frames from {times[0]:.2f} to "
            f"{until:.2f} s"
        )

    first = 0
    if start is not None:
        first = max(0, int(np.searchsorted(times, since + slack, side="right")) - 1)
    last = len(times)
    if end is not None:
        last = int(np.searchsorted(times, till - slack))
    return first, max(1, last - first)


def rounding_slack(times: list[float], tick: float = 0.0) -> float:
    """Return by how many seconds a written time may miss the frame that it means.

    Both the time in a manifest and the time stamps of a file are rounded.

    Args:
        times: when each frame is shown, in seconds, ascending.
        tick: seconds to which the file rounds its time stamps.

    Returns:
        One millisecond, but less than half of what a frame lasts.
    """
    step = middle_step(times)
    if not step:
        return ROUNDING
    return min(ROUNDING, max(step / 4, min(0.52 * tick, step / 2)))


def middle_step(times: list) -> float:
    """Return the median gap between ascending times; 0 for fewer than two distinct ones."""
    steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    return float(np.median(steps)) if steps else 0.0


def _longest_wait(clock: list[int], tick: float) -> float:
    """Return the seconds for which a player waits for the next frame."""
    return max(AHEAD, AHEAD_STEPS * middle_step(clock) * tick)


def _stamps_mixed_up(packets: list[Packet], tick: float) -> bool:
    """Return whether a frame has the time stamp of another recording.

    FFmpeg gives the last frame of a recording the time stamp of the next recording.
    """
    if not packets:
        return False
    lags = np.array([packet.stamp - packet.decoded for packet in packets])
    farthest = float(np.abs(lags - np.median(lags)).max()) * tick
    return farthest > _longest_wait([packet.decoded for packet in packets], tick)


def _recording_starts(packets: list[Packet], tick: float, broadcast: bool) -> list[int]:
    """Return the packets that begin a recording, by jumps in the decoding order."""
    known, clock = [], []
    for k, packet in enumerate(packets):
        if packet.decoded is not None:
            known.append(k)
            clock.append(packet.decoded)

    wait = _longest_wait(clock, tick)
    starts = [0]
    for k, (before, now) in zip(known[1:], pairwise(clock), strict=True):
        step = (now - before) * tick
        goes_back = step < -BACK or (step < 0 and packets[k].key)
        if goes_back or (broadcast and step > wait):
            starts.append(k)
    return starts


def _decodable(packets: list[Packet], start: int, end: int) -> tuple[list[int], set[int]]:
    """Return (packets of a recording that show a frame, packets that cannot be decoded)."""
    key = next((k for k in range(start, end) if packets[k].key), end)
    lost = set(range(start, key))
    shown = [k for k in range(key, end) if not packets[k].hidden]

    stamps = [packets[k].stamp for k in shown]
    if shown and packets[shown[0]].key and None not in stamps:
        # Leading pictures refer to frames before the first key frame, which are not in the file.
        leading = {k for k, stamp in zip(shown, stamps, strict=True) if stamp < stamps[0]}
        lost |= leading
        shown = sorted(set(shown) - leading)
    return shown, lost
