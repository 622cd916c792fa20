"""The blocks of V-JEPA 2's attentive probe.

    A(q, x) = softmax((q Wq)(x Wk)^T / sqrt(D/h)) (x Wv)          h heads, [B,m,D]
    block:    x' = x + A(LN x, LN x) Wo;     x'' = x' + MLP(LN x')
    pooling:  q' = q + A(q, LN x);           q'' = q' + MLP(LN q')

Where few queries read many tokens, keys and values are never made. The queries are the same for all
views, so that Wk moves to them, and Wv behind the sum (associativity, the same up to rounding):

    A(q, x) = (softmax((q Wq Wk^T) x^T / sqrt(D/h)) x) Wv           for each head

That takes 2·Q·h multiplications for each number of a token in place of 2·D, and where the tokens
come from a cache, nothing is computed backwards for them.

All projections have biases. The pooling block has no Wo, and norms what is read but not the
queries, as in the release. MLP is D -> 4D -> D with GELU.

Nothing here depends on values: many probes of one shape can be computed at once (`torch.vmap`, see
heads/interface/members.py).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.members import times_shared

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

    def read(self, q: Tensor, x: Tensor, norm: nn.LayerNorm, mask: Tensor | None) -> Tensor:
        """Attend to tokens that a norm puts in order first, without their keys and values.

        Args:
            q: [1,m,D], of all views.
            x: [B,n,D].
            norm: of the tokens. Its weights move to the other factors, too.
            mask: as for `forward`.

        Returns:
            [B,m,D], as `forward` on `norm(x)`.
        """
        width = x.shape[-1]
        q = self._split(self.q(q))[0] / (width // self.heads) ** 0.5  # [h,m,D/h]
        of_keys = q @ self.k.weight.unflatten(0, (self.heads, -1))  # [h,m,D]
        # The softmax takes away what is the same for all tokens; its parameters keep a gradient.
        same = of_keys @ norm.bias + (q * self.k.bias.unflatten(0, (self.heads, 1, -1))).sum(-1)
        plain = F.layer_norm(x, (width,), eps=norm.eps)
        # Cached tokens are constants, which many probes may share.
        scores = times_shared((of_keys * norm.weight).flatten(0, 1), plain.mT)  # [B,hm,n]
        scores = scores + same.flatten()[:, None]
        if mask is not None:
            scores = scores.masked_fill(~mask[:, 0], float("-inf"))
        y = times_shared(scores.softmax(-1), plain)  # [B,hm,D]
        y = (y * norm.weight + norm.bias).unflatten(1, (self.heads, -1))  # [B,h,m,D]
        values = self.v.weight.unflatten(0, (self.heads, -1))  # [h,D/h,D]
        y = y @ values.mT + self.v.bias.unflatten(0, (self.heads, 1, -1))  # [B,h,m,D/h]
        return self.out(y.transpose(1, 2).flatten(2))

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
        """Queries [1,Q,D] read tokens [B,n,D]; returns [B,Q,D]."""
        if 2 * self.attention.heads * q.shape[1] <= x.shape[-1]:
            q = q + self.attention.read(q, x, self.norm1, mask)
        else:
            q = q.expand(len(x), -1, -1)
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
