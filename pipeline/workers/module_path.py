"""Keeps the working folder off the module path of every Python process that this one starts.

Data sets come with scripts, and people start commands in the folder of their data: a file
`struct.py` there must not run. `python -c` and `python -m` put the working folder first on the
module path, and multiprocessing starts children by `python -c`.
"""

import os

# sys is built in: no file can be it
_WITHOUT_IT = "import sys; sys.path[:] = [place for place in sys.path if place]; "


def guard_program() -> None:
    """For a program of ours: all Python processes that any library starts from now on leave the
    working folder out.

    To Python, an empty entry of PYTHONPATH (`PYTHONPATH=$PYTHONPATH:/mine` with nothing set before)
    is the working folder. Hardly anybody means that, so it is dropped. Folders that PYTHONPATH
    names stay.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # ignored by Python 3.10, where guard_children does it
    if "PYTHONPATH" in os.environ:
        named = [place for place in os.environ["PYTHONPATH"].split(os.pathsep) if place]
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    guard_children()


def guard_children() -> None:
    """Processes of multiprocessing (workers, Dask's, the resource tracker) start without the
    working folder on the path.

    They import much of the standard library before multiprocessing sends them this process's module
    path.
    """
    from multiprocessing import util

    start = util.spawnv_passfds
    if getattr(start, "guarded", False):
        return

    def guarded(path, arguments, descriptors):
        arguments = list(arguments)
        if "-c" in arguments:
            program = arguments.index("-c") + 1
            arguments[program] = _WITHOUT_IT + arguments[program]
        return start(path, arguments, descriptors)

    guarded.guarded = True
    util.spawnv_passfds = guarded
