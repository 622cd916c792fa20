"""What the views of a training epoch vote for, such as the structures that they choose in GOS.

A module with votes keeps them in an attribute `votes`. The training loop stores those of an
unfinished epoch, and shares them between processes before anybody asks for them.
"""

from collections import Counter
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor, nn

Choice = tuple[int, ...]


class Votes:
    """The votes of the present epoch: of this process, and those that others shared with it.

    Votes stay on the device that computed them until somebody asks for them, once an epoch.
    """

    def __init__(self):
        self._all: Counter[Choice] = Counter()
        self._unshared: Counter[Choice] = Counter()
        self._uncounted: list[Tensor] = []
        self._restored = False

    def cast(self, choices: Tensor) -> None:
        """Add one vote of this process for each choice.

        Args:
            choices: what B views chose, integers [B,n] below 2^15.
        """
        # Small integers, because an epoch's choices are kept; a copy, as the rest may be large.
        self._uncounted.append(choices.detach().to(torch.int16))
        self._restored = False

    def _count(self) -> Counter[Choice]:
        """Return this process's unshared votes; waits for the device if any are not counted."""
        if self._uncounted:
            choices, self._uncounted = torch.cat(self._uncounted), []
            self._unshared.update(map(tuple, choices.tolist()))
        return self._unshared

    def take_unshared(self) -> dict[Choice, int]:
        """Remove and return this process's votes since the last call, for `add` of all."""
        taken = dict(self._count())
        self._unshared.clear()
        return taken

    def add(self, votes: dict[Choice, int]) -> None:
        """Add votes that processes shared.

        Args:
            votes: choice -> votes, as `take_unshared` returned them.
        """
        self._all.update(votes)
        self._restored = False

    def most(self) -> Choice | None:
        """Return the choice with most votes, of equal ones the first; None without votes."""
        votes = self._all + self._count()
        return votes.most_common(1)[0][0] if votes else None

    def end_epoch(self) -> None:
        """Forget the votes, unless they were just restored: their epoch goes on."""
        if not self._restored:
            self._all.clear()
            self._unshared.clear()
            self._uncounted.clear()

    def state(self) -> list[list]:
        """Return [choice, votes] of every choice, in the order in which they came."""
        return [[list(choice), votes] for choice, votes in (self._all + self._count()).items()]

    def restore(self, state: Iterable[Sequence]) -> None:
        """Continue an epoch.

        Args:
            state: what `state` returned.
        """
        self._all = Counter({tuple(choice): votes for choice, votes in state})
        self._unshared.clear()
        self._uncounted.clear()
        self._restored = True


def votes_in(network: nn.Module) -> dict[str, Votes]:
    """Return the votes of a network's modules, by the modules' names."""
    found = {}
    for name, module in network.named_modules():
        votes = getattr(module, "votes", None)
        if isinstance(votes, Votes):
            found[name] = votes
    return found
