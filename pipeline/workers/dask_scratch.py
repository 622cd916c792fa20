"""A private folder for Dask's temporary files. It must be private because Dask puts it on the
module path.

Dask's own choice is a folder in /tmp with a well-known name, which another user could have made
first.
"""

import os
import stat
import tempfile
from contextlib import suppress


def private_scratch() -> str:
    """The folder vidgraph-USERID in the system's temporary folder; a new one if somebody else owns
    that name.

    Every run of this user gets the same folder, so that Dask removes what killed processes left
    there.
    """
    folder = os.path.join(tempfile.gettempdir(), f"vidgraph-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)  # a link is not trusted
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return tempfile.mkdtemp(prefix="vidgraph-")
