"""The appearance branch: a transformer over the cells of a map, or over pooled features.

    x = [a, W f_1, .., W f_n] + P                                          [B,1+n,D]
    y = blocks over x; token 0 is the view's                               [B,1+n,D]

f are the C channels of a cell. P belongs to the grid of the training views; on another grid it is
interpolated.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.papers.stlt.blocks import Block


class Appearance(nn.Module):
    """The appearance branch.

    Args:
        channels: C.
        shape: (T, h, w) of the training views; h and w are 1 for pooled features.
        width: D.
        heads: of every attention.
        depth: blocks.
        dropout: in them.
    """

    def __init__(
        self,
        channels: int,
        shape: tuple[int, int, int],
        width: int,
        heads: int,
        depth: int,
        dropout: float,
    ):
        super().__init__()
        self.enter = nn.Linear(channels, width)
        self.first = nn.Parameter(torch.zeros(2, width))  # the view's token, and its position
        self.position = nn.Parameter(torch.zeros(*shape, width))
        self.blocks = nn.ModuleList(
            [Block(width, heads, dropout, activation=F.relu) for _ in range(depth)]
        )

    def forward(self, x: Tensor, inside: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Read the maps of B views.

        Args:
            x: [B,T,h,w,C].
            inside: bool [B,h,w], which cells are no padding; None: all.

        Returns:
            [B,1+T h w,D] and which of these tokens may be read, bool [B,1,1,1+T h w] (None: all).
        """
        mask = None
        if inside is not None:
            # Not a product with the mask: the padding may hold NaN.
            x = x.masked_fill(~inside[:, None, :, :, None], 0)
            mask = inside[:, None].expand(-1, x.shape[1], -1, -1).flatten(1)
            mask = F.pad(mask, (1, 0), value=True)[:, None, None]
        cells = (self.enter(x) + self._position(x.shape[1:4])).flatten(1, 3)
        first = self.first.sum(0).expand(len(x), 1, -1)
        y = torch.cat([first.to(cells.dtype), cells], 1)
        for block in self.blocks:
            y = block(y, mask)
        return y, mask

    def _position(self, shape: torch.Size) -> Tensor:
        """[T,h,w,D], for a grid of this shape."""
        if shape == self.position.shape[:3]:
            return self.position
        grid = self.position.movedim(-1, 0)[None]  # [1,D,T,h,w]
        return F.interpolate(grid, size=tuple(shape), mode="trilinear")[0].movedim(0, -1)
