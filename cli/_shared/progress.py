"""Progress of long work: a bar on a terminal, a line every 30 seconds in a log file."""

import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress

from cli._shared.say import console, warn
from pipeline.text.printable import guarded_output, visible

LINE_EVERY = 30.0  # seconds between lines where there is no terminal


def say_aside(line: str) -> None:
    """Print a line above a progress bar. A line that cannot be printed is dropped."""
    with suppress(OSError):
        warn(line)


@contextmanager
def progress(
    what: str, total: int, unit: str, bad: str = "failed"
) -> Iterator[Callable[[int, int], None]]:
    """Show how far a long job is.

    Args:
        what: the job's name, at the start of the line.
        total: how many units there are.
        unit: what is counted, such as "clips".
        bad: what the second count is called.

    Yields:
        `advance(done, failed)`, which adds to the two counts.
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
        # The log's disk may be full, or the terminal gone. That must not end the work.
        with suppress(OSError):
            print(text, file=sys.stderr, flush=True)

    def lines() -> None:
        while not ended.wait(LINE_EVERY):
            line()

    def advance(done: int = 1, failed: int = 0) -> None:
        nonlocal count, failures
        count, failures = count + done, failures + failed

    # A thread of its own prints lines even while no unit is finished.
    threading.Thread(target=lines, daemon=True).start()
    try:
        yield advance
    finally:
        ended.set()
    if total:
        line()


def _short(rate: float) -> str:
    """A rate with at least three digits: a clip may take a minute, or a thousandth of a second."""
    if rate >= 100:
        return f"{rate:,.0f}"
    return f"{rate:.3g}"
