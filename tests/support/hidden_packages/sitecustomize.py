"""Hides the packages that VIDGRAPH_TESTS_HIDE names (`decord,torchcodec`): they look as if they
were not installed.

Python runs this file when it starts, in every process that has this folder on its PYTHONPATH.
conftest.py runs it in that of the tests, and puts the folder there for the processes that they
start.
"""

import os
import re
import sys
from importlib.machinery import PathFinder

HIDDEN = frozenset(
    name.strip() for name in os.environ.get("VIDGRAPH_TESTS_HIDE", "").split(",") if name.strip()
)


class Hiding(PathFinder):
    """Finds modules and the records of installed packages along sys.path, but for those of
    HIDDEN.
    """

    @classmethod
    def find_spec(cls, fullname, path=None, target=None):
        return (
            None
            if fullname.partition(".")[0] in HIDDEN
            else super().find_spec(fullname, path, target)
        )

    @classmethod
    def find_distributions(cls, *context):
        for found in super().find_distributions(*context):
            if re.sub(r"[-.]+", "_", found.metadata["Name"]) not in HIDDEN:
                yield found


if HIDDEN and Hiding.__name__ not in [getattr(finder, "__name__", "") for finder in sys.meta_path]:
    for finder in [finder for finder in sys.meta_path if finder is PathFinder]:
        sys.meta_path[sys.meta_path.index(finder)] = Hiding
