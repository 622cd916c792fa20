"""Keeps the working folder off the module path of every Python process that this one starts.

Data sets come with scripts, and people start commands in the folder of their data: a file
`struct.py` there must not run. `python -c` and `python -m` put the working folder first on the
module path, and multiprocessing starts children by `python -c`.
"""

import os

# Only sys is imported: it is built in, so no file can take its place.
_DROP_WORKING_FOLDER = "import sys; sys.path[:] = [place for place in sys.path if place]; "


def guard_program() -> None:
    """Keep the working folder off the module path of all Python processes started from now on.

    An empty entry of PYTHONPATH (`PYTHONPATH=$PYTHONPATH:/mine` with nothing set before) means the
    working folder. Hardly anybody intends that, so it is dropped. Named folders stay.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # ignored by Python 3.10, where guard_children does it
    if "PYTHONPATH" in os.environ:
        folders = [place for place in os.environ["PYTHONPATH"].split(os.pathsep) if place]
        os.environ["PYTHONPATH"] = os.pathsep.join(folders)
    guard_children()


def guard_children() -> None:
    """Keep the working folder off the module path of processes that multiprocessing starts.

    Those are decode workers, Dask's workers and the resource tracker. They import much of the
    standard library before multiprocessing sends them this process's module path.
    """
    from multiprocessing import util

    start = util.spawnv_passfds
    if getattr(start, "guarded", False):
        return

    def guarded(path, arguments, descriptors):
        arguments = list(arguments)
        if "-c" in arguments:
            program = arguments.index("-c") + 1
            arguments[program] = _DROP_WORKING_FOLDER + arguments[program]
        return start(path, arguments, descriptors)

    guarded.guarded = True
    util.spawnv_passfds = guarded
