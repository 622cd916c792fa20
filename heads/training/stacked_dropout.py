"""Dropout of several members in one call, with the masks that each would draw alone.

A member seeds torch's generators before every mini-batch, and its dropouts draw from them in turn.
So the masks of all members are drawn before the call, member by member, and the dropouts of the
call take them.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import TorchFunctionMode


class NotStackable(RuntimeError):
    """Members cannot be computed in one call; the message says why."""


@dataclass(frozen=True)
class DropoutCall:
    """One dropout of a forward pass.

    Attributes:
        like: an input of the shape, the strides, the dtype and the device.
        p: the probability.
    """

    like: Tensor
    p: float

    def draw(self) -> Tensor:
        """Draw a mask of 0 and 1/(1-p) from the generator of the device."""
        # The operator itself: what it draws depends on the device, the shape and the strides.
        return F.dropout(torch.ones_like(self.like), self.p, True)


def dropouts_of(run: Callable[[], Any]) -> list[DropoutCall]:
    """Return the dropouts that a forward pass calls, in order.

    Args:
        run: the forward pass of one member.
    """
    recorder = _Recorder()
    with torch.no_grad(), recorder:
        run()
    return recorder.calls


class _Recorder(TorchFunctionMode):
    """Note every dropout."""

    def __init__(self):
        super().__init__()
        self.calls: list[DropoutCall] = []

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        _refuse_hidden(func, args, kwargs)
        if func is F.dropout:
            x, p, draws = _arguments(*args, **kwargs)
            if draws:
                # Of its size, but without its memory.
                like = torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=x.device)
                self.calls.append(DropoutCall(like, p))
        return func(*args, **kwargs)


class GivenMasks(TorchFunctionMode):
    """Within it, dropouts multiply by given masks.

    Args:
        masks: one for every dropout that is called, in order.
    """

    def __init__(self, masks: Sequence[Tensor]):
        super().__init__()
        self.masks: Iterator[Tensor] = iter(masks)

    def __torch_function__(self, func, types, args=(), kwargs=None) -> Any:
        kwargs = kwargs or {}
        _refuse_hidden(func, args, kwargs)
        if func is F.dropout:
            x, _, draws = _arguments(*args, **kwargs)
            return x * next(self.masks) if draws else x
        return func(*args, **kwargs)


def _arguments(
    x: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
) -> tuple[Tensor, float, bool]:
    """Return the input, p, and whether `F.dropout` draws a mask with these arguments."""
    return x, p, training and p > 0


def _refuse_hidden(func: Callable, args: tuple, kwargs: dict) -> None:
    """Raise NotStackable for an attention that drops out inside its kernel."""
    if func is F.scaled_dot_product_attention:
        p = kwargs.get("dropout_p", args[4] if len(args) > 4 else 0.0)
        if p > 0:
            raise NotStackable("its attention has a dropout inside the kernel")
