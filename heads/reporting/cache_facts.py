"""What the caches of the runs add to a report, where they are there: boxes of each clip, where its
frames are, statistics.
"""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from heads.reporting.run_folders import FoundRun
from heads.runs.manifest_record import manifest_record
from pipeline.cache.reader import Cache

STAGES = ("features", "graphs")


@dataclass
class StageStatistics:
    """Of one stage of a cache, summed over its complete shards. `seconds`: by what they went into;
    "wall" is that of the processes, which may have worked at the same time. `failures`: error class
    -> how many clips.
    """

    shards: int
    clips: int
    views: int
    bytes: int
    seconds: dict[str, float]
    failures: dict[str, int]
    devices: tuple[str, ...]
    versions: dict[str, str]

    @property
    def rate(self) -> float | None:
        """Clips per second of one process."""
        wall = self.seconds.get("wall", 0.0)
        return self.clips / wall if wall > 0 else None


@dataclass
class KnownCache:
    """A cache that runs were trained on; `cache` None, and `problem` why, where it cannot be
    opened.
    """

    path: Path
    fingerprint: str
    cache: Cache | None = None
    problem: str = ""
    shards: int = 0
    statistics: dict[str, StageStatistics] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def labels_sha256(self) -> str:
        """The checksum of the labels and splits of the cache's copy of the manifest; "" where it
        cannot be opened.
        """
        return "" if self.cache is None else manifest_record(self.cache.manifest)["sha256"]


def known_caches(found: Iterable[FoundRun], given: Sequence[Path]) -> list[KnownCache]:
    """The caches of these runs by fingerprint: where they were, or one of `given` that has the
    fingerprint.

    ValueError for one of `given` that is no cache, or of none of the runs.
    """
    wanted: dict[str, Path] = {}
    for run in found:
        if run.about is not None and run.about.get("cache"):  # a run from frames may have none
            wanted.setdefault(str(run.about["fingerprint"]), Path(str(run.about["cache"])))
    moved = {}
    for path in given:
        cache = Cache(path)
        if cache.fingerprint not in wanted:
            raise ValueError(
                f"{path}: none of the runs was trained on this cache; expected one of "
                f"{', '.join(map(str, wanted.values()))}"
            )
        moved[cache.fingerprint] = path
    return [
        _known(moved.get(fingerprint, path), fingerprint) for fingerprint, path in wanted.items()
    ]


def _known(path: Path, fingerprint: str) -> KnownCache:
    known = KnownCache(path, fingerprint)
    try:
        cache = Cache(path)
        if cache.fingerprint != fingerprint:
            known.problem = "another cache lies there now"
            return known
        known.shards = len(cache.shards)
        records = cache.records
        known.statistics = {stage: _statistics(cache, stage) for stage in STAGES if records[stage]}
        known.failed = cache.failures
        known.asked = next(
            (record["asked"] for record in records["features"].values() if "asked" in record), {}
        )
        known.cache = cache
    except (OSError, ValueError, KeyError, TypeError) as error:
        known.problem = f"not there, or not readable: {error}"
    return known


def _statistics(cache: Cache, stage: str) -> StageStatistics:
    """Of the complete shards of a stage."""
    shards, records = list(cache.records[stage]), list(cache.records[stage].values())
    seconds: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    for record in records:
        spent = record.get("seconds") or {}
        seconds.update(
            spent if isinstance(spent, dict) else {"wall": float(spent)}
        )  # stage two writes one number
        failures.update(failure["error"] for failure in record.get("failures", ()))
    paths = (cache.shards.path(shard, stage) for shard in shards)
    return StageStatistics(
        len(records),
        sum(len(cache.shards.ranges[shard]) for shard in shards),
        sum(group["rows"] for record in records for group in record["groups"].values()),
        sum(path.stat().st_size for path in paths if path.exists()),
        dict(seconds),
        dict(failures.most_common()),
        tuple(dict.fromkeys(record["device"] for record in records if "device" in record)),
        next((record["versions"] for record in records if "versions" in record), {}),
    )


def boxes_per_clip(cache: Cache, clips: Sequence[str]) -> np.ndarray | None:
    """[V] mean number of boxes per step over the test views of each clip; None where the cache has
    no boxes.
    """
    if "test" not in cache.groups or "valid" not in cache["test"].fields:
        return None
    group = cache["test"]
    rows = [[row for row in group.rows_of(clip) if group.ok[row]] for clip in clips]
    valid = group.batch([row for own in rows for row in own], fields=("valid",))["valid"]  # [R,T,N]
    video = np.repeat(np.arange(len(rows)), [len(own) for own in rows])
    total = np.bincount(video, weights=valid.sum(-1).mean(-1), minlength=len(rows))
    return total / np.maximum(np.bincount(video, minlength=len(rows)), 1)
