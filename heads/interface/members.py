"""What heads that `torch.func.vmap` computes as one need beside it.

    with as_members():
        vmap(one_head)(stacked_weights)

Torch's attention has no rule for a further dimension on a CPU: it would loop over the members. Here
the members become part of the batch, q, k, v [M,B,h,n,d] -> [M·B,h,n,d]. That is the same, and
keeps torch's kernel, which holds no matrix of n x n weights.

Where all members read the same tokens, torch would copy these for every member before it multiplies
them. `times_shared` puts the members' rows below each other instead, in one product.
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

    Torch warns where it loops over the members, because an operator has no rule of its own. The
    warning is not shown: the values are right.
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


def times_shared(rows: Tensor, matrix: Tensor) -> Tensor:
    """Multiply rows by matrices that members may share; constants get no gradient.

    Args:
        rows: [B,r,k], or [r,k] for all B.
        matrix: [B,k,n].

    Returns:
        [B,r,n].
    """
    return rows @ matrix if matrix.requires_grad else _TimesConstant.apply(rows, matrix)


class _TimesConstant(Function):
    """A product with constants, whose rule for members puts their rows below each other."""

    @staticmethod
    def forward(rows: Tensor, matrix: Tensor) -> Tensor:
        return rows @ matrix

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple, output: Tensor) -> None:
        rows, matrix = inputs
        ctx.save_for_backward(matrix)
        ctx.for_all = rows.dim() == 2

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple:
        (matrix,) = ctx.saved_tensors
        grad = grad @ matrix.mT
        return grad.sum(0) if ctx.for_all else grad, None

    @staticmethod
    def vmap(info: Any, in_dims: tuple, rows: Tensor, matrix: Tensor) -> tuple[Tensor, int]:
        if in_dims[1] is not None:
            rows, matrix = rows.movedim(in_dims[0], 0), matrix.movedim(in_dims[1], 0)
            # [M,r,k] are for all B of a member.
            return (rows[:, None] if rows.dim() == 3 else rows) @ matrix, 0
        rows = rows.movedim(in_dims[0], -3)  # [M,r,k], or [B,M,r,k]
        found = times_shared(rows.flatten(-3, -2), matrix)  # [B,M·r,n]
        return found.unflatten(1, (info.batch_size, -1)), 1
