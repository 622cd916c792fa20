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


def describe_work(work: Work, seconds: float) -> str:
    """Say how near a run came to what its networks alone could do, and what held it back.

    Args:
        work: what its processes did.
        seconds: how long the run took.

    Returns:
        One line; "" where nothing was computed.
    """
    if not work.views or work.wall <= 0 or work.networks <= 0 or seconds <= 0:
        return ""
    rate = work.views / seconds
    # Several processes do their work in the same seconds.
    alone = work.views / work.networks * max(1.0, work.wall / seconds)
    share = min(1.0, work.networks / work.wall)
    decoders = min(1.0, work.decode / work.decoders)
    writer = min(1.0, work.write / work.wall)
    return (
        f"{rate:,.1f} views/s; the networks alone {alone:,.1f} ({100 * share:.0f} %); decoders "
        f"idle {100 - 100 * decoders:.0f} %; writer idle {100 - 100 * writer:.0f} %: "
        f"{_advice(share, decoders, writer)}"
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
