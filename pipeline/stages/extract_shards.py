"""Stage one in one process: networks and decode workers serve one shard after another.

A process claims a shard when it is about to decode the shard's first clip
(`pipeline.workers.claims`). So several runs on one cache share the work, and the decode workers
start on the next shard while the device computes this one, and the one before is hashed.

`ExtractShards.stream` does so for a process that has all its shards. A Dask worker gets one shard
at a time: there SHARDS_AT_ONCE threads call `ExtractShards`, and each step waits for its turn.

The networks, and with them torch, are imported where they run. A client that only hands out shards
does without.
"""

import json
import socket
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import cached_property, partial
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.cache.folder import watch_cache_folder
from pipeline.cache.good_rows import GoodViews
from pipeline.cache.records import read_statistics
from pipeline.files.atomic_files import Damaged
from pipeline.files.watched_folder import WatchedFolder
from pipeline.plugins import given_files, take_over
from pipeline.stages.batch_choice import choose_batch, record_batch, recorded_batch
from pipeline.stages.config import ExtractConfig
from pipeline.stages.jobs import Advance, RunOptions, ShardJob, decoders_for
from pipeline.video.kept_video import close_kept
from pipeline.video.video_identity import changed_videos
from pipeline.video.view_pixels import DecodeViews, ProbeClip, run_task
from pipeline.workers.claims import Claim, take_claim
from pipeline.workers.completion import Mark, OtherRun, begin_shard, mark_of
from pipeline.workers.cores import cores_here
from pipeline.workers.dask_jobs import tell_client
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.engines import pick_device
from pipeline.workers.memory import free_memory, keep_freed_memory
from pipeline.workers.tries import describe_tries
from pipeline.workers.waiting import PrintLine, print_nothing

if TYPE_CHECKING:
    from pipeline.stages.frozen_networks import FrozenNetworks

# Tasks per decode worker that may be under way or done before the device wants them. Memory bounds
# them too.
TASKS_AHEAD = 8
# Of decoded pixels that wait for the device: a part of the memory that is free, and bytes. Beyond
# them, a decode worker has room for four default views with their whole frames.
SHARED_PART, SHARED_BYTES, DECODER_BYTES = 1 / 8, 2 << 30, 48 << 20
# Shards that a process hashes and syncs while it computes further ones.
FINISHING = 4
# Seconds between two looks whether the cache is still where it was.
CHECKING = 1.0
# Threads that may call `ExtractShards`: for a shard that is decoded ahead, one that is computed and
# one that is hashed.
SHARDS_AT_ONCE = 3

# How often a clip is given to another decode process after its own died.
AGAIN = 1


@dataclass
class ClaimedShard:
    """A shard that this process has claimed.

    Attributes:
        job: the shard.
        claim: the claim.
        mark: the version of the shard's file when it was claimed.
        good: the views to copy from the existing file; None if there is nothing to copy.
        tasks: how many decode tasks its clips have.
    """

    job: ShardJob
    claim: Claim
    mark: Mark
    good: GoodViews | None = None
    tasks: int = 0


class ExtractShards:
    """Stage one in one process: it loads networks and decode workers once, for all its shards.

    A pickled copy goes to every other process that an engine uses.

    Attributes:
        record: the config that the cache was made with. Another machine may hold other weights
            under the same path.
        cache_id: the cache's folder and its fingerprint.
        stage: the folder of the cache that the shards are in.
        advance: called with (clips done, clips failed) after every clip.
        reported: the numbers of the shards whose clips were reported through `advance`.
        times: whether the cache holds the field `time`.
        say: prints a line for a person.
        threads: how many threads may call this at a time.
    """

    threads = SHARDS_AT_ONCE

    def __init__(self, config: ExtractConfig, root: Path, options: RunOptions, redo: bool):
        """Remember what to do; nothing is loaded yet.

        Args:
            config: what to compute.
            root: the folder that no clip may leave.
            options: how to work.
            redo: whether to write complete shards again.
        """
        self.config, self.root, self.options, self.redo = config, root, options, redo
        self.record: dict | None = None
        self.cache_id: tuple[Path, str] | None = None
        self.stage = "features"
        self.advance: Advance = lambda done, failed: None
        self.reported: set[int] = set()
        self.times = True
        self.say: PrintLine = print_nothing
        self.cores = cores_here()
        self._checked = 0.0
        # Whoever holds the first one claims a shard and gives its tasks to the decode workers.
        self._decoding, self._computing = threading.Lock(), threading.Lock()

    def __getstate__(self) -> dict:
        # Without networks and workers: each process makes its own.
        names = ("config", "root", "options", "redo", "record", "cache_id", "stage", "times")
        state = {name: getattr(self, name) for name in names}
        return {**state, "plugins": given_files()}

    def __setstate__(self, state: dict) -> None:
        take_over(state["plugins"])
        self.__init__(*(state[name] for name in ("config", "root", "options", "redo")))
        for name in ("record", "cache_id", "stage", "times"):
            setattr(self, name, state[name])
        self.say = tell_client
        keep_freed_memory()

    @cached_property
    def models(self) -> "FrozenNetworks":
        """The networks. ValueError if the cache was made with other weights."""
        from pipeline.stages.frozen_networks import FrozenNetworks

        models = FrozenNetworks(self.config, pick_device(self.options.device), self.options.compile)
        if self.record is not None and as_json(models.record()) != self.record:
            raise ValueError(
                f"{socket.gethostname()}: the weights here are not those that the run started "
                f"with; let all machines read the same"
            )
        return models

    @cached_property
    def settled_options(self) -> RunOptions:
        """The options with a batch. The first process of a new cache chooses and records it."""
        batch, folder = self.options.batch, self.cache_id[0]
        if batch is None:
            batch = recorded_batch(folder)
        if batch is None:
            from pipeline.stages.shard_composer import device_name

            batch = record_batch(folder, choose_batch(self.models))
            self.say(
                f"{folder}: {batch} views in each forward pass (--batch), as suits "
                f"{device_name(self.models.device.type)}; recorded in the cache"
            )
        return replace(self.options, batch=batch)

    @cached_property
    def watched(self) -> WatchedFolder:
        """A watch on the cache's folders from now on. CacheError if there is no cache."""
        return watch_cache_folder(*self.cache_id, self.stage)

    @cached_property
    def pool(self) -> WorkerPool:
        """The decode workers."""
        workers = self.options.workers
        if workers is None:
            workers = decoders_for(self.models.device.type, self.cores)
        pool = start_decoders(workers, self.options.time_limit, self.say)
        if pool.arena is not None:
            refusal = self.models.transfers.lock_pages(pool.arena.address, pool.arena.size)
            if refusal:
                self.say(
                    f"the system does not lock {pool.arena.size >> 20:,} MiB of memory for the GPU "
                    f"({refusal}): copies to it are slower; raise `ulimit -l` if the networks wait"
                )
        return pool

    @cached_property
    def _disk(self) -> ThreadPoolExecutor:
        """The thread that writes, for shards that come one by one."""
        return ThreadPoolExecutor(1, "write")

    def close(self) -> None:
        """End the decode workers and the watch, if there are any."""
        if "pool" in vars(self):
            self.pool.close()
            if "models" in vars(self):
                self.models.transfers.unlock_pages()
            # Without workers, the video of the last window is still open in this process.
            close_kept()
        if "_disk" in vars(self):
            self._disk.shutdown()
        if "watched" in vars(self):
            self.watched.close()

    def finished(self, job: ShardJob) -> bool:
        """Return whether a shard needs no more work.

        Args:
            job: the shard.

        Returns:
            Whether it is complete. With `redo`, whether it was written since the run started.
        """
        mark = mark_of(job.path)
        return mark is not None and (not self.redo or mark != job.mark)

    def __call__(self, job: ShardJob) -> dict | OtherRun | None:
        """Write one shard. Several threads may do so, and take turns.

        While one of them has a shard computed, the next one's clips are decoded, and the last one
        is hashed.

        Args:
            job: the shard.

        Returns:
            Its statistics; OtherRun.FINISHED if another run has written it, None if one writes it.
        """
        turn = _Turn(self._decoding)
        try:
            shard = self._claim(job)
            if not isinstance(shard, ClaimedShard):
                return shard
            try:
                return self._write(shard, turn)
            finally:
                # Without effect on a shard that is complete.
                shard.claim.abandon()
        finally:
            turn.end()

    def _write(self, shard: ClaimedShard, turn: "_Turn") -> dict | None:
        """Decode, compute and complete a claimed shard. The turn ends with its last task."""
        results = self.pool.imap(self._tasks_of(shard), ahead=self._ahead())
        results.start()

        def in_turn() -> Iterator:
            for result in results:
                if results.all_given:
                    turn.end()
                yield result

        if results.all_given:
            turn.end()
        with self._computing:
            complete = self._compose(shard, in_turn(), self._disk)
        turn.end()
        if complete is None:
            return None
        return _finish(self._guarded(complete), shard.claim)

    def _tasks_of(self, shard: ClaimedShard) -> list[ProbeClip | DecodeViews]:
        from pipeline.stages.shard_rows import decode_tasks

        tasks = decode_tasks(self.models, self.root, shard.job, shard.good)
        shard.tasks = len(tasks)
        return tasks

    def stream(self, jobs: Iterable[ShardJob]) -> Iterator[tuple[ShardJob, dict | OtherRun | None]]:
        """Write shards one after the other, and decode clips of the next ones ahead.

        While a shard is computed, those before are hashed in a thread.

        Args:
            jobs: the shards.

        Yields:
            (job, statistics). In place of the statistics, OtherRun.FINISHED if another run has
            written the shard, None if one writes it.
        """
        claimed: deque[ClaimedShard] = deque()
        claims: set[Claim] = set()
        # Shards that other runs have written, or write.
        others: deque[tuple[ShardJob, OtherRun | None]] = deque()
        finishing: deque[tuple[ShardJob, Future]] = deque()

        def tasks() -> Iterator:
            for job in jobs:
                shard = self._claim(job)
                if not isinstance(shard, ClaimedShard):
                    others.append((job, shard))
                    continue
                claims.add(shard.claim)
                shard_tasks = self._tasks_of(shard)
                claimed.append(shard)
                yield from shard_tasks

        def settled(unfinished: int) -> Iterator[tuple[ShardJob, dict | OtherRun | None]]:
            """Yield what is done, and wait until at most so many shards are being finished."""
            while others:
                yield others.popleft()
            while len(finishing) > unfinished or (finishing and finishing[0][1].done()):
                job, future = finishing.popleft()
                yield job, future.result()

        results = self.pool.imap(tasks(), ahead=self._ahead())
        peeked: deque = deque()

        def results_of(shard: ClaimedShard) -> Iterator:
            for _ in range(shard.tasks):
                yield peeked.popleft() if peeked else next(results)

        try:
            with (
                ThreadPoolExecutor(1, "finish") as finisher,
                ThreadPoolExecutor(1, "write") as disk,
            ):
                while True:
                    # Asking for a result runs `tasks`, which claims the next shard.
                    if not claimed:
                        peeked.extend(islice(results, 1))
                    if not claimed:
                        break
                    shard = claimed.popleft()
                    complete = self._compose(shard, results_of(shard), disk)
                    if complete is None:
                        others.append((shard.job, None))
                        continue
                    future = finisher.submit(_finish, self._guarded(complete), shard.claim)
                    finishing.append((shard.job, future))
                    yield from settled(FINISHING)
                yield from settled(0)
        finally:
            # After an error, shards may remain that were claimed and not finished.
            for claim in claims:
                claim.abandon()

    def _compose(
        self, shard: ClaimedShard, results: Iterator, disk: ThreadPoolExecutor
    ) -> Callable[[], dict | None] | None:
        """Write the rows of a shard and return the step that completes it.

        None if another process took the claim over, because this one had seemed dead.
        """
        from pipeline.stages.shard_composer import ShardComposer

        composer = ShardComposer(
            shard.job,
            shard.claim,
            shard.mark,
            self.models,
            self.settled_options,
            disk,
            shard.good,
            self.pool.workers,
        )
        self.reported.add(shard.job.shard)

        def advance(done: int, failed: int) -> None:
            # Without this check, hours of work could be lost in a deleted cache. For every clip it
            # would keep the server of a network file system busy.
            if time.monotonic() - self._checked > CHECKING:
                self.watched.check()
                self._checked = time.monotonic()
            self.advance(done, failed)

        # Writing also fails where another process took this one for dead and removed its file.
        try:
            return composer.run(results, advance)
        except OSError:
            self.watched.check()
            if shard.claim.held():
                raise
            # The next shard's results come after the rest of this one's.
            deque(results, maxlen=0)
            return None

    def _guarded(self, complete: Callable[[], dict | None]) -> Callable[[], dict | None]:
        """The last step of a shard, which names files only in the cache that the run started in."""

        def guarded() -> dict | None:
            with self.watched.guarded():
                self.watched.check()
                return complete()

        return guarded

    def _claim(self, job: ShardJob) -> ClaimedShard | OtherRun | None:
        # One look at a file, where a claim takes many.
        if self.finished(job):
            return OtherRun.FINISHED
        with self.watched.explaining():
            claim = take_claim(job.path)
        if claim is None:
            return None
        unfinished = describe_tries(job.path)
        if unfinished:
            self.say(unfinished)
        try:
            # The claim must lie in the cache that the run started in.
            self.watched.check()
            # Another run may have completed the shard just before this claim.
            if self.finished(job):
                claim.release()
                return OtherRun.FINISHED
            self.models.times = self.times
            if not self.redo:
                return ClaimedShard(job, claim, begin_shard(job.path))
            from pipeline.stages.shard_rows import ShardRows, group_plans

            good = GoodViews(job.path, job.attrs, group_plans(self.models, job, {}))
            rows = ShardRows(job.views)
            for number in self._changed(job):
                good.forget(rows.of(number))
            return ClaimedShard(job, claim, mark_of(job.path), good)
        except BaseException:
            claim.release()
            raise

    def _changed(self, job: ShardJob) -> list[int]:
        """The numbers of a shard's clips whose videos have changed since it was written."""
        try:
            return changed_videos(read_statistics(job.path), job.clips)
        except (OSError, Damaged):
            # Nobody knows which videos it was made from.
            return []

    def _ahead(self) -> int:
        """How many clips are decoded ahead, if the memory that workers share has room for them."""
        return max(1, TASKS_AHEAD * self.pool.workers)


class _Turn:
    """A lock that is held from now on, and given back once."""

    def __init__(self, lock: threading.Lock):
        lock.acquire()
        self._lock: threading.Lock | None = lock

    def end(self) -> None:
        if self._lock is not None:
            self._lock.release()
        self._lock = None


def start_decoders(
    workers: int, time_limit: float | None, say: Callable[[str], None]
) -> WorkerPool:
    """Start decode workers that share memory with this process, if the system gives any.

    Args:
        workers: how many; 0 decodes in this process.
        time_limit: seconds for a clip.
        say: prints a line, such as that one of them has died.

    Returns:
        The pool; whoever starts it closes it.
    """

    def survived(task: ProbeClip | DecodeViews, ending: str) -> None:
        say(f"clip {task.clip.clip}: its decode process ended ({ending}); another one tries again")

    start = partial(WorkerPool, run_task, workers, time_limit, AGAIN, survived=survived)
    wanted = shared_bytes(workers)
    try:
        return start(shared_bytes=wanted)
    except OSError as error:
        pool = start(shared_bytes=0)
        say(
            f"the system does not give {wanted >> 20:,} MiB of memory to share with decode "
            f"processes ({error}): pixels go through pipes, which is slower; look at `ulimit "
            f"-v`, and at the free space of the folder for temporary files"
        )
        return pool


def shared_bytes(workers: int) -> int:
    """Return how much memory decode workers share with the process that computes.

    Args:
        workers: decode processes.

    Returns:
        Bytes; a part of what is free at most.
    """
    wanted = max(SHARED_BYTES, workers * DECODER_BYTES) if SHARED_BYTES else 0
    return min(wanted, int(SHARED_PART * free_memory()))


def _finish(complete: Callable[[], dict | None], claim: Claim) -> dict | None:
    with claim:
        return complete()


def as_json(record: dict) -> dict:
    """Return a record as it comes back from JSON.

    Args:
        record: for example with tuples, which become lists.
    """
    return json.loads(json.dumps(record))
