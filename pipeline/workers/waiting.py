"""Tells a person when this process waits for a claim: whose it is, and until when at most."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.workers.claims import ClaimState, ClaimWatch, read_claim

PATIENCE = 3.0  # seconds of waiting before a person is told
PrintLine = Callable[[str], None]  # gets lines for a person


class WaitMessages:
    """Says whose claims this process waits for, after PATIENCE seconds and once for each owner."""

    def __init__(self, watch: ClaimWatch, say: PrintLine | None):
        self.watch, self._say = watch, say
        self._begun: float | None = None
        self._told: set[str] = set()

    def say_of(self, paths: Mapping[Path, str]) -> None:
        """To be called repeatedly while waiting; `paths`: each claimed file with its name for a
        person.
        """
        if self._say is None:
            return
        now = time.monotonic()
        self._begun = now if self._begun is None else self._begun
        if now - self._begun < PATIENCE:
            return
        found: dict[str, list[tuple[Path, ClaimState]]] = {}
        for path in paths:
            if (seen := read_claim(path)) is not None:
                found.setdefault(seen.owner, []).append((path, seen))
        for owner, theirs in found.items():
            if owner not in self._told:
                self._told.add(owner)
                self._say(self._line(paths, theirs))

    def over(self) -> None:
        """The wait has ended: the next one starts with its own PATIENCE."""
        self._begun = None

    def _line(self, names: Mapping[Path, str], theirs: list[tuple[Path, ClaimState]]) -> str:
        path, seen = theirs[0]
        more = f" and {len(theirs) - 1} more" if len(theirs) > 1 else ""
        return f"waiting for {names[path]}{more}, {claimed_until(seen, self.watch.silent_for(path, seen), self.watch.silence)}"


def claimed_until(seen: ClaimState, silent: float, silence: float) -> str:
    """Whose claim it is and until when this run waits at most; `silent`: seconds since its last
    sign of life.
    """
    if seen.lives:
        return f"claimed by {seen.owner}, which is at work: until it has ended"
    left = max(0.0, silence - silent)
    when = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
    return (
        f"claimed by {seen.owner}: until it is done, or has given no sign of life for "
        f"{silence:.0f} s "
        f"(without one, this run takes over in {left:.0f} s, at {when})"
    )
