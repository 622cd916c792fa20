"""What a run is asked to do: its options, and the shards to write. Needs no networks."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.cache.parts import ViewKey
from pipeline.manifests.manifest import Clip
from pipeline.workers.completion import Mark

# Called with (clips done, clips failed) since the last call.
Advance = Callable[[int, int], None]


@dataclass(frozen=True)
class RunOptions:
    """How a run does its work. No option changes what is stored; `batch` changes its rounding.

    Attributes:
        device: "auto", "cpu" or "cuda", on the machine that computes.
        batch: views per forward pass; None takes the cache's, or what suits the device.
        workers: decode processes. 0 decodes in this process, without a time limit; None chooses
            what suits the device.
        time_limit: seconds that decoding a clip may take.
        compile: whether `torch.compile` compiles the backbone.
        compression: of the shards: "none", "lzf" or "zstd".
        shard_bytes: bytes of a shard, at most, approximately.
        shard_size: clips per shard; 0 derives the number from the manifest and `shard_bytes`.
        views_for_all: whether a new cache stores training and test views of every clip, not only
            those that its split needs.
        stop_after: seconds after which a run should be over. It begins no shard that would take
            longer, and does not wait for those of others. With any number, also infinity, the
            summary holds this run's shards alone, and no other is read. None for no limit.

    Raises:
        ValueError: a number is too small.
    """

    device: str = "cpu"
    batch: int | None = None
    workers: int | None = 1
    time_limit: float = 120.0
    compile: bool = False
    compression: str = "none"
    shard_bytes: int = 2 << 30
    shard_size: int = 0
    views_for_all: bool = False
    stop_after: float | None = None

    def __post_init__(self) -> None:
        # None is allowed for `workers` and `batch`: the device decides.
        lowest = {"batch": 1, "workers": 0, "shard_bytes": 1, "shard_size": 0}
        for name, low in lowest.items():
            value = getattr(self, name)
            if value is not None and value < low:
                raise ValueError(f"{name}: expected a whole number from {low}, got {value}")


class ShardJob(NamedTuple):
    """A shard to write.

    Attributes:
        shard: its number.
        path: its HDF5 file.
        attrs: what identifies it (`Shards.attrs`).
        clips: its clips.
        mark: the version of the shard that existed when the run started.
        views: for each clip, the (group, number) of its views, in the order of the rows.
        fields: the fields to store beside `crop`, where fields are added to a cache; None stores
            all.
        skipped: numbers of clips that failed when their features were extracted. They are left
            out where fields are added.
        videos: for each clip, the mark of the video that its features came from; empty if unknown.
    """

    shard: int
    path: Path
    attrs: dict[str, str | int]
    clips: tuple[Clip, ...]
    mark: Mark
    views: tuple[tuple[ViewKey, ...], ...] = ()
    fields: tuple[str, ...] | None = None
    skipped: frozenset[int] = frozenset()
    videos: tuple[str, ...] = ()


def decoders_for(device: str, cores: int) -> int:
    """Return how many decode processes suit a device.

    Args:
        device: "cpu" or "cuda".
        cores: CPU cores of this process.

    Returns:
        1 on a CPU, where the networks need every core and are slower than one decoder. Beside a
        GPU the cores are free.
    """
    return 1 if device == "cpu" else max(1, cores - 1)
