"""Stage one: sample -> decode -> backbone and proposals -> RoIAlign -> shard, shard after shard.

`extract` decides which shards to write and has an engine share them out. What one process does
with its shards is in `extract_shards`.
"""

import os
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.fields import GROUPS
from pipeline.cache.folder import decoding_warning, stores_times
from pipeline.cache.reader import create_cache, read_cache_json, relabelled_clips
from pipeline.cache.records import read_statistics
from pipeline.cache.shards import complete_shard
from pipeline.manifests.manifest import Clip, Manifest, shard_ranges
from pipeline.plugins import given_files, take_over
from pipeline.stages.bottleneck import Work
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract_shards import ExtractShards, as_json
from pipeline.stages.jobs import Advance, RunOptions, ShardJob
from pipeline.video.video_identity import changed_videos
from pipeline.views.sampling import count_views
from pipeline.workers.claims import ClaimWatch, sweep_claims
from pipeline.workers.completion import mark_of
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.engines import Engine, LocalEngine, share_jobs
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    from pipeline.stages.frozen_networks import StoredShapes

# The shape that whole-frame views are taken to have, because a shard's length is decided before
# any video is opened.
NOMINAL_ASPECT = 16 / 9


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
        work: what the processes that wrote shards of this run did.
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
    work: Work = field(default_factory=Work)
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
) -> ExtractSummary:
    """Extract the shards of a manifest that a cache lacks. Other runs on it share the work.

    Args:
        config: what to compute.
        manifest: the clips.
        cache: the cache's folder; it is created if needed.
        options: how to work; None takes the defaults.
        shards: the numbers of the shards to extract; None takes all.
        redo: also write complete shards again. Their good rows are copied if the videos are the
            same.
        announce: called once with (clips to do, clips done before). It returns a function that is
            called with (clips done, clips failed) after every clip, or after every shard of
            another process.
        engine: where shards are worked on; None is this process. Elsewhere the paths must lead to
            the same files.
        say: prints a line where another run's claim is waited for.

    Returns:
        What was done.

    Raises:
        FolderGone: the cache was moved, deleted or replaced during the run.
        ValueError: the cache was made with another config, or has no such shard.
    """
    options, begun = options or RunOptions(), time.monotonic()
    extractor = ExtractShards(config, manifest.root, options, redo)
    record, per_shard = _describe_for(engine, extractor)
    extractor.record = record
    plan = create_cache(cache, record, manifest, per_shard, say)
    # Absolute, because other processes may have another working directory.
    extractor.cache_id = Path(os.path.abspath(plan.folder)), plan.fingerprint
    extractor.times = stores_times(plan.folder)

    wanted = range(len(plan)) if shards is None else sorted(set(shards))
    if wanted and not 0 <= min(wanted) <= max(wanted) < len(plan):
        raise ValueError(
            f"shard {max(wanted)}: this cache has {len(plan)} shards, numbered from 0 to "
            f"{len(plan) - 1}"
        )

    # Removes claims and part files of runs that have ended.
    watch = ClaimWatch()
    sweep_claims(plan.folder / "features", watch)
    summary = ExtractSummary(Path(cache), relabelled=relabelled_clips(plan.folder, manifest))
    jobs: list[ShardJob] = []
    complete: list[tuple[Sequence[Clip], Mapping]] = []
    for shard in wanted:
        clips, path = plan.clips(shard), Path(os.path.abspath(plan.path(shard)))
        summary.asked += len(clips)
        if redo or not plan.done(shard):
            jobs.append(ShardJob(shard, path, plan.attrs(shard), clips, mark_of(path)))
            continue
        statistics = complete_shard(plan, shard)
        complete.append((clips, statistics))
        summary.already += 1
        summary.failures += statistics.get("failures", ())
        summary.warnings += statistics.get("warnings", ())

    if announce:
        extractor.advance = announce(sum(len(job.clips) for job in jobs), summary.asked)
    if not jobs:
        summary.changed = _changed_clips(complete)
        return summary

    if say:
        warning = decoding_warning(plan.folder)
        if warning:
            say(warning)
    _share_and_collect(extractor, jobs, engine or LocalEngine(), summary, say)
    sweep_claims(plan.folder / "features", watch)
    summary.seconds = time.monotonic() - begun
    # Last: on a network file system, a look at a million files would keep the workers waiting.
    summary.changed = _changed_clips(complete)
    return summary


def _describe_for(engine: Engine | None, extractor: ExtractShards) -> tuple[dict, int]:
    """The config as the cache records it, and clips per shard.

    With an engine, the networks are loaded in another process, which ends: this one stays small.
    """
    if engine is None:
        models = extractor.models
        return as_json(models.record()), clips_per_shard(models, extractor.options)
    with WorkerPool(_describe_with_plugins, workers=1) as other:
        asked = (extractor.config, extractor.options), given_files()
        ((_, described),) = other.imap([asked], ahead=1)
    if isinstance(described, Exception):
        raise described
    return as_json(described[0]), described[1]


def _share_and_collect(
    extractor: ExtractShards,
    jobs: list[ShardJob],
    engine: Engine,
    summary: ExtractSummary,
    say: PrintLine | None,
) -> None:
    """Have all shards written, by this run or others, and add them to the summary."""
    with closing(extractor):
        shared = share_jobs(extractor, jobs, engine, extractor.finished, extractor.watched, say)
        with closing(shared) as results:
            for job, record in results:
                statistics = record or read_statistics(job.path, job.attrs)
                failures = statistics.get("failures", [])
                summary.failures += failures
                summary.warnings += statistics.get("warnings", ())
                # Shards of this process have reported their clips one by one.
                if job.shard not in extractor.reported:
                    extractor.advance(len(job.clips), len(failures))
                if record:
                    summary.shards += 1
                    summary.clips += record["clips"]
                    summary.views += record["views"]
                    summary.work.add(record)
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
        cache: the cache's folder. If it is a cache, its own clips per shard count.
        options: how to work.

    Returns:
        The number of shards.
    """
    folder = Path(cache)
    if (folder / "cache.json").exists():
        per_shard = read_cache_json(folder)["per_shard"]
    else:
        _, per_shard = describe((config, options))
    return len(shard_ranges(len(manifest.clips), per_shard))


def describe(asked: tuple[ExtractConfig, RunOptions]) -> tuple[dict, int]:
    """Load the networks' weights to describe an extraction; nothing is computed.

    Args:
        asked: the config and the options.

    Returns:
        The config as a cache records it, and clips per shard.
    """
    from pipeline.stages.frozen_networks import StoredShapes

    config, options = asked
    stored = StoredShapes(config)
    return stored.record(), clips_per_shard(stored, options)


def _describe_with_plugins(
    asked: tuple[tuple[ExtractConfig, RunOptions], dict[str, str]],
) -> tuple[dict, int]:
    """`describe` in another process, which may execute the same plug-in files as this one."""
    config_and_options, plugins = asked
    take_over(plugins)
    return describe(config_and_options)


def clips_per_shard(stored: "StoredShapes", options: RunOptions) -> int:
    """Return how many clips a shard holds. Only shapes count, so all machines agree.

    Args:
        stored: the shapes of what is stored.
        options: `shard_size`, or else `shard_bytes`.

    Returns:
        At least 1.
    """
    if options.shard_size:
        return options.shard_size
    sampling = stored.config.sampling
    feature_bytes = np.dtype(stored.config.dtype).itemsize
    clip_bytes = 0
    for group in GROUPS:
        size = sampling.size_of(group)
        if not size:
            size = sampling.resized, round(sampling.resized * NOMINAL_ASPECT)
        view_bytes = 0
        for shape in stored.shapes(size).values():
            view_bytes += int(np.prod(shape)) * (feature_bytes if len(shape) > 1 else 4)
        clip_bytes += view_bytes * count_views(sampling)[group]
    return max(1, options.shard_bytes // clip_bytes)
