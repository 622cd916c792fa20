"""Jobs on a Dask scheduler: submits them, collects their results, and notices lost workers.

`pipeline.workers.engines` starts or finds the workers. This module runs in the client; `_run_job`
runs in a worker, for one job at a time.

What happens when something dies:
- A worker: Dask gives its jobs to other workers. After ALLOWED_DEATHS + 1 dead workers the job's
  result is a WorkersLost, and the run continues with the rest. Where workers take several jobs at a
  time, one job may end the workers of the others. Then each of them is tried once more by itself.
- The scheduler: the connection to it closes, and `DaskJobs.run` raises WorkersLost.
"""

import gc
import hashlib
import pickle
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import nullcontext, suppress
from functools import partial
from itertools import islice
from typing import Any

from pipeline.workers import cores
from pipeline.workers.waiting import PrintLine, print_nothing

ALLOWED_DEATHS = 3  # dead workers after which a job is still given to another one
GONE = "the Dask scheduler is gone; finished shards are kept, the same command resumes"
RETRY = 0.1  # seconds before a failed request to the scheduler is sent again
COUNTING = 5.0  # seconds between two requests for the number of workers
NEIGHBOURS = 10.0  # seconds to wait for the other workers of a machine to say which cores they use
# Seconds to wait for a connection later on, before looking whether the scheduler is gone.
CONNECTING = 3.0


TOPIC = "vidgraph"  # of the lines that jobs have for a person


class WorkersLost(RuntimeError):
    """A job ended worker after worker, or the scheduler is gone."""


class DaskJobs:
    """The jobs that a Dask scheduler has got and not yet returned.

    The scheduler gets a few more jobs than it has workers, so that no memory grows with the number
    of jobs.

    Args:
        client: a connected `distributed.Client`.
        workers: how many jobs the expected workers take at a time.
        sharing: how many workers share this machine's cores; 0 if the workers have to find out on
            their own machines.
        say: prints a line: what jobs have for a person, and that a worker has died.
        together: whether a worker takes several jobs at a time.
        apart: whether each worker's affinity has cores of its own.
    """

    def __init__(
        self,
        client,
        workers: int,
        sharing: int = 0,
        say: PrintLine = print_nothing,
        together: bool = False,
        apart: bool = False,
    ):
        from distributed import Future

        self.client = client
        self.workers = workers
        self.sharing, self.apart = sharing, apart
        client.rpc.timeout = CONNECTING
        # A future without a task: Dask cancels all futures when the connection closes.
        self.connection = Future(f"bond-{uuid.uuid4().hex}", client)
        # Every run loads its function anew: the files that an earlier one opened may have changed.
        self.id = uuid.uuid4().hex
        self.counted_at = 0.0
        self.futures: dict[str, tuple[Any, Any]] = {}
        self.say, self.together = say, together
        # Where the scheduler does not answer, the run goes on without these lines.
        with suppress(Exception):
            client.subscribe_topic(TOPIC, lambda event: say(str(event[1])))
            client.subscribe_topic("all", self._note)

    def _note(self, event: tuple[float, Any]) -> None:
        """Say that a worker has died with some of these jobs, which others do again."""
        what = event[1]
        if not isinstance(what, dict) or what.get("action") != "remove-worker":
            return
        lost = [key for key in what.get("processing-tasks", ()) if key in self.futures]
        if lost and not what.get("expected", False):
            jobs = "a job" if len(lost) == 1 else f"{len(lost)} jobs"
            self.say(f"a worker ended with {jobs} ({what.get('worker')}): others do them again")

    def room(self) -> int:
        """Return how many more jobs the scheduler may get now."""
        if time.monotonic() - self.counted_at > COUNTING:
            # If it does not answer it is asked again later; if it is gone, `check` notices.
            with suppress(OSError):
                self.workers = max(self.workers, sum(self.client.nthreads().values()))
            self.counted_at = time.monotonic()
        return 2 * self.workers + 2 - len(self.futures)

    def run(self, function: Callable, jobs: Iterable) -> Iterator[tuple[Any, Any]]:
        """Run jobs on the workers.

        Args:
            function: a picklable callable of an importable module, which takes one job.
            jobs: picklable; iterated as there is room for more.

        Yields:
            (job, result) in the order of completion. The result is the exception of a job that
            failed, WorkersLost for one that ended too many workers.

        Raises:
            WorkersLost: the scheduler is gone.
        """
        from distributed import as_completed

        payload = pickle.dumps(function, protocol=5)
        name = f"{self.id} {hashlib.sha256(payload).hexdigest()}"
        run_job = partial(_run_job, name, payload, self.sharing, self.apart)
        completed = as_completed(loop=self.client.loop)
        jobs = iter(jobs)

        def submit() -> None:
            some = list(islice(jobs, self.room()))
            if not some:
                return
            # A job travels as bytes, so that Dask does not walk through it.
            pickled = [pickle.dumps(job, protocol=5) for job in some]
            keys = [f"job-{uuid.uuid4().hex}" for _ in some]
            futures = self.client.map(run_job, pickled, key=keys, pure=False)
            for job, future in zip(some, futures, strict=True):
                self.futures[future.key] = job, future
            completed.update(futures)
            # Jobs that are sent after the connection has closed would never come back.
            self.check()

        doubtful: list[Any] = []
        submit()
        for futures in completed.batches():
            done = [self.futures.pop(future.key)[0] for future in futures]
            if any(future.cancelled() for future in futures):
                raise WorkersLost(GONE)
            # New jobs first: the workers continue while the results are fetched.
            submit()
            for job, outcome in zip(done, self._outcomes(futures), strict=True):
                if isinstance(outcome, WorkersLost) and self.together:
                    doubtful.append(job)
                else:
                    yield job, outcome
        for job in doubtful:
            future = self.client.submit(run_job, pickle.dumps(job, protocol=5), pure=False)
            self.futures[future.key] = job, future
            yield job, self._outcome(future)
            del self.futures[future.key]

    def check(self) -> None:
        """Raise WorkersLost if the connection to the scheduler has closed."""
        if self.connection.cancelled():
            raise WorkersLost(GONE)

    def _outcomes(self, futures: list) -> Iterator[Any]:
        """The results of finished futures, or their exceptions, in one request where possible."""
        import asyncio

        whole = [future for future in futures if future.status == "finished"]
        results: dict[str, Any] = {}
        if whole:
            # If one was lost after it had finished, each is requested by itself below.
            with suppress(Exception, asyncio.CancelledError):
                keys = [future.key for future in whole]
                results = dict(zip(keys, self.client.gather(whole), strict=True))
        for future in futures:
            if future.key in results:
                yield results[future.key]
            else:
                yield self._outcome(future)

    def _outcome(self, future) -> Any:
        """The result of a finished future, or its exception.

        The request is repeated until the scheduler answers or is gone.
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
            # Dask's versions differ in which of the two they raise.
            except (asyncio.CancelledError, futures.CancelledError):
                raise WorkersLost(GONE) from None
            except Exception as error:
                # An OSError of a job that did not fail is the request's own.
                if future.status == "error" or not isinstance(error, OSError):
                    return error
            time.sleep(RETRY)

    def cancel(self) -> None:
        """Take back the jobs that no worker has started, and hear nothing more."""
        for topic in (TOPIC, "all"):
            with suppress(Exception):
                self.client.unsubscribe_topic(topic)
        # A scheduler that is gone has forgotten them anyway.
        with suppress(Exception):
            self.client.cancel([future for _, future in self.futures.values()], force=True)


def tell_client(line: str) -> None:
    """In a Dask worker: have the client print a line. Elsewhere it does nothing.

    Args:
        line: for a person.
    """
    from distributed import get_worker

    # A thread that a job has started is no thread of the worker.
    with suppress(ValueError):
        worker = _WORKER[0] if _WORKER else get_worker()
        worker.log_event(TOPIC, line)


class _Loaded:
    """In a worker: a job function with everything that it has loaded.

    Attributes:
        function: the function.
        jobs: how many of its jobs run.
        replaced: whether another function has come.
    """

    def __init__(self, function: Callable):
        self.function, self.jobs, self.replaced = function, 0, False

    def close_if_done(self) -> None:
        """Have the function let go of what it holds, once it has no more jobs."""
        if self.replaced and not self.jobs and hasattr(self.function, "close"):
            self.function.close()
            self.function = None
            # What it holds refers to it in turn: networks would stay in the GPU's memory.
            gc.collect()


# In a worker: the last job function by its name.
_FUNCTIONS: dict[str, _Loaded] = {}
_WORKER: list = []
_LOADING, _ONE_AT_A_TIME = threading.Lock(), threading.Lock()


def _run_job(name: str, payload: bytes, sharing: int, apart: bool, job: bytes) -> Any:
    """In a Dask worker: run the pickled job function on one job.

    The function is unpickled once, and kept until another `name` comes. Then it is closed, as soon
    as the last of its jobs is done: the worker may serve many runs. It gets one job at a time
    unless its `threads` allow more.
    """
    from distributed import get_worker

    with _LOADING:
        if name not in _FUNCTIONS:
            for other in _FUNCTIONS.values():
                other.replaced = True
                other.close_if_done()
            _FUNCTIONS.clear()
            _WORKER[:] = [get_worker()]
            # Before the function is loaded, which may count its cores.
            cores.share_with(sharing or _neighbours(), apart)
            _FUNCTIONS[name] = _Loaded(pickle.loads(payload))
        loaded = _FUNCTIONS[name]
        loaded.jobs += 1
    try:
        function = loaded.function
        with nullcontext() if getattr(function, "threads", 1) > 1 else _ONE_AT_A_TIME:
            return function(pickle.loads(job))
    finally:
        # Else this frame would hold it while it is closed.
        function = None
        with _LOADING:
            loaded.jobs -= 1
            loaded.close_if_done()


def _neighbours() -> int:
    """In a Dask worker: how many workers share its cores, this one included.

    If they do not answer within NEIGHBOURS seconds, all workers of this machine count.
    """
    from distributed import get_client, get_worker
    from distributed.comm import get_address_host

    host = get_address_host(get_worker().address)
    on_this_machine = []
    try:
        client = get_client()
        for address in client.nthreads():
            if get_address_host(address) == host:
                on_this_machine.append(address)
    except (OSError, ValueError):  # the scheduler does not answer, which the run will notice too
        return 1

    places: dict[str, tuple[str, ...]] = {}

    def ask() -> None:
        # A worker that is ending, or the scheduler, may fail to answer.
        with suppress(Exception):
            answers = client.run(cores.place, workers=on_this_machine, on_error="ignore")
            places.update(answers)

    asking = threading.Thread(target=ask, name="neighbours", daemon=True)
    asking.start()
    asking.join(NEIGHBOURS)

    # A copy: the thread may still be waiting, and write.
    same = sum(place == cores.place() for place in list(places.values()))
    return same or len(on_this_machine) or 1
