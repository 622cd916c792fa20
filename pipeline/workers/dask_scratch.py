"""A private folder for Dask's temporary files.

It must be private because Dask puts it on the module path. By default Dask uses a folder in /tmp
with a well-known name, which another user could have made first.
"""

import os
import stat
import tempfile
from contextlib import suppress


def private_scratch() -> str:
    """Return the folder vidgraph-USERID in the system's temporary folder, making it if needed.

    All runs of a user get the same folder, so that Dask removes what killed processes left there.

    Returns:
        The path. It is a new folder with a random name if another user owns the usual name.
    """
    folder = os.path.join(tempfile.gettempdir(), f"vidgraph-{os.getuid()}")
    with suppress(FileExistsError):
        os.mkdir(folder, 0o700)

    # lstat: a symbolic link of that name is not trusted.
    found = os.lstat(folder)
    private = found.st_uid == os.getuid() and not found.st_mode & 0o077
    if stat.S_ISDIR(found.st_mode) and private:
        return folder
    return tempfile.mkdtemp(prefix="vidgraph-")
