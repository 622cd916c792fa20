"""A worker process of `pipeline.workers.decode_pool`: its life, and how its answers reach the
parent.
"""

import ctypes
import os
import pickle
import signal
import sys
import threading
import traceback
from collections.abc import Callable
from contextlib import suppress
from multiprocessing import parent_process
from multiprocessing.connection import Connection
from typing import Any

from pipeline.text.printable import guard_output

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


class RemoteTraceback(Exception):
    """Where in the worker an exception was raised; it is the `__cause__` of the exception that came
    back.
    """


def serve(pipe: Connection, function: bytes, parent: int) -> None:
    """A worker's life: load the function, answer None for ready (or the error); for each task None,
    then the answer.
    """
    for ignored in (
        signal.SIGINT,
        signal.SIGTERM,
    ):  # a batch system sends it to the whole job: the parent decides
        signal.signal(ignored, signal.SIG_IGN)
    guard_output()  # warnings of libraries name files
    _lead_group()
    _die_with(parent)
    os.environ.setdefault(
        "OMP_NUM_THREADS", "1"
    )  # workers share the cores; read when `function` imports numpy
    try:
        function = pickle.loads(function)
    except Exception as error:
        _send(pipe, _portable(error))
        return
    _send(pipe, None)
    while True:
        try:
            payload = pipe.recv_bytes()
        except EOFError:
            return
        _send(pipe, None)
        try:
            answer = function(pickle.loads(payload))
        except Exception as error:
            answer = error
        try:
            _send(pipe, answer)
        except (
            MemoryError,
            OSError,
        ):  # half an answer cannot be taken back: end as the kernel ends who has no memory left
            os.kill(os.getpid(), signal.SIGKILL)
        answer = None  # a worker that waits must not hold the last result


def _lead_group() -> None:
    """Makes this process the head of a group of its own, and ends the rest of the group when it
    ends, however it ends.

    What a library starts here (Pillow starts Ghostscript) would otherwise outlive it, and keep the
    output of the whole command open. On Linux a fork of this process, which is still small, waits
    for its death; a thread could not, inside native code or after SIGKILL.
    """
    with suppress(PermissionError):  # it leads one already
        os.setsid()
    worker = os.getpid()
    if sys.platform != "linux" or os.fork():
        return
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGUSR1})
    _signal_at_death(signal.SIGUSR1)
    for number in os.listdir(
        "/proc/self/fd"
    ):  # the parent waits for the ends of the worker's pipes
        with suppress(OSError):  # the listing's own
            os.close(int(number))
    if os.getppid() == worker:
        signal.sigwait({signal.SIGUSR1})
    with suppress(ProcessLookupError):
        os.killpg(worker, signal.SIGKILL)  # this fork too
    os._exit(1)


def _signal_at_death(number: int) -> None:
    """Lets Linux send this signal to this process when the thread that started it ends."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, number)


def _die_with(parent: int) -> None:
    """Ends this process when the parent does, even inside a task: by a signal on Linux, by a
    watching thread elsewhere.
    """
    if sys.platform == "linux":
        _signal_at_death(signal.SIGKILL)
        if os.getppid() != parent:  # it died before the line above
            os._exit(1)

    def watch() -> None:
        parent_process().join()
        if sys.platform != "linux":
            os.killpg(os.getpid(), signal.SIGKILL)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _send(pipe: Connection, answer: Any) -> None:
    """Pickles with protocol 5: arrays follow the message as they are, without a copy in this
    process.
    """
    buffers: list[pickle.PickleBuffer] = []
    try:
        if isinstance(answer, Exception):
            raise answer
        head, where = pickle.dumps(answer, protocol=5, buffer_callback=buffers.append), ""
    except Exception as error:
        buffers.clear()
        where = traceback.format_exc() if error is answer else ""
        head = pickle.dumps(_portable(error), protocol=5)
    views = [buffer.raw() for buffer in buffers]
    pipe.send_bytes(pickle.dumps((head, [view.nbytes for view in views], where), protocol=5))
    for view in views:
        while view.nbytes:
            view = view[os.write(pipe.fileno(), view) :]


def _portable(error: Exception) -> Exception:
    """`error` if it survives pickling (a class may ask for more arguments than it keeps), else a
    RuntimeError of its words.
    """
    try:
        pickle.loads(pickle.dumps(error, protocol=5))
        return error
    except Exception:
        return RuntimeError(f"{type(error).__name__}: {error}")


def receive(pipe: Connection, more: Callable[[], None]) -> Any:
    """What a worker's `_send` sent. `more()` waits until the pipe has data. EOFError if the other
    end is gone.
    """
    # here, and not in workers, which would pay for it before they know that they need it
    import numpy

    head, sizes, where = pickle.loads(pipe.recv_bytes())
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
    answer = pickle.loads(head, buffers=buffers)
    if where:
        answer.__cause__ = RemoteTraceback(f"\n{where}")
    return answer
