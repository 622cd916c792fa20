"""A process of `pipeline.workers.decode_pool` as its parent sees it, and the task that it has."""

import os
import pickle
import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from multiprocessing import current_process, get_context
from typing import Any

from pipeline.workers.affinity import kin_of
from pipeline.workers.arena import Arena, Block, StartMarks
from pipeline.workers.module_path import guard_children
from pipeline.workers.pool_worker import GRANT, NO_BLOCK, serve

guard_children()  # before any process is spawned

_SPAWN = get_context("spawn")


@contextmanager
def _as_no_daemon() -> Iterator[None]:
    """Let a process that multiprocessing calls a daemon (a Dask worker) have children.

    multiprocessing forbids it because children could outlive a daemon; ours end with it.
    """
    config = current_process()._config
    daemon = config.pop("daemon", None)
    try:
        yield
    finally:
        if daemon is not None:
            config["daemon"] = daemon


class Ticket:
    """One submitted task.

    Attributes:
        number: tickets are numbered in the order of their submission.
        payload: the pickled task.
        done: set once `result` or `broken` is there.
        broken: why no worker can ever run it; "" if one can.
        abandoned: nobody waits for it any more.
        deaths: of workers that had started it.
        losses: of workers that had got it and not started it.
        kin: what it shares with other tasks (`pipeline.workers.affinity`).
    """

    def __init__(self, task: Any, number: int = 0, payload: bytes | None = None):
        self.task = task
        self.number = number
        self.payload = pickle.dumps(task, protocol=5) if payload is None else payload
        self.done = threading.Event()
        self.result: Any = None
        self.broken = ""
        self.abandoned = False
        self.deaths = 0
        self.losses = 0
        self.kin = kin_of(task)

    def finish(self, result: Any) -> None:
        """Set the result, and wake whoever waits for it.

        Args:
            result: the answer, or the exception in its place.
        """
        self.result = result
        self.done.set()


class PoolProcess:
    """One process, the parent's end of its pipe, and the task that it has.

    Attributes:
        place: of its mark.
        ready: it has loaded the pool's function.
        signalled: a signal ended it; known after `end`.
        deadline: until it is ready, then of its task; by the monotonic clock.
        needs: bytes that its answer takes, while it waits for a block of the shared memory.
        block: the block that it writes its answer to.
        kin: of its last task.
    """

    kin = ""

    def __init__(
        self, function: bytes, limit: float, arena: Arena | None, marks: StartMarks, place: int
    ):
        self.place, self._marks = place, marks
        self.pipe, child_end = _SPAWN.Pipe()
        shared = arena.file if arena else None
        self.process = _SPAWN.Process(
            target=serve,
            args=(child_end, function, os.getpid(), (marks.file, place), shared),
            daemon=True,
        )
        with _as_no_daemon():
            self.process.start()
        child_end.close()  # else the worker's death would not end the pipe
        self.ready = False
        self.signalled = False
        self.ticket: Ticket | None = None
        self.needs = 0
        self.block: Block | None = None
        self.deadline = time.monotonic() + limit

    @property
    def started(self) -> bool:
        """Whether it has started its task."""
        return self._marks.is_set(self.place)

    def give(self, ticket: Ticket, limit: float | None, block: Block | None = None) -> None:
        """Send a task. Its time starts now, because the worker is waiting for it.

        Args:
            ticket: the task.
            limit: seconds that it may take; None for no limit.
            block: of the shared memory, for the answer.
        """
        self.ticket, self.kin, self.block = ticket, ticket.kin, block
        self._marks.take_off(self.place)
        self.deadline = time.monotonic() + limit if limit else float("inf")
        start, size = (NO_BLOCK, 0) if block is None else block
        self.pipe.send_bytes(GRANT.pack(start, size) + ticket.payload)

    def end(self) -> str:
        """Kill the process if it still runs, with all that it started; return how it ended."""
        # If it has ended already, its guard ends what it left (pipeline.workers.pool_worker).
        if self.process.exitcode is None:
            # It leads no group yet; or, on macOS, all of the group has ended.
            with suppress(ProcessLookupError, PermissionError):
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
        words = f"signal {-code}, {name}"
        if -code == signal.SIGKILL:
            words += "; the machine may be out of memory"
        return words
