"""Progress of long work: a bar on a terminal, a line every 30 seconds elsewhere (a batch job's
log).
"""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cli._say import console, warn
from pipeline.text.printable import guarded_output, visible

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


def say_aside(line: str) -> None:
    """Prints a line beside a progress bar, such as for whom the run waits. A line that cannot be
    printed is dropped.
    """
    with suppress(OSError):
        warn(line)


@contextmanager
def progress(
    what: str, total: int, unit: str, bad: str = "failed"
) -> Iterator[Callable[[int, int], None]]:
    """Shows how far a long job is; yields `advance(done, failed)`, which adds `done` units and
    `failed` of what `bad` names.

    On a terminal it is a bar with units per second and the time left; without one it is a line
    every 30 s and one at the end.
    """
    if sys.stderr.isatty():
        with _bar(what, total, unit, bad) as advance:
            yield advance
    else:
        yield from _lines(what, total, unit, bad)


@contextmanager
def _bar(what: str, total: int, unit: str, bad: str) -> Iterator[Callable[[int, int], None]]:
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("{task.fields[rate]}", markup=False),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[failed]}", markup=False),
    )
    with Progress(*columns, console=console(err=True)) as bar, guarded_output():
        task = bar.add_task(visible(what), total=total, rate="", failed="")
        begun, count, failures = time.monotonic(), 0, 0

        def advance(done: int = 1, failed: int = 0) -> None:
            nonlocal count, failures
            count, failures = count + done, failures + failed
            rate = count / max(time.monotonic() - begun, 1e-9)
            bar.update(
                task,
                advance=done,
                rate=f"{_short(rate)} {unit}/s",
                failed=f"{failures} {bad}" if failures else "",
            )

        yield advance


def _lines(what: str, total: int, unit: str, bad: str) -> Iterator[Callable[[int, int], None]]:
    begun = time.monotonic()
    count = failures = 0
    ended = threading.Event()

    def line() -> None:
        rate = count / max(time.monotonic() - begun, 1e-9)
        left = f"{(total - count) / rate:,.0f} s left" if count else "time left unknown"
        text = (
            f"{what}: {count:,}/{total:,} {unit}, {_short(rate)} {unit}/s, {failures} {bad}, {left}"
        )
        with suppress(
            OSError
        ):  # a log on a full disk, a terminal that went away: what accompanies the work never ends it
            print(text, file=sys.stderr, flush=True)

    def lines() -> None:
        while not ended.wait(LINE_EVERY):
            line()

    def advance(done: int = 1, failed: int = 0) -> None:
        nonlocal count, failures
        count, failures = count + done, failures + failed

    threading.Thread(target=lines, daemon=True).start()  # speaks also while nothing is finished
    try:
        yield advance
    finally:
        ended.set()
    if total:
        line()


def _short(rate: float) -> str:
    """Three digits at least: a clip may take a minute, or a thousandth of a second."""
    return f"{rate:,.0f}" if rate >= 100 else f"{rate:.3g}"
