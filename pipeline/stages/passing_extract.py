"""Extract clips whose features nobody keeps: each shard is handed out, and then deleted.

    passing = PassingExtraction(config, manifest, scratch, RunOptions(device="cuda"))
    for clips, statistics in passing.shards():
        Cache(scratch)["test"]                  # holds the views of these clips alone

Networks and decode workers are those of `extract`. They go on with the next shards while one is
read, so that many clips take no longer than an extraction.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import replace
from functools import cached_property
from pathlib import Path

from pipeline.cache.folder import create_cache
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import done_marker
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import clips_per_shard
from pipeline.stages.extract_shards import ExtractShards, as_json
from pipeline.stages.jobs import Advance, RunOptions, ShardJob

# A shard is small: the first answers come soon, and three shards are on the disk at most.
SHARD_BYTES, SHARD_CLIPS = 256 << 20, 16


class PassingExtraction:
    """An extraction of which one shard after another can be read."""

    def __init__(
        self, config: ExtractConfig, manifest: Manifest, folder: Path, options: RunOptions
    ):
        """Remember what to do; nothing is loaded yet.

        Args:
            config: what to compute.
            manifest: the clips.
            folder: where the shards are for a while; it becomes a cache.
            options: how to work. Their sizes of shards do not count.
        """
        self.manifest, self.folder = manifest, Path(os.path.abspath(folder))
        options = replace(options, shard_bytes=SHARD_BYTES, shard_size=0)
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
            (clips of a shard, its statistics). Only this shard is complete in `folder`, until the
            next one is asked for.
        """
        extractor, record = self._extractor, self.record
        per_shard = clips_per_shard(extractor.models, extractor.options)
        plan = create_cache(self.folder, record, self.manifest, min(per_shard, SHARD_CLIPS))
        extractor.record, extractor.cache_id = record, (self.folder, plan.fingerprint)
        if announce:
            extractor.advance = announce(len(self.manifest.clips), len(self.manifest.clips))

        jobs = []
        for shard in range(len(plan)):
            path = plan.path(shard)
            jobs.append(ShardJob(shard, path, plan.attrs(shard), plan.clips(shard), None))
        with closing(extractor), closing(extractor.stream(jobs)) as results:
            for job, statistics in results:
                yield job.clips, statistics
                _delete(plan, job.shard)


def _delete(plan: Shards, shard: int) -> None:
    """Delete a shard's files, of all stages; the marker of a complete shard goes first."""
    for stage in ("graphs", "features"):
        path = plan.path(shard, stage)
        done_marker(path).unlink(missing_ok=True)
        path.unlink(missing_ok=True)
