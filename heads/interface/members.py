"""What heads that `torch.func.vmap` computes as one need beside it.

    with as_members():
        vmap(one_head)(stacked_weights)

Torch's attention has no rule for a further dimension on a CPU: it would loop over the members. Here
the members become part of the batch, q, k, v [M,B,h,n,d] -> [M·B,h,n,d]. That is the same, and
keeps torch's kernel, which holds no matrix of n x n weights.
"""

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch.nn.functional as F
from torch import Tensor
from torch.autograd import Function
from torch.overrides import TorchFunctionMode


@contextmanager
def as_members() -> Iterator[None]:
    """Within it, attention of several members is one call.

    Torch does not say where it loops over the members, as it does where another operator has no
    rule of its own; the values are right.
    """
    with warnings.catch_warnings(), _AttentionOfMembers():
        warnings.filterwarnings("ignore", message="There is a performance drop")
        yield


class _AttentionOfMembers(TorchFunctionMode):
    """Take attention over 4 dimensions, of which vmap hides a fifth."""

    def __torch_function__(
        self, func: Callable, types: Any, args: tuple = (), kwargs: dict | None = None
    ) -> Any:
        if func is F.scaled_dot_product_attention:
            return _attention(*args, **(kwargs or {}))
        return func(*args, **(kwargs or {}))


def _attention(
    q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor | None = None, *more: Any, **options: Any
) -> Tensor:
    if more or options or {q.dim(), k.dim(), v.dim()} != {4}:
        return F.scaled_dot_product_attention(q, k, v, attn_mask, *more, **options)
    return _Folded.apply(q, k, v, attn_mask)


class _Folded(Function):
    """Attention whose rule for a further dimension makes it a part of the batch."""

    @staticmethod
    def forward(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        return F.scaled_dot_product_attention(q, k, v, mask)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        pass

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        # What learns is stacked, so that the rule below computes it.
        raise NotImplementedError("attention of members whose weights are not stacked")

    @staticmethod
    def vmap(info: Any, in_dims: tuple, *tensors: Tensor | None) -> tuple[Tensor, int]:
        members, folded = info.batch_size, []
        for tensor, dim in zip(tensors, in_dims, strict=True):
            if tensor is None:
                folded.append(None)
                continue
            if dim is None:
                tensor = tensor.expand(members, *tensor.shape)
            else:
                tensor = tensor.movedim(dim, 0)
            folded.append(tensor.flatten(0, 1))
        out = F.scaled_dot_product_attention(*folded)
        return out.unflatten(0, (members, -1)), 0
