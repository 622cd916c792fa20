"""The command line: parse, call, print."""

import os
import sys


def _leave_out_working_folder() -> None:
    """Takes the working folder off the module path before any other import, since it may hold other
    people's files.

    Python puts it there for `python -m cli`, and for an empty entry of PYTHONPATH. Folders that
    PYTHONPATH names stay. If this package itself lies in the working folder, the folder moves to
    the end of the path.
    """
    here, named = os.getcwd(), os.environ.get("PYTHONPATH", "").split(os.pathsep)
    first = sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False)
    by_mistake = (
        "" in named and any(named) and here not in map(os.path.abspath, filter(None, named))
    )
    if first:
        del sys.path[0]
    if by_mistake and here in sys.path:
        sys.path.remove(here)
    if (first or by_mistake) and os.path.dirname(
        os.path.dirname(os.path.abspath(__file__))
    ) == here:
        sys.path.append(here)


if (
    sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]) == "vidgraph"
):  # a program, not somebody's `import cli`
    _leave_out_working_folder()
