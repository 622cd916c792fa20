"""What predicts DyReg-GNN's regions: f and g, the generators "big" and "lite".

Duta, Nicolicioiu and Leordeanu, NeurIPS 2021, eq. (2) and Table 6. The regions are in
heads/papers/dyreg/regions.py.

Not stated in any source, and chosen: the strides of `Fishnet` for maps other than 7, 8, 14, 16, 28
and 32. With `upsample` they are chosen for all maps but 16: only from 16 does the release's network
return to the size of the map.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from heads.interface.joint_norm import JointNorm
from heads.papers.dyreg.kernels import NODES, Pair

# The smallest and the largest map, in cells a side; the release fails beyond 50 too.
GRIDS = (3, 50)
# Channels inside `Fishnet` and of its output.
HIDDEN, OUT = 32, 16


@dataclass(frozen=True)
class Strides:
    """How one axis of a map runs through `Fishnet`.

    Attributes:
        cells: the length of the axis.
        edge: the padding of tail0 and of its transposed twin: 0, or 1 where the network returns to
            the size of the map.
    """

    cells: int
    edge: int = 0

    @property
    def first(self) -> int:
        """The stride of tail0."""
        return 1 if self.cells < 10 else 2

    @property
    def middle(self) -> int:
        """Cells after tail0."""
        return (self.cells + 2 * self.edge - 3) // self.first + 1

    @property
    def second(self) -> int:
        """The stride of tail1, of the transposed convolution and of the head."""
        # The padding of tail0 changes no stride: on a map of 16 this one is 1 with and without.
        without_edge = (self.cells - 3) // self.first + 1
        return 1 if without_edge <= 7 else 2

    @property
    def pad(self) -> int:
        """The padding of tail1, of the transposed convolution and of the head."""
        return 1 if self.second == 1 else 0

    @property
    def last(self) -> int:
        """Cells after tail1 and after the head."""
        return (self.middle + 2 * self.pad - 3) // self.second + 1

    @property
    def extra(self) -> int:
        """The output padding with which the transposed convolution returns to `middle` cells."""
        # ConvTranspose2d gives (n - 1) stride + 3 - 2 pad cells; this makes up the rest.
        return self.middle - ((self.last - 1) * self.second + 3 - 2 * self.pad)

    @property
    def back(self) -> int:
        """The output padding with which tail0's transposed twin returns to `cells` cells."""
        return self.cells - ((self.middle - 1) * self.first + 3 - 2 * self.edge)


def _layer(convolution: nn.Module) -> nn.Sequential:
    norm = JointNorm(convolution.out_channels, axes=3, channel=-3)
    return nn.Sequential(convolution, nn.ReLU(), norm)


class Fishnet(nn.Module):
    """f of the generator "big": 1x1 -> tail0 3x3 -> tail1 3x3 -> transposed 3x3 -> head 3x3.

    The output of tail0 is added before the head. ReLU and LN over (C,h,w) follow each convolution.

    With `upsample` a transposed convolution stands in place of the head. It returns to the grid,
    and what enters tail0 is added to its output. Tail0 and it then have a padding of 1.

    Args:
        channels: C of the maps [n,C,h,w].
        grid: (h, w) of the maps.
        upsample: return to the grid, [n,32,h,w], in place of M [n,16,s,s].
    """

    def __init__(self, channels: int, grid: Pair, upsample: bool = False):
        super().__init__()
        check_grid(grid)
        edge = 1 if upsample else 0
        y, x = Strides(grid[0], edge), Strides(grid[1], edge)
        first, second, pad = (y.first, x.first), (y.second, x.second), (y.pad, x.pad)
        extra, back = (y.extra, x.extra), (y.back, x.back)
        self.size = (y.last, x.last)

        self.enter = _layer(nn.Conv2d(channels, HIDDEN, 1))
        self.tail0 = _layer(nn.Conv2d(HIDDEN, HIDDEN, 3, first, edge))
        self.tail1 = _layer(nn.Conv2d(HIDDEN, OUT, 3, second, pad))
        self.up = _layer(nn.ConvTranspose2d(OUT, HIDDEN, 3, second, pad, output_padding=extra))
        if upsample:
            leave = nn.ConvTranspose2d(HIDDEN, HIDDEN, 3, first, edge, output_padding=back)
        else:
            leave = nn.Conv2d(HIDDEN, OUT, 3, second, pad)
        self.leave = _layer(leave)
        self.upsample = upsample

    def forward(self, x: Tensor) -> Tensor:
        entered = self.enter(x)
        # `up` returns to the cells that tail0 gives, so that the two can be added.
        tail = self.tail0(entered)
        out = self.leave(self.up(self.tail1(tail)) + tail)
        return out + entered if self.upsample else out


class BigGenerator(nn.Module):
    """g_i(f(X)): maps [n,C,h,w] -> [n,N,width]; every node has weights g_i of its own."""

    def __init__(self, channels: int, grid: Pair, width: int):
        super().__init__()
        self.fishnet = Fishnet(channels, grid)
        # A kernel as large as M: one output cell, so g is a linear layer on all of M per node.
        self.g = nn.Conv2d(OUT, NODES * width, self.fishnet.size)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Apply f, average it over every `frames` maps in a row, and apply g.

        Args:
            x: [n,C,h,w].
            frames: how many maps share their regions.

        Returns:
            [n / frames,N,width].
        """
        # [n,16,s,s] -> [n / frames,16,s,s]
        m = self.fishnet(x).unflatten(0, (-1, frames)).mean(1)
        return self.g(m).flatten(1).unflatten(1, (NODES, -1))


class LiteGenerator(nn.Module):
    """The generator "lite": maps [n,C,h,w] -> [n,N,width].

    A softmax over the nodes divides every cell between them. A node is the sum, not normalised, of
    its parts of x plus an embedding of the place, then a linear layer.

    `norm` is not applied: the release declares it, so that its weights are in checkpoints and in
    Table 6's number of parameters, and never calls it. It does not learn.
    """

    def __init__(self, channels: int, grid: Pair, width: int):
        super().__init__()
        self.mask = nn.Conv2d(channels, NODES, 1)
        self.place = nn.Conv2d(channels, channels, 1)
        self.norm = JointNorm(channels, axes=2).requires_grad_(False)
        self.out = nn.Linear(channels, width)
        # The sizes decide the waves, so checkpoints do not hold them.
        self.register_buffer("waves", place_waves(channels, grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        # [n,N,h,w]; the N weights of a cell sum to 1
        masks = self.mask(x).softmax(1)
        x = x + self.place(self.waves[None])
        return self.out(torch.einsum("nihw,nchw->nic", masks, x))


def place_waves(channels: int, grid: Pair) -> Tensor:
    """Return the sinusoidal embedding of the place that "lite" adds.

    Positions go from 0 to 1, the frequency of channel k is 10000^(-k / (C/2)), with a sine for
    even and a cosine for odd k.

    Args:
        channels: C.
        grid: (h, w).

    Returns:
        [C,h,w]; the first half of the channels is for rows, the rest for columns.
    """
    half = (channels + 1) // 2
    k = torch.arange(half)

    def waves(length: int) -> Tensor:
        angles = torch.linspace(0, 1, length) * (10000.0 ** (-k / half))[:, None]
        return torch.where(k[:, None] % 2 == 0, angles.sin(), angles.cos())  # [half,length]

    h, w = grid
    rows = waves(h)[:, :, None].expand(half, h, w)
    columns = waves(w)[:, None, :].expand(half, h, w)
    # With an odd C, `half` is rounded up and gives one channel too many.
    return torch.cat([rows, columns])[:channels]


def check_grid(grid: Pair) -> None:
    """Raise ValueError for a map that f cannot take."""
    least, most = GRIDS
    if least <= min(grid) and max(grid) <= most:
        return
    place = "later" if max(grid) > most else "earlier"
    raise ValueError(
        f"DyReg predicts regions from maps of {least} to {most} cells per side, got {grid[0]} x "
        f"{grid[1]}: give the module a map that comes {place} in the network (--set head.cut=CUT), "
        f"or extract frames of another --size"
    )
