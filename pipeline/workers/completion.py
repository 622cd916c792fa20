"""Completes a shard once, however many processes have written it.

A shard is complete when its done marker, the statistics file `NAME.json`, exists. A process that
starts on a shard notes which done marker there is, if any. When it has written the shard, it looks
again: if the done marker is another one by then, another process was faster and its shard stays.
"""

import os
import re
from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Protocol

from pipeline.files.atomic_files import done_marker
from pipeline.files.owners import part_files_in
from pipeline.workers.claims import Claim, files_of
from pipeline.workers.tries import forget_tries


class ShardFileWriter(Protocol):
    """An object that writes a shard, such as `pipeline.cache.shard_writer.ShardWriter`."""

    def finish(self, stats: Mapping[str, object], replace: bool) -> dict: ...


class OtherRun(Enum):
    """The result of a job whose shard another run has finished. It survives pickling."""

    FINISHED = "finished"


# Inode, modification time and size of a file; None where there is no file.
Mark = tuple[int, int, int] | None


def mark_of(path: Path) -> Mark:
    """Return the version of a shard's done marker.

    Args:
        path: the shard's HDF5 file.

    Returns:
        The `version_of` its statistics file; None if the shard is not complete.
    """
    return version_of(done_marker(path))


def version_of(path: Path) -> Mark:
    """Return what tells a file from one that replaces it; None if there is no file."""
    try:
        found = os.stat(path)
    except (FileNotFoundError, NotADirectoryError):
        return None
    return found.st_ino, found.st_mtime_ns, found.st_size


def begin_shard(path: Path) -> Mark:
    """Prepare the writing of a shard. The caller holds its claim.

    A file without statistics is removed: its writer was killed between the two.

    Args:
        path: the shard's HDF5 file.

    Returns:
        The version of its done marker, for `finish_shard`.
    """
    mark = mark_of(path)
    if mark is None:
        path.unlink(missing_ok=True)
    return mark


def finish_shard(
    writer: ShardFileWriter,
    stats: Mapping[str, object],
    claim: Claim,
    mark: Mark,
    replace: bool = False,
) -> dict | None:
    """Complete a shard, unless another process has completed it since `begin_shard`.

    Args:
        writer: wrote the shard's data.
        stats: the shard's statistics.
        claim: the claim under which it was written.
        mark: what `begin_shard` returned. A shard that had a done marker then is replaced.
        replace: also replace a file without a done marker.

    Returns:
        The statistics as written; None if another process was faster, whose shard stays.

    Raises:
        OSError: writing failed while the claim was still held.
    """
    try:
        if mark_of(claim.path) != mark:
            return None
        record = writer.finish(stats, replace=replace or mark is not None)
    except FileExistsError:
        return None
    except OSError:
        # Whoever took the claim over may have removed our part file.
        if claim.held():
            raise
        return None
    # A look at the whole folder takes long where it is large. Without an earlier claim there are
    # no part files of others. Those without any claim go when a run begins or ends.
    if not claim.first:
        remove_parts(claim.path)
    forget_tries(claim.path)
    return record


def remove_parts(path: Path) -> None:
    """Remove all part files of a complete shard: whoever still writes one has lost.

    Args:
        path: the shard's HDF5 file.
    """
    names = [re.escape(file.name) for file in files_of(path)]
    for part in part_files_in(path.parent, *names):
        part.path.unlink(missing_ok=True)
