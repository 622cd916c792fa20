"""The blocks of V-JEPA 2's attentive probe.

    A(q, x) = softmax((q Wq)(x Wk)^T / sqrt(D/h)) (x Wv)          h heads, [B,m,D]
    block:    x' = x + A(LN x, LN x) Wo;     x'' = x' + MLP(LN x')
    pooling:  q' = q + A(q, LN x);           q'' = q' + MLP(LN q')

All projections have biases. The pooling block has no Wo, and norms what is read but not the
queries, as in the release. MLP is D -> 4D -> D with GELU.

Nothing here depends on values: many probes of one shape can be computed at once (`torch.vmap`, see
heads/interface/members.py).
"""

import torch.nn.functional as F
from torch import Tensor, nn

STD = 0.02  # of weights and queries: normal, cut off at two


class Attention(nn.Module):
    """Attention of queries to tokens.

    Args:
        width: D.
        heads: h, a divisor of D.
        projects: whether a linear layer Wo follows.
    """

    def __init__(self, width: int, heads: int, projects: bool):
        super().__init__()
        self.heads = heads
        self.q, self.k, self.v = (nn.Linear(width, width) for _ in range(3))
        self.out = nn.Linear(width, width) if projects else nn.Identity()

    def forward(self, q: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Attend.

        Args:
            q: [B,m,D].
            x: [B,n,D].
            mask: [B,1,1,n] bool, which tokens are read; None: all.

        Returns:
            [B,m,D].
        """
        q, k, v = (self._split(layer(y)) for layer, y in ((self.q, q), (self.k, x), (self.v, x)))
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
        return self.out(y.transpose(1, 2).flatten(2))

    def weights(self, q: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Return the attention [B,h,m,n] that `forward` computes with."""
        q, k = self._split(self.q(q)), self._split(self.k(x))
        scores = q @ k.mT / q.shape[-1] ** 0.5
        if mask is not None:
            scores = scores.masked_fill(~mask, float("-inf"))
        return scores.softmax(-1)

    def _split(self, x: Tensor) -> Tensor:
        """[B,m,D] -> [B,h,m,D/h]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class MLP(nn.Module):
    """Two linear layers with GELU between, D -> 4D -> D."""

    def __init__(self, width: int):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """[...,D] -> [...,D]."""
        return self.fc2(F.gelu(self.fc1(x)))


class SelfBlock(nn.Module):
    """A transformer block over the tokens of a view.

    Args:
        width: D.
        heads: h.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads, projects=True), MLP(width)

    def forward(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """[B,n,D] -> [B,n,D]; `mask` as for `Attention`."""
        y = self.norm1(x)
        x = x + self.attention(y, y, mask)
        return x + self.mlp(self.norm2(x))


class QueryBlock(nn.Module):
    """The block in which queries read the tokens of a view.

    Args:
        width: D.
        heads: h.
    """

    def __init__(self, width: int, heads: int):
        super().__init__()
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.attention, self.mlp = Attention(width, heads, projects=False), MLP(width)

    def forward(self, q: Tensor, x: Tensor, mask: Tensor | None) -> Tensor:
        """Queries [B,Q,D] read tokens [B,n,D]; returns [B,Q,D]."""
        q = q + self.attention(q, self.norm1(x), mask)
        return q + self.mlp(self.norm2(q))


def initialise(blocks: nn.ModuleList, last: QueryBlock) -> None:
    """Draw weights as the release does: the deeper a block, the smaller what it adds.

    Args:
        blocks: the self-attention blocks, in order.
        last: the block of the queries.
    """
    for module in (*blocks.modules(), *last.modules()):
        if isinstance(module, nn.Linear):
            nn.init.trunc_normal_(module.weight, std=STD)
            nn.init.zeros_(module.bias)
    for number, block in enumerate((*blocks, last), 1):
        layers = [block.mlp.fc2]
        if isinstance(block.attention.out, nn.Linear):
            layers.append(block.attention.out)
        for layer in layers:
            layer.weight.data.div_((2.0 * number) ** 0.5)
