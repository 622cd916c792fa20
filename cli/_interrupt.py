"""Ctrl-C and SIGTERM (a batch system's, at the end of a job's time) end a run within seconds,
whatever it is doing.
"""

import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from cli._say import say

# seconds for what is under way to end by itself; a batch system kills after 30, a person loses
# patience earlier
GRACE = 7.0
PARTING = 1.0  # seconds to give claims up in; a file system that hangs must not keep us
LATER = 0.005  # seconds until a signal that came at a bad moment comes again


@contextmanager
def stoppable(resume: str) -> Iterator[None]:
    """Within it both signals raise KeyboardInterrupt; `resume` says to a person what is kept and
    how to go on.

    Python only hears of a signal between two of its own instructions, and a forward pass or a full
    disk may take long: so a thread hears of it too, and ends the process after GRACE seconds, or at
    the second Ctrl-C. Only for the main thread; the outermost counts. A signal that comes while
    HDF5 calls Python, or while a claim is made or given up, is put off until that is over; claims
    that the exception left behind are given up.
    """
    from pipeline.cache import part_file as partfile  # noqa: F401  (with claims, what _interrupt looks at: no handler should have to load it)
    from pipeline.workers.claims import give_up

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is _interrupt
    ):
        yield
        return
    ended, (out, into) = threading.Event(), os.pipe()
    os.set_blocking(into, False)

    def watch() -> None:
        heard = 0
        while number := os.read(out, 1):
            if (
                number[0] not in before
            ):  # the end of a child, where a library (torch's DataLoader) listens for that
                continue
            if _PUT_OFF.came_again():
                continue
            heard += 1
            timer = threading.Timer(GRACE if heard == 1 else 0, _end, (ended, resume))
            timer.daemon = True
            timer.start()
        os.close(out)

    before = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    wakeup = signal.set_wakeup_fd(into, warn_on_full_buffer=False)
    threading.Thread(target=watch, name="interrupt", daemon=True).start()
    try:
        yield
    except KeyboardInterrupt:
        give_up()
        say(resume, err=True)
        raise
    finally:
        ended.set()
        _PUT_OFF.forget()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(into)  # ends the thread


class _DelayedSignals:
    """Signals that are sent again, LATER; those that come then are no further ones."""

    def __init__(self):
        self._due = queue.SimpleQueue()  # which a signal handler may use at any moment
        self._timers: list[threading.Timer] = []

    def send(self, number: int) -> None:
        self._due.put(number)
        self._timers.append(threading.Timer(LATER, os.kill, (os.getpid(), number)))
        self._timers[-1].daemon = True
        self._timers[-1].start()

    def came_again(self) -> bool:
        """Called for every signal that is heard: whether it is one that was put off."""
        with suppress(queue.Empty):
            self._due.get_nowait()
            return True
        return False

    def forget(self) -> None:
        """What is over can no longer be stopped."""
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._timers = []
        while self.came_again():
            pass


_PUT_OFF = _DelayedSignals()


def _interrupt(number: int, frame: FrameType | None) -> None:
    from pipeline.cache import part_file as partfile  # loaded before this function was set
    from pipeline.workers import claims  # loaded before this function was set

    while frame:
        if frame.f_code in claims.STEPS or frame.f_code in partfile.STEPS:
            _PUT_OFF.send(number)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _end(ended: threading.Event, resume: str) -> None:
    """Ends the process without waiting for anything; nothing that was half written stays."""
    if ended.is_set():
        return
    from pipeline.workers.claims import give_up

    giving_up = threading.Thread(target=give_up, daemon=True)
    giving_up.start()
    giving_up.join(PARTING)
    os.write(2, f"{resume}\ninterrupted\n".encode())
    os._exit(130)
