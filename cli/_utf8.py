"""Names and texts are UTF-8, whatever the locale of the shell says."""

import os
import sys


def ensure_utf8() -> None:
    """Starts this command again in Python's UTF-8 mode where the locale speaks something else; else returns.

    Batch systems and small containers run programs with LC_ALL=C. Python then takes names of files, arguments and texts as
    ASCII, which it decides once, when it starts. Child processes inherit the mode.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            stream.reconfigure(errors="backslashreplace")  # a name that the terminal cannot show ends nothing
    if sys.getfilesystemencoding() == "utf-8" or not sys.executable or not hasattr(os, "execv"):
        return
    os.environ["PYTHONUTF8"] = "1"
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
