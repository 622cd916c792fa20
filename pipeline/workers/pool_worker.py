"""The worker process of `pipeline.workers.decode_pool`, and how its answers reach the parent.

What happens when something dies: a worker ends when its parent does, in the middle of a task
(`_die_with`). The programs that a worker has started end with it (`_lead_group`).
"""

import ctypes
import mmap
import os
import pickle
import signal
import struct
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any, NamedTuple

from pipeline.text.printable import guard_output
from pipeline.workers.arena import Arena, Block, SharedFile, spread

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


# Answers with fewer bytes go through the pipe: asking for a block would take longer.
LEAST_SHARED = 64 << 10
# What the parent sends where it gives no block.
NO_BLOCK = -1
# In front of a task: the start and the bytes of a block for its answer, or NO_BLOCK and 0.
GRANT = struct.Struct("<qq")


class NeedsBlock(NamedTuple):
    """A worker's message: its answer needs a block of so many bytes."""

    bytes: int


class RemoteTraceback(Exception):
    """The traceback in the worker, as the `__cause__` of an exception that came back."""


def serve(
    pipe: Connection,
    function: bytes,
    parent: int,
    marks: tuple[SharedFile, int],
    shared: SharedFile | None = None,
) -> None:
    """Run a worker: load the function, then answer tasks until the pipe closes.

    The worker sends None when it is ready, or the error of loading. It marks the start of each task
    and sends the answer or the exception. With a task comes a block of the shared memory that is
    probably large enough. Where it is not, the worker sends `NeedsBlock` before its answer, and the
    parent answers with the start of a block, or NO_BLOCK.

    Args:
        pipe: the worker's end of a pipe to the parent.
        function: the pickled function.
        parent: the parent's process number.
        marks: the memory of `StartMarks`, and this worker's byte of it.
        shared: memory for large arrays; None sends them through the pipe.
    """
    # A terminal and a batch system signal all processes of a job: the parent decides what to do.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    guard_output()  # warnings of libraries contain file names
    _lead_group()
    _die_with(parent)
    # The workers share the cores. numpy reads it when `function` imports it.
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    memory = shared.map() if shared else None
    mark, place = marks[0].map(), marks[1]
    try:
        function = pickle.loads(function)
    except Exception as error:
        _send(pipe, _portable(error))
        return

    _send(pipe, None)
    while True:
        try:
            message = pipe.recv_bytes()
        except EOFError:
            return
        mark[place] = 1
        granted = GRANT.unpack_from(message)
        try:
            answer = function(pickle.loads(memoryview(message)[GRANT.size :]))
        except Exception as error:
            answer = error
        try:
            _send(pipe, answer, memory, granted)
        except (MemoryError, OSError, EOFError):
            # Half an answer cannot be taken back, or the parent has gone while this process waited
            # for a block: end as if the kernel had killed this process.
            os.kill(os.getpid(), signal.SIGKILL)
        answer = None  # a worker that waits must not hold the last result


def _lead_group() -> None:
    """Make this process the leader of a process group that ends with it, in whatever way it ends.

    A program that a library starts here (Pillow starts Ghostscript) would otherwise outlive it, and
    keep the output of the whole command open. On Linux a fork of this process, which is still
    small, waits for its death. A thread could not do so inside native code or after SIGKILL.
    """
    with suppress(PermissionError):  # it leads one already
        os.setsid()
    worker = os.getpid()
    if sys.platform != "linux" or os.fork():
        return

    # From here on in the fork.
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    _signal_at_death(signal.SIGUSR1)
    # Open copies of the worker's pipes would hide its death from the parent.
    for number in os.listdir("/proc/self/fd"):
        with suppress(OSError):  # the number of the listing itself
            os.close(int(number))
    if os.getppid() == worker:
        signal.sigwait({signal.SIGUSR1})
    with suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)  # this fork too
    os._exit(1)


def _signal_at_death(number: int) -> None:
    """Let Linux send this signal to this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _die_with(parent: int) -> None:
    """End this process when its parent ends, even inside a task.

    Linux does it by a signal; elsewhere a thread waits for the parent.
    """
    if sys.platform == "linux":
        _signal_at_death(signal.SIGKILL)
        # The parent may have died before the line above.
        if os.getppid() != parent:
            os._exit(1)

    def watch() -> None:
        parent_process().join()
        if sys.platform != "linux":
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _send(
    pipe: Connection,
    answer: Any,
    memory: mmap.mmap | None = None,
    granted: tuple[int, int] = (NO_BLOCK, 0),
) -> None:
    """Send an answer, pickled with protocol 5: arrays go around the pickle.

    They are copied into a block of the shared memory, or follow the message in the pipe.

    Args:
        pipe: to the parent.
        answer: the answer.
        memory: the shared memory, if there is any.
        granted: start and bytes of a block that the parent has given already.
    """
    buffers: list[pickle.PickleBuffer] = []
    where = ""  # the traceback of an exception
    try:
        if isinstance(answer, Exception):
            raise answer
        head = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append)
    except Exception as error:  # the answer itself, or that it cannot be pickled
        buffers.clear()
        if error is answer:
            where = traceback.format_exc()
        head = pickle.dumps(_portable(error), protocol=5)

    views = [buffer.raw() for buffer in buffers]
    sizes = [view.nbytes for view in views]
    starts, total = spread(sizes)
    block = NO_BLOCK
    if memory is not None and total >= LEAST_SHARED:
        block = granted[0]
        if total > granted[1]:
            needs = pickle.dumps(NeedsBlock(total))
            pipe.send_bytes(pickle.dumps((needs, [], "", False), protocol=5))
            block = pickle.loads(pipe.recv_bytes())
    if block != NO_BLOCK:
        for start, view in zip(starts, views, strict=True):
            memory[block + start : block + start + view.nbytes] = view
        pipe.send_bytes(pickle.dumps((head, sizes, where, True), protocol=5))
        return

    pipe.send_bytes(pickle.dumps((head, sizes, where, False), protocol=5))
    for view in views:
        while view.nbytes:
            view = view[os.write(pipe.fileno(), view) :]


def _portable(error: Exception) -> Exception:
    """`error` if it can be unpickled again, else a RuntimeError with its words.

    A class may ask for more arguments than its instances keep.
    """
    try:
        pickle.loads(pickle.dumps(error, protocol=5))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def receive(
    pipe: Connection,
    more: Callable[[], None],
    arena: Arena | None = None,
    block: Block | None = None,
) -> tuple[Any, int]:
    """Receive an answer of a worker.

    Args:
        pipe: the parent's end of the pipe.
        more: waits until the pipe has data.
        arena: the shared memory, if there is any.
        block: the block of it that the worker was given.

    Returns:
        The answer, and how many bytes of the block it takes, 0 where it lies elsewhere. Its arrays
        lie in memory that nothing else uses while any of them exists.

    Raises:
        EOFError: the worker is gone, or `more` raised it.
        RuntimeError: the answer cannot be unpickled.
    """
    head, sizes, where, in_block = pickle.loads(pipe.recv_bytes())
    buffers = arena.arrays(block, sizes) if in_block else _read_arrays(pipe, sizes, more)
    try:
        answer = pickle.loads(head, buffers=buffers)
    except Exception as error:
        # An OSError or EOFError would say that the worker is gone, and the block, which the arrays
        # give back, would be given back twice.
        raise RuntimeError(f"an answer cannot be unpickled ({error!r})") from error
    if where:
        answer.__cause__ = RemoteTraceback(f"\n{where}")
    return answer, spread(sizes)[1] if in_block else 0


def _read_arrays(pipe: Connection, sizes: list[int], more: Callable[[], None]) -> list:
    """Read the arrays that follow a message in the pipe."""
    # Imported here, and not in the workers: it would delay those that do not need it.
    import numpy

    buffers = [numpy.empty(size, numpy.uint8) for size in sizes]
    os.set_blocking(pipe.fileno(), False)
    for buffer in buffers:
        view = memoryview(buffer)
        while view.nbytes:
            try:
                count = os.readv(pipe.fileno(), [view])
            except BlockingIOError:
                more()
                continue
            if not count:
                raise EOFError
            view = view[count:]
    os.set_blocking(pipe.fileno(), True)
    return buffers
