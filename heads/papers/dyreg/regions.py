"""Where DyReg-GNN looks: Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for
Spatio-Temporal Graph Neural Networks, NeurIPS 2021, sec. 3.1. N = 9 regions per frame of a map
[B,T,C,h,w]; lengths are in grid cells.

    z_{i,t} = GRU(LN(g_i(f(X_t)))), o_{i,t} = alpha * (W LN(z_{i,t}) + b)  [B,T,N,4]     eq. (2),
    (3); alpha = 0 at first
    K_i(y,x) = relu(r_h - |y - c_y|) relu(r_w - |x - c_x|), divided by its sum           eq. (5),
    (6)    [B,T,N,h,w] half size r and centre c from o = (o_h, o_w, o_y, o_x):
           heads/papers/dyreg/kernels.py
    f(X): `Fishnet`, the generator "big"; g_i: one convolution as large as its output. The generator
    "lite" is `LiteGenerator`.

| regions | kernels | o |
|---|---|---|
| dynamic, lite | from o, generator big or lite | yes |
| constant_time | from o, z_i from the mean of f(X) over time, the same for all frames | yes |
| position_only | centres from o; r_h = h/6 + 1, r_w = w/6 + 1 | yes |
| static | from o, z_i are parameters: the same for all frames and videos | yes |
| fixed | the cells of a 3 x 3 grid, by area | no |
| semantic | a weight per node and location, as the network gives it: no shape, not normalised | no
| | detector | centre and half size of the first nine boxes | no |

Differs from the paper: kernels of sum 1, see heads/papers/dyreg/kernels.py. A detector's half size
is at least 1 cell, so that no kernel is empty, and a padded box has the kernel 0. A map of another
grid than the built one is averaged (adaptive pooling) to the built one before f, as in the release;
semantic weights are then stretched back, keeping their sum.

Not stated in any source, and chosen: static and constant-time as above; the place of the last LN in
"lite" (the paper's parameter count says that there is one more); for maps other than 7, 8, 14, 16,
28 and 32 the strides of `Fishnet`.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.joint_norm import JointNorm
from heads.papers.dyreg.graph import NodeGRU
from heads.papers.dyreg.kernels import (
    ANCHORS,
    NODES,
    SIDE,
    Pair,
    anchor_points,
    area_grid,
    geometry,
    kernels_of,
)

REGIONS = (
    "dynamic",
    "lite",
    "constant_time",
    "position_only",
    "static",
    "fixed",
    "semantic",
    "detector",
)
GRIDS = (3, 50)  # the smallest and the largest map; the release fails beyond 50 too
HIDDEN, OUT = 32, 16  # channels inside `Fishnet` and of its output


@dataclass(frozen=True)
class Regions:
    """The regions of a batch. kernels [B,T,N,h,w] non-negative, sum 1 (semantic: neither); offsets
    o [B,T,N,4]; centres (y, x) and radii (half height, half width) [B,T,N,2] in cells. Offsets are
    None where nothing predicts them, centres and radii where regions have no box (fixed, semantic).
    T is 1 where all frames share them.
    """

    kernels: Tensor
    offsets: Tensor | None = None
    centres: Tensor | None = None
    radii: Tensor | None = None


@dataclass(frozen=True)
class Strides:
    """How one axis of a map of `cells` runs through `Fishnet`: `first` stride of tail0, `middle`
    cells after it, `second` and `pad` of tail1, the transposed convolution and the head, `last`
    cells after them, `extra` of the transposed one.
    """

    cells: int

    @property
    def first(self) -> int:
        return 1 if self.cells < 10 else 2

    @property
    def middle(self) -> int:
        return (self.cells - 3) // self.first + 1

    @property
    def second(self) -> int:
        return 1 if self.middle <= 7 else 2

    @property
    def pad(self) -> int:
        return 1 if self.second == 1 else 0

    @property
    def last(self) -> int:
        return (self.middle + 2 * self.pad - 3) // self.second + 1

    @property
    def extra(self) -> int:
        return self.middle - ((self.last - 1) * self.second + 3 - 2 * self.pad)

    @property
    def back(self) -> int:
        """Output padding of a transposed convolution with tail0's stride that returns from `middle`
        to `cells`.
        """
        return self.cells - ((self.middle - 1) * self.first + 3)


def _layer(convolution: nn.Module) -> nn.Sequential:
    return nn.Sequential(
        convolution, nn.ReLU(), JointNorm(convolution.out_channels, axes=3, channel=-3)
    )


class Fishnet(nn.Module):
    """f of the generator "big": maps [n,C,h,w] of the built grid -> M [n,16,s,s], or back at
    [n,32,h,w] if `upsample`.

    1x1 -> tail0 3x3 -> tail1 3x3 -> transposed 3x3, plus tail0's output -> head 3x3; each
    convolution, ReLU, LN over (C,h,w).
    """

    def __init__(self, channels: int, grid: Pair, upsample: bool = False):
        super().__init__()
        check_grid(grid)
        y, x = (Strides(cells) for cells in grid)
        first, second, pad = (y.first, x.first), (y.second, x.second), (y.pad, x.pad)
        self.size = (y.last, x.last)
        self.enter = _layer(nn.Conv2d(channels, HIDDEN, 1))
        self.tail0 = _layer(nn.Conv2d(HIDDEN, HIDDEN, 3, first))
        self.tail1 = _layer(nn.Conv2d(HIDDEN, OUT, 3, second, pad))
        self.up = _layer(
            nn.ConvTranspose2d(OUT, HIDDEN, 3, second, pad, output_padding=(y.extra, x.extra))
        )
        if upsample:
            self.leave = _layer(
                nn.ConvTranspose2d(HIDDEN, HIDDEN, 3, first, output_padding=(y.back, x.back))
            )
        else:
            self.leave = _layer(nn.Conv2d(HIDDEN, OUT, 3, second, pad))

    def forward(self, x: Tensor) -> Tensor:
        tail = self.tail0(self.enter(x))
        return self.leave(self.up(self.tail1(tail)) + tail)


class BigGenerator(nn.Module):
    """g_i(f(X)): maps [n,C,h,w] -> [n,N,width]; g_i is a row of weights of its own per node."""

    def __init__(self, channels: int, grid: Pair, width: int):
        super().__init__()
        self.fishnet = Fishnet(channels, grid)
        self.g = nn.Conv2d(OUT, NODES * width, self.fishnet.size)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """f is averaged over every `frames` maps in a row: [n,C,h,w] -> [n / frames,N,width]."""
        m = self.fishnet(x).unflatten(0, (-1, frames)).mean(1)
        return self.g(m).flatten(1).unflatten(1, (NODES, -1))


class LiteGenerator(nn.Module):
    """The generator "lite": maps [n,C,h,w] -> [n,N,width]. Every location is divided between the
    nodes by a softmax over them; a node is the (not normalised) sum of its share of x plus an
    embedding of the place.
    """

    def __init__(self, channels: int, grid: Pair, width: int):
        super().__init__()
        self.mask = nn.Conv2d(channels, NODES, 1)
        self.place = nn.Conv2d(channels, channels, 1)
        self.norm = JointNorm(channels, axes=2)
        self.out = nn.Linear(channels, width)
        self.register_buffer("waves", place_waves(channels, grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.mask(x).softmax(1)
        x = x + self.place(self.waves[None])
        return self.out(self.norm(torch.einsum("nihw,nchw->nic", shares, x)))


def place_waves(channels: int, grid: Pair) -> Tensor:
    """[C,h,w]: the first half of the channels for rows, the rest for columns; positions from 0 to
    1, frequency 10000^(k / (C/2)), sine for even k and cosine for odd k."""
    half = (channels + 1) // 2
    k = torch.arange(half)

    def waves(length: int) -> Tensor:
        angles = torch.linspace(0, 1, length) * (10000.0 ** (k / half))[:, None]
        return torch.where(k[:, None] % 2 == 0, angles.sin(), angles.cos())  # [half,length]

    h, w = grid
    both = [waves(h)[:, :, None].expand(half, h, w), waves(w)[:, None, :].expand(half, h, w)]
    return torch.cat(both)[:channels]


class PredictedRegions(nn.Module):
    """Regions from o: `kind` dynamic, lite, constant_time, position_only or static. width: d_o, of
    g_i, the GRU and z.
    """

    def __init__(
        self, kind: str, channels: int, grid: Pair, width: int, anchors: str, normalise: bool
    ):
        super().__init__()
        self.kind, self.grid, self.anchors, self.normalise = kind, grid, anchors, normalise
        if kind == "static":
            self.z = nn.Parameter(torch.randn(NODES, width))
        else:
            self.generator = (LiteGenerator if kind == "lite" else BigGenerator)(
                channels, grid, width
            )
            self.norm_in = JointNorm(width, axes=2)
            self.time = NodeGRU(width)
        self.norm = JointNorm(width, axes=2)
        self.linear = nn.Linear(width, 4)
        self.alpha = nn.Parameter(torch.zeros(4))

    def offsets(self, x: Tensor) -> Tensor:
        """o from x [B,T,C,h,w]: [B,T,N,4], or [B,1,N,4] (static, constant_time)."""
        B, T = x.shape[:2]
        if self.kind == "static":
            z = self.z.expand(B, 1, *self.z.shape)
        else:
            maps = to_grid(x, self.grid)
            z = self.generator(maps, T) if self.kind == "constant_time" else self.generator(maps)
            z = self.time(self.norm_in(z.unflatten(0, (B, -1))))
        return self.linear(self.norm(z)) * self.alpha

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """x [B,T,C,h,w]; boxes and valid are not looked at."""
        offsets = full_precision(self.offsets(x))
        grid = tuple(x.shape[-2:])
        centres, radii = geometry(
            offsets, anchor_points(self.anchors, grid).to(offsets.device), grid
        )
        if self.kind == "position_only":
            radii = (radii.new_tensor(grid) / (2 * SIDE) + 1).expand_as(radii)
        return Regions(kernels_of(centres, radii, grid, self.normalise), offsets, centres, radii)


class FixedRegions(nn.Module):
    """The cells of a 3 x 3 grid, the same for every frame; no parameters."""

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """x [B,T,C,h,w] gives the grid; boxes and valid are not looked at."""
        kernels = area_grid(tuple(x.shape[-2:])).to(x.device, full_precision(x[:0]).dtype)
        return Regions(kernels.expand(x.shape[0], 1, *kernels.shape))


class SemanticRegions(nn.Module):
    """Nine maps of weights, as a network that up-samples back to the grid gives them (Table 6,
    "Semantic").
    """

    def __init__(self, channels: int, grid: Pair):
        super().__init__()
        self.grid = grid
        self.fishnet = Fishnet(channels, grid, upsample=True)
        self.out = nn.Conv2d(HIDDEN, NODES, 1)

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """x [B,T,C,h,w]; boxes and valid are not looked at."""
        weights = full_precision(self.out(self.fishnet(to_grid(x, self.grid))))
        h, w = grid = tuple(x.shape[-2:])
        if grid != self.grid:
            scale = self.grid[0] * self.grid[1] / (h * w)
            weights = F.interpolate(weights, grid, mode="bilinear", align_corners=False) * scale
        return Regions(weights.unflatten(0, x.shape[:2]))


class DetectorRegions(nn.Module):
    """Regions at the first nine boxes of a frame; fewer, and padded ones, leave kernels of zeros.
    No parameters.
    """

    def __init__(self, normalise: bool):
        super().__init__()
        self.normalise = normalise

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """x [B,T,C,h,w], boxes [B,T,n,4] xyxy in [0,1], valid [B,T,n]. ValueError without boxes or
        for another B or T.
        """
        if boxes is None or valid is None:
            raise ValueError(
                "regions='detector' needs boxes and valid, got none: pass the clip's boxes with "
                "the map"
            )
        if boxes.shape[:2] != x.shape[:2]:
            raise ValueError(
                f"expected boxes [{x.shape[0]},{x.shape[1]},n,4] beside the map, got "
                f"{list(boxes.shape)}"
            )
        missing = max(0, NODES - boxes.shape[2])
        boxes, valid = (
            F.pad(boxes[:, :, :NODES], (0, 0, 0, missing)),
            F.pad(valid[:, :, :NODES], (0, missing)),
        )
        boxes = full_precision(torch.where(valid[..., None], boxes, 0))
        grid = tuple(x.shape[-2:])
        size = boxes.new_tensor(grid)
        low, high = boxes[..., [1, 0]], boxes[..., [3, 2]]  # (y, x)
        centres = ((low + high) / 2 * size).clamp_min(0).minimum(size - 1)
        radii = ((high - low) / 2 * size).clamp_min(1)
        kernels = kernels_of(centres, radii, grid, self.normalise)
        return Regions(torch.where(valid[..., None, None], kernels, 0), None, centres, radii)


def build_regions(
    kind: str,
    channels: int,
    grid: Pair,
    width: int = 128,
    anchors: str = "centre",
    normalise: bool = True,
) -> nn.Module:
    """The regions `kind` (see the table above) of maps of `channels` and `grid` = (h, w): x, boxes,
    valid -> `Regions`.

    width: d_o, 128 on Something-Something, 32 on MultiSyncMNIST. anchors: "centre" (every node
    starts in the middle, the paper's) or "grid". normalise: kernels of sum 1. ValueError for an
    unknown name or a grid that f cannot take.
    """
    for option, value, known in (("regions", kind, REGIONS), ("anchors", anchors, ANCHORS)):
        if value not in known:
            raise ValueError(f"option {option}: expected one of {', '.join(known)}, got {value!r}")
    if kind == "fixed":
        return FixedRegions()
    if kind == "semantic":
        return SemanticRegions(channels, grid)
    if kind == "detector":
        return DetectorRegions(normalise)
    return PredictedRegions(kind, channels, grid, width, anchors, normalise)


def distillation_loss(students: Sequence[Tensor], teachers: Sequence[Tensor]) -> Tensor:
    """Smooth-L1 between the offsets o [B,T,N,4] of the modules of one network and those of their
    single-module teachers, the mean over everything and over modules; a scalar without a gradient
    to the teachers (sec. 3.3; the form is not stated in the paper). ValueError unless there is a
    teacher of the same shape for every student.
    """
    if not students or len(students) != len(teachers):
        raise ValueError(
            f"expected a teacher for each module, got {len(students)} modules and {len(teachers)} "
            f"teachers"
        )
    for student, teacher in zip(students, teachers, strict=True):
        if student is None or teacher is None or student.shape != teacher.shape:
            shapes = " and ".join(
                "none" if o is None else str(list(o.shape)) for o in (student, teacher)
            )
            raise ValueError(
                f"expected offsets of the same shape of module and teacher, got {shapes}"
            )
    losses = [F.smooth_l1_loss(o, t.detach()) for o, t in zip(students, teachers, strict=True)]
    return torch.stack(losses).mean()


def to_grid(x: Tensor, grid: Pair) -> Tensor:
    """x [B,T,C,h,w] -> [B·T,C,*grid], averaged where the grid is another one."""
    maps = x.flatten(0, 1)
    return maps if tuple(x.shape[-2:]) == tuple(grid) else F.adaptive_avg_pool2d(maps, grid)


def full_precision(x: Tensor) -> Tensor:
    """x in float32 at least: a coordinate in bfloat16 has steps of an eighth of a cell on a map of
    32.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_grid(grid: Pair) -> None:
    """ValueError for a map that f cannot take."""
    least, most = GRIDS
    if not all(least <= cells <= most for cells in grid):
        way = "deeper in" if max(grid) > most else "higher up"
        raise ValueError(
            f"DyReg predicts regions from maps of {least} to {most} cells per side, got {grid[0]} "
            f"x {grid[1]}: insert the "
            f"module {way} the network, or change the size of the frames"
        )
