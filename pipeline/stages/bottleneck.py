"""What held an extraction back: the networks, the decoders, the disk, or this program.

The times come from the statistics of shards, which measure them anyway.
"""

from collections.abc import Mapping
from dataclasses import dataclass

# From this share of the time on, a part counts as busy.
BUSY = 0.9


@dataclass
class Work:
    """What processes did, summed over the shards that they wrote.

    Attributes:
        views: views that were computed.
        wall: seconds in which a process worked on a shard.
        networks: seconds of the device.
        decode: seconds of all decode processes.
        decoders: seconds that the decode processes had.
        write: seconds of the thread that writes.
    """

    views: int = 0
    wall: float = 0.0
    networks: float = 0.0
    decode: float = 0.0
    decoders: float = 0.0
    write: float = 0.0

    def add(self, statistics: Mapping) -> None:
        """Add a shard.

        Args:
            statistics: of a shard of features.
        """
        seconds = statistics["seconds"]
        self.views += statistics["views"] - statistics.get("taken_over", 0)
        self.wall += seconds["wall"]
        self.networks += seconds["backbone"] + seconds["proposals"]
        self.decode += seconds["decode"]
        self.decoders += seconds["wall"] * max(1, statistics.get("workers", 1))
        self.write += seconds["write"]


# The seconds of a shard's statistics that `Work.add` reads.
PARTS = ("wall", "backbone", "proposals", "decode", "write")


def has_figures(statistics: Mapping) -> bool:
    """Return whether the statistics of a shard say what its seconds were spent on.

    Args:
        statistics: of a shard of features.
    """
    seconds = statistics.get("seconds")
    return isinstance(seconds, Mapping) and "views" in statistics and seconds.keys() >= set(PARTS)


@dataclass(frozen=True)
class Pace:
    """How near processes came to what their networks alone could do.

    Attributes:
        rate: views per second of the run.
        alone: views per second of the networks alone.
        networks: the part of the time in which the networks were busy, 0 to 1: rate / alone.
        decoders: the same of the decode processes.
        writer: the same of the thread that writes.
        advice: what to add, or what set the pace.
    """

    rate: float
    alone: float
    networks: float
    decoders: float
    writer: float
    advice: str


def pace_of(work: Work, seconds: float) -> Pace | None:
    """Return the pace of a run.

    Args:
        work: what its processes did.
        seconds: how long the run took.

    Returns:
        The pace; None where nothing was computed.
    """
    if not work.views or work.wall <= 0 or work.networks <= 0 or seconds <= 0:
        return None
    # Several processes do their work in the same seconds. One of them does nothing for the shards
    # while it starts.
    spent = max(work.wall, seconds)
    alone = work.views / work.networks * spent / seconds
    networks = min(1.0, work.networks / spent)
    decoders = min(1.0, work.decode / (work.decoders * spent / work.wall))
    writer = min(1.0, work.write / spent)
    advice = _advice(networks, decoders, writer)
    return Pace(work.views / seconds, alone, networks, decoders, writer, advice)


def describe_work(work: Work, seconds: float) -> str:
    """Say how near a run came to what its networks alone could do, and what held it back.

    Args:
        work: what its processes did.
        seconds: how long the run took.

    Returns:
        One line; "" where nothing was computed.
    """
    pace = pace_of(work, seconds)
    if pace is None:
        return ""
    return (
        f"{pace.rate:,.1f} views/s; the networks alone {pace.alone:,.1f} "
        f"({100 * pace.networks:.0f} %); decoders idle {100 - 100 * pace.decoders:.0f} %; writer "
        f"idle {100 - 100 * pace.writer:.0f} %: {pace.advice}"
    )


def _advice(networks: float, decoders: float, writer: float) -> str:
    """What to add, from the shares of the time in which each was busy."""
    if networks >= BUSY:
        return "the networks set the pace"
    busiest = max(decoders, writer)
    if busiest < BUSY:
        return "start-up and short shards cost the rest"
    if decoders == busiest:
        return "more decoders (--workers, or cores) would help"
    return "a faster disk, or fewer fields (--keep), would help"
