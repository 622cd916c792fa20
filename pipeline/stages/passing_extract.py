"""Extract clips whose features nobody keeps: each shard is handed out, and then deleted.

    passing = PassingExtraction(config, manifest, scratch, RunOptions(device="cuda"))
    for clips, statistics in passing.shards():
        Cache(passing.cache)["test"]            # holds the views of these clips alone

Networks and decode workers are those of `extract`. They go on with the next shards while one is
read, so that many clips take no longer than an extraction.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import cached_property
from pathlib import Path

from pipeline.cache.creation import create_cache
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import done_marker
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract_shards import ExtractShards, as_json
from pipeline.stages.jobs import Advance, RunOptions, ShardJob
from pipeline.stages.shard_jobs import all_views
from pipeline.stages.shard_sizes import view_bytes

# A shard is small: the first answers come soon, and six shards are on the disk at most: one that is
# read, one that is written, and FINISHING of `extract_shards` that are hashed.
SHARD_BYTES, SHARD_CLIPS = 256 << 20, 16


class PassingExtraction:
    """An extraction of which one shard after another can be read.

    Attributes:
        manifest: the clips.
        cache: a cache that holds one shard at a time. Shards are written in another folder: the
            next one may be complete before this one was read.
    """

    def __init__(
        self, config: ExtractConfig, manifest: Manifest, folder: Path, options: RunOptions
    ):
        """Remember what to do; nothing is loaded yet.

        Args:
            config: what to compute.
            manifest: the clips.
            folder: where the shards are for a while.
            options: how to work. Their sizes of shards do not count.
        """
        self.manifest, folder = manifest, Path(os.path.abspath(folder))
        self.cache, self._writing = folder / "cache", folder / "writing"
        self._extractor = ExtractShards(config, manifest.root, options, redo=False)

    @cached_property
    def record(self) -> dict:
        """The config as the cache records it, with checksums of the weights; loads the networks."""
        return as_json(self._extractor.models.record())

    def shards(
        self, announce: Callable[[int, int], Advance] | None = None
    ) -> Iterator[tuple[tuple[Clip, ...], dict]]:
        """Write the shards one after the other.

        Args:
            announce: as for `pipeline.stages.extract.extract`.

        Yields:
            (clips of a shard, its statistics). Only this shard is in `cache`, until the next one is
            asked for.
        """
        extractor, record = self._extractor, self.record
        views, sizes = all_views(extractor.config), view_bytes(extractor.models)
        clip_bytes = sum([sizes[group] for group, _ in views])
        per_shard = min(max(1, SHARD_BYTES // max(1, clip_bytes)), SHARD_CLIPS)
        plan = create_cache(self._writing, record, self.manifest, per_shard)
        readable = create_cache(self.cache, record, self.manifest, per_shard)
        extractor.record, extractor.cache_id = record, (self._writing, plan.fingerprint)
        if announce:
            extractor.advance = announce(len(self.manifest.clips), len(self.manifest.clips))

        jobs = []
        for shard in range(len(plan)):
            path, clips = plan.path(shard), plan.clips(shard)
            jobs.append(
                ShardJob(shard, path, plan.attrs(shard), clips, None, (views,) * len(clips))
            )
        with closing(extractor), closing(extractor.stream(jobs)) as results:
            for job, statistics in results:
                _move(job.path, readable.path(job.shard))
                yield job.clips, statistics
                _delete(readable, job.shard)


def _move(shard: Path, to: Path) -> None:
    """Move a shard's files; the marker of a complete shard comes last."""
    to.parent.mkdir(exist_ok=True)
    os.replace(shard, to)
    os.replace(done_marker(shard), done_marker(to))


def _delete(plan: Shards, shard: int) -> None:
    """Delete a shard's files, of all stages; the marker of a complete shard goes first."""
    for stage in ("graphs", "features"):
        path = plan.path(shard, stage)
        done_marker(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
