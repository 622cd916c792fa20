"""A dry run of stage one: a few clips are extracted into a folder that is thrown away, and the
whole is worked out from them.

What is measured is the run itself, in its steady state: two shards of equal length, without the
first clips, which pay for starting. Bytes follow from two shards of different length, so that what
a file costs beside its views is known apart.
"""

import csv
import math
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic

from pipeline.cache.folder import require_folder_path
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import COLUMNS, TIMES, Clip, Manifest, read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import ExtractSummary, clips_per_shard, extract
from pipeline.stages.frozen_networks import StoredShapes
from pipeline.stages.jobs import RunOptions, decoders_for
from pipeline.views.stateless_random import Draws
from pipeline.workers.cores import cores_here
from pipeline.workers.engines import pick_device

WORKERS = (1, 8, 64)

Announce = Callable[[int, int], Callable[[int, int], None]]


@dataclass(frozen=True)
class FieldPlan:
    """One stored tensor: its group, the shape of a view (padded to the widest that was measured),
    bytes of all its views.
    """

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    view_bytes: int
    bytes: int


@dataclass(frozen=True)
class WorkersPlan:
    """What so many workers take: wall seconds, and device hours, all workers' together. `busy`:
    those that find a shard.
    """

    workers: int
    busy: int
    seconds: float
    device_hours: float


@dataclass(frozen=True)
class ExtractionPlan:
    """What extracting a manifest will take.

    `clips` are all, `measured` of which were extracted, `failed` of these not; `clip_seconds` is a
    clip in the steady state and `parts` what of it each part took (they overlap); `start_seconds` a
    worker's start. `bytes` is what the finished cache weighs, `there` what of it lies in the folder
    already, `free` what its disk has left. Shards have `per_shard` clips.
    """

    clips: int
    measured: int
    failed: tuple[str, ...]
    clip_seconds: float
    start_seconds: float
    parts: dict[str, float]
    fields: tuple[FieldPlan, ...]
    bytes: int
    there: int
    free: int
    shards: int
    per_shard: int
    device: str

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what is not there yet."""
        return self.bytes - self.there <= self.free

    def with_workers(self, workers: int) -> WorkersPlan:
        """Time for `workers` machines like this one; a shard is one worker's, and none is
        shared.
        """
        busy = min(workers, self.shards)
        most = (
            self.clips
            if busy == 1
            else min(self.clips, math.ceil(self.shards / busy) * self.per_shard)
        )
        hours = (busy * self.start_seconds + self.clips * self.clip_seconds) / 3600
        return WorkersPlan(workers, busy, self.start_seconds + most * self.clip_seconds, hours)


def make_plan(
    config: ExtractConfig,
    manifest: Manifest,
    cache: str | Path,
    options: RunOptions | None = None,
    clips: int = 8,
    announce: Announce | None = None,
) -> ExtractionPlan:
    """Extracts two shards of `clips` clips and a short one on the disk where `cache` would lie;
    half a shard is to get going.

    The clips are drawn from equal parts of the manifest, always the same. `clips` is rounded up to
    whole batches. Nothing stays on the disk. ValueError if every clip fails, or what `extract`
    raises.
    """
    require_folder_path(Path(cache))
    options = options or RunOptions()
    timed = math.ceil(max(1, clips) / options.batch) * options.batch
    chosen = _sample(manifest.clips, 2 * timed + max(1, timed // 4))
    moments: list[float] = []
    per_shard = min(timed, len(chosen))
    length = _clips_per_shard(config, options, Path(cache))
    there = _nearest_folder(Path(cache))
    folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=there))
    try:
        _write_sample(folder / "manifest.csv", chosen)
        sample = read_manifest(folder / "manifest.csv", manifest.root)
        noted = partial(_noted, moments, announce)
        done = extract(
            config, sample, folder / "cache", replace(options, shard_size=per_shard), announce=noted
        )
        measured = Cache(folder / "cache")
        if len(done.failures) == len(chosen):
            failure = done.failures[0]
            raise ValueError(
                f"{manifest.path}: all {len(chosen)} clips that were tried failed "
                f"({failure['clip']}: {failure['message']}); "
                f"look at the videos with `vidgraph check --manifest {manifest.path}`"
            )
        seconds = _clip_seconds(moments, per_shard, options.batch)
        return _worked_out(measured, manifest, done, seconds, options, length, Path(cache), there)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _noted(
    moments: list[float], announce: Announce | None, todo: int, total: int
) -> Callable[[int, int], None]:
    """`announce`, but the moment when a clip is done is added to `moments` too, after the one when
    all began.
    """
    advance = announce(todo, total) if announce else (lambda done, failed: None)
    moments.append(monotonic())

    def told(done: int, failed: int) -> None:
        moments.extend([monotonic()] * done)
        advance(done, failed)

    return told


def _clip_seconds(moments: Sequence[float], per_shard: int, batch: int) -> float:
    """Seconds a clip, from the middle of the first shard to the end of the second; of fewer clips
    than that, of them all.

    Both ends fall on whole batches, when no view is waiting for others.
    """
    first, last = math.ceil(per_shard / 2 / batch) * batch, 2 * per_shard
    if last >= len(moments) or first >= last:
        first, last = 0, len(moments) - 1
    return (moments[last] - moments[first]) / (last - first)


def _worked_out(
    measured: Cache,
    manifest: Manifest,
    done: ExtractSummary,
    clip_seconds: float,
    options: RunOptions,
    per_shard: int,
    cache: Path,
    disk: Path,
) -> ExtractionPlan:
    """The plan for all clips, from the sample's shards."""
    records, ranges = measured.records["features"], measured.shards.ranges
    last = 1 if len(ranges) > 1 else 0  # of the two shards the one that had no start to pay for
    parts = {
        part: took / len(ranges[last])
        for part, took in records[last]["seconds"].items()
        if part != "wall"
    }
    # The decode workers ran ahead of what was timed; where they are the slowest part, theirs is the
    # time that counts.
    clip_seconds = max(clip_seconds, parts["decode"] / max(1, _decoders(options)))
    count, shards = len(manifest.clips), math.ceil(len(manifest.clips) / per_shard)
    sizes = [measured.shards.path(shard).stat().st_size for shard in range(len(ranges))]
    fields = tuple(_fields(measured, count))
    return ExtractionPlan(
        clips=count,
        measured=len(measured.manifest.clips),
        failed=tuple(failure["clip"] for failure in done.failures),
        clip_seconds=clip_seconds,
        start_seconds=max(0.0, done.seconds - len(measured.manifest.clips) * clip_seconds),
        parts=parts,
        fields=fields,
        bytes=_bytes(sizes, list(map(len, ranges)), count, shards),
        there=sum(path.stat().st_size for path in cache.glob("features/*.h5")),
        free=shutil.disk_usage(disk).free,
        shards=shards,
        per_shard=per_shard,
        device=records[last]["device"],
    )


def _clips_per_shard(config: ExtractConfig, options: RunOptions, cache: Path) -> int:
    """Of the real run, which goes on with a cache as it was begun."""
    if (cache / "cache.json").exists():
        return Cache(cache).record["per_shard"]
    return options.shard_size or clips_per_shard(StoredShapes(config), options)


def _decoders(options: RunOptions) -> int:
    """The decode processes of a run."""
    if options.workers is not None:
        return options.workers
    return decoders_for(pick_device(options.device), cores_here())


def _fields(measured: Cache, clips: int) -> Iterator[FieldPlan]:
    for name in measured.groups:
        group = measured[name]
        for field in group.fields:
            shape, dtype = group.shape(field), group.dtype(field)
            size = math.prod(shape) * dtype.itemsize
            yield FieldPlan(
                name, field, tuple(shape), dtype.name, size, size * group.per_clip * clips
            )


def _bytes(sizes: Sequence[int], lengths: Sequence[int], clips: int, shards: int) -> int:
    """Bytes of `shards` files with `clips` clips in all, from files of `sizes` bytes with `lengths`
    clips.

    A file is a constant and so much per clip; both follow from the longest and the shortest. Of
    files of one length only, the constant is taken for none, which errs on the safe side.
    """
    (most, large), (few, small) = (
        max(zip(lengths, sizes, strict=True)),
        min(zip(lengths, sizes, strict=True)),
    )
    each = (large - small) / (most - few) if most > few else large / most
    each = each if 0 < each <= large / most else large / most
    return math.ceil(clips * each + shards * max(0.0, large - most * each))


def _sample(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` clips in their order, one drawn from each of as many equal parts; all of them, if
    there are no more.
    """
    if len(clips) <= count:
        return list(clips)
    draws = Draws("plan", len(clips), count)
    edges = [k * len(clips) // count for k in range(count + 1)]
    return [clips[first + draws.below(end - first)] for first, end in pairwise(edges)]


def _write_sample(path: Path, clips: Sequence[Clip]) -> None:
    """A manifest of these clips, with absolute paths."""
    extra = list(clips[0].extra)
    with open(path, "w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow((*COLUMNS, *TIMES, *extra))
        for clip in clips:
            times = ("" if second is None else repr(second) for second in (clip.start, clip.end))
            row = (clip.clip, clip.place, clip.split, ";".join(clip.labels), *times)
            writer.writerow((*row, *(clip.extra[name] for name in extra)))


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest one above it that is there."""
    path = Path(os.path.abspath(path))
    while not path.is_dir():
        path = path.parent
    return path
