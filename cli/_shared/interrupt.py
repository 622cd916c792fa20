"""Ctrl-C and SIGTERM end a run within seconds, whatever it is doing.

Batch systems send SIGTERM at the end of a job's time.
"""

import os
import queue
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from cli._shared.say import say

# Seconds that work under way has to end by itself. Batch systems kill after 30 s, and people lose
# patience earlier.
GRACE = 7.0
# Seconds to release claims and scratch folders in: a file system that hangs must not hold us up.
PARTING = 1.0
LATER = 0.005  # seconds after which a delayed signal is sent again


@contextmanager
def stoppable(resume: str) -> Iterator[None]:
    """Let Ctrl-C and SIGTERM raise KeyboardInterrupt within the `with` block.

    Python handles a signal between two of its own instructions only, and a forward pass or a full
    disk may take long. A thread therefore hears of the signal, too. It ends the process after GRACE
    seconds, or at the second Ctrl-C.

    A signal that comes while HDF5 calls Python, or while a claim is made or released, is delayed
    until that is over. Claims that the exception leaves behind are released. In any thread but the
    main one, and inside another `stoppable`, this does nothing.

    Args:
        resume: one line for the user: what is kept, and which command resumes.
    """
    # _interrupt looks at part_file and claims: a signal handler must not have to load modules.
    from pipeline.cache import part_file  # noqa: F401
    from pipeline.files import scratch  # noqa: F401
    from pipeline.workers.claims import give_up

    if (
        threading.current_thread() is not threading.main_thread()
        or signal.getsignal(signal.SIGTERM) is _interrupt
    ):
        yield
        return
    ended, (out, into) = threading.Event(), os.pipe()
    # signal.set_wakeup_fd takes no descriptor that could block.
    os.set_blocking(into, False)

    def watch() -> None:
        count = 0
        while number := os.read(out, 1):
            # Other signals arrive here too: torch's DataLoader listens for the end of a child.
            if number[0] not in before or _DELAYED.came_again():
                continue
            count += 1
            patience = GRACE if count == 1 else 0
            timer = threading.Timer(patience, _end, (ended, resume))
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
        _DELAYED.forget()
        signal.set_wakeup_fd(wakeup)
        for number, handler in before.items():
            signal.signal(number, handler)
        os.close(into)  # ends the thread


class _DelayedSignals:
    """Sends signals again after LATER seconds, and tells those from new ones."""

    def __init__(self):
        # A signal handler may use a SimpleQueue at any moment.
        self._due = queue.SimpleQueue()
        self._timers: list[threading.Timer] = []

    def send(self, number: int) -> None:
        self._due.put(number)
        self._timers.append(threading.Timer(LATER, os.kill, (os.getpid(), number)))
        self._timers[-1].daemon = True
        self._timers[-1].start()

    def came_again(self) -> bool:
        """Return whether a signal that just arrived is a delayed one. Call it once per signal."""
        with suppress(queue.Empty):
            self._due.get_nowait()
            return True
        return False

    def forget(self) -> None:
        """Cancel all delayed signals: the work that they would stop has ended."""
        for timer in self._timers:
            timer.cancel()
            timer.join()
        self._timers = []
        while self.came_again():
            pass


_DELAYED = _DelayedSignals()


def _interrupt(number: int, frame: FrameType | None) -> None:
    """The signal handler: raise KeyboardInterrupt, unless this is a moment that must not be cut."""
    # `stoppable` has loaded both.
    from pipeline.cache import part_file
    from pipeline.workers import claims

    while frame:
        if frame.f_code in claims.STEPS or frame.f_code in part_file.STEPS:
            _DELAYED.send(number)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


def _end(ended: threading.Event, resume: str) -> None:
    """End the process without waiting for anything. No half-written file keeps its final name."""
    if ended.is_set():
        return
    from pipeline.files.scratch import remove_scratch_folders
    from pipeline.workers.claims import give_up

    def part() -> None:
        give_up()
        remove_scratch_folders()

    giving_up = threading.Thread(target=part, daemon=True)
    giving_up.start()
    giving_up.join(PARTING)
    os.write(2, f"{resume}\ninterrupted\n".encode())
    os._exit(130)
