"""Attention and the transformer blocks of STLT, which norm what they have added up.

    A(q, x) = drop(softmax((q Wq)(x Wk)^T / sqrt(D/h))) (x Wv) Wo       h heads, [B,m,D]
    block:  x' = LN(x + drop A(x, x)),  x'' = LN(x' + drop W2 drop s(W1 x'))
    s is GELU or ReLU, D -> 4D -> D

A block computes what torch's TransformerEncoderLayer does.
"""

from collections.abc import Callable

import torch.nn.functional as F
from torch import Tensor, nn


class Attention(nn.Module):
    """Attention of queries to tokens.

    Args:
        width: D.
        heads: h, a divisor of D.
        dropout: on the weights of attention.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.heads, self.dropout = heads, dropout
        self.q, self.k, self.v, self.out = (nn.Linear(width, width) for _ in range(4))
        for layer in (self.q, self.k, self.v):
            # The limit of a D -> 3D matrix by Xavier's rule, as torch's attention draws the three.
            nn.init.xavier_uniform_(layer.weight, gain=0.5**0.5)
        for layer in (self.q, self.k, self.v, self.out):
            nn.init.zeros_(layer.bias)

    def forward(self, q: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """Attend.

        Args:
            q: [B,m,D].
            x: [B,n,D].
            mask: bool, broadcast to [B,h,m,n], which tokens are read; None: all.

        Returns:
            [B,m,D].
        """
        q, k, v = (self._split(layer(y)) for layer, y in ((self.q, q), (self.k, x), (self.v, x)))
        dropout = self.dropout if self.training else 0.0
        y = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, dropout_p=dropout)
        return self.out(y.transpose(1, 2).flatten(2))

    def _split(self, x: Tensor) -> Tensor:
        """[B,m,D] -> [B,h,m,D/h]."""
        return x.unflatten(-1, (self.heads, -1)).transpose(1, 2)


class Block(nn.Module):
    """A transformer block.

    Args:
        width: D.
        heads: h.
        dropout: of attention, and behind each of its parts.
        activation: s.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        dropout: float,
        activation: Callable[[Tensor], Tensor] = F.gelu,
    ):
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.drop, self.activation = nn.Dropout(dropout), activation

    def forward(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B,n,D] -> [B,n,D]; `mask` as for `Attention`."""
        x = self.norm1(x + self.drop(self.attention(x, x, mask)))
        y = self.fc2(self.drop(self.activation(self.fc1(x))))
        return self.norm2(x + self.drop(y))
