"""Jobs on their way: what a Dask scheduler has been given, what comes back, and what is done where
nothing does.

`pipeline.workers.engines` says which workers there are; this file runs in the client, and, for one
job at a time, in a worker.
"""

import hashlib
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from functools import partial
from itertools import islice
from typing import Any

from pipeline.workers import cores

ALLOWED_DEATHS = 3  # workers that a job may take with it
GONE = "the Dask scheduler is gone; finished shards are kept, the same command resumes"
AGAIN = 0.1  # seconds before a question that failed is asked again
NEIGHBOURS = 10.0  # seconds to wait for the other workers of a machine to say which cores they use
# seconds in which nobody takes a connection, later on, before we look whether the scheduler is gone
NOBODY = 3.0


class WorkersLost(RuntimeError):
    """Jobs took worker after worker with them, or the scheduler is gone."""


class DaskJobs:
    """The jobs that a Dask scheduler has: a few more than there are workers, so that neither side's
    memory grows.

    `sharing` is the number of workers that share this machine's cores; 0 if workers have to find
    that out on their machines.
    """

    def __init__(self, client, workers: int, sharing: int = 0):
        from distributed import Future

        self.client, self.workers, self.sharing = client, workers, sharing
        client.rpc.timeout = NOBODY
        self.bond = Future(
            f"bond-{uuid.uuid4().hex}", client
        )  # of no task: cancelled, as all are, when the connection closes
        self.id = (
            uuid.uuid4().hex
        )  # a later run loads its functions anew: the files that they opened may have changed
        self.seen = 0.0
        self.futures: dict[str, tuple[Any, Any]] = {}

    def room(self) -> int:
        """How many more jobs the scheduler is to have; it is asked for its workers every few
        seconds.
        """
        if time.monotonic() - self.seen > 5:
            with suppress(OSError):  # it is asked again; if it is gone, that is noticed elsewhere
                self.workers = max(self.workers, len(self.client.nthreads()))
            self.seen = time.monotonic()
        return 2 * self.workers + 2 - len(self.futures)

    def run(self, function: Callable, jobs: Iterable) -> Iterator[tuple[Any, Any]]:
        from distributed import as_completed

        payload = pickle.dumps(function, protocol=5)
        name = f"{self.id} {hashlib.sha256(payload).hexdigest()}"
        completed, jobs = as_completed(loop=self.client.loop), iter(jobs)

        def submit() -> None:
            """As many as there is room for, in one message; a job travels as bytes, into which Dask
            does not look.
            """
            some = list(islice(jobs, self.room()))
            if not some:
                return
            sent = [pickle.dumps(job, protocol=5) for job in some]
            keys = [f"job-{uuid.uuid4().hex}" for _ in some]
            futures = self.client.map(
                partial(_work, name, payload, self.sharing), sent, key=keys, pure=False
            )
            for job, future in zip(some, futures, strict=True):
                self.futures[future.key] = job, future
            completed.update(futures)
            self.check()  # what was sent after the connection was closed would never come back

        submit()
        for futures in completed.batches():
            done = [self.futures.pop(future.key)[0] for future in futures]
            if any(future.cancelled() for future in futures):
                raise WorkersLost(GONE)
            submit()
            yield from zip(done, self._outcomes(futures), strict=True)

    def check(self) -> None:
        """WorkersLost if the connection to the scheduler has been closed since the beginning."""
        if self.bond.cancelled():
            raise WorkersLost(GONE)

    def _outcomes(self, futures: list) -> Iterator[Any]:
        """Their results, asked for together, since each question is a journey of its own; or
        exceptions.
        """
        import asyncio

        whole, results = [future for future in futures if future.status == "finished"], {}
        if whole:
            with suppress(
                Exception, asyncio.CancelledError
            ):  # one was lost after it was finished: each is asked for by itself
                results = dict(
                    zip((future.key for future in whole), self.client.gather(whole), strict=True)
                )
        for future in futures:
            yield results[future.key] if future.key in results else self._outcome(future)

    def _outcome(self, future) -> Any:
        """A finished future's result, or its exception; asked for until the scheduler answers or is
        gone.
        """
        import asyncio
        from concurrent import futures

        from distributed import KilledWorker

        while True:
            self.check()
            try:
                return future.result()
            except KilledWorker as error:
                return WorkersLost(
                    f"a job ended {ALLOWED_DEATHS + 1} workers, the last at "
                    f"{error.last_worker.address}; see its log for why"
                )
            except (
                asyncio.CancelledError,
                futures.CancelledError,
            ):  # of these two, Dask's versions disagree
                raise WorkersLost(GONE) from None
            except Exception as error:
                if future.status == "error" or not isinstance(
                    error, OSError
                ):  # else it was the question that failed
                    return error
            time.sleep(AGAIN)

    def cancel(self) -> None:
        """Takes back what has not begun."""
        with suppress(Exception):  # a scheduler that is gone has forgotten them anyway
            self.client.cancel([future for _, future in self.futures.values()], force=True)


_FUNCTIONS: dict[
    str, Callable
] = {}  # of this worker process: the last job function, with what it has loaded
_ONE_AT_A_TIME = threading.Lock()


def _work(name: str, payload: bytes, sharing: int, job: bytes) -> Any:
    """In a Dask worker: the job function, unpickled where it is new here, on one job."""
    with _ONE_AT_A_TIME:
        if name not in _FUNCTIONS:
            _FUNCTIONS.clear()
            cores.share_with(
                sharing or _neighbours()
            )  # before the function is there, which may count its cores
            _FUNCTIONS[name] = pickle.loads(payload)
        return _FUNCTIONS[name](pickle.loads(job))


def _neighbours() -> int:
    """In a Dask worker: how many workers share its cores, this one included.

    If they do not answer within NEIGHBOURS seconds, all workers of this machine count.
    """
    from distributed import get_client, get_worker
    from distributed.comm import get_address_host

    mine = get_worker().address
    try:
        client = get_client()
        there = [
            address
            for address in client.nthreads()
            if get_address_host(address) == get_address_host(mine)
        ]
    except (OSError, ValueError):  # the scheduler does not answer, which the run will notice too
        return 1
    places: dict[str, tuple[str, ...]] = {}

    def ask() -> None:
        with suppress(Exception):  # one that is just ending, or a scheduler that is
            places.update(client.run(cores.place, workers=there, on_error="ignore"))

    asking = threading.Thread(target=ask, name="neighbours", daemon=True)
    asking.start()
    asking.join(NEIGHBOURS)
    return sum(place == cores.place() for place in list(places.values())) or len(there) or 1
