"""Stage one's composer: sample -> decode -> backbone and proposals -> RoIAlign -> Extracted ->
writer, shard after shard.

A shard is claimed when its first clip is about to be decoded, by whichever process does it
(`pipeline.workers.claims`): so several runs on one cache share the work, and the workers decode the
next shard while the device is at this one.

The networks (torch) are imported where they run: a client that only hands out shards does without.
"""

import json
import os
import socket
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, field
from functools import cached_property
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.fields import GROUPS
from pipeline.cache.folder import home_of, other_reading
from pipeline.cache.good_rows import GoodViews
from pipeline.cache.reader import complete_shard, create_cache, read_cache_json, relabelled_clips
from pipeline.cache.records import read_statistics
from pipeline.files.atomic_files import Damaged
from pipeline.files.watched_folder import WatchedFolder
from pipeline.manifests.manifest import Clip, Manifest, shard_ranges
from pipeline.plugins import given_files, take_over
from pipeline.stages.config import ExtractConfig
from pipeline.stages.jobs import Advance, RunOptions, ShardJob
from pipeline.video.video_identity import changed_videos
from pipeline.video.view_pixels import run_task
from pipeline.views.sampling import count_views
from pipeline.workers.claims import (
    Claim,
    ClaimWatch,
    Mark,
    begin_shard,
    mark_of,
    sweep_claims,
    take_claim,
)
from pipeline.workers.cores import cores_here
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.engines import Engine, LocalEngine, pick_device, share_jobs
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    from pipeline.stages.frozen_networks import FrozenNetworks, StoredShapes

NOMINAL_ASPECT = (
    16 / 9
)  # of whole-frame views, when a shard's length is worked out before any video is opened
VIEWS_AHEAD = 64  # decoded views that may wait for the device, where that leaves a clip per worker
MOST_DECODERS = 16  # processes, where their number is not given
AGAIN = 1  # times that a clip is given to another decode process when its own died


@dataclass
class ExtractSummary:
    """What a run did: shards written and shards found complete, and clips and views of the former.

    `failures` are the records of failed clips in all shards that were asked for, whoever wrote
    them, out of `asked` clips. `warnings` (`clip`, `message`) say what looks wrong with clips that
    were stored all the same. `changed` are clips of shards found complete whose videos have changed
    since. `relabelled` are clips whose labels or split differ from the cache's copy of the
    manifest, which training reads unless it is given another one.
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
    """Extracts the shards of `manifest` that `cache` lacks, or of `shards` only; with `redo` also
    those that are complete, whose good rows are taken over where their videos are the same. Other
    runs on the same cache share the work.

    `announce(clips to do, clips done before)` is called once and returns `advance(done, failed)`,
    called after every clip, or every shard of other processes. `engine` says where shards are
    worked on, by default in this process; elsewhere the paths must lead to the same files. `say` is
    told whose claims are waited for. Gone if the cache is moved, deleted or replaced while this run
    writes to it. ValueError if the cache was made with another configuration, or a shard is not in
    the plan.
    """
    options, begun = options or RunOptions(), time.monotonic()
    extractor = ExtractShards(config, manifest.root, options, redo)
    if engine:
        with WorkerPool(_describe_with_plugins, workers=1) as other:
            asked = (config, options), given_files()
            ((_, described),) = other.imap([asked], ahead=1)
        if isinstance(described, Exception):
            raise described
    else:
        described = extractor.models.record(), clips_per_shard(extractor.models, options)
    extractor.record, per_shard = _as_json(described[0]), described[1]
    plan = create_cache(cache, extractor.record, manifest, per_shard, say)
    extractor.place = Path(os.path.abspath(plan.folder)), plan.fingerprint
    wanted = range(len(plan)) if shards is None else sorted(set(shards))
    if wanted and not 0 <= min(wanted) <= max(wanted) < len(plan):
        raise ValueError(
            f"shard {max(wanted)}: this cache has {len(plan)} shards, numbered from 0 to "
            f"{len(plan) - 1}"
        )
    watch = ClaimWatch()
    sweep_claims(plan.folder / "features", watch)
    jobs, there, summary = (
        [],
        [],
        ExtractSummary(Path(cache), relabelled=relabelled_clips(plan.folder, manifest)),
    )
    for shard in wanted:
        clips, path = plan.clips(shard), Path(os.path.abspath(plan.path(shard)))
        summary.asked += len(clips)
        if redo or not plan.done(shard):
            jobs.append(ShardJob(shard, path, plan.attrs(shard), clips, mark_of(path)))
        else:
            summary.already += 1
            there.append((clips, complete_shard(plan, shard)))
            summary.failures += there[-1][1].get("failures", ())
            summary.warnings += there[-1][1].get("warnings", ())
    advance = (
        announce(sum(len(job.clips) for job in jobs), summary.asked)
        if announce
        else (lambda done, failed: None)
    )
    if jobs and say and (line := other_reading(plan.folder)):
        say(line)
    if not jobs:
        summary.changed = _changed_clips(there)
        return summary
    extractor.advance = advance
    with (
        closing(extractor),
        closing(
            share_jobs(
                extractor, jobs, engine or LocalEngine(), extractor.finished, extractor.home, say
            )
        ) as results,
    ):
        for job, record in results:
            written = record or read_statistics(job.path, job.attrs)
            failures = written.get("failures", [])
            summary.failures += failures
            summary.warnings += written.get("warnings", ())
            if job.shard not in extractor.told:
                advance(len(job.clips), len(failures))
            if record:
                summary.shards += 1
                summary.clips += record["clips"]
                summary.views += record["views"]
            else:
                summary.already += 1
        extractor.home.check()
    sweep_claims(plan.folder / "features", watch)
    summary.seconds = time.monotonic() - begun
    summary.changed = _changed_clips(there)
    return summary


def _changed_clips(there: list[tuple[Sequence[Clip], Mapping]]) -> list[str]:
    """The clips of shards that were there, with their statistics, whose videos have changed since.
    Last of all: on a network's disk, a million looks at files would keep workers waiting."""
    return [clips[place].clip for clips, record in there for place in changed_videos(record, clips)]


def count_shards(
    config: ExtractConfig, manifest: Manifest, cache: str | Path, options: RunOptions
) -> int:
    """How many shards `extract` would make, or has planned; writes nothing."""
    made = Path(cache) / "cache.json"
    each = (
        read_cache_json(made.parent)["per_shard"]
        if made.exists()
        else describe((config, options))[1]
    )
    return len(shard_ranges(len(manifest.clips), each))


@dataclass
class ClaimedShard:
    """A shard that this process has claimed: what its decode tasks are, and what is taken over from
    the file that is there.
    """

    job: ShardJob
    claim: Claim
    mark: Mark
    good: GoodViews | None = None
    tasks: int = 0


class ExtractShards:
    """Stage one in one process: networks and decode workers are loaded once and serve one shard
    after another.

    root: folder that no clip may leave. `advance(done, failed)` is called after every clip of a
    shard in `told`. `record`, if given, is the configuration that the cache was made with: another
    machine may hold other weights under the same path. `place` is the cache's folder and its
    fingerprint.
    """

    def __init__(self, config: ExtractConfig, root: Path, options: RunOptions, redo: bool):
        self.config, self.root, self.options, self.redo = config, root, options, redo
        self.record: dict | None = None
        self.place: tuple[Path, str] | None = None
        self.advance: Advance = lambda done, failed: None
        self.told: set[int] = set()
        self.cores = cores_here()

    def __getstate__(self) -> dict:
        state = {
            name: getattr(self, name)
            for name in ("config", "root", "options", "redo", "record", "place")
        }
        return {**state, "plugins": given_files()}

    def __setstate__(self, state: dict) -> None:
        take_over(state["plugins"])
        self.__init__(*(state[name] for name in ("config", "root", "options", "redo")))
        self.record, self.place = state["record"], state["place"]
        keep_freed_memory()

    @cached_property
    def models(self) -> "FrozenNetworks":
        """The networks. ValueError if they are not those that the cache was made with."""
        from pipeline.stages.frozen_networks import FrozenNetworks

        models = FrozenNetworks(self.config, pick_device(self.options.device), self.options.compile)
        if self.record is not None and _as_json(models.record()) != self.record:
            here = socket.gethostname()
            raise ValueError(
                f"{here}: other weights than those that this run began with; let all machines "
                f"read the same"
            )
        return models

    @cached_property
    def home(self) -> WatchedFolder:
        """The cache's folders, identified when this process began to work there. CacheError if
        there is no cache.
        """
        return home_of(*self.place, "features")

    @cached_property
    def pool(self) -> WorkerPool:
        """The decode workers."""
        workers = self.options.workers
        workers = decoders_for(self.models.device.type, self.cores) if workers is None else workers
        return WorkerPool(run_task, workers=workers, timeout=self.options.time_limit, again=AGAIN)

    def close(self) -> None:
        """Ends the decode workers, if there are any."""
        if "pool" in vars(self):
            self.pool.close()
        if "home" in vars(self):
            self.home.close()

    def finished(self, job: ShardJob) -> bool:
        """Whether a shard is complete; to do it again, whether that has been done since this run
        began.
        """
        mark = mark_of(job.path)
        return mark is not None and (not self.redo or mark != job.mark)

    def __call__(self, job: ShardJob) -> dict | None:
        """The statistics of a shard; None if another run is at it, or was."""
        ((_, record),) = self.stream([job])
        return record

    def stream(self, jobs: Iterable[ShardJob]) -> Iterator[tuple[ShardJob, dict | None]]:
        """(job, statistics) of one shard after the other, whose clips are decoded ahead; None as
        for a call.
        """
        from pipeline.stages.shard_composer import decode_tasks

        turns: deque[ClaimedShard] = deque()
        others: deque[ShardJob] = deque()
        held: set[Claim] = set()

        def tasks() -> Iterator:
            for job in jobs:
                if (turn := self._claim(job)) is None:
                    others.append(job)
                    continue
                held.add(turn.claim)
                tasks = decode_tasks(self.models, self.root, job.clips, turn.good)
                turn.tasks = len(tasks)
                turns.append(turn)
                yield from tasks

        finishing: deque[tuple[ShardJob, Future]] = deque()

        def settled(most: int) -> Iterator[tuple[ShardJob, dict | None]]:
            while others:
                yield others.popleft(), None
            while len(finishing) > most:
                job, future = finishing.popleft()
                yield job, future.result()

        results, peeked = self.pool.imap(tasks(), ahead=self._ahead()), deque()

        def results_of(turn: ClaimedShard) -> Iterator:
            for _ in range(turn.tasks):
                yield peeked.popleft() if peeked else next(results)

        try:
            with (
                ThreadPoolExecutor(1, "finish") as finisher,
                ThreadPoolExecutor(1, "write") as disk,
            ):
                while True:
                    if not turns:
                        peeked.extend(
                            islice(results, 1)
                        )  # makes the tasks, whose shard is claimed then
                    if not turns:
                        break
                    turn = turns.popleft()
                    if complete := self._compose(turn, results_of(turn), disk):
                        finishing.append(
                            (
                                turn.job,
                                finisher.submit(_finish, self._at_home(complete), turn.claim),
                            )
                        )
                        yield from settled(
                            1
                        )  # at most one shard is being hashed while the next is computed
                    else:
                        others.append(turn.job)
                yield from settled(0)
        finally:
            for claim in held:
                # a shard that waited for its turn to be hashed, where an earlier one's failed
                claim.abandon()

    def _compose(
        self, turn: ClaimedShard, results: Iterator, disk: ThreadPoolExecutor
    ) -> Callable[[], dict | None] | None:
        """Writes a shard up to what is left to do; None if its part file was taken away because we
        seemed to be dead.
        """
        from pipeline.stages.shard_composer import ShardComposer

        composer = ShardComposer(
            turn.job, turn.claim, turn.mark, self.models, self.options, disk, turn.good
        )
        self.told.add(turn.job.shard)

        def advance(done: int, failed: int) -> None:
            self.home.check()  # else hours of work could be lost in a deleted cache
            self.advance(done, failed)

        try:
            return composer.run(results, advance)
        except OSError:
            self.home.check()
            if turn.claim.held():
                raise
            deque(results, maxlen=0)
            return None

    def _at_home(self, complete: Callable[[], dict | None]) -> Callable[[], dict | None]:
        """Wraps `complete`, the last step of a shard: it names files only in the cache that this
        run began with.
        """

        def guarded() -> dict | None:
            with self.home.guarded():
                self.home.check()
                return complete()

        return guarded

    def _claim(self, job: ShardJob) -> ClaimedShard | None:
        with self.home.guarded():
            claim = take_claim(job.path)
        if claim is None:
            return None
        try:
            self.home.check()  # the claim lies in the cache that this run began with
            if self.finished(job):
                claim.release()
                return None
            if not self.redo:
                return ClaimedShard(job, claim, begin_shard(job.path))
            from pipeline.stages.shard_composer import group_plans, rows_of

            good = GoodViews(job.path, job.attrs, group_plans(self.models, job.clips, {}))
            for place in self._changed(job):
                good.forget(rows_of(self.config.sampling, place))
            return ClaimedShard(job, claim, mark_of(job.path), good)
        except BaseException:
            claim.release()
            raise

    def _changed(self, job: ShardJob) -> list[int]:
        """Which clips of a shard that is there have other videos now."""
        try:
            return changed_videos(read_statistics(job.path), job.clips)
        except (OSError, Damaged):  # what it was made from, nobody knows any more
            return []

    def _ahead(self) -> int:
        """Every worker has a task and one waits for each, unless clips have so many views that a
        few fill the memory.
        """
        views, workers = sum(count_views(self.config.sampling).values()), self.pool.workers
        return max(1, workers, min(2 * workers, VIEWS_AHEAD // views))


def _finish(complete: Callable[[], dict | None], claim: Claim) -> dict | None:
    with claim:
        return complete()


def _as_json(record: dict) -> dict:
    return json.loads(json.dumps(record))


def decoders_for(device: str, cores: int) -> int:
    """On a CPU the networks want every core and one process decodes faster than they run; beside a
    GPU the cores are free.
    """
    return 1 if device == "cpu" else max(1, min(MOST_DECODERS, cores - 1))


def describe(asked: tuple[ExtractConfig, RunOptions]) -> tuple[dict, int]:
    """The configuration as a cache records it, and clips per shard: loads the networks' weights,
    and computes nothing.
    """
    from pipeline.stages.frozen_networks import StoredShapes

    outline = StoredShapes(asked[0])
    return outline.record(), clips_per_shard(outline, asked[1])


def _describe_with_plugins(
    asked: tuple[tuple[ExtractConfig, RunOptions], dict[str, str]],
) -> tuple[dict, int]:
    """`describe` in another process, which may execute the same plug-in files as this one."""
    config_and_options, plugins = asked
    take_over(plugins)
    return describe(config_and_options)


def clips_per_shard(outline: "StoredShapes", options: RunOptions) -> int:
    """Clips whose tensors fill about `shard_bytes`, from the shapes alone, so that it is the same
    on every machine.
    """
    if options.shard_size:
        return options.shard_size
    sampling, total = outline.config.sampling, 0
    for group in GROUPS:
        size = sampling.size_of(group) or (
            sampling.resized,
            round(sampling.resized * NOMINAL_ASPECT),
        )
        width = np.dtype(outline.config.dtype).itemsize
        view = sum(
            int(np.prod(shape)) * (width if len(shape) > 1 else 4)
            for shape in outline.shapes(size).values()
        )
        total += view * count_views(sampling)[group]
    return max(1, options.shard_bytes // total)
