"""Folders for what nobody keeps: they go when the work ends, however it ends.

A process that is killed can remove nothing. The next one that makes such a folder removes those of
processes that have ended.
"""

import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from pipeline.files.owners import new_claim_name, part_files_in, part_path, writer_lives

# Begins the name of every such folder; the name of its owner follows.
NAME = "vidgraph-scratch"

_made: set[Path] = set()


@contextmanager
def scratch_folder(within: Path) -> Iterator[Path]:
    """Make a folder that is removed at the end of the `with` block.

    Args:
        within: the folder that it lies in, such as that for temporary files.

    Yields:
        The new folder, which only this user may read.

    Raises:
        OSError: it cannot be made there.
    """
    for left in part_files_in(within, re.escape(NAME)):
        if writer_lives(left.path) is False:
            shutil.rmtree(left.path, ignore_errors=True)

    folder = part_path(within / NAME, new_claim_name()).absolute()
    folder.mkdir(mode=0o700)
    _made.add(folder)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _made.discard(folder)


def remove_scratch_folders() -> None:
    """Remove all such folders of this process, which is about to end."""
    for folder in tuple(_made):
        shutil.rmtree(folder, ignore_errors=True)
