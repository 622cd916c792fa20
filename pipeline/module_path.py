"""Keeps the working folder off the module path of every Python process that is started here.

Data sets come with scripts, and people start commands where the data lie: a file `struct.py` there must not run. Python puts
the working folder first on the path of `python -c` and `python -m`, and multiprocessing starts its children by `python -c`.
"""

import os

_WITHOUT_IT = "import sys; sys.path[:] = [place for place in sys.path if place]; "  # sys is built in: no file can be it


def guard_program() -> None:
    """For a program of ours: all Python processes that are started from now on, by whatever library, leave the folder out.

    An empty entry of PYTHONPATH (`PYTHONPATH=$PYTHONPATH:/mine`, where nothing was set before) means the working folder to
    Python. Hardly anybody means that: it is dropped. A folder that PYTHONPATH names stays.
    """
    os.environ["PYTHONSAFEPATH"] = "1"  # Python 3.10 does not know it: there, guard_children does what is needed
    if "PYTHONPATH" in os.environ:
        named = [place for place in os.environ["PYTHONPATH"].split(os.pathsep) if place]
        os.environ["PYTHONPATH"] = os.pathsep.join(named)
    guard_children()


def guard_children() -> None:
    """What multiprocessing starts (workers, Dask's processes, its resource tracker) begins without the working folder.

    Their module path is then this process' own, as always: multiprocessing sends it. Before that, they import a good part of
    the standard library.
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
