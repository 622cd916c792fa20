"""Read, replace and skip the outputs of a model's blocks while the library's own forward runs.

Nothing of the library's forward is written again here. So what comes out is what the library
computes, whatever it does between its blocks (rotary positions, masks, merging).

While a `Taps` is open, each block calls `Taps.visit` in place of its own forward.
"""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

from torch import Tensor, nn


class Reached(Exception):
    """The last output that was wanted is there: what follows need not run."""


def state_of(output: Any) -> Tensor:
    """Return the hidden state of a block's output: the tensor, or the first of a tuple."""
    return output[0] if isinstance(output, (tuple, list)) else output


def with_state(output: Any, state: Tensor) -> Any:
    """Return a block's output with another hidden state."""
    if isinstance(output, (tuple, list)):
        return type(output)((state, *output[1:]))
    return state


class Taps:
    """One pass of a model whose blocks are looked at.

    Args:
        blocks: the blocks, in the order in which they run.
        seen: called with (number of the block, its output); returns the output that the model goes
            on with. It may raise `Reached`.
        skipped: how many of the first blocks are not computed.
        given: what the skipped blocks return.
    """

    def __init__(
        self,
        blocks: Sequence[nn.Module],
        seen: Callable[[int, Any], Any],
        skipped: int = 0,
        given: Any = None,
    ):
        self.blocks, self.seen, self.skipped, self.given = blocks, seen, skipped, given

    @contextmanager
    def open(self) -> Iterator[None]:
        """Let blocks call `visit` while the context lasts; `Reached` ends it silently."""
        own = []
        try:
            for number, block in enumerate(self.blocks):
                # A forward of its own: compiled, or one that recomputes in the backward pass.
                own.append(block.__dict__.get("forward"))
                block.forward = partial(self.visit, number, block.forward)
            yield
        except Reached:
            pass
        finally:
            # Backwards: one module may be the last block and the last output.
            for block, forward in reversed(list(zip(self.blocks, own, strict=False))):
                del block.forward
                if forward is not None:
                    block.forward = forward

    def visit(self, number: int, forward: Callable, *args: Any, **options: Any) -> Any:
        """Run a block, or return what was given in its place."""
        if number < self.skipped:
            return self.given
        return self.seen(number, forward(*args, **options))
