"""Makes file names and texts UTF-8, whatever the shell's locale is."""

import os
import sys


def ensure_utf8() -> None:
    """Restart this command in Python's UTF-8 mode if the locale has another encoding.

    Batch systems and small containers run programs with LC_ALL=C. Python may then read file names,
    arguments and texts as ASCII. It decides that once, when it starts. Child processes inherit the
    mode.
    """
    for stream in (sys.stdout, sys.stderr):
        if hasattr(stream, "reconfigure"):
            # No file name may raise UnicodeEncodeError when it is printed.
            stream.reconfigure(errors="backslashreplace")

    if sys.getfilesystemencoding() == "utf-8" or not sys.executable or not hasattr(os, "execv"):
        return
    os.environ["PYTHONUTF8"] = "1"
    # execv drops what is still in a buffer.
    sys.stdout.flush()
    os.execv(sys.executable, [sys.executable, "-X", "utf8", *sys.orig_argv[1:]])
