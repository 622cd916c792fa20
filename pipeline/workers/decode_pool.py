"""Worker processes that may hang, crash or be killed without taking the run down.

`multiprocessing.WorkerPool` and `ProcessPoolExecutor` break, or wait for ever, when a worker dies, and
neither ends a task that hangs. Native decoders do all three. A thread of the parent feeds the
workers, watches their clocks and replaces the dead, so that they stay busy while the caller
computes.
"""

import os
import pickle
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from multiprocessing import current_process, get_context, resource_tracker
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

from pipeline.workers.module_path import guard_children
from pipeline.workers.pool_worker import receive, serve

guard_children()  # before anything is spawned

# workers that may die between being given a task and beginning with it, before it is to blame
MOST_LOSSES = 3
# per worker: starts in a row that a signal or START_LIMIT may end before none of them comes up any
# more
MOST_STARTS = 3
# seconds that a worker may take to start: imports from a cold network disk take one or two hundred
START_LIMIT = 300.0


class WorkerDied(RuntimeError):
    """The process that ran a task ended without an answer; says the signal or the exit status."""


class WorkerPool:
    """Runs `function(task)` in `workers` processes; each task may take `timeout` seconds (None: for
    ever).

    `function` is a picklable callable of an importable module. 0 workers: tasks run in this
    process, without a time limit. Workers are started by spawn, so nothing is inherited from a
    parent that holds a GPU or threads; they import what `function` needs and no more, ignore Ctrl-C
    and SIGTERM (closing the pool ends them, as the program's own end does) and end when the parent
    dies, however it dies. A worker ends with the programs that it has started: each leads a process
    group of its own. A task whose worker dies is given to another one `again` times, because what
    killed it may have nothing to do with it. A worker that takes longer than `start_limit` seconds
    until it has loaded `function` is ended and started again.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        workers: int,
        timeout: float | None = None,
        again: int = 0,
        start_limit: float = START_LIMIT,
    ):
        if workers < 0:
            raise ValueError(f"workers: expected 0 (in this process) or more, got {workers}")
        if timeout is not None and not timeout > 0:
            raise ValueError(
                f"timeout: expected seconds above 0, or None for no limit, got {timeout}"
            )
        if not start_limit > 0:
            raise ValueError(f"start_limit: expected seconds above 0, got {start_limit}")
        self.workers = workers
        self._function = function
        self._feeder = _Feeder(function, workers, timeout, again, start_limit) if workers else None
        if self._feeder:
            self._feeder.start()
            # Python waits for its children when it ends: a Dask worker that is closed does not know
            # that it has some.
            self._close = Finalize(None, self._feeder.close, exitpriority=0)

    def imap(self, tasks: Iterable[Any], ahead: int) -> Iterator[tuple[Any, Any]]:
        """Yields (task, result) in the order of `tasks`, whatever the order of completion.

        `tasks` is iterated lazily, at most `ahead` tasks beyond the last one yielded. In place of a
        result comes the exception that `function` raised, a TimeoutError when the task took too
        long, or WorkerDied when its process ended. RuntimeError if workers cannot start at all (one
        that a signal or its time limit ends while it starts is started again, MOST_STARTS times in
        a row for each worker); whatever pickling raises if a task cannot be sent.
        """
        if ahead < 1:
            raise ValueError(f"ahead: expected 1 or more, got {ahead}")
        return self._imap(iter(tasks), ahead) if self._feeder else self._inline(tasks)

    def _inline(self, tasks: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
        for task in tasks:
            try:
                result = self._function(task)
            except Exception as error:
                result = error
            yield task, result

    def _imap(self, tasks: Iterator[Any], ahead: int) -> Iterator[tuple[Any, Any]]:
        pending: deque[_Ticket] = deque()
        try:
            while True:
                while len(pending) < ahead:
                    try:
                        task = next(tasks)
                    except StopIteration:
                        break
                    pending.append(self._feeder.submit(task))
                if not pending:
                    return
                pending[0].done.wait()
                if pending[0].broken:
                    raise RuntimeError(pending[0].broken)
                ticket = pending.popleft()
                yield ticket.task, ticket.result
        finally:
            for (
                ticket
            ) in pending:  # the caller stopped early, or something broke: nobody wants these
                ticket.abandoned = True

    def close(self) -> None:
        """Ends the workers at once, whatever they are doing, and waits until they are gone."""
        if self._feeder:
            self._close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class _Ticket:
    """One submitted task: its pickled form on the way in, its result on the way out."""

    def __init__(self, task: Any):
        self.task = task
        self.payload = pickle.dumps(task, protocol=5)
        self.done = threading.Event()
        self.result: Any = None
        self.broken = ""  # why no worker can ever run it
        self.abandoned = False
        self.deaths = 0  # of workers that had begun with it
        self.losses = 0  # of workers that had not

    def finish(self, result: Any) -> None:
        self.result = result
        self.done.set()


class _Worker:
    """One process, the parent's end of its pipe, and the task it has."""

    def __init__(self, function: bytes, limit: float):
        ours, theirs = _SPAWN.Pipe()
        self.process = _SPAWN.Process(
            target=serve, args=(theirs, function, os.getpid()), daemon=True
        )
        with _as_no_daemon():
            self.process.start()
        theirs.close()  # else the worker's death would not end the pipe
        self.pipe = ours
        self.ready = False
        self.signalled = False  # ended by a signal
        self.begun = False  # with its ticket
        self.ticket: _Ticket | None = None
        self.deadline = time.monotonic() + limit  # until it is ready, then of its task

    def give(self, ticket: _Ticket, limit: float | None) -> None:
        """Sends a task; its clock starts here, because the worker is waiting for it."""
        self.ticket, self.begun = ticket, False
        self.deadline = time.monotonic() + limit if limit else float("inf")
        self.pipe.send_bytes(ticket.payload)

    def end(self) -> str:
        """Kills the process if it still runs, with all that it started; says how it ended."""
        if (
            self.process.exitcode is None
        ):  # of one that has ended, its guard ends what it left (pipeline.workers.pool_worker)
            with suppress(
                ProcessLookupError, PermissionError
            ):  # it leads no group yet; macOS: all of it has ended
                os.killpg(self.process.pid, signal.SIGKILL)
            self.process.kill()
        self.process.join()
        code = self.process.exitcode
        self.pipe.close()
        self.process.close()
        self.signalled = code < 0
        if not self.signalled:
            return f"exit status {code}"
        name = signal.Signals(-code).name if -code in set(signal.Signals) else "unknown"
        return f"signal {-code}, {name}" + (
            "; the machine may be out of memory" if -code == signal.SIGKILL else ""
        )


class _Feeder(threading.Thread):
    """The parent's thread that owns the workers.

    It lives as long as the pool: Linux ends a child when the thread that started it ends
    (PR_SET_PDEATHSIG), so workers must not be started by a caller's short-lived thread.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        workers: int,
        timeout: float | None,
        again: int,
        start_limit: float,
    ):
        super().__init__(name="pool-feeder", daemon=True)
        self._function = pickle.dumps(function, protocol=5)
        self._count, self._timeout, self._again, self._start_limit = (
            workers,
            timeout,
            again,
            start_limit,
        )
        self._workers: list[_Worker] = []
        self._queue: deque[_Ticket] = deque()
        self._wake_out, self._wake_in = os.pipe()
        self._lock = (
            threading.Lock()
        )  # guards _queue against _broken, so that no ticket is left behind
        self._closing = False
        self._broken = ""
        self._vain = 0  # starts in a row that a signal or their time limit ended

    def submit(self, task: Any) -> _Ticket:
        ticket = _Ticket(task)
        with self._lock:
            if self._broken or self._closing:
                raise RuntimeError(self._broken or "the pool is closed: make a new one")
            self._queue.append(ticket)
        os.write(self._wake_in, b"w")
        return ticket

    def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
        os.write(self._wake_in, b"w")
        self.join()
        os.close(self._wake_in)
        os.close(self._wake_out)

    def run(self) -> None:
        # Workers inherit the mask: Ctrl-C must not end one before it can ask to ignore it. Spawning
        # the first one starts the resource tracker, which would take the mask off again.
        resource_tracker.ensure_running()
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT, signal.SIGTERM})
        reason = "the pool was closed before this task was done"
        try:
            while not self._closing:
                self._step()
        except _Closed:
            pass
        except Exception as error:
            reason = f"worker processes failed: {error}"
        finally:
            self._shut(reason)

    def _shut(self, reason: str) -> None:
        with self._lock:
            self._broken = reason
        for worker in self._workers:
            worker.end()
        for ticket in (*(w.ticket for w in self._workers if w.ticket), *self._queue):
            ticket.broken = reason
            ticket.done.set()
        self._workers = []

    def _step(self) -> None:
        """Starts and feeds what is idle, then handles whatever happens next."""
        while len(self._workers) < self._count:
            self._workers.append(_Worker(self._function, self._start_limit))
        for worker in self._workers:
            if worker.ready and worker.ticket is None:
                self._feed(worker)
        nearest = min(worker.deadline for worker in self._workers)
        happened = self._wait(
            [w.pipe for w in self._workers] + [w.process.sentinel for w in self._workers], nearest
        )
        for worker in tuple(self._workers):
            if worker.pipe in happened or worker.process.sentinel in happened:
                self._hear(worker)
            elif time.monotonic() > worker.deadline:
                self._replace(worker, timed_out=True)

    def _wait(self, for_what: list, deadline: float) -> list:
        """What of `for_what` is ready; empty after a wake-up or at `deadline`. _Closed if the pool
        is closing.
        """
        left = None if deadline == float("inf") else max(0.0, deadline - time.monotonic())
        happened = wait([*for_what, self._wake_out], left)
        if self._wake_out in happened:
            os.read(self._wake_out, 4096)
        if self._closing:
            raise _Closed
        return happened

    def _feed(self, worker: _Worker) -> None:
        while self._queue:
            ticket = self._queue.popleft()
            if ticket.abandoned:
                continue
            try:
                worker.give(ticket, self._timeout)
            except OSError:  # it died while idle, which is heard next; the task is another worker's
                worker.ticket = None
                self._queue.appendleft(ticket)
            return

    def _hear(self, worker: _Worker) -> None:
        """Takes a message, or the end of the worker: an answer sent before it died still counts."""
        try:
            if not worker.pipe.poll():
                raise EOFError
            answer = receive(worker.pipe, lambda: self._more(worker))
        except (EOFError, OSError):
            self._replace(worker)
            return
        if worker.ready and not worker.begun:
            worker.begun = True
        elif worker.ready:
            worker.ticket.finish(answer)
            worker.ticket, worker.deadline = None, float("inf")
        elif answer is None:
            worker.deadline, worker.ready, self._vain = float("inf"), True, 0
        else:
            raise RuntimeError(f"cannot load the pool's function ({answer!r})") from answer

    def _more(self, worker: _Worker) -> None:
        """Waits for more of a message; EOFError past the worker's time limit, so that half an
        answer cannot block for ever.
        """
        while worker.pipe not in self._wait([worker.pipe], worker.deadline):
            if time.monotonic() > worker.deadline:
                raise EOFError

    def _replace(self, worker: _Worker, timed_out: bool = False) -> None:
        self._workers.remove(worker)
        ticket, ready = worker.ticket, worker.ready
        timed_out = timed_out or time.monotonic() > worker.deadline
        how = worker.end()
        if not ready:
            self._vain += 1
            if timed_out:
                how = f"took longer than {self._start_limit:g} s"
            elif not worker.signalled:
                raise RuntimeError(
                    f"a worker ended while it started ({how}); its own message is above"
                )
            if self._vain > MOST_STARTS * self._count:
                raise RuntimeError(
                    f"{self._vain} workers in a row ended while they started (the last: {how})"
                )
        if ticket and timed_out:
            ticket.finish(TimeoutError(f"took longer than {self._timeout:g} s"))
        elif ticket:
            ticket.deaths += worker.begun
            ticket.losses += not worker.begun
            if ticket.deaths <= self._again and ticket.losses <= MOST_LOSSES:
                self._queue.appendleft(ticket)
            else:
                ticket.finish(WorkerDied(f"the worker process ended without an answer ({how})"))


class _Closed(Exception):
    """The pool closes while its thread waits."""


_SPAWN = get_context("spawn")


@contextmanager
def _as_no_daemon() -> Iterator[None]:
    """Lets a process that multiprocessing calls a daemon (a Dask worker) have children: ours end
    with it, however it ends.
    """
    mine = current_process()._config
    daemon = mine.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            mine["daemon"] = daemon
