"""Engines run jobs: in this process, in processes of this machine, on Dask workers, or on Slurm.

A job function is a picklable callable of an importable module. A process keeps it from one job to
the next, so what it loads (networks, an open cache) is loaded once per process. It returns
statistics only: tensors go from the worker to the disk.

`share_jobs` also divides jobs with other runs on the same cache, by claims.
"""

import logging
import os
import re
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from itertools import takewhile
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.files.watched_folder import WatchedFolder
from pipeline.text.counted import counted
from pipeline.workers import slurm
from pipeline.workers.claims import ClaimWatch
from pipeline.workers.completion import OtherRun
from pipeline.workers.dask_jobs import ALLOWED_DEATHS, GONE, DaskJobs, WorkersLost
from pipeline.workers.dask_scratch import private_scratch
from pipeline.workers.dask_tls import TlsFiles, files_of_this_run, security_of_this_run
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.waiting import PrintLine, WaitMessages

POLL = 0.5  # seconds between two looks at shards that other runs work on
CLOSING = 3.0  # seconds that workers which we started have to end
# Seconds in which a lost worker has to be replaced: it imports torch, on a busy machine.
COMING_BACK = 120.0
CONNECTING = 20.0  # seconds within which a scheduler has to answer at the start

RunJobs = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[Any, Any]]]


class Engine(Protocol):
    """The place where jobs run."""

    def open(self) -> AbstractContextManager[RunJobs]:
        """Start the workers for the duration of a context.

        Returns:
            A context of `run(function, jobs)`, which yields (job, result) in the order of
            completion. The result is the exception that the function raised, or WorkersLost.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """Processes of this machine.

    Attributes:
        workers: the number of processes. With 0 jobs run in this process, where a function that
            has `stream(jobs)` may look ahead.
    """

    workers: int = 0

    @contextmanager
    def open(self) -> Iterator[RunJobs]:
        pools: list[WorkerPool] = []

        def run(function: Callable, jobs: Iterable) -> Iterator[tuple[Any, Any]]:
            if not self.workers and hasattr(function, "stream"):
                yield from function.stream(jobs)
                return
            if not pools:
                pools.append(WorkerPool(function, self.workers))
            yield from pools[0].imap(jobs, ahead=2 * max(1, self.workers))

        try:
            yield run
        finally:
            for pool in pools:
                pool.close()


@dataclass(frozen=True)
class DaskEngine:
    """Dask workers, one job at a time each.

    The workers are those of the cluster at `scheduler`, if there is an address. Otherwise they are
    Slurm jobs, if `slurm` has options. Otherwise they are processes of this machine, each with a
    GPU of its own where there are GPUs.

    A scheduler counts as gone when the connection to it closes: its process has ended, or has
    closed it. (The system notices within half a minute that a whole machine has vanished:
    `distributed.comm.timeouts.tcp`.) A scheduler that is only slow keeps its connection. Requests
    that it does not answer in time are sent again, for as long as it takes.

    Connections need a key: the one in `tls`, else one made for this run. A cluster at `scheduler`
    was started by somebody else: without `tls` it is used as it is.

    Attributes:
        workers: the number of processes, or of Slurm jobs at most.
        threads: jobs that each worker gets at a time, of which it may begin the next before the
            last is done. A function with one of `threads` gets one at a time all the same.
        gpus: GPUs of this machine, one for each process, which then has the cores near its GPU;
            () gives the processes all GPUs in turn, and shares the cores among them.
        scheduler: address of a running scheduler, "" to start one.
        slurm: options of sbatch; None for no Slurm.
        dashboard: HOST:PORT of a web page about the work, which needs no key; "" for none.
        interface: the network by which Slurm's nodes reach this machine, "" for the default.
        tls: files with the keys.
        logs: a folder for the output of Slurm jobs, which the nodes share.
        say: prints a line for a person.
    """

    workers: int = 1
    threads: int = 1
    gpus: tuple[str, ...] = ()
    scheduler: str = ""
    slurm: dict[str, str] | None = None
    dashboard: str = ""
    interface: str = ""
    tls: TlsFiles | None = None
    logs: str = "."
    say: Callable[[str], None] = field(default=lambda line: None, compare=False)

    @contextmanager
    def open(self) -> Iterator[RunJobs]:
        import dask

        # Before its settings are set: what is imported inside their context loses its own settings
        # at the end of the context.
        import distributed  # noqa: F401

        # Our own errors say in one line what the client's log says.
        logging.getLogger("distributed.client").setLevel(logging.CRITICAL)
        # Dask takes another port, which is printed.
        warnings.filterwarnings("ignore", "Port .* is already in use")
        stack = ExitStack()
        security = self._security(stack)
        settings = {
            "temporary-directory": private_scratch(),
            # A daemon may not have children, and decode processes are a worker's children.
            "distributed.worker.daemon": False,
            "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
            # Else adaptive scaling would wait to see a job end before it asks for more workers.
            "distributed.scheduler.default-task-durations": {"job": "1h"},
            "distributed.scheduler.worker-saturation": 1.0,
            "distributed.deploy.lost-worker-timeout": f"{COMING_BACK}s",
            # The profiler looks at the threads 100 times a second: 6 % of a core.
            "distributed.worker.profile.enabled": False,
            "distributed.comm.timeouts.connect": f"{CONNECTING}s",
        }
        with (
            stack,
            dask.config.set(settings),
            self._cluster(security) as cluster,
            self._client(cluster, security) as client,
        ):
            link = _answer(lambda: client.dashboard_link)
            self.say(self._described(client) + self._shown_at(link))
            # Workers of other people, or on other machines, find out who shares their cores.
            on_this_machine = not self.scheduler and self.slurm is None
            sharing = self.workers if on_this_machine else 0
            together, apart = self.threads > 1, bool(self.gpus)
            jobs = DaskJobs(client, self.workers * self.threads, sharing, self.say, together, apart)
            try:
                yield jobs.run
            finally:
                jobs.cancel()

    def _security(self, stack: ExitStack):
        """The keys for all connections until `stack` closes; None for a cluster without TLS."""
        if self.tls:
            return self.tls.security()
        if self.scheduler:
            if not self.scheduler.startswith("tls://"):
                self.say(
                    f"{self.scheduler}: without TLS, whoever reaches this port can run code as the "
                    f"user of its workers, and as you; start it with certificates and pass "
                    f"--tls-ca, --tls-cert and --tls-key"
                )
            return None
        if self.slurm is None:
            return security_of_this_run()
        os.makedirs(self.logs, exist_ok=True)
        return stack.enter_context(files_of_this_run(self.logs)).security()

    def _client(self, cluster, security):
        """A connection to the scheduler. OSError if nothing answers."""
        from distributed import Client

        try:
            return Client(cluster, security=security, set_as_default=False, name="vidgraph")
        except OSError as error:
            if not self.scheduler:
                raise
            raise OSError(
                f"--scheduler: expected a running Dask scheduler at {cluster}, cannot connect "
                f"({error}); look whether it runs, and whether both sides use TLS"
            ) from None

    @contextmanager
    def _cluster(self, security):
        """The address of a scheduler, or a cluster that ends with the run."""
        if self.scheduler:
            yield self.scheduler
            return
        if self.slurm is not None:
            cluster = slurm.start_workers(
                self.slurm,
                self.workers,
                security=security,
                interface=self.interface,
                dashboard=self.dashboard,
                logs=self.logs,
                say=self.say,
                threads=self.threads,
            )
        else:
            from pipeline.workers import dask_nodes

            cluster = dask_nodes.pinned_cluster(
                self.workers, self.threads, self.gpus, self.dashboard, security
            )
        try:
            yield cluster
        finally:
            # Workers that are ended complain.
            logging.getLogger("distributed").setLevel(logging.CRITICAL)
            with suppress(TimeoutError):
                cluster.close(timeout=CLOSING)
            # At exit Dask would wait another ten seconds for what did not end in time.
            cluster.shutdown_on_close = False

    def _shown_at(self, link: str) -> str:
        """The dashboard's address as it can be opened.

        Dask puts in the scheduler's host, where the dashboard need not listen.
        """
        if self.scheduler:
            return f"; dashboard: {link}"
        if not self.dashboard:
            return ""
        host = self.dashboard.rpartition(":")[0]
        if host not in ("", "0.0.0.0"):
            link = re.sub(r"//[^/]*:", f"//{host}:", link)
        return f"; dashboard: {link} (no password: whoever reaches it can read it)"

    def _described(self, client) -> str:
        if self.slurm is not None:
            return f"up to {self.workers} Slurm jobs, scheduler {client.scheduler.address}"
        if not self.scheduler:
            near = ", each with a GPU and the cores near it" if self.gpus else ""
            return f"{self.workers} processes{near}, scheduler {client.scheduler.address}"

        threads = _answer(client.nthreads)
        if any(count > self.threads for count in threads.values()):
            self.say(
                f"workers with several threads work on {counted(self.threads, 'shard')} at a time; "
                f"start them with --nthreads {self.threads}"
            )
        elif any(count < self.threads for count in threads.values()):
            self.say(
                f"workers with fewer than {self.threads} threads wait between two shards; start "
                f"them with --nthreads {self.threads}"
            )
        workers = f"{counted(len(threads), 'worker')} at {self.scheduler}"
        return workers if threads else f"{workers}; waiting for workers"


def _answer(ask: Callable[[], Any]) -> Any:
    """What a scheduler says that was connected a moment ago. WorkersLost if it is gone by now."""
    try:
        return ask()
    except TimeoutError:  # it is slow
        raise
    except OSError:
        raise WorkersLost(GONE) from None


def run_jobs(
    function: Callable[[Any], Any], jobs: Iterable[Any], engine: Engine
) -> Iterator[tuple[Any, Any]]:
    """Run jobs on an engine.

    Args:
        function: a picklable callable of an importable module, which takes one job.
        jobs: picklable.
        engine: the place where they run.

    Yields:
        (job, result) in the order of completion; the result is an exception if the job failed.
    """
    with engine.open() as run:
        yield from run(function, jobs)


class ClaimedJob(Protocol):
    """A job that writes the file `path` of a shard, under its claim (`pipeline.workers.claims`)."""

    path: Path


Job = TypeVar("Job", bound=ClaimedJob)


def share_jobs(
    function: Callable[[Job], Any],
    jobs: Sequence[Job],
    engine: Engine,
    finished: Callable[[Job], bool],
    home: WatchedFolder | None = None,
    say: PrintLine | None = None,
    enough: Callable[[], bool] = lambda: False,
) -> Iterator[tuple[Job, Any]]:
    """Run jobs on an engine, divided with other runs on the same cache.

    Args:
        function: a picklable callable, which claims the job's shard. It returns
            OtherRun.FINISHED if another run has finished it, and None if another run has claimed
            it. Such a job is waited for, and taken over when the other run's process is gone.
        jobs: the shards to write.
        engine: the place where they run.
        finished: whether a job's shard is complete.
        home: the folder of the files; None to skip the check that it is still there.
        say: prints a line when waiting takes more than a few seconds.
        enough: whether to begin no further job, and to wait for none of another run.

    Yields:
        (job, result), and (job, None) for a shard that another run has finished.

    Raises:
        FolderGone: `home` was moved, deleted or replaced.
        WorkersLost: some jobs ended their workers; raised after all other jobs.
        Exception: the first one that a job raised.
    """
    messages = WaitMessages(ClaimWatch(), say)
    lost: list[WorkersLost] = []
    with home.guarded() if home else nullcontext(), engine.open() as run:
        left = list(jobs)
        while left:
            elsewhere: list[Job] = []
            to_begin = takewhile(lambda job: not enough(), left)
            for job, result in run(function, to_begin):
                if isinstance(result, WorkersLost):
                    lost.append(result)
                elif isinstance(result, Exception):
                    raise result
                elif result is OtherRun.FINISHED:
                    yield job, None
                elif result is None and not finished(job):
                    elsewhere.append(job)
                else:
                    yield job, result

            if enough():
                break
            done, left = _wait(elsewhere, finished, messages, home)
            for job in done:
                yield job, None
    if lost:
        raise lost[0]


def _wait(
    jobs: list[Job],
    finished: Callable[[Job], bool],
    messages: WaitMessages,
    home: WatchedFolder | None,
) -> tuple[list[Job], list[Job]]:
    """Wait until a job of another run is finished or free: (finished jobs, the rest)."""
    names = {job.path: f"shard {job.path.stem} ({job.path})" for job in jobs}
    while jobs:
        if home:
            home.check()
        done = [finished(job) for job in jobs]
        # All that are left, not only up to the first that is free: a claim's silence is measured
        # from its first look.
        left = [job for job, is_done in zip(jobs, done, strict=True) if not is_done]
        free = [messages.watch.free(job.path) for job in left]
        if any(free) or any(done):
            messages.over()
            finished_jobs, rest = [], []
            for job, is_done in zip(jobs, done, strict=True):
                if is_done:
                    finished_jobs.append(job)
                else:
                    rest.append(job)
            return finished_jobs, rest
        messages.say_of(names)
        time.sleep(POLL)
    return [], []


def pick_device(name: str) -> str:
    """Return the device that an option means in this process.

    Args:
        name: "auto" (CUDA where there is a GPU), "cpu" or "cuda".

    Returns:
        "cpu" or "cuda".

    Raises:
        ValueError: "cuda" where torch finds no GPU.
    """
    import torch

    available = torch.cuda.is_available()
    if name == "cuda" and not available:
        raise ValueError(
            "--device cuda: expected a GPU that torch can use, found none; say --device cpu"
        )
    if name != "auto":
        return name
    return "cuda" if available else "cpu"
