"""A dry run of stage one: extract a few clips into a temporary folder, and scale up to all.

The steady state of a real run is measured: two shards of equal length, without the first clips,
which pay for starting. Bytes follow from two shards of different length, which separates what a
file costs from what its views cost.
"""

import math
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from pathlib import Path
from time import monotonic

import numpy as np

from pipeline.cache.folder import require_folder_path
from pipeline.cache.parts import ViewKey
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Clip, Manifest, read_manifest, write_clips
from pipeline.stages.batch_choice import CPU_BATCH, choose_batch, recorded_batch
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import ExtractSummary, extract
from pipeline.stages.frozen_networks import FrozenNetworks, StoredShapes
from pipeline.stages.growth import needed_views
from pipeline.stages.jobs import RunOptions, decoders_for
from pipeline.stages.shard_sizes import divide, view_bytes
from pipeline.views.stateless_random import Draws
from pipeline.workers.cores import cores_here
from pipeline.workers.engines import pick_device

# The numbers of machines that a plan is printed for.
WORKERS = (1, 8, 64)

Announce = Callable[[int, int], Callable[[int, int], None]]


@dataclass(frozen=True)
class FieldPlan:
    """One stored tensor.

    Attributes:
        group: "train" or "test".
        name: the field.
        shape: of one view; maps have the size of the largest that was measured.
        dtype: numpy's name of the dtype.
        view_bytes: of one view.
        bytes: of all views of all clips.
    """

    group: str
    name: str
    shape: tuple[int, ...]
    dtype: str
    view_bytes: int
    bytes: int


@dataclass(frozen=True)
class WorkersPlan:
    """The time that a number of machines needs.

    Attributes:
        workers: machines.
        busy: those of them that get a shard.
        seconds: wall time.
        device_hours: of all machines together.
    """

    workers: int
    busy: int
    seconds: float
    device_hours: float


@dataclass(frozen=True)
class ExtractionPlan:
    """What extracting a manifest will take.

    Attributes:
        clips: clips of the manifest.
        measured: how many of them were extracted for this plan.
        failed: the ids of those that failed.
        clip_seconds: per clip, in the steady state.
        start_seconds: until a machine has started.
        parts: seconds per clip of each part, such as "decode". Parts overlap.
        fields: what is stored.
        bytes: of the finished cache.
        there: bytes of it that exist already.
        free: free bytes of the disk.
        shards: number of shards.
        per_shard: clips per shard, at most.
        device: the measured device, in words.
        failure: why the first of `failed` did; "" if none did.
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
    failure: str = ""

    @property
    def fits(self) -> bool:
        """Whether the disk has room for what does not exist yet."""
        return self.bytes - self.there <= self.free

    def with_workers(self, workers: int) -> WorkersPlan:
        """Return the time that a number of machines like this one needs.

        Args:
            workers: machines. A shard is the work of one machine.
        """
        busy = min(workers, self.shards)
        most_clips = self.clips
        if busy > 1:
            shards_each = math.ceil(self.shards / busy)
            most_clips = min(self.clips, shards_each * self.per_shard)
        seconds = self.start_seconds + most_clips * self.clip_seconds
        hours = (busy * self.start_seconds + self.clips * self.clip_seconds) / 3600
        return WorkersPlan(workers, busy, seconds, hours)


def make_plan(
    config: ExtractConfig,
    manifest: Manifest,
    cache: str | Path,
    options: RunOptions | None = None,
    clips: int = 8,
    announce: Announce | None = None,
) -> ExtractionPlan:
    """Extract two shards of `clips` clips and a short one, and estimate the rest from them.

    The first half of the first shard is not counted. The clips are spread over the manifest, and
    are the same in each plan. Nothing stays on the disk.

    Args:
        config: what to compute.
        manifest: the clips.
        cache: where the cache would be; the plan uses the same disk.
        options: how to work; None takes the defaults.
        clips: clips per measured shard, rounded up to whole batches.
        announce: as for `extract`.

    Returns:
        The plan.

    Raises:
        ValueError: every clip failed.
        Exception: whatever `extract` raises.
    """
    require_folder_path(Path(cache))
    options = options or RunOptions()
    options = replace(options, batch=options.batch or _batch(config, options, Path(cache)))
    timed = math.ceil(max(1, clips) / options.batch) * options.batch
    chosen = _sample(manifest.clips, 2 * timed + max(1, timed // 4))
    chosen = _mixed(_with_every_split(chosen, manifest))
    moments: list[float] = []
    sample_options = replace(options, shard_size=min(timed, len(chosen)))
    needed = needed_views(config, manifest, options.views_for_all)
    shards = _shards(config, needed, options, Path(cache))
    # The sample goes to the disk of the cache: its speed and its free space matter.
    disk = _nearest_folder(Path(cache))
    folder = Path(tempfile.mkdtemp(prefix=".plan-", dir=disk))
    try:
        write_clips(folder / "manifest.csv", chosen)
        sample = read_manifest(folder / "manifest.csv", manifest.root)
        noted = partial(_noted, moments, announce)
        done = extract(config, sample, folder / "cache", sample_options, announce=noted)
        measured = Cache(folder / "cache")
        # Without a single view there is nothing to estimate from.
        if len(done.failures) == len(chosen):
            failure = done.failures[0]
            raise ValueError(
                f"{manifest.path}: every clip that was tried failed, {len(chosen)} in all "
                f"({failure['clip']}: {failure['message']}); look at the videos with `vidgraph "
                f"check --manifest {manifest.path}`"
            )
        seconds = _clip_seconds(moments, sample_options.shard_size, options.batch)
        views = Counter(group for keys in needed for group, _ in keys)
        return _scale_up(measured, views, done, seconds, options, shards, Path(cache), disk)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _noted(
    moments: list[float], announce: Announce | None, todo: int, total: int
) -> Callable[[int, int], None]:
    """`announce` that also appends to `moments` when the run starts and when each clip is done."""
    advance = announce(todo, total) if announce else (lambda done, failed: None)
    moments.append(monotonic())

    def note(done: int, failed: int) -> None:
        moments.extend([monotonic()] * done)
        advance(done, failed)

    return note


def _first_failure(failures: Sequence[Mapping[str, str]]) -> str:
    """Why the first of the clips that failed did; "" if there are none."""
    if not failures:
        return ""
    return f"{failures[0]['error']}: {failures[0]['message']}"


def _clip_seconds(moments: Sequence[float], per_shard: int, batch: int) -> float:
    """Seconds per clip, from the middle of the first shard to the end of the second.

    Both ends are at whole batches, when no view waits for others. With too few clips for that, all
    of them count.
    """
    first, last = math.ceil(per_shard / 2 / batch) * batch, 2 * per_shard
    if last >= len(moments) or first >= last:
        first, last = 0, len(moments) - 1
    return (moments[last] - moments[first]) / (last - first)


def _scale_up(
    measured: Cache,
    views: Mapping[str, int],
    done: ExtractSummary,
    clip_seconds: float,
    options: RunOptions,
    lengths: Sequence[int],
    cache: Path,
    disk: Path,
) -> ExtractionPlan:
    """The plan for all clips, from the shards of the sample.

    views: group -> views of all clips; lengths: the clips of each shard of the real run.
    """
    records, ranges = measured.records["features"], measured.shards.ranges
    # The second shard did not pay for starting.
    last = 1 if len(ranges) > 1 else 0
    parts = {}
    for part, seconds in records[last]["seconds"].items():
        if part != "wall":
            parts[part] = seconds / len(ranges[last])

    # The decode workers may have run ahead before the time was taken. Where they are the slowest
    # part, their time counts.
    clip_seconds = max(clip_seconds, parts["decode"] / max(1, _decoders(options)))

    clips, sampled, shards = sum(lengths), len(measured.manifest.clips), len(lengths)
    sizes = [measured.shards.path(shard).stat().st_size for shard in range(len(ranges))]
    fields = tuple(_fields(measured, views))
    values = [_values_of(records[shard]) for shard in range(len(ranges))]
    return ExtractionPlan(
        clips=clips,
        measured=sampled,
        failed=tuple(failure["clip"] for failure in done.failures),
        failure=_first_failure(done.failures),
        clip_seconds=clip_seconds,
        start_seconds=max(0.0, done.seconds - sampled * clip_seconds),
        parts=parts,
        fields=fields,
        bytes=_bytes(sizes, values, sum(field.bytes for field in fields), shards),
        there=sum(path.stat().st_size for path in cache.glob("features/**/*.h5")),
        free=shutil.disk_usage(disk).free,
        shards=shards,
        per_shard=max(lengths),
        device=records[last]["device"],
    )


def _shards(
    config: ExtractConfig,
    needed: Sequence[Sequence[ViewKey]],
    options: RunOptions,
    cache: Path,
) -> list[int]:
    """Clips of each shard of the real run; an existing cache of these clips keeps its own."""
    if (cache / "cache.json").exists():
        opened = Cache(cache)
        if len(opened.stored.clips) == len(needed):
            parts = [part for part in opened.shards.parts if part.clips == ((0, len(needed)),)]
            return [len(clips) for part in parts[:1] for clips in part.ranges()]
    sizes = view_bytes(StoredShapes(config))
    return divide(needed, sizes, options.shard_bytes, options.shard_size)


def _batch(config: ExtractConfig, options: RunOptions, cache: Path) -> int:
    """Views per forward pass of the real run."""
    found = recorded_batch(cache)
    if found is None and (cache / "cache.json").exists():
        found = recorded_batch(cache, Cache(cache).records["features"].values())
    if found is not None:
        return found
    device = pick_device(options.device)
    if device == "cpu":
        return CPU_BATCH
    return choose_batch(FrozenNetworks(config, device, options.compile))


def _decoders(options: RunOptions) -> int:
    """The number of decode processes of a run."""
    if options.workers is not None:
        return options.workers
    return decoders_for(pick_device(options.device), cores_here())


def _fields(measured: Cache, views: Mapping[str, int]) -> Iterator[FieldPlan]:
    for name in measured.groups:
        group = measured[name]
        for field in group.fields:
            shape, dtype = group.shape(field), group.dtype(field)
            size = math.prod(shape) * dtype.itemsize
            yield FieldPlan(name, field, tuple(shape), dtype.name, size, size * views[name])


def _values_of(record: Mapping) -> int:
    """Bytes of the values of a shard, before compression, failed views included."""
    total = 0
    for table in record["groups"].values():
        for field in table["fields"].values():
            size = math.prod(field["shape"]) * np.dtype(field["dtype"]).itemsize
            total += table["rows"] * size
    return total


def _bytes(sizes: Sequence[int], values: Sequence[int], total: int, shards: int) -> int:
    """Bytes of `shards` files with values of `total` bytes in all.

    sizes: bytes of the measured files; values: bytes of the values in them. A file has a constant
    size plus so much per byte of values. The fullest and the emptiest file give both. If all have
    equally many, the constant is taken as 0, which overestimates.
    """
    files = list(zip(values, sizes, strict=True))
    (most, large), (few, small) = max(files), min(files)
    per_byte = large / most
    if most > few:
        slope = (large - small) / (most - few)
        if 0 < slope <= per_byte:
            per_byte = slope
    return math.ceil(total * per_byte + shards * max(0.0, large - most * per_byte))


def _sample(clips: Sequence[Clip], count: int) -> list[Clip]:
    """`count` clips in order, one drawn from each of as many equal parts; or all, if fewer."""
    if len(clips) <= count:
        return list(clips)
    draws = Draws("plan", len(clips), count)
    edges = [k * len(clips) // count for k in range(count + 1)]
    return [clips[first + draws.below(end - first)] for first, end in pairwise(edges)]


def _with_every_split(chosen: list[Clip], manifest: Manifest) -> list[Clip]:
    """The sample with a clip of every split of the manifest, as their views may differ."""
    first_of = {clip.split: clip for clip in reversed(manifest.clips)}
    missing = [clip for split, clip in first_of.items() if split not in {c.split for c in chosen}]
    # As many as before: the last ones make room.
    return chosen[: len(chosen) - len(missing)] + missing


def _mixed(chosen: list[Clip]) -> list[Clip]:
    """The sample in an order in which every part has all splits, where there are several."""
    if len({clip.split for clip in chosen}) < 2:
        return chosen
    draws = Draws("plan order", len(chosen))
    keyed = [(draws.uniform(), number) for number in range(len(chosen))]
    return [chosen[number] for _, number in sorted(keyed)]


def _nearest_folder(path: Path) -> Path:
    """The folder itself, or the nearest parent that exists."""
    path = Path(os.path.abspath(path))
    while not path.is_dir():
        path = path.parent
    return path
