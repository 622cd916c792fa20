"""The command line: parse, call, print. One file per verb; `cli._shared` is what they share."""

import os
import sys


def _leave_out_working_folder() -> None:
    """Take the working folder off the module path before anything else is imported.

    It may hold other people's files. Python puts it on the path for `python -m cli` and for an
    empty entry of PYTHONPATH. Folders that PYTHONPATH names stay. If this package itself lies in
    the working folder, that folder moves to the end of the path.
    """
    working_folder = os.getcwd()
    named = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    absolute = [os.path.abspath(entry) for entry in named if entry]

    # With `python -P` the folder is not on the path.
    started_as_module = sys.argv[:1] == ["-m"] and not getattr(sys.flags, "safe_path", False)
    if started_as_module:
        del sys.path[0]

    # An empty entry means the working folder; an entry that names it stays.
    empty_entry = "" in named and bool(absolute) and working_folder not in absolute
    if empty_entry and working_folder in sys.path:
        sys.path.remove(working_folder)

    home = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    if (started_as_module or empty_entry) and home == working_folder:
        # Last, so that none of its files hides an installed package.
        sys.path.append(working_folder)


# Only where this process is the command, not where a program of somebody else imports `cli`.
if sys.argv[:1] == ["-m"] or os.path.basename(sys.argv[0]) == "vidgraph":
    _leave_out_working_folder()
