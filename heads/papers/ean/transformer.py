"""The transformer of EAN: Tian et al., EAN, Event Adaptive Network, IJCV 2022, sec. 3.3."""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.masked_layers import masked_softmax

HEADS, HEAD_WIDTH, DEPTH = 8, 64, 2


class RowNorm(nn.BatchNorm1d):
    """Batch norm of x [...,C] over the rows where valid [...] holds (all unless given); the other
    rows come out as 0.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        rows = x.flatten(0, -2) if valid is None else x[valid]
        if not len(rows):
            return torch.zeros_like(x)
        training = (
            self.training and len(rows) > 1
        )  # the variance of one row is nothing to divide by
        y = F.batch_norm(
            rows,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training,
            self.momentum,
            self.eps,
        )
        return (
            y.view_as(x)
            if valid is None
            else torch.zeros_like(x, dtype=y.dtype).index_put((valid,), y)
        )


class TokenAttention(nn.Module):
    """Multi-head self-attention of x [B,n,C] among the tokens where valid [B,n] holds; no bias in
    q, k and v.
    """

    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, width)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Also returns the weights [B,heads,n,n]; each row sums to 1, or is 0 in a view without any
        token.
        """
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, HEADS, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        )  # each [B,heads,n,64]
        weights = masked_softmax(q @ k.mT * HEAD_WIDTH**-0.5, valid[:, None, None])
        return self.out((weights @ v).transpose(1, 2).flatten(2)), weights


class TransformerLayer(nn.Module):
    """x + MHSA(BN(x)), then x + FF(BN(x)): x [B,n,C] -> the same, and the attention weights."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = RowNorm(width), RowNorm(width)
        self.attention = TokenAttention(width)
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList(RowNorm(width) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """valid [B,n]; mask: the same where some token may be invalid, None where all count."""
        y, weights = self.attention(self.norm1(x, mask), valid)
        x = x + y
        y = self.norm2(x, mask)
        for linear, norm in zip(self.linears, self.norms, strict=False):
            y = norm(linear(y), mask).relu()
        return x + self.linears[-1](y), weights
