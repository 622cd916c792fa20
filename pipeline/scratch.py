"""A folder for what Dask keeps beside its work, which nobody else can enter: Dask puts it on the module path.

Dask's own choice is a folder of a known name in /tmp, and it takes it from whoever made it there.
"""

import os
import stat
import tempfile
from contextlib import suppress


def private_scratch() -> str:
    """The folder vidgraph-USERID in the system's temporary folder, or another one if that is somebody else's.

    It is the same for every run of this user, so that Dask clears away what processes that were killed have left there.
    """
    folder = os.path.join(tempfile.gettempdir(), f"vidgraph-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)
    found = os.lstat(folder)  # a link counts as somebody else's
    if stat.S_ISDIR(found.st_mode) and found.st_uid == os.getuid() and not found.st_mode & 0o077:
        return folder
    return tempfile.mkdtemp(prefix="vidgraph-")
