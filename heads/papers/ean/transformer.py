"""The transformer layers of EAN, with batch norm in place of layer norm.

Tian et al., EAN: Event Adaptive Network for Enhanced Action Recognition, IJCV 2022, sec. 3.2.

    F = F + MHSA(BN(F)),  F = F + FF(BN(F))        [B,n,C]   8 heads of C/8, scale (C/8)^-1/2
    FF = Linear, BN, ReLU, Linear, BN, ReLU, Linear, all of C

Differs from the paper: tokens that are padding attend to nothing and count in no batch statistics.
A batch norm that would see a single row in training uses its running statistics.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.masked_layers import masked_softmax

HEADS, DEPTH = 8, 2


class RowNorm(nn.BatchNorm1d):
    """Batch norm of x [...,C] over the rows that count.

    Args:
        num_features: C, as in `nn.BatchNorm1d`.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        """Normalise x.

        Args:
            x: [...,C].
            valid: [...] bool, which rows count; None if all do.

        Returns:
            The same shape; rows that do not count are 0.
        """
        if valid is not None and x.device.type != "cpu":
            return self._masked(x, valid)
        rows = x.flatten(0, -2) if valid is None else x[valid]
        if not len(rows):
            return torch.zeros_like(x)

        # The variance of one row is nothing to divide by.
        training = self.training and len(rows) > 1
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
        if valid is None:
            return y.view_as(x)
        # Autocast may give y another dtype than x.
        return torch.zeros_like(x, dtype=y.dtype).index_put((valid,), y)

    def _masked(self, x: Tensor, valid: Tensor) -> Tensor:
        """Normalise without picking rows: how many count is known to the GPU alone."""
        counts = valid[..., None]
        number = valid.sum()
        axes = tuple(range(x.dim() - 1))
        wide = x.float()

        mean, var = self.running_mean, self.running_var
        if self.training:
            rows = number.clamp(min=1)
            own_mean = torch.where(counts, wide, 0).sum(axes) / rows
            own_var = torch.where(counts, (wide - own_mean) ** 2, 0).sum(axes) / rows
            enough = number > 1
            with torch.no_grad():
                moved = self.momentum * enough
                unbiased = own_var * number / (number - 1).clamp(min=1)
                mean.copy_(torch.lerp(mean, own_mean, moved.expand_as(mean)))
                var.copy_(torch.lerp(var, unbiased, moved.expand_as(var)))
            # Clones, as the next mini-batch changes the statistics before this one's backward pass.
            mean = torch.where(enough, own_mean, mean.clone())
            var = torch.where(enough, own_var, var.clone())

        y = (wide - mean) * torch.rsqrt(var + self.eps) * self.weight + self.bias
        return torch.where(counts, y, 0).to(x.dtype)


class TokenAttention(nn.Module):
    """Multi-head self-attention among the tokens that count; q, k and v have no bias.

    Args:
        width: C; each of the 8 heads has C/8 channels, at least one.
    """

    def __init__(self, width: int):
        super().__init__()
        self.head_width = max(1, width // HEADS)
        inner = HEADS * self.head_width
        self.qkv = nn.Linear(width, 3 * inner, bias=False)
        self.out = nn.Linear(inner, width)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Attend.

        Args:
            x: [B,n,C].
            valid: [B,n] bool, which tokens count.

        Returns:
            [B,n,C], and the weights [B,heads,n,n]. A row of weights sums to 1, or is 0 in a view
            without any token.
        """
        qkv = self.qkv(x).unflatten(-1, (3, HEADS, self.head_width))
        q, k, v = qkv.permute(2, 0, 3, 1, 4)  # each [B,heads,n,C/8]
        weights = masked_softmax(q @ k.mT * self.head_width**-0.5, valid[:, None, None])
        # [B,heads,n,C/8] -> [B,n,C]
        return self.out((weights @ v).transpose(1, 2).flatten(2)), weights


class TransformerLayer(nn.Module):
    """x + MHSA(BN(x)), then x + FF(BN(x)).

    Args:
        width: C.
    """

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = RowNorm(width), RowNorm(width)
        self.attention = TokenAttention(width)
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList(RowNorm(width) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """Run the layer.

        Args:
            x: [B,n,C].
            valid: [B,n] bool, which tokens count.
            mask: `valid` again, or None where all tokens count, which spares the norms a copy.

        Returns:
            [B,n,C], and the attention weights [B,heads,n,n].
        """
        y, weights = self.attention(self.norm1(x, mask), valid)
        x = x + y
        y = self.norm2(x, mask)
        # Three layers but two norms: the last layer has neither norm nor ReLU.
        for linear, norm in zip(self.linears, self.norms, strict=False):
            y = norm(linear(y), mask).relu()
        return x + self.linears[-1](y), weights
