"""Worker processes that may hang, crash or be killed without ending the run.

Native decoders do all three. `multiprocessing.Pool` and `ProcessPoolExecutor` break, or wait for
ever, when a worker dies, and neither ends a task that hangs. Here a thread of the parent feeds the
workers, watches their deadlines and replaces dead ones, so that they stay busy while the caller
computes.

What happens when a worker dies:
- With a task: another worker gets the task, `again` times. Then the task's result is WorkerDied.
- Between getting a task and starting it: another worker gets the task, up to MOST_LOSSES times.
- While it starts: another one is started. After MOST_STARTS in a row for each worker, the pool
  gives up with a RuntimeError.
A worker past its time limit is killed, and the task's result is a TimeoutError.

Large answers come through memory that the pool shares with its workers (`pipeline.workers.arena`).
Where that memory is full, workers wait until the caller has dropped earlier answers. The worker
with the oldest task never waits: its answer comes through its pipe. So the memory bounds what is
computed ahead, and no order of answers can block the pool.

The thread shares Python's lock with the caller, who feeds a device. So it wakes once for each task,
and what it does then grows little with the number of workers: a worker gets its task together with
memory for the answer, and nobody wakes the thread for what it cannot use.
"""

import pickle
import selectors
import signal
import threading
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from itertools import count
from multiprocessing import resource_tracker
from multiprocessing.connection import wait
from multiprocessing.util import Finalize
from typing import Any

from pipeline.workers.affinity import choose_task
from pipeline.workers.arena import Arena, Bell, Block, StartMarks
from pipeline.workers.pool_process import PoolProcess, Ticket
from pipeline.workers.pool_worker import NO_BLOCK, NeedsBlock, receive

# Workers that may die after they got a task and before they started it; then the task is to blame.
MOST_LOSSES = 3
# Per worker: starts in a row that end by a signal or a time-out before the pool gives up.
MOST_STARTS = 3
# Seconds that a worker may take to start: imports from a cold network disk take up to 200.
START_LIMIT = 300.0


class WorkerDied(RuntimeError):
    """The process that ran a task ended without an answer, by a signal or with an exit status."""


class WorkerPool:
    """Runs `function(task)` in worker processes.

    Workers are started by spawn, so they inherit nothing from a parent that holds a GPU or threads.
    They import what `function` needs and no more. They ignore Ctrl-C and SIGTERM: closing the pool
    ends them, as the program's own end does. They also end when the parent dies in any way. A
    worker leads a process group of its own, so the programs that it has started end with it.

    Args:
        function: a picklable callable of an importable module.
        workers: the number of processes; with 0 tasks run in this process, without a time limit.
        timeout: seconds that each task may take; None for no limit.
        again: how many times a task is given to another worker after its worker has died, since
            what killed it may have nothing to do with the task.
        start_limit: seconds after which a worker that has not loaded `function` is ended and
            started again.
        shared_bytes: of memory for large answers; with 0 all answers come through pipes. Answers
            that their caller keeps fill it for as long.
        survived: called with (task, how the process ended) where another process gets the task of
            one that has died; in the pool's thread.

    Attributes:
        arena: the shared memory; None without any.

    Raises:
        ValueError: a number is out of range.
        OSError: the system has no memory to share.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        workers: int,
        timeout: float | None = None,
        again: int = 0,
        start_limit: float = START_LIMIT,
        shared_bytes: int = 0,
        survived: Callable[[Any, str], None] = lambda task, ending: None,
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
        self.arena: Arena | None = None
        self._function = function
        self._feeder: _Feeder | None = None
        if workers:
            self._feeder = _Feeder(
                function, workers, timeout, again, start_limit, shared_bytes, survived
            )
            self.arena = self._feeder.arena
            self._feeder.start()
            # Python waits for its children when it ends, and a Dask worker that closes does not
            # know that it has some.
            self._close = Finalize(None, self._feeder.close, exitpriority=0)

    def imap(self, tasks: Iterable[Any], ahead: int) -> "Results":
        """Run tasks and yield their results in the order of the tasks.

        Args:
            tasks: picklable; iterated lazily.
            ahead: how many tasks are taken at most beyond the last one yielded.

        Returns:
            An iterator of (task, result). The result is the exception that `function` raised; a
            TimeoutError if the task took too long; or WorkerDied if its process ended. Iterating
            raises RuntimeError if workers cannot start or the pool is closed, and what pickling a
            task raises.

        Raises:
            ValueError: `ahead` is below 1.
        """
        if ahead < 1:
            raise ValueError(f"ahead: expected 1 or more, got {ahead}")
        submit = self._feeder.submit if self._feeder else self._run_here
        return Results(iter(tasks), ahead if self._feeder else 1, submit, bool(self._feeder))

    def _run_here(self, task: Any) -> Ticket:
        ticket = Ticket(task, payload=b"")
        try:
            result = self._function(task)
        except Exception as error:
            result = error
        ticket.finish(result)
        return ticket

    def close(self) -> None:
        """End the workers at once, whatever they are doing, and wait until they are gone."""
        if self._feeder:
            self._close()

    def __enter__(self) -> "WorkerPool":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()


class Results:
    """The results of a pool's tasks, in the order of the tasks: an iterator of (task, result).

    Attributes:
        all_given: whether the last task has been given to the pool.
    """

    def __init__(
        self, tasks: Iterator[Any], ahead: int, submit: Callable[[Any], Ticket], may_fill: bool
    ):
        """Remember the tasks; none is given to the pool yet. `WorkerPool.imap` makes it."""
        self._tasks, self._ahead, self._submit = tasks, ahead, submit
        self._may_fill = may_fill
        self._pending: deque[Ticket] = deque()
        self.all_given = False

    def start(self) -> None:
        """Give the first tasks to the workers now, and not when the first result is asked for."""
        # Without workers, giving a task is computing it.
        if self._may_fill:
            self._fill()

    def __iter__(self) -> "Results":
        return self

    def __next__(self) -> tuple[Any, Any]:
        try:
            self._fill()
            if not self._pending:
                raise StopIteration
            first = self._pending[0]
            first.done.wait()
            if first.broken:
                raise RuntimeError(first.broken)
        except BaseException:
            self.close()
            raise
        self._pending.popleft()
        return first.task, first.result

    def _fill(self) -> None:
        while not self.all_given and len(self._pending) < self._ahead:
            try:
                task = next(self._tasks)
            except StopIteration:
                self.all_given = True
                return
            self._pending.append(self._submit(task))

    def close(self) -> None:
        """Give up the rest: the caller stopped early, or something broke."""
        self.all_given = True
        for ticket in self._pending:
            ticket.abandoned = True
        self._pending.clear()

    def __del__(self) -> None:
        self.close()


class _Feeder(threading.Thread):
    """The parent's thread that owns the workers.

    It lives as long as the pool. Linux ends a child when the thread that started it ends
    (PR_SET_PDEATHSIG), so a caller's short-lived thread must not start workers.
    """

    def __init__(
        self,
        function: Callable[[Any], Any],
        workers: int,
        timeout: float | None,
        again: int,
        start_limit: float,
        shared_bytes: int,
        survived: Callable[[Any, str], None],
    ):
        super().__init__(name="pool-feeder", daemon=True)
        self._function = pickle.dumps(function, protocol=5)
        self._wanted = workers
        self._timeout = timeout
        self._again = again
        self._start_limit = start_limit
        self._workers: list[PoolProcess] = []
        self._queue: deque[Ticket] = deque()
        self._survived = survived
        self._marks = StartMarks(workers)
        self._places = list(range(workers))  # of workers that are missing
        self._tickets = count()
        self._usual = 0  # bytes of shared memory that the last answer took

        self._bell = Bell()
        self._selector = selectors.DefaultSelector()
        self._selector.register(self._bell.number, selectors.EVENT_READ)
        # The bell is rung for a task while a worker is idle, and for memory while one waits for it.
        self._idle = self._short = False
        self.arena = Arena(shared_bytes, freed=self._memory_is_free) if shared_bytes else None
        # Guards _queue against _broken: no ticket is queued after the last worker has gone. Nor is
        # one queued while the queue is looked through.
        self._lock = threading.Lock()
        self._closing = False
        self._broken = ""
        self._failed_starts = 0  # in a row, by a signal or by the time limit

    def submit(self, task: Any) -> Ticket:
        ticket = Ticket(task, next(self._tickets))
        with self._lock:
            if self._broken or self._closing:
                raise RuntimeError(self._broken or "the pool is closed: make a new one")
            self._queue.append(ticket)
        if self._idle:
            self._bell.ring()
        return ticket

    def _memory_is_free(self) -> None:
        if self._short:
            self._bell.ring()

    def close(self) -> None:
        with self._lock:
            if self._closing:
                return
            self._closing = True
        self._bell.ring()
        self.join()

    def run(self) -> None:
        # Workers inherit the signal mask: Ctrl-C must not end one before it has asked to ignore it.
        # The first spawn starts the resource tracker, which would take the mask off again.
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
        """End all workers; every open ticket gets the reason."""
        with self._lock:
            self._broken = reason
        for worker in self._workers:
            worker.end()
        running = [worker.ticket for worker in self._workers if worker.ticket]
        for ticket in (*running, *self._queue):
            ticket.broken = reason
            ticket.done.set()
        self._workers = []
        self._selector.close()

    def _step(self) -> None:
        """Start missing workers, feed idle ones, then wait for the next event and handle it."""
        while self._places:
            self._add_worker(self._places.pop())
        # First, so that the bell is rung for a task that comes while the queue is looked at.
        self._idle = True
        for worker in self._workers:
            if worker.ready and worker.ticket is None:
                self._feed(worker)
        self._idle = any(worker.ready and worker.ticket is None for worker in self._workers)
        self._give_blocks()

        happened = self._wait(min(worker.deadline for worker in self._workers))
        for worker in happened:
            self._receive(worker)
        now = time.monotonic()
        for worker in [one for one in self._workers if now > one.deadline]:
            if worker not in happened:
                self._replace(worker, timed_out=True)

    def _add_worker(self, place: int) -> None:
        worker = PoolProcess(self._function, self._start_limit, self.arena, self._marks, place)
        self._workers.append(worker)
        for end in (worker.pipe, worker.process.sentinel):
            self._selector.register(end, selectors.EVENT_READ, worker)

    def _wait(self, deadline: float) -> list[PoolProcess]:
        """Wait for workers: messages and ends.

        Returns those that have something; none after a wake-up or at the deadline. Raises _Closed
        if the pool closes.
        """
        happened: dict[PoolProcess, None] = {}
        for key, _ in self._selector.select(_seconds_until(deadline)):
            if key.data is None:
                self._bell.heard()
            else:
                happened[key.data] = None
        if self._closing:
            raise _Closed
        return list(happened)

    def _feed(self, worker: PoolProcess) -> None:
        while self._queue:
            position = self._choose(worker)
            ticket = self._queue[position]
            if ticket.abandoned:
                del self._queue[position]
                continue
            block = self._likely_block()
            del self._queue[position]
            try:
                worker.give(ticket, self._timeout, block)
            except OSError:
                # It died while idle, which is noticed next; another worker gets the task.
                worker.ticket = None
                self._queue.appendleft(ticket)
            return

    def _choose(self, worker: PoolProcess) -> int:
        """The position of a worker's next task in the queue."""
        if not self._queue[0].kin:
            return 0
        others = {one.kin for one in self._workers if one is not worker}
        # Nobody may add a ticket meanwhile: a deque that grows refuses to be looked through.
        with self._lock:
            waiting = [ticket.kin for ticket in self._queue]
        return choose_task(waiting, worker.kin, others)

    def _likely_block(self) -> Block | None:
        """A block for an answer that is as large as the last one; None if there is none to spare.

        Answers of one run are alike.
        """
        if not self._usual or any(worker.needs for worker in self._workers):
            return None
        return self.arena.take(self._usual)

    def _give_blocks(self) -> None:
        """Give blocks of the shared memory to workers that wait for one, oldest task first."""
        waiting = [worker for worker in self._workers if worker.needs]
        waiting.sort(key=lambda worker: worker.ticket.number)
        # First, so that the bell is rung for memory that comes back meanwhile.
        self._short = bool(waiting)
        for worker in waiting:
            block = self.arena.take(worker.needs)
            # Later tasks must not take what the first one waits for.
            if block is None and not self._is_oldest(worker.ticket):
                return
            worker.block, worker.needs = block, 0
            # The task's time stood still while the worker waited.
            worker.deadline = self._deadline()
            # A worker that has died is noticed next, and gives its block back.
            with suppress(OSError):
                worker.pipe.send_bytes(pickle.dumps(NO_BLOCK if block is None else block.start))
        self._short = False

    def _is_oldest(self, ticket: Ticket) -> bool:
        """Whether no worker has an earlier task.

        An earlier one that still waits in the queue may need this worker.
        """
        unfinished = [worker.ticket for worker in self._workers if worker.ticket]
        return ticket.number == min(one.number for one in unfinished)

    def _deadline(self) -> float:
        return time.monotonic() + self._timeout if self._timeout else float("inf")

    def _receive(self, worker: PoolProcess) -> None:
        """Take a message of a worker, or notice its end.

        An answer that was sent before the worker died still counts.
        """
        try:
            if not worker.pipe.poll():
                raise EOFError
            answer, shared = receive(
                worker.pipe, lambda: self._wait_for_more(worker), self.arena, worker.block
            )
        except (EOFError, OSError):
            self._replace(worker)
            return

        if worker.ready:
            # The answer's arrays give the block back when they go.
            if worker.block is not None and not shared:
                self.arena.give_back(worker.block)
            worker.block = None
            worker.deadline = float("inf")
        if worker.ready and isinstance(answer, NeedsBlock):
            worker.needs = answer.bytes
        elif worker.ready:
            self._usual = shared or self._usual
            worker.ticket.finish(answer)
            worker.ticket = None
        elif answer is None:
            worker.ready = True
            worker.deadline = float("inf")
            self._failed_starts = 0
        else:
            raise RuntimeError(f"cannot load the pool's function ({answer!r})") from answer

    def _wait_for_more(self, worker: PoolProcess) -> None:
        """Wait for more of a message; EOFError past the worker's deadline.

        Without the deadline, half an answer could block the thread for ever.
        """
        while not self._closing:
            ends = [worker.pipe, self._bell.number]
            happened = wait(ends, _seconds_until(worker.deadline))
            if worker.pipe in happened:
                return
            self._bell.heard()
            if time.monotonic() > worker.deadline:
                raise EOFError
        raise _Closed

    def _replace(self, worker: PoolProcess, timed_out: bool = False) -> None:
        """End a worker, and decide what becomes of its task; `_step` starts another worker."""
        self._workers.remove(worker)
        self._places.append(worker.place)
        for end in (worker.pipe, worker.process.sentinel):
            self._selector.unregister(end)
        ticket, ready = worker.ticket, worker.ready
        timed_out = timed_out or time.monotonic() > worker.deadline
        ending = worker.end()
        if worker.block is not None:
            self.arena.give_back(worker.block)

        if not ready:
            self._failed_starts += 1
            if timed_out:
                ending = f"took longer than {self._start_limit:g} s"
            elif not worker.signalled:
                raise RuntimeError(
                    f"a worker ended while it started ({ending}); its own message is above"
                )
            if self._failed_starts > MOST_STARTS * self._wanted:
                raise RuntimeError(
                    f"{self._failed_starts} workers in a row ended while they started "
                    f"(the last: {ending})"
                )

        if ticket is None:
            return
        if timed_out:
            ticket.finish(TimeoutError(f"took longer than {self._timeout:g} s"))
            return
        if worker.started:
            ticket.deaths += 1
        else:
            ticket.losses += 1
        if ticket.deaths <= self._again and ticket.losses <= MOST_LOSSES:
            self._queue.appendleft(ticket)
            self._survived(ticket.task, ending)
        else:
            ticket.finish(WorkerDied(f"the worker process ended without an answer ({ending})"))


def _seconds_until(deadline: float) -> float | None:
    """How long may be waited; None without a deadline, which is infinite then."""
    return None if deadline == float("inf") else max(0.0, deadline - time.monotonic())


class _Closed(Exception):
    """The pool closes while its thread waits."""
