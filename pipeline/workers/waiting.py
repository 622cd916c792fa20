"""Messages for a person while this process waits for a claim: whose it is, and until when."""

import time
from collections.abc import Callable, Mapping
from pathlib import Path

from pipeline.workers.claims import ClaimState, ClaimWatch, read_claim

PATIENCE = 3.0  # seconds of waiting before the first message
PrintLine = Callable[[str], None]  # prints one line for a person


def print_nothing(line: str) -> None:
    """A `PrintLine` for processes whose lines nobody is to see."""


class WaitMessages:
    """Tells a person whose claims this process waits for: once for each owner, after PATIENCE.

    Args:
        watch: this process's memory of claims.
        say: prints a line; None for silence.
    """

    def __init__(self, watch: ClaimWatch, say: PrintLine | None):
        self.watch = watch
        self._say = say
        self._since: float | None = None
        self._named: set[str] = set()

    def say_of(self, paths: Mapping[Path, str]) -> None:
        """Print a line for each new owner. Call it repeatedly while waiting.

        Args:
            paths: the claimed files, each with its name for a person.
        """
        if self._say is None:
            return
        now = time.monotonic()
        if self._since is None:
            self._since = now
        if now - self._since < PATIENCE:
            return

        by_owner: dict[str, list[tuple[Path, ClaimState]]] = {}
        for path in paths:
            state = read_claim(path)
            if state is not None:
                by_owner.setdefault(state.owner, []).append((path, state))

        for owner, claims in by_owner.items():
            if owner not in self._named:
                self._named.add(owner)
                self._say(self._line(paths, claims))

    def over(self) -> None:
        """End the wait: the next one starts with its own PATIENCE."""
        self._since = None

    def _line(self, names: Mapping[Path, str], claims: list[tuple[Path, ClaimState]]) -> str:
        path, state = claims[0]
        files = names[path]
        if len(claims) > 1:
            files += f" and {len(claims) - 1} more"
        silent = self.watch.silent_for(path, state)
        return f"waiting for {files}, {claimed_until(state, silent, self.watch.silence)}"


def claimed_until(state: ClaimState, silent: float, silence: float) -> str:
    """Say whose claim it is, and until when this run waits at most.

    Args:
        state: the claim.
        silent: seconds since its last heartbeat.
        silence: seconds without a heartbeat after which this run takes it over.
    """
    if state.lives:
        return f"claimed by {state.owner}, which is running: until it ends"
    left = max(0.0, silence - silent)
    when = time.strftime("%H:%M:%S", time.localtime(time.time() + left))
    return (
        f"claimed by {state.owner}: until it is done, or has sent no heartbeat for {silence:.0f} s "
        f"(without one, this run takes over in {left:.0f} s, at {when})"
    )
