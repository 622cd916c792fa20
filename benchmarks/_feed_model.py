"""A model of one extraction process on a GPU node: how near to its device's limit it works.

It follows every batch through the stations that the program has, with measured times:

    decoders     as many processes as the GPU's share of the cores less one; a decode takes a time
                 that varies from clip to clip; views are delivered in the order of the rows
    memory       so many views may be decoded and not yet on the device
    main thread  puts a batch together and gives it to the device
    copy in      one after the other, over the bus
    device       the networks
    writer       one thread

Each station serves batches in order, so the events need no queue: a batch begins at a station when
it has left the one before and the station is free. All GPUs of a node do the same, so one stands
for all.
"""

import heapq
import random
from dataclasses import dataclass

SPREAD = 0.5  # of decode times: their standard deviation, as a part of their mean


@dataclass(frozen=True)
class Times:
    """Measured times of one kind of views.

    Attributes:
        decode: seconds of a decode core per view.
        main: seconds of the main thread per view.
        device: seconds of the networks per view; their inverse is the limit.
        write: seconds of the writer per view.
        bytes: of pixels per view.
    """

    decode: float
    main: float
    device: float
    write: float
    bytes: float


@dataclass(frozen=True)
class Node:
    """A machine.

    Attributes:
        gpus: processes, with one GPU each.
        cores: of the whole machine.
        bus: bytes per second from memory to a GPU.
        shared: bytes of decoded pixels that a process holds at most.
        pending: bytes of batches that may wait for the device or the writer.
    """

    gpus: int
    cores: int
    bus: float = 20e9
    shared: float = 2 << 30
    pending: float = 512 << 20


@dataclass(frozen=True)
class Outcome:
    """What the model gives.

    Attributes:
        rate: views per second of one GPU.
        limit: views per second of its networks alone.
        decoders: the part of the time in which the decoders are busy.
        main: the same of the main thread.
        writer: the same of the writer.
    """

    rate: float
    limit: float
    decoders: float
    main: float
    writer: float

    @property
    def share(self) -> float:
        """The part of the limit that is reached."""
        return self.rate / self.limit


def simulate(times: Times, node: Node, batch: int = 16, batches: int = 400) -> Outcome:
    """Follow batches through one process of a node.

    Args:
        times: of the views.
        node: the machine.
        batch: views of a batch.
        batches: how many are followed. The first quarter fills the stations and is not counted.

    Returns:
        Rates and loads of the rest.
    """
    decoders = max(1, node.cores // node.gpus - 1)
    room = max(batch, int(node.shared / times.bytes), 4 * decoders)
    # One batch is given to the device and one waits behind it, whatever they take.
    waiting = 1 + max(1, int(node.pending / (batch * times.bytes)))
    rng = random.Random(0)
    # A gamma distribution has this mean and deviation.
    shape = 1 / SPREAD**2

    free = [0.0] * decoders
    copied: list[float] = []  # when the pixels of each batch have left the shared memory
    written: list[float] = []
    main = bus = device = writer = 0.0
    for number in range(batches):
        ready = 0.0
        for view in range(number * batch, (number + 1) * batch):
            begin = heapq.heappop(free)
            # The place in memory of the view so many before.
            if view >= room:
                begin = max(begin, copied[(view - room) // batch])
            end = begin + rng.gammavariate(shape, times.decode / shape)
            heapq.heappush(free, end)
            ready = max(ready, end)
        begin = max(ready, main)
        if number >= waiting:
            begin = max(begin, written[number - waiting])
        main = begin + batch * times.main
        bus = max(main, bus) + batch * times.bytes / node.bus
        copied.append(bus)
        device = max(bus, device) + batch * times.device
        writer = max(device, writer) + batch * times.write
        written.append(writer)

    first = batches // 4
    views = (batches - first - 1) * batch
    rate = views / (written[-1] - written[first])
    return Outcome(
        rate,
        1 / times.device,
        min(1.0, rate * times.decode / decoders),
        min(1.0, rate * times.main),
        min(1.0, rate * times.write),
    )
