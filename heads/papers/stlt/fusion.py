"""Blocks in which layout and appearance read each other (CAF), and the classifiers.

    l' = LN(l + A(l, a)),  a' = LN(a + A(a, l))            the same A and LN in both directions
    l'' = F(LN(l' + A_l(l', l'))),  a'' = F'(LN(a' + A_a(a', a')))
    F(x) = LN(x + W2 gelu(W1 x)); F' is such a layer (paper), or LN(x + A'(x, x)) (release)

Layout l [B,m,D] reads the steps before it alone.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from heads.papers.stlt.blocks import Attention
from heads.papers.stlt.layout import EPS


class AddedAttention(nn.Module):
    """LN(q + drop A(q, x)).

    Args:
        width: D.
        heads: of attention.
        dropout: of attention, and on what is added.
    """

    def __init__(self, width: int, heads: int, dropout: float):
        super().__init__()
        self.attention = Attention(width, heads, dropout)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(width, eps=EPS)

    def forward(self, q: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
        """[B,m,D], [B,n,D] -> [B,m,D]; `mask` as for `Attention`."""
        return self.norm(q + self.drop(self.attention(q, x, mask)))


class AddedLayers(nn.Module):
    """LN(x + drop W2 gelu(W1 x)).

    Args:
        width: D.
        dropout: on what is added.
    """

    def __init__(self, width: int, dropout: float):
        super().__init__()
        self.fc1, self.fc2 = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)
        self.drop, self.norm = nn.Dropout(dropout), nn.LayerNorm(width, eps=EPS)

    def forward(self, x: Tensor) -> Tensor:
        """[B,n,D] -> [B,n,D]."""
        return self.norm(x + self.drop(self.fc2(F.gelu(self.fc1(x)))))


class CrossModal(nn.Module):
    """A block of cross-attention fusion.

    Args:
        width: D.
        heads: of every attention.
        dropout: everywhere.
        appearance: what follows appearance's attention: "feedforward" or "attention".
    """

    def __init__(self, width: int, heads: int, dropout: float, appearance: str):
        super().__init__()
        self.cross = AddedAttention(width, heads, dropout)
        self.layout, self.appearance = (AddedAttention(width, heads, dropout) for _ in range(2))
        self.layout_after = AddedLayers(width, dropout)
        self.appearance_after: nn.Module
        if appearance == "attention":
            self.appearance_after = AddedAttention(width, heads, dropout)
        else:
            self.appearance_after = AddedLayers(width, dropout)

    def forward(
        self, layout: Tensor, seen: Tensor, earlier: Tensor, inside: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Let the two read each other.

        Args:
            layout: [B,m,D].
            seen: the tokens of appearance [B,n,D].
            earlier: bool [m,m], which steps of the layout a step reads.
            inside: bool [B,1,1,n], which tokens of appearance are read; None: all.

        Returns:
            The two, after the block.
        """
        l, a = self.cross(layout, seen, inside), self.cross(seen, layout)
        l = self.layout_after(self.layout(l, l, earlier))
        a = self.appearance(a, a, inside)
        if isinstance(self.appearance_after, AddedAttention):
            return l, self.appearance_after(a, a, inside)
        return l, self.appearance_after(a)


class Classifier(nn.Module):
    """W2 LN(gelu(W1 x)).

    Args:
        inputs: of x.
        width: D.
        num_classes: K.
    """

    def __init__(self, inputs: int, width: int, num_classes: int):
        super().__init__()
        self.fc1, self.norm = nn.Linear(inputs, width), nn.LayerNorm(width, eps=EPS)
        self.fc2 = nn.Linear(width, num_classes)

    def forward(self, x: Tensor) -> Tensor:
        """[B,inputs] -> [B,K]."""
        return self.fc2(self.norm(F.gelu(self.fc1(x))))
