"""What stage one is asked to do, without the networks that do it: options of a run, and shards to
be written.
"""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

from pipeline.manifests.manifest import Clip
from pipeline.workers.completion import Mark

Advance = Callable[[int, int], None]  # (clips done, clips failed) since the last call


@dataclass(frozen=True)
class RunOptions:
    """How a run does its work; none of it changes what is stored, beyond the rounding that a batch
    size brings.

    `device` is `auto`, `cpu` or `cuda`, where the work is done; `batch` is views per forward pass;
    `workers` decode processes (0: in this process, without a time limit; None: what suits the
    device); `time_limit` seconds a clip may take to decode; `shard_size` clips per shard, or 0 to
    derive it from `shard_bytes`.
    """

    device: str = "cpu"
    batch: int = 4
    workers: int | None = 1
    time_limit: float = 120.0
    compile: bool = False
    compression: str = "none"
    shard_bytes: int = 2 << 30
    shard_size: int = 0

    def __post_init__(self) -> None:
        for name, low in (("batch", 1), ("workers", 0), ("shard_bytes", 1), ("shard_size", 0)):
            if getattr(self, name) is not None and getattr(self, name) < low:
                raise ValueError(
                    f"{name}: expected a whole number from {low}, got {getattr(self, name)}"
                )


class ShardJob(NamedTuple):
    """A shard to be written: its number, file, attributes and clips; `mark` of the shard that was
    there when the run began.
    """

    shard: int
    path: Path
    attrs: dict[str, str | int]
    clips: tuple[Clip, ...]
    mark: Mark
