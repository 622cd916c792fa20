"""Read what a report shows of the runs' caches: boxes of each clip, statistics, failures."""

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np

from heads.reporting.document import Block, Cell, Column, Table
from heads.reporting.run_folders import FoundRun
from heads.runs.manifest_record import manifest_record
from pipeline.cache.joined import JoinedCache, caches_of, open_caches
from pipeline.cache.reader import Cache
from pipeline.stages.bottleneck import Work, has_figures, pace_of


@dataclass
class StageStatistics:
    """One stage of a cache, summed over its complete shards.

    Attributes:
        shards: how many are complete.
        clips: in those shards.
        views: rows in those shards.
        bytes: of their files.
        seconds: by what they were spent on. "wall" is the time of processes, which may have
            worked at the same time.
        failures: error class -> how many clips.
        devices: that computed the shards.
        versions: of the software of the first shard.
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
    """A cache that runs were trained on.

    Attributes:
        path: where it is, or was; of several that are read as one, the first.
        fingerprint: of the cache.
        paths: of all caches that are read as one.
        recorded: the same as the runs have recorded them.
        cache: the open cache; None where it cannot be opened.
        problem: why it cannot be opened, or "".
        shards: how many it has.
        statistics: by stage.
        failed: records of clips that failed.
        asked: the configuration as it was asked for.
        graphs: the options of its graphs; {} without any.
    """

    path: Path
    fingerprint: str
    paths: tuple[Path, ...] = ()
    recorded: tuple[Path, ...] = ()
    cache: Cache | JoinedCache | None = None
    problem: str = ""
    shards: int = 0
    statistics: dict[str, StageStatistics] = field(default_factory=dict)
    failed: list[dict[str, Any]] = field(default_factory=list)
    asked: dict[str, Any] = field(default_factory=dict)
    graphs: dict[str, Any] = field(default_factory=dict)

    @cached_property
    def labels_sha256(self) -> str:
        """The checksum of labels and splits in the cache's manifest; "" if it cannot be opened."""
        return "" if self.cache is None else manifest_record(self.cache.manifest)["sha256"]


def known_caches(found: Iterable[FoundRun], moved: Sequence[Path]) -> list[KnownCache]:
    """Open the caches that runs were trained on.

    Args:
        found: the runs.
        moved: paths of caches that were moved; fingerprints and labels say which they are.

    Returns:
        One entry per cache; a cache that cannot be opened has a `problem`.

    Raises:
        ValueError: a path of `moved` is no cache, or the cache of no run.
    """
    recorded: dict[tuple[str, tuple[Path, ...]], set[str]] = {}
    for run in found:
        # A run from frames may have no cache.
        if run.about is not None and run.about.get("cache"):
            labels = (run.about.get("manifest") or {}).get("sha256", "")
            recorded.setdefault(_key(run.about), set()).add(labels)

    places = _places(recorded, [Cache(path) for path in moved])
    return [_open(places.get(key, key[1]), *key) for key in recorded]


def cache_of(caches: Iterable[KnownCache], about: Mapping[str, Any]) -> KnownCache | None:
    """Return the cache that a run was trained on, of those of a report; None if it has none.

    Args:
        caches: what `known_caches` returned.
        about: the run's run.json.
    """
    if not about.get("cache"):
        return None
    key = _key(about)
    return next((known for known in caches if (known.fingerprint, known.recorded) == key), None)


def _key(about: Mapping[str, Any]) -> tuple[str, tuple[Path, ...]]:
    """What tells a run's cache from others: caches of other clips may have its fingerprint."""
    paths = about.get("caches") or [about["cache"]]
    return str(about["fingerprint"]), tuple(map(Path, map(str, paths)))


def _places(
    recorded: Mapping[tuple[str, tuple[Path, ...]], Collection[str]], moved: Sequence[Cache]
) -> dict[tuple[str, tuple[Path, ...]], tuple[Path, ...]]:
    """Where caches are that were moved.

    Args:
        recorded: fingerprint and paths of each cache -> checksums of the labels of its runs.
        moved: the caches at their new places.

    Raises:
        ValueError: a cache of `moved` is that of no run, or could be that of several.
    """
    places: dict[tuple[str, tuple[Path, ...]], tuple[Path, ...]] = {}
    used: set[Path] = set()
    # What runs read as one comes first: its parts have the fingerprint of the whole.
    for key in sorted(recorded, key=lambda key: -len(key[1])):
        fingerprint, paths = key
        if len(paths) > 1:
            found = _several_at(paths, [cache for cache in moved if cache.path not in used])
            if not found or open_caches(found).fingerprint != fingerprint:
                continue
        else:
            same = [cache for cache in moved if cache.fingerprint == fingerprint]
            of_labels = [
                cache
                for cache in same
                if cache.path.resolve() == paths[0]
                or manifest_record(cache.manifest)["sha256"] in recorded[key]
            ]
            alone = sum(1 for other in recorded if other[0] == fingerprint) == 1
            if not of_labels and len(same) == 1 and alone:
                of_labels = same
            found = [cache.path for cache in of_labels[:1]]
        if found:
            places[key] = tuple(path.resolve() for path in found)
            used.update(found)

    for cache in moved:
        if cache.path not in used:
            known = [" and ".join(map(str, paths)) for _, paths in recorded]
            raise ValueError(
                f"{cache.path}: none of the runs was trained on this cache; expected one of "
                f"{', '.join(known)}"
            )
    return places


def _several_at(paths: Sequence[Path], moved: Sequence[Cache]) -> list[Path]:
    """The folders of caches that are read as one: by their names, or as many as are given."""
    by_name = {cache.path.resolve().name: cache.path for cache in moved}
    if all(path.name in by_name for path in paths) and len(by_name) == len(moved):
        return [by_name[path.name] for path in paths]
    return [cache.path for cache in moved] if len(moved) == len(paths) else []


def _open(paths: tuple[Path, ...], fingerprint: str, recorded: tuple[Path, ...]) -> KnownCache:
    known = KnownCache(paths[0], fingerprint, paths, recorded)
    try:
        cache = open_caches(paths)
        if cache.fingerprint != fingerprint:
            known.problem = "another cache lies there now"
            return known
        # A cache that is being written may lack records of some shards.
        parts = caches_of(cache)
        known.shards = sum([len(part.shards) for part in parts])
        stages = dict.fromkeys([stage for part in parts for stage in part.records])
        for stage in stages:
            if any(part.records.get(stage) for part in parts):
                known.statistics[stage] = _statistics(parts, stage)
        known.failed = cache.failures
        known.asked = _first_of(parts, "features", "asked")
        known.graphs = _first_of(parts, "graphs", "options")
        known.cache = cache
    except (OSError, ValueError, KeyError, TypeError) as error:
        known.problem = f"not there, or not readable: {error}"
    return known


def _first_of(parts: Sequence[Cache], stage: str, key: str) -> dict[str, Any]:
    """What the first shard that records it was asked for; {} where none does."""
    for part in parts:
        for record in part.records[stage].values():
            if key in record:
                return record[key]
    return {}


def _statistics(parts: Sequence[Cache], stage: str) -> StageStatistics:
    """Sum the records of a stage's complete shards, of one cache or several."""
    records = []
    for part in parts:
        of_stage = part.records.get(stage, {})
        records += [(part, shard, record) for shard, record in of_stage.items()]
    clips = views = size = 0
    seconds: Counter[str] = Counter()
    failures: Counter[str] = Counter()
    devices: dict[str, None] = {}
    versions: dict[str, str] = {}
    for cache, shard, record in records:
        clips += len(cache.shards.ranges[shard])
        views += sum([group["rows"] for group in record["groups"].values()])
        path = cache.shards.path(shard, stage)
        if path.exists():
            size += path.stat().st_size

        # The stage `graphs` records one number.
        spent = record.get("seconds") or {}
        seconds.update(spent if isinstance(spent, dict) else {"wall": float(spent)})
        failures.update([failure["error"] for failure in record.get("failures", ())])
        if "device" in record:
            devices[record["device"]] = None
        if "versions" in record and not versions:
            versions = record["versions"]
    return StageStatistics(
        len(records),
        clips,
        views,
        size,
        dict(seconds),
        dict(failures.most_common()),
        tuple(devices),
        versions,
    )


def boxes_per_clip(cache: Cache | JoinedCache, clips: Sequence[str]) -> np.ndarray | None:
    """Count the boxes of clips.

    Args:
        cache: the cache.
        clips: V ids.

    Returns:
        [V], the mean number of boxes per step over each clip's test views; None where the cache
        has no boxes.
    """
    if "test" not in cache.groups or "valid" not in cache["test"].fields:
        return None
    group = cache["test"]
    rows, video = [], []
    for k, clip in enumerate(clips):
        for row in group.rows_of(clip):
            if group.ok[row]:
                rows.append(row)
                video.append(k)

    # One read for all clips: [R,T,N].
    valid = group.batch(rows, fields=("valid",))["valid"]
    total = np.bincount(video, weights=valid.sum(-1).mean(-1), minlength=len(clips))
    return total / np.maximum(np.bincount(video, minlength=len(clips)), 1)


def pace(caches: Sequence[KnownCache]) -> list[Block]:
    """Make the table of the caches' pace.

    Args:
        caches: the caches.

    Returns:
        The table; nothing where no cache has statistics of an extraction.
    """
    rows: list[tuple[Cell, ...]] = []
    for known in caches:
        if known.cache is None:
            continue
        work = Work()
        for cache in caches_of(known.cache):
            for record in cache.records["features"].values():
                # A cache of digits is computed without decoding: it has no such figures.
                if has_figures(record):
                    work.add(record)
        found = pace_of(work, work.wall)
        if found is None:
            continue
        rows.append(
            (
                str(known.path),
                found.rate,
                found.alone,
                100 * found.networks,
                100 - 100 * found.decoders,
                100 - 100 * found.writer,
                found.advice,
            )
        )
    if not rows:
        return []
    columns = (
        Column("cache"),
        Column("views/s", "percent"),
        Column("networks alone, views/s", "percent"),
        Column("networks busy %", "percent"),
        Column("decoders idle %", "percent"),
        Column("writer idle %", "percent"),
        Column("what held it back"),
    )
    caption = (
        "Pace of the extraction, from the statistics of its shards: views per second of one "
        "process, and what its networks alone could do."
    )
    return [Table("pace", caption, columns, tuple(rows))]
