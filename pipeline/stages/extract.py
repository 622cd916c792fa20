"""Stage one: sample -> decode -> backbone and proposals -> RoIAlign -> shard, shard after shard.

`extract` decides which shards to write and has an engine share them out. What one process does
with its shards is in `extract_shards`.
"""

import os
import time
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cache.folder import decoding_warning, read_cache_json, stores_times
from pipeline.cache.parts import count_shards_in
from pipeline.cache.reader import relabelled_clips
from pipeline.cache.records import read_statistics
from pipeline.cache.shards import Shards, complete_shard
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.plugins import given_files, take_over
from pipeline.stages.batch_choice import record_batch, recorded_batch
from pipeline.stages.bottleneck import Work
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract_shards import ExtractShards, as_json
from pipeline.stages.growth import (
    Asked,
    has_folds,
    needed_views,
    open_as_it_is,
    open_for,
    require_comparable,
    widened,
)
from pipeline.stages.jobs import Advance, RunOptions
from pipeline.stages.shard_jobs import ShardPass, passes_of, shards_to_do
from pipeline.stages.shard_sizes import divide, view_bytes
from pipeline.text.counted import counted
from pipeline.video.decode import require_decoder
from pipeline.video.video_identity import changed_videos
from pipeline.workers.claims import ClaimWatch, sweep_claims
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.engines import Engine, LocalEngine, share_jobs
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    pass


@dataclass
class ExtractSummary:
    """What a run did.

    Attributes:
        cache: the cache's folder.
        shards: shards that this run wrote.
        already: shards that were complete, or that other runs wrote.
        clips: clips of the shards that this run wrote.
        views: views of these clips.
        asked: clips of all shards that were asked for.
        failures: the records of failed clips in all of these shards.
        warnings: (`clip`, `message`) of clips that were stored although something looks wrong.
        changed: clips of complete shards whose videos have changed since.
        relabelled: clips whose labels or split differ from the cache's copy of the manifest.
            Training reads the copy unless it is given another manifest.
        removed: clips of the cache that the manifest no longer has. They stay in their shards.
        boxes: views and steps of all shards that were asked for, and how many of them have no box;
            empty where no boxes are stored, or an earlier version wrote all shards.
        work: what the processes that wrote shards of this run did.
        left: shards that are not complete, because the time was up (`RunOptions.stop_after`).
        seconds: wall time.
    """

    cache: Path
    shards: int = 0
    already: int = 0
    clips: int = 0
    views: int = 0
    asked: int = 0
    failures: list[dict] = field(default_factory=list)
    warnings: list[dict] = field(default_factory=list)
    changed: list[str] = field(default_factory=list)
    relabelled: list[str] = field(default_factory=list)
    removed: list[str] = field(default_factory=list)
    boxes: Counter = field(default_factory=Counter)
    work: Work = field(default_factory=Work)
    left: int = 0
    seconds: float = 0.0


def extract(
    config: ExtractConfig,
    manifest: Manifest,
    cache: str | Path,
    options: RunOptions | None = None,
    shards: Iterable[int] | None = None,
    redo: bool = False,
    announce: Callable[[int, int], Advance] | None = None,
    engine: Engine | None = None,
    say: PrintLine | None = None,
    stage: str | None = None,
) -> ExtractSummary:
    """Extract what a cache lacks: clips, views and fields. Other runs on it share the work.

    Args:
        config: what to compute. What the cache holds beside it stays.
        manifest: the clips.
        cache: the cache's folder; it is created if needed.
        options: how to work; None takes the defaults.
        shards: the numbers of the shards to extract; None takes all.
        redo: also write complete shards of an existing cache again, which does not grow then.
            Their good rows are copied if the videos are the same.
        announce: called once with (clips to do, clips done before). It returns a function that is
            called with (clips done, clips failed) after every clip, or after every shard of
            another process.
        engine: where shards are worked on; None is this process. Elsewhere the paths must lead to
            the same files.
        say: prints a line where another run's claim is waited for.
        stage: only this stage: "features", or the folder of fields that were added.

    Returns:
        What was done.

    Raises:
        FolderGone: the cache was moved, deleted or replaced during the run.
        ValueError: the cache was made with another config, or has no such shard.
    """
    options, begun = options or RunOptions(), time.monotonic()
    if engine is None:
        require_decoder(config.decoder)
    config = widened(config, cache)
    require_comparable(config, cache)
    extractor = ExtractShards(config, manifest.root, options, redo)
    if say:
        extractor.say = say
    record, sizes = _describe_for(engine, extractor)
    asked = _asked_for(extractor.config, record, sizes, manifest, options)
    plan = open_as_it_is(asked, cache) if redo else open_for(asked, cache, say)
    extractor.times = stores_times(plan.folder)

    wanted = range(len(plan)) if shards is None else sorted(set(shards))
    if wanted and not 0 <= min(wanted) <= max(wanted) < len(plan):
        raise ValueError(
            f"shard {max(wanted)}: this cache has {counted(len(plan), 'shard')}, numbered from 0 "
            f"to {len(plan) - 1}"
        )
    stages = plan.stages if stage is None else (stage,)
    watch = ClaimWatch()
    summary = ExtractSummary(
        Path(cache),
        relabelled=relabelled_clips(plan.folder, manifest),
        removed=list(read_cache_json(plan.folder).get("removed", ())),
    )
    todo: dict[str, list[int]] = {}
    complete: list[tuple[Sequence[Clip], Mapping]] = []
    # Each of many jobs that share a cache would read what all others have written.
    reads_complete = options.stop_after is None
    for name in stages:
        # Removes claims and part files of runs that have ended.
        sweep_claims(plan.folder / name, watch)
        todo[name] = shards_to_do(plan, name, wanted, redo, todo.get("features", ()))
        if reads_complete:
            _note_complete(plan, name, wanted, todo[name], complete, summary)
        else:
            there = sum(plan.has_stage(shard, name) for shard in wanted)
            summary.already += there - len(todo[name])

    clips_todo = 0
    for name, numbers in todo.items():
        clips_todo += sum(len(plan.ranges[shard]) for shard in numbers)
        if name == stages[0]:
            summary.asked = sum(len(plan.ranges[shard]) for shard in wanted)
    advance = announce(clips_todo, max(clips_todo, summary.asked)) if announce else _ignore
    if not clips_todo:
        summary.changed = _changed_clips(complete)
        return summary

    if say:
        warning = decoding_warning(plan.folder)
        if warning:
            say(warning)
    _settle_batch(extractor, plan.folder, [statistics for _, statistics in complete])
    for name, numbers in todo.items():
        if name != "features":
            numbers = _still_to_do(plan, name, numbers, redo and stage is not None, advance)
        for work in passes_of(plan, name, numbers, extractor.config, record, redo):
            worker = _worker_for(work, extractor, plan, advance)
            _share_and_collect(worker, work, engine or LocalEngine(), summary, say, begun)
        sweep_claims(plan.folder / name, watch)
    summary.seconds = time.monotonic() - begun
    # Last: on a network file system, a look at a million files would keep the workers waiting.
    summary.changed = _changed_clips(complete)
    return summary


def _ignore(done: int, failed: int) -> None:
    """Report progress to nobody."""


def _asked_for(
    config: ExtractConfig,
    record: dict,
    sizes: Mapping[str, int],
    manifest: Manifest,
    options: RunOptions,
) -> Asked:
    """What an extraction asks for; every clip of a manifest with folds needs both groups."""

    def divided(views: Sequence) -> list[int]:
        return divide(views, sizes, options.shard_bytes, options.shard_size)

    for_all = options.views_for_all or has_folds(manifest)
    return Asked(config, record, manifest, for_all, divided)


def _note_complete(
    plan: Shards,
    stage: str,
    wanted: Iterable[int],
    todo: Iterable[int],
    complete: list[tuple[Sequence[Clip], Mapping]],
    summary: ExtractSummary,
) -> None:
    """Add the shards of a stage that are complete already to the summary."""
    todo = set(todo)
    for shard in wanted:
        if shard in todo or not plan.has_stage(shard, stage):
            continue
        statistics = complete_shard(plan, shard, stage)
        if stage == "features":
            complete.append((plan.clips(shard), statistics))
        summary.already += 1
        summary.failures += statistics.get("failures", ())
        summary.warnings += statistics.get("warnings", ())
        summary.boxes.update(statistics.get("boxes", {}))


def _still_to_do(
    plan: Shards, stage: str, shards: Sequence[int], redo: bool, advance: Advance
) -> list[int]:
    """The shards of added fields that can and must be written, now that the features are there."""
    there = [shard for shard in shards if plan.done(shard)]
    left = shards_to_do(plan, stage, there, redo)
    for shard in shards:
        if shard not in left:
            advance(len(plan.ranges[shard]), 0)
    return left


def _worker_for(
    work: ShardPass, first: ExtractShards, plan: Shards, advance: Advance
) -> ExtractShards:
    """What writes the shards of a pass. The networks that were loaded first serve again."""
    worker = ExtractShards(work.config, first.root, first.options, work.redo)
    if "models" in vars(first) and work.config == first.config:
        worker.models = first.models
    worker.record, worker.stage, worker.advance = work.record, work.stage, advance
    worker.say, worker.times = first.say, first.times
    # Absolute, because other processes may have another working directory.
    worker.cache_id = Path(os.path.abspath(plan.folder)), plan.fingerprint
    return worker


def _describe_for(engine: Engine | None, extractor: ExtractShards) -> tuple[dict, dict[str, int]]:
    """The config as the cache records it, and the bytes of a view of each group.

    With an engine, the networks are loaded in another process, which ends: this one stays small.
    """
    if engine is None:
        models = extractor.models
        return as_json(models.record()), view_bytes(models)
    with WorkerPool(_describe_with_plugins, workers=1) as other:
        asked = extractor.config, given_files()
        ((_, described),) = other.imap([asked], ahead=1)
    if isinstance(described, Exception):
        raise described
    return as_json(described[0]), described[1]


def _settle_batch(extractor: ExtractShards, cache: Path, complete: list[Mapping]) -> None:
    """Have a run take the batch that its cache was begun with, unless it is given one.

    The first run of a cache records the batch that it is given. Where it is given none, the first
    process that computes chooses one.
    """
    begun_with = recorded_batch(cache, complete)
    batch = extractor.options.batch
    if batch is None:
        extractor.options = replace(extractor.options, batch=begun_with)
    elif begun_with is None:
        record_batch(cache, batch)


def _share_and_collect(
    extractor: ExtractShards,
    work: ShardPass,
    engine: Engine,
    summary: ExtractSummary,
    say: PrintLine | None,
    begun: float,
) -> None:
    """Have the shards of a pass written, by this run or others, and add them to the summary."""
    stop_after, longest = extractor.options.stop_after, 0.0
    summary.left += len(work.jobs)

    def time_is_up() -> bool:
        # While the next shard is begun, the one before it is still at work.
        return stop_after is not None and time.monotonic() - begun + 2 * longest > stop_after

    with closing(extractor):
        shared = share_jobs(
            extractor, work.jobs, engine, extractor.finished, extractor.watched, say, time_is_up
        )
        with closing(shared) as results:
            for job, record in results:
                summary.left -= 1
                statistics = record or {}
                # Each of many jobs would read what all others have written.
                if record is None and stop_after is None:
                    statistics = read_statistics(job.path, job.attrs)
                failures = statistics.get("failures", [])
                summary.failures += failures
                summary.warnings += statistics.get("warnings", ())
                summary.boxes.update(statistics.get("boxes", {}))
                # Shards of this process have reported their clips one by one.
                if job.shard not in extractor.reported:
                    extractor.advance(len(job.clips), len(failures))
                if record:
                    summary.shards += 1
                    summary.clips += record["clips"]
                    summary.views += record["views"]
                    summary.work.add(record)
                    longest = max(longest, record["seconds"]["wall"])
                else:
                    summary.already += 1
            extractor.watched.check()


def _changed_clips(complete: list[tuple[Sequence[Clip], Mapping]]) -> list[str]:
    """The clips of complete shards, given with their statistics, whose videos have changed."""
    changed = []
    for clips, statistics in complete:
        changed += [clips[position].clip for position in changed_videos(statistics, clips)]
    return changed


def count_shards(
    config: ExtractConfig, manifest: Manifest, cache: str | Path, options: RunOptions
) -> int:
    """Return how many shards `extract` would make. Nothing is written.

    Args:
        config: what to compute.
        manifest: the clips.
        cache: the cache's folder. If it is a cache of these clips, its own shards count.
        options: how to work.

    Returns:
        The number of shards.
    """
    folder = Path(cache)
    if (folder / "cache.json").exists():
        return count_shards_in(read_cache_json(folder), len(manifest.clips))
    _, sizes = describe(config)
    needed = needed_views(config, manifest, options.views_for_all)
    return len(divide(needed, sizes, options.shard_bytes, options.shard_size))


def describe(config: ExtractConfig) -> tuple[dict, dict[str, int]]:
    """Load the networks' weights to describe an extraction; nothing is computed.

    Args:
        config: the config.

    Returns:
        The config as a cache records it, and the bytes of a view of each group.
    """
    from pipeline.stages.frozen_networks import StoredShapes

    stored = StoredShapes(config)
    return stored.record(), view_bytes(stored)


def _describe_with_plugins(
    asked: tuple[ExtractConfig, dict[str, str]],
) -> tuple[dict, dict[str, int]]:
    """`describe` in another process, which may execute the same plug-in files as this one."""
    config, plugins = asked
    take_over(plugins)
    return describe(config)
