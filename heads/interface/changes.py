"""What a head computes otherwise since an earlier version, for runs that began before.

A head whose options keep their names and values but now mean something else says so in its module:

    CHANGES = (
        Change(2, "similarities were squared, and are not now", lambda o: o["form"] == "joint"),
    )

A run records the version of its head. A run of an older version is refused if its options are
concerned: its weights would go on with another network, and nobody would see it.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

FIRST = 1  # the version of a head without changes, and of runs that recorded none


@dataclass(frozen=True)
class Change:
    """One change of what a head computes.

    Attributes:
        version: the head's version since the change; 2 is the first.
        what: what was computed before and what is now, as part of a sentence.
        affects: whether a head with these options, defaults filled in, computes something else.
    """

    version: int
    what: str
    affects: Callable[[Mapping[str, Any]], bool]


def version_after(changes: Sequence[Change]) -> int:
    """Return the version of a head after these changes."""
    return max([FIRST, *(change.version for change in changes)])


def changes_since(
    changes: Sequence[Change], version: int, options: Mapping[str, Any]
) -> list[Change]:
    """Return the changes after a version that concern a head with some options.

    Args:
        changes: all changes of the head.
        version: that a run recorded.
        options: of the run's head, defaults filled in.
    """
    found = []
    for change in changes:
        if change.version > version and change.affects(options):
            found.append(change)
    return found
