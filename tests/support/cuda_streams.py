"""Streams and events of the pretended device, and what they promise about each other's work.

Work is done at once here, but a real device does the work of several streams in any order unless an
event orders it. So every stream keeps count of its work, and of how far it has waited for each
other one. A kernel that reads what another stream wrote, without having waited for it, is an error.
So is a copy to the host that is read before its event: it holds rubbish until then
(`Device.complete`).
"""

import itertools
import threading
from collections.abc import Iterable
from typing import Any

import torch

# Stream -> how much of its work is known to be done.
Clock = dict[int, int]


class Stream:
    """A stream of the device: a context manager, as `torch.cuda.stream` makes one."""

    device = torch.device("cuda", 0)

    _numbers = itertools.count()

    def __init__(self, *args: Any, **kwargs: Any):
        self.number = next(self._numbers)
        self.count = 0
        self.waited: Clock = {}

    def clock(self) -> Clock:
        """What is done once this stream has done all its work so far."""
        return {**self.waited, self.number: self.count}

    def __enter__(self) -> "Stream":
        STREAMS.enter(self)
        return self

    def __exit__(self, *exception: object) -> None:
        STREAMS.leave()

    def synchronize(self) -> None:
        STREAMS.wait(self.clock())

    def record_event(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        _add(self.waited, event.clock)

    def wait_stream(self, stream: "Stream") -> None:
        _add(self.waited, stream.clock())

    def query(self) -> bool:
        return STREAMS.covers(self.clock())

    def is_capturing(self) -> bool:
        return False


class Event:
    """A place in the work of a stream."""

    def __init__(self, *args: Any, **kwargs: Any):
        self.clock: Clock = {}

    def record(self, stream: Stream | None = None) -> None:
        self.clock = (stream or STREAMS.current()).clock()

    def wait(self, stream: Stream | None = None) -> None:
        (stream or STREAMS.current()).wait_event(self)

    def synchronize(self) -> None:
        STREAMS.wait(self.clock)

    def query(self) -> bool:
        return STREAMS.covers(self.clock)

    def elapsed_time(self, other: "Event") -> float:
        return 0.0


class Streams:
    """The streams of this process: which one a thread works in, and which wrote what."""

    def __init__(self) -> None:
        self.default = Stream()
        self.done: Clock = {}  # that the host has waited for
        # Address of a storage -> (stream, count) of what wrote it last.
        self.written: dict[int, tuple[int, int]] = {}
        self.on_wait = lambda clock: None
        self._entered = threading.local()
        self.lock = threading.RLock()

    def current(self) -> Stream:
        """The stream that this thread works in."""
        stack = getattr(self._entered, "stack", None)
        return stack[-1] if stack else self.default

    def enter(self, stream: Stream) -> None:
        self._entered.stack = [*getattr(self._entered, "stack", []), stream]

    def leave(self) -> None:
        self._entered.stack = self._entered.stack[:-1]

    def step(self, read: Iterable[int], wrote: Iterable[int], name: str) -> tuple[int, int]:
        """Count a piece of work of the current stream.

        Args:
            read: addresses of the storages that it reads.
            wrote: addresses of those that it writes.
            name: of the operator, for the message.

        Returns:
            Its stream and count.

        Raises:
            RuntimeError: another stream wrote what it reads, and nothing orders the two.
        """
        stream = self.current()
        with self.lock:
            for address in read:
                writer, count = self.written.get(address, (stream.number, 0))
                known = max(stream.waited.get(writer, 0), self.done.get(writer, 0))
                if writer != stream.number and known < count:
                    raise RuntimeError(
                        f"{name} reads memory that another stream may still be writing: let this "
                        f"stream wait for an event behind that work"
                    )
            stream.count += 1
            mark = stream.number, stream.count
            for address in wrote:
                self.written[address] = mark
        return mark

    def covers(self, clock: Clock) -> bool:
        """Whether the host has waited for all of this work."""
        return all(self.done.get(stream, 0) >= count for stream, count in clock.items())

    def wait(self, clock: Clock) -> None:
        """Have the host wait for this work."""
        self.on_wait(clock)

    def everything(self) -> Clock:
        """All work so far: of the streams that wrote something, and of the current one."""
        with self.lock:
            clock = self.current().clock()
            for writer, count in self.written.values():
                clock[writer] = max(clock.get(writer, 0), count)
        return clock

    def forget(self) -> None:
        """Begin anew."""
        with self.lock:
            self.written.clear()


def _add(clock: Clock, other: Clock) -> None:
    for stream, count in other.items():
        clock[stream] = max(clock.get(stream, 0), count)


STREAMS = Streams()
