"""Runs jobs: in this process, in processes of this machine, on Dask workers, or on Slurm; and
divides them with other runs.

A job function is a picklable callable of an importable module. A process keeps it from one job to
the next, so what it loads (networks, an open cache) is loaded once per process. It returns
statistics: tensors go from the worker to the disk.
"""

import logging
import os
import re
import subprocess
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, TypeVar

from pipeline.files.watched_folder import WatchedFolder
from pipeline.workers import slurm
from pipeline.workers.claims import ClaimWatch
from pipeline.workers.cores import cores_here
from pipeline.workers.dask_jobs import ALLOWED_DEATHS, DaskJobs, WorkersLost
from pipeline.workers.dask_scratch import private_scratch
from pipeline.workers.dask_tls import TlsFiles, files_of_this_run, security_of_this_run
from pipeline.workers.decode_pool import WorkerPool
from pipeline.workers.waiting import PrintLine, WaitMessages

POLL = 0.5  # seconds between two looks at shards that other runs work on
CLOSING = 3.0  # seconds that workers which we started have to end
# seconds in which a worker that was lost has to be replaced; it imports torch on a busy machine
COMING_BACK = 120.0
KEEPING = 5.0  # seconds between two looks whether there are as many workers as there should be
CONNECTING = 20.0  # seconds within which a scheduler has to be there at the start

RunJobs = Callable[[Callable[[Any], Any], Iterable[Any]], Iterator[tuple[Any, Any]]]


class Engine(Protocol):
    """Where jobs run: `open()` yields run(function, jobs) -> (job, result) in the order of
    completion.

    In place of a result comes the exception that the function raised, or WorkersLost.
    """

    def open(self) -> AbstractContextManager[RunJobs]: ...


@dataclass(frozen=True)
class LocalEngine:
    """`workers` processes of this machine; 0: this one, where a function that has `stream(jobs)`
    may look ahead.
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
    """Dask workers, one job at a time each: of the cluster at `scheduler`, else of Slurm jobs if
    `slurm` says which, else `workers` processes of this machine, of which each has a GPU of its own
    where there are GPUs.

    The scheduler is gone, and the run ends, when the connection to it is closed: its process has
    ended, or has closed it. (That its machine has vanished, the system notices in half a minute:
    `distributed.comm.timeouts.tcp`.) One that is only slow, however slow, keeps its connection and
    is waited for: a question that it does not answer in time is asked again.

    `workers` is the number of processes, or of Slurm jobs at most. `interface` names the network
    that Slurm's nodes reach this machine by; `logs` a folder for what Slurm jobs print, which the
    nodes share; `say` gets lines for a person.

    Connections need a key: that of `tls`, else one that is made for the run. A scheduler at
    `scheduler` was started by others: without `tls` it is used as it is. `dashboard` (HOST:PORT, ""
    for none) can be read without a key.
    """

    workers: int = 1
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
        import distributed  # noqa: F401  (before its settings are set: else all that it has go with them in the end)

        logging.getLogger("distributed.client").setLevel(
            logging.CRITICAL
        )  # what it has to say, our errors say in one line
        warnings.filterwarnings(
            "ignore", "Port .* is already in use"
        )  # it takes another, which is printed
        stack = ExitStack()
        security = self._security(stack)
        settings = {
            "temporary-directory": private_scratch(),
            "distributed.worker.daemon": False,  # decode processes are its children
            "distributed.scheduler.allowed-failures": ALLOWED_DEATHS,
            "distributed.scheduler.default-task-durations": {
                "job": "1h"
            },  # else adaptive scaling waits to see one end
            "distributed.scheduler.worker-saturation": 1.0,
            "distributed.deploy.lost-worker-timeout": f"{COMING_BACK}s",
            # it looks at the threads 100 times a second: 6 % of a core
            "distributed.worker.profile.enabled": False,
            "distributed.comm.timeouts.connect": f"{CONNECTING}s",
        }
        with (
            stack,
            dask.config.set(settings),
            self._cluster(security) as where,
            self._client(where, security) as client,
        ):
            self.say(self._described(client) + self._shown_at(client.dashboard_link))
            ours = not self.scheduler and self.slurm is None
            flight = DaskJobs(client, self.workers, sharing=self.workers if ours else 0)
            try:
                yield flight.run
            finally:
                flight.cancel()

    def _security(self, stack: ExitStack):
        """The keys for all connections until `stack` closes; None for a `scheduler` that was
        started without TLS.
        """
        if self.tls:
            return self.tls.security()
        if self.scheduler:
            if not self.scheduler.startswith("tls://"):
                self.say(
                    f"{self.scheduler}: without TLS, whoever reaches this port can run code as "
                    f"the user of its workers, "
                    "and as you; start it with certificates and pass --tls-ca, --tls-cert and "
                    "--tls-key"
                )
            return None
        if self.slurm is None:
            return security_of_this_run()
        os.makedirs(self.logs, exist_ok=True)
        return stack.enter_context(files_of_this_run(self.logs)).security()

    def _client(self, where, security):
        """A connection to the scheduler. OSError if there is none that takes it."""
        from distributed import Client

        try:
            return Client(where, security=security, set_as_default=False, name="vidgraph")
        except OSError as error:
            if not self.scheduler:
                raise
            expected = f"--scheduler: expected a running Dask scheduler at {where}, cannot connect ({error})"
            raise OSError(
                f"{expected}; look whether it runs, and whether both sides use TLS"
            ) from None

    @contextmanager
    def _cluster(self, security):
        """The address of a scheduler, or a cluster that ends with the run."""
        if self.scheduler:
            yield self.scheduler
            return
        if self.slurm is not None:
            more = {
                "interface": self.interface,
                "dashboard": self.dashboard,
                "logs": self.logs,
                "say": self.say,
            }
            cluster = slurm.start_workers(self.slurm, self.workers, security=security, **more)
        else:
            cluster = _pinned_cluster(self.workers, self.dashboard, security)
        try:
            yield cluster
        finally:
            logging.getLogger("distributed").setLevel(
                logging.CRITICAL
            )  # workers that are ended complain
            with suppress(TimeoutError):
                cluster.close(timeout=CLOSING)
            cluster.shutdown_on_close = (
                False  # at exit Dask would wait another ten seconds for what did not end in time
            )

    def _shown_at(self, link: str) -> str:
        """The dashboard's address as it can be opened: Dask puts the scheduler's host in, where it
        need not listen.
        """
        if not self.scheduler and not self.dashboard:
            return ""
        host = self.dashboard.rpartition(":")[0]
        link = (
            link
            if self.scheduler or host in ("", "0.0.0.0")
            else re.sub(r"//[^/]*:", f"//{host}:", link)
        )
        return f"; dashboard: {link}" + (
            "" if self.scheduler else " (no password: whoever reaches it can read it)"
        )

    def _described(self, client) -> str:
        if self.slurm is not None:
            return f"up to {self.workers} Slurm jobs, scheduler {client.scheduler.address}"
        threads = client.nthreads()
        if not self.scheduler:
            return f"{self.workers} processes, scheduler {client.scheduler.address}"
        if any(count > 1 for count in threads.values()):
            self.say(
                "workers with several threads work on one shard at a time all the same; start "
                "them with --nthreads 1"
            )
        return f"{len(threads)} workers at {self.scheduler}" + (
            "" if threads else "; waiting for workers"
        )


def run_jobs(
    function: Callable[[Any], Any], jobs: Iterable[Any], engine: Engine
) -> Iterator[tuple[Any, Any]]:
    """(job, result) of every job, in the order of completion; in place of a result its exception.
    See `Engine`.
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
) -> Iterator[tuple[Job, Any]]:
    """run_jobs for several runs on one cache: yields (job, result), and (job, None) for what
    another run has finished.

    `function` returns None for a job that another run has claimed or finished. Such jobs are waited
    for, and taken over when their owner is gone. `say` gets a line when that takes more than a few
    seconds. The first exception ends it, except WorkersLost, which is raised after all other jobs.
    Gone when the files' `home` is no longer at its path.
    """
    waits, lost = WaitMessages(ClaimWatch(), say), []
    with home.guarded() if home else nullcontext(), engine.open() as run:
        left: list[Job] = list(jobs)
        while left:
            elsewhere = []
            for job, result in run(function, left):
                if isinstance(result, WorkersLost):
                    lost.append(result)
                elif isinstance(result, Exception):
                    raise result
                elif result is None and not finished(job):
                    elsewhere.append(job)
                else:
                    yield job, result
            done, left = _wait(elsewhere, finished, waits, home)
            yield from ((job, None) for job in done)
    if lost:
        raise lost[0]


def _wait(
    jobs: list[Job],
    finished: Callable[[Job], bool],
    waits: WaitMessages,
    home: WatchedFolder | None,
) -> tuple[list[Job], list[Job]]:
    """Waits for other runs until one of their jobs is finished or free: (the finished ones, the
    rest).
    """
    names = {job.path: f"shard {job.path.stem} ({job.path})" for job in jobs}
    while jobs:
        if home:
            home.check()
        free = [waits.watch.free(job.path) for job in jobs]  # each is watched from the start
        done = [finished(job) for job in jobs]
        if any(free) or any(done):
            waits.over()
            pairs = list(zip(jobs, done, strict=True))
            return [job for job, is_done in pairs if is_done], [
                job for job, is_done in pairs if not is_done
            ]
        waits.say_of(names)
        time.sleep(POLL)
    return [], []


def _pinned_cluster(workers: int, dashboard: str, security):
    """Processes of this machine that only it can reach; each sees one GPU, in turn, where there are
    any, and computes with its share of the cores, or with as many threads as OMP_NUM_THREADS says.
    """
    from distributed import LocalCluster, SpecCluster
    from tornado.ioloop import PeriodicCallback

    from pipeline.workers import dask_nodes

    gpus = visible_gpus()
    threads = os.environ.get("OMP_NUM_THREADS") or str(max(1, cores_here() // workers))

    class OwnScheduler(SpecCluster):
        """Passes our class of schedulers to SpecCluster: LocalCluster, which calls this, has no
        option for it.
        """

        def __init__(self, *, scheduler: dict, **more):
            super().__init__(scheduler={**scheduler, "cls": dask_nodes.QuietScheduler}, **more)

    class Pinned(LocalCluster, OwnScheduler):
        """Gives every worker, and every one that replaces it, the GPU of its number."""

        def new_worker_spec(self) -> dict:
            ((number, spec),) = super().new_worker_spec().items()
            env = {"OMP_NUM_THREADS": threads}
            if gpus:
                env["CUDA_VISIBLE_DEVICES"] = gpus[number % len(gpus)]
            return {
                number: {
                    **spec,
                    "options": {
                        **spec["options"],
                        "env": env,
                        "worker_class": dask_nodes.QuietWorker,
                    },
                }
            }

    cluster = Pinned(
        n_workers=0,
        threads_per_worker=1,
        memory_limit=0,  # networks are not Dask's to spill
        host="127.0.0.1",
        dashboard_address=dashboard or None,
        security=security,
        protocol="tls://",
        silence_logs=logging.ERROR,
    )
    cluster.scale(workers)
    # Dask gives up on a worker that is not back within the time that it is given, and on one that
    # dies while it starts.
    keeper = PeriodicCallback(lambda: cluster.scale(workers), 1000 * KEEPING)
    cluster.loop.add_callback(keeper.start)
    return cluster


def visible_gpus() -> list[str]:
    """The GPUs of this machine as CUDA_VISIBLE_DEVICES names them; those that it names already, if
    it is set.
    """
    named = os.environ.get("CUDA_VISIBLE_DEVICES")
    if named is not None:
        return [name.strip() for name in named.split(",") if name.strip()]
    asked = [
        "nvidia-smi",
        "--query-gpu=uuid",
        "--format=csv,noheader",
    ]  # torch would cost the client half a gigabyte
    try:
        return subprocess.run(asked, capture_output=True, text=True, check=True).stdout.split()
    except (OSError, subprocess.CalledProcessError):
        return []


def pick_device(name: str) -> str:
    """The device that `auto`, `cpu` or `cuda` means in this process. ValueError if it asks for a
    GPU that is not there.
    """
    import torch

    there = torch.cuda.is_available()
    if name == "cuda" and not there:
        raise ValueError(
            "--device cuda: expected a GPU that torch can use, found none; say --device cpu"
        )
    return ("cuda" if there else "cpu") if name == "auto" else name
