"""The recordings that a video stream is made of, and when each frame is shown. Pure arithmetic on
time stamps.

Files that are joined byte by byte, and captures whose clock is set anew, hold several recordings,
whose stamps start again or jump. Players play one after the other.
"""

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from pipeline.video.packets import Packet

BACK = 0.1  # seconds by which stamps that are merely untidy go back
# seconds for which a player waits for the next frame; a longer wait is another clock (FFmpeg's
# bound)
AHEAD = 10.0
PACES = 10  # the same in steps, for streams that have a frame every few seconds


@dataclass(frozen=True)
class Recordings:
    """The recordings that a stream holds, one after the other.

    `starts` are the packets with which they begin. `shown` are the packets that show a frame, in
    the file's order, `times` when each of them does, in ticks on one clock, or None where that is
    unknown. `unfed` are packets that cannot be decoded, since what they refer to is not there.
    `begins`: the tick at which the first recording begins. `ordered`: frames follow their stamps;
    else they come as the decoder gives them.
    """

    starts: list[int]
    shown: list[int]
    times: list[int] | None
    unfed: frozenset[int]
    begins: int
    ordered: bool

    def __len__(self) -> int:
        return len(self.starts)

    @property
    def joints(self) -> frozenset[int]:
        """The packets with which the second recording and later ones begin."""
        return frozenset(self.starts[1:])

    def places(self, total: int) -> list[int]:
        """The frame that each of `total` packets shows, -1 for none; empty where the stamps do not
        say.
        """
        if not self.ordered or len(set(self.times)) < len(self.times):
            return []
        found = [-1] * total
        for number, k in enumerate(sorted(range(len(self.shown)), key=self.times.__getitem__)):
            found[self.shown[k]] = number
        return found


def parts_of(
    packets: "list[Packet]", tick: float, broadcast: bool, stamped: bool = True
) -> Recordings:
    """The recordings in `packets`, which are in the file's order. `tick`: seconds of one unit of
    their stamps.

    broadcast: whether a jump ahead is another clock. stamped: whether stamps say when frames are
    shown.
    """
    starts = _starts(packets, tick, broadcast)
    ends = [*starts[1:], len(packets)]
    shown, unfed = [], set()
    for start, end in zip(starts, ends, strict=True):
        some, lost = _decodable(packets, start, end)
        shown += some
        unfed |= lost
    sortable = all(packets[k].decoded is not None for k in shown)
    ordered = all(packets[k].stamp is not None for k in shown) and (stamped or not sortable)
    if sortable and broadcast and ordered:
        ordered = not _mixed_up([packets[k] for k in shown], tick)
    if not (ordered or sortable):
        return Recordings(starts, shown, None, frozenset(unfed), 0, False)

    def when(k: int) -> int | None:
        return packets[k].stamp if ordered else packets[k].decoded

    times, first, until = [], None, None
    for start, end in zip(starts, ends, strict=True):
        known = sorted(time for k in range(start, end) if (time := when(k)) is not None)
        if not known:
            continue
        shift = 0 if until is None else until - known[0]
        first = known[0] if first is None else first
        times += [when(k) + shift for k in shown if start <= k < end]
        until = known[-1] + shift + max(1, round(middle_step(known)))
    return Recordings(starts, shown, times, frozenset(unfed), first or 0, ordered)


def middle_step(times: list) -> float:
    """The median of what lies between times that ascend, 0 for fewer than two of them."""
    steps = [later - earlier for earlier, later in pairwise(times) if later > earlier]
    return float(np.median(steps)) if steps else 0.0


def _patience(orders: list[int], tick: float) -> float:
    """Seconds for which a player waits for the next frame."""
    return max(AHEAD, PACES * middle_step(orders) * tick)


def _mixed_up(packets: "list[Packet]", tick: float) -> bool:
    """Whether a frame has the time stamp of another recording: FFmpeg gives the last frame before a
    joint that of the next.
    """
    lags = [packet.stamp - packet.decoded for packet in packets]
    if not lags:
        return False
    bound = _patience([packet.decoded for packet in packets], tick)
    return float(np.abs(np.array(lags) - np.median(lags)).max()) * tick > bound


def _starts(packets: "list[Packet]", tick: float, broadcast: bool) -> list[int]:
    """The packets with which a recording begins, the first packet first."""
    orders = [(k, packet.decoded) for k, packet in enumerate(packets) if packet.decoded is not None]
    if not packets or not orders:
        return [0]
    ahead = _patience([order for _, order in orders], tick)
    starts = [0]
    for (_, before), (k, now) in pairwise(orders):
        step = (now - before) * tick
        if step < -BACK or (step < 0 and packets[k].key) or (broadcast and step > ahead):
            starts.append(k)
    return starts


def _decodable(packets: "list[Packet]", start: int, end: int) -> tuple[list[int], set[int]]:
    """(packets of a recording that show a frame, packets that cannot be decoded)."""
    key = next((k for k in range(start, end) if packets[k].key), end)
    lost = set(range(start, key))
    shown = [k for k in range(key, end) if not packets[k].hidden]
    if shown and packets[shown[0]].key and all(packets[k].stamp is not None for k in shown):
        # Leading pictures refer to frames before the first key frame, which are not in the file.
        begin = packets[shown[0]].stamp
        lost |= {k for k in shown if packets[k].stamp < begin}
        shown = [k for k in shown if packets[k].stamp >= begin]
    return shown, lost
