"""How often processes have ended in the middle of a shard.

A shard that takes longer than a batch job lives starts again in every job, and no job fails because
of it. So each unfinished try of a shard leaves a line in `NAME.tries` beside the shard: how many
seconds it took. Whoever claims the shard next says so. The file goes when the shard is complete.
"""

from contextlib import suppress
from pathlib import Path

from pipeline.files.atomic_files import done_marker

# Shorter tries are a person who presses Ctrl-C, or an error that has its own message.
SHORTEST = 60.0
# Tries from which on a person should know.
MANY = 3
_LONGEST_FILE = 1 << 12  # bytes that are read


def tries_file(path: Path) -> Path:
    """Return the file that lists the unfinished tries of a shard's HDF5 file."""
    return path.with_suffix(".tries")


def note_try(path: Path, seconds: float) -> None:
    """Note that a process gave up a shard, or ended, before the shard was complete.

    Args:
        path: the shard's HDF5 file.
        seconds: since the process had claimed it.
    """
    if seconds < SHORTEST:
        return
    # Nothing depends on this file, so an error of the disk is left to what matters.
    with suppress(OSError):
        if not done_marker(path).exists():
            with open(tries_file(path), "a", encoding="ascii") as file:
                file.write(f"{seconds:.0f}\n")


def describe_tries(path: Path) -> str:
    """Say how often processes have ended in the middle of a shard.

    Args:
        path: the shard's HDF5 file.

    Returns:
        One line; "" if it happened less than MANY times.
    """
    try:
        with open(tries_file(path), encoding="ascii", errors="replace") as file:
            tries = [text for text in file.read(_LONGEST_FILE).split() if text.isdecimal()]
    except OSError:
        return ""
    if len(tries) < MANY:
        return ""
    last = ", ".join(f"{int(seconds[:12]):,}" for seconds in tries[-MANY:])
    return (
        f"shard {path.stem}: {len(tries)} processes ended before it was complete, the last after "
        f"{last} s; if jobs end before it is done, give them more time, or begin a cache with a "
        f"smaller --shard-bytes"
    )


def forget_tries(path: Path) -> None:
    """Remove the list of a complete shard.

    Args:
        path: the shard's HDF5 file.
    """
    with suppress(OSError):
        tries_file(path).unlink(missing_ok=True)
