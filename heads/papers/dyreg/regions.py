"""Where DyReg-GNN looks: N = 9 regions per step of a map [B,T,C,h,w].

Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for Spatio-Temporal Graph
Neural Networks, NeurIPS 2021, sec. 3.1. Lengths are in grid cells.

    z_{i,t} = GRU(LN(g_i(f(X_t))))                                          eq. (2)
    o_{i,t} = alpha * (W LN(z_{i,t}) + b),  alpha = 0 at first  [B,T,N,4]   eq. (3)
    K_i(y,x) = relu(r_h - |y - c_y|) relu(r_w - |x - c_x|),     [B,T,N,h,w] eq. (5), (6)
               divided by its sum

Half size r and centre c come from o = (o_h, o_w, o_y, o_x), see heads/papers/dyreg/kernels.py. f is
`Fishnet`, the generator "big"; g_i is one convolution as large as its output. The generator "lite"
is `LiteGenerator`.

    regions         kernels                                                 o
    dynamic, lite   from o, generator big or lite                           yes
    constant_time   from o, z_i from the mean of f(X) over time:            yes
                    the same for all steps
    position_only   centres from o; r_h = h/6 + 1, r_w = w/6 + 1            yes
    static          from o, z_i are parameters:                             yes
                    the same for all steps and videos
    fixed           the cells of a 3 x 3 grid, by area                      no
    semantic        a weight per node and cell, as the network gives it:    no
                    no shape, not normalised
    detector        centre and half size of the first nine boxes            no

Differs from the paper: kernels of sum 1, see heads/papers/dyreg/kernels.py. A detector's half size
is at least 1 cell, so that no kernel is empty, and a padded box has the kernel 0. A map of another
grid than the built one is averaged (adaptive pooling) to the built one before f, as in the release;
semantic weights are then stretched back, keeping their sum.

Not stated in any source, and chosen: static and constant-time as above. Also the place of the last
LN in "lite", of which the paper's parameter count shows that there is one more. Also the strides of
`Fishnet` for maps other than 7, 8, 14, 16, 28 and 32.
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
# The smallest and the largest map, in cells a side; the release fails beyond 50 too.
GRIDS = (3, 50)
# Channels inside `Fishnet` and of its output.
HIDDEN, OUT = 32, 16


@dataclass(frozen=True)
class Regions:
    """The regions of a batch. T is 1 if all steps share them.

    Attributes:
        kernels: [B,T,N,h,w], non-negative, of sum 1 (semantic: neither).
        offsets: o [B,T,N,4]; None if nothing predicts them.
        centres: [B,T,N,2], (y, x) in cells; None if regions have no box (fixed, semantic).
        radii: [B,T,N,2], half height and half width in cells; None as `centres`.
    """

    kernels: Tensor
    offsets: Tensor | None = None
    centres: Tensor | None = None
    radii: Tensor | None = None


@dataclass(frozen=True)
class Strides:
    """How one axis of a map runs through `Fishnet`.

    Attributes:
        cells: the length of the axis.
    """

    cells: int

    @property
    def first(self) -> int:
        """The stride of tail0."""
        return 1 if self.cells < 10 else 2

    @property
    def middle(self) -> int:
        """Cells after tail0."""
        return (self.cells - 3) // self.first + 1

    @property
    def second(self) -> int:
        """The stride of tail1, of the transposed convolution and of the head."""
        return 1 if self.middle <= 7 else 2

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
        return self.middle - ((self.last - 1) * self.second + 3 - 2 * self.pad)

    @property
    def back(self) -> int:
        """The output padding with which tail0's transposed twin returns to `cells` cells."""
        return self.cells - ((self.middle - 1) * self.first + 3)


def _layer(convolution: nn.Module) -> nn.Sequential:
    norm = JointNorm(convolution.out_channels, axes=3, channel=-3)
    return nn.Sequential(convolution, nn.ReLU(), norm)


class Fishnet(nn.Module):
    """f of the generator "big": 1x1 -> tail0 3x3 -> tail1 3x3 -> transposed 3x3 -> head 3x3.

    The output of tail0 is added before the head. ReLU and LN over (C,h,w) follow each convolution.

    Args:
        channels: C of the maps [n,C,h,w].
        grid: (h, w) of the maps.
        upsample: return to the grid, [n,32,h,w], in place of M [n,16,s,s].
    """

    def __init__(self, channels: int, grid: Pair, upsample: bool = False):
        super().__init__()
        check_grid(grid)
        y, x = Strides(grid[0]), Strides(grid[1])
        first, second, pad = (y.first, x.first), (y.second, x.second), (y.pad, x.pad)
        extra, back = (y.extra, x.extra), (y.back, x.back)
        self.size = (y.last, x.last)

        self.enter = _layer(nn.Conv2d(channels, HIDDEN, 1))
        self.tail0 = _layer(nn.Conv2d(HIDDEN, HIDDEN, 3, first))
        self.tail1 = _layer(nn.Conv2d(HIDDEN, OUT, 3, second, pad))
        self.up = _layer(nn.ConvTranspose2d(OUT, HIDDEN, 3, second, pad, output_padding=extra))
        if upsample:
            leave = nn.ConvTranspose2d(HIDDEN, HIDDEN, 3, first, output_padding=back)
        else:
            leave = nn.Conv2d(HIDDEN, OUT, 3, second, pad)
        self.leave = _layer(leave)

    def forward(self, x: Tensor) -> Tensor:
        tail = self.tail0(self.enter(x))
        return self.leave(self.up(self.tail1(tail)) + tail)


class BigGenerator(nn.Module):
    """g_i(f(X)): maps [n,C,h,w] -> [n,N,width]; every node has weights g_i of its own."""

    def __init__(self, channels: int, grid: Pair, width: int):
        super().__init__()
        self.fishnet = Fishnet(channels, grid)
        self.g = nn.Conv2d(OUT, NODES * width, self.fishnet.size)

    def forward(self, x: Tensor, frames: int = 1) -> Tensor:
        """Apply f, average it over every `frames` maps in a row, and apply g.

        Args:
            x: [n,C,h,w].
            frames: how many maps share their regions.

        Returns:
            [n / frames,N,width].
        """
        m = self.fishnet(x).unflatten(0, (-1, frames)).mean(1)
        return self.g(m).flatten(1).unflatten(1, (NODES, -1))


class LiteGenerator(nn.Module):
    """The generator "lite": maps [n,C,h,w] -> [n,N,width].

    A softmax over the nodes divides every cell between them. A node is the sum, not normalised, of
    its parts of x plus an embedding of the place.
    """

    def __init__(self, channels: int, grid: Pair, width: int):
        super().__init__()
        self.mask = nn.Conv2d(channels, NODES, 1)
        self.place = nn.Conv2d(channels, channels, 1)
        self.norm = JointNorm(channels, axes=2)
        self.out = nn.Linear(channels, width)
        self.register_buffer("waves", place_waves(channels, grid), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        masks = self.mask(x).softmax(1)
        x = x + self.place(self.waves[None])
        return self.out(self.norm(torch.einsum("nihw,nchw->nic", masks, x)))


def place_waves(channels: int, grid: Pair) -> Tensor:
    """Return the sinusoidal embedding of the place that "lite" adds.

    Positions go from 0 to 1, the frequency of channel k is 10000^(k / (C/2)), with a sine for even
    and a cosine for odd k.

    Args:
        channels: C.
        grid: (h, w).

    Returns:
        [C,h,w]; the first half of the channels is for rows, the rest for columns.
    """
    half = (channels + 1) // 2
    k = torch.arange(half)

    def waves(length: int) -> Tensor:
        angles = torch.linspace(0, 1, length) * (10000.0 ** (k / half))[:, None]
        return torch.where(k[:, None] % 2 == 0, angles.sin(), angles.cos())  # [half,length]

    h, w = grid
    rows = waves(h)[:, :, None].expand(half, h, w)
    columns = waves(w)[:, None, :].expand(half, h, w)
    return torch.cat([rows, columns])[:channels]


class PredictedRegions(nn.Module):
    """Regions from o: dynamic, lite, constant_time, position_only and static.

    Args:
        kind: one of these names.
        channels: C of the maps.
        grid: (h, w) of the training maps.
        width: d_o, of g_i, the GRU and z.
        anchors: "centre" or "grid".
        normalise: whether kernels sum to 1.
    """

    def __init__(
        self, kind: str, channels: int, grid: Pair, width: int, anchors: str, normalise: bool
    ):
        super().__init__()
        self.kind, self.grid, self.anchors, self.normalise = kind, grid, anchors, normalise
        if kind == "static":
            self.z = nn.Parameter(torch.randn(NODES, width))
        else:
            generator = LiteGenerator if kind == "lite" else BigGenerator
            self.generator = generator(channels, grid, width)
            self.norm_in = JointNorm(width, axes=2)
            self.time = NodeGRU(width)
        self.norm = JointNorm(width, axes=2)
        self.linear = nn.Linear(width, 4)
        self.alpha = nn.Parameter(torch.zeros(4))

    def offsets(self, x: Tensor) -> Tensor:
        """Predict o.

        Args:
            x: [B,T,C,h,w].

        Returns:
            [B,T,N,4], or [B,1,N,4] for static and constant_time.
        """
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
        """Return the regions of x [B,T,C,h,w]; boxes and valid are not read."""
        offsets = full_precision(self.offsets(x))
        grid = tuple(x.shape[-2:])
        anchors = anchor_points(self.anchors, grid).to(offsets.device)
        centres, radii = geometry(offsets, anchors, grid)
        if self.kind == "position_only":
            radii = (radii.new_tensor(grid) / (2 * SIDE) + 1).expand_as(radii)
        return Regions(kernels_of(centres, radii, grid, self.normalise), offsets, centres, radii)


class FixedRegions(nn.Module):
    """The cells of a 3 x 3 grid, the same for every step; no parameters."""

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """Return the regions of x [B,T,C,h,w]; only its grid is read."""
        kernels = area_grid(tuple(x.shape[-2:])).to(x.device, full_precision(x[:0]).dtype)
        return Regions(kernels.expand(x.shape[0], 1, *kernels.shape))


class SemanticRegions(nn.Module):
    """Nine maps of weights, from a network that up-samples back to the grid (Table 6, "Semantic").

    Args:
        channels: C of the maps.
        grid: (h, w) of the training maps.
    """

    def __init__(self, channels: int, grid: Pair):
        super().__init__()
        self.grid = grid
        self.fishnet = Fishnet(channels, grid, upsample=True)
        self.out = nn.Conv2d(HIDDEN, NODES, 1)

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """Return the regions of x [B,T,C,h,w]; boxes and valid are not read."""
        weights = full_precision(self.out(self.fishnet(to_grid(x, self.grid))))
        h, w = grid = tuple(x.shape[-2:])
        if grid != self.grid:
            # More cells get smaller weights, so that their sum stays.
            scale = self.grid[0] * self.grid[1] / (h * w)
            weights = F.interpolate(weights, grid, mode="bilinear", align_corners=False) * scale
        return Regions(weights.unflatten(0, x.shape[:2]))


class DetectorRegions(nn.Module):
    """Regions at the first nine boxes of a step; missing and padded boxes have kernels of zeros.

    No parameters.

    Args:
        normalise: whether kernels sum to 1.
    """

    def __init__(self, normalise: bool):
        super().__init__()
        self.normalise = normalise

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """Return the regions of the boxes.

        Args:
            x: [B,T,C,h,w].
            boxes: [B,T,n,4], xyxy in [0,1].
            valid: [B,T,n] bool.

        Returns:
            Regions without offsets.

        Raises:
            ValueError: no boxes, or boxes of another B or T.
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
        boxes = F.pad(boxes[:, :, :NODES], (0, 0, 0, missing))
        valid = F.pad(valid[:, :, :NODES], (0, missing))
        boxes = full_precision(torch.where(valid[..., None], boxes, 0))

        grid = tuple(x.shape[-2:])
        size = boxes.new_tensor(grid)
        low, high = boxes[..., [1, 0]], boxes[..., [3, 2]]  # (y, x)
        centres = ((low + high) / 2 * size).clamp_min(0).minimum(size - 1)
        radii = ((high - low) / 2 * size).clamp_min(1)
        kernels = kernels_of(centres, radii, grid, self.normalise)
        kernels = torch.where(valid[..., None, None], kernels, 0)
        return Regions(kernels, None, centres, radii)


def build_regions(
    kind: str,
    channels: int,
    grid: Pair,
    width: int = 128,
    anchors: str = "centre",
    normalise: bool = True,
) -> nn.Module:
    """Build a module (x, boxes, valid) -> `Regions`.

    Args:
        kind: a row of the table at the top of this file.
        channels: C of the maps.
        grid: (h, w) of the training maps.
        width: d_o, 128 on Something-Something, 32 on MultiSyncMNIST.
        anchors: "centre" (the paper: every node starts in the middle) or "grid".
        normalise: whether kernels sum to 1.

    Returns:
        The module with fresh weights.

    Raises:
        ValueError: unknown kind or anchors, or a grid that f cannot take.
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
    """Compare the offsets of a network's modules with those of their single-module teachers.

    Sec. 3.3. The form, smooth-L1, is not stated in the paper.

    Args:
        students: o [B,T,N,4] of every module.
        teachers: o [B,T,N,4] of every teacher; they get no gradient.

    Returns:
        A scalar, the mean over everything and over the modules.

    Raises:
        ValueError: a student has no teacher of the same shape.
    """
    if not students or len(students) != len(teachers):
        raise ValueError(
            f"expected a teacher for each module, got {len(students)} modules and {len(teachers)} "
            "teachers"
        )

    losses = []
    for student, teacher in zip(students, teachers, strict=True):
        if student is None or teacher is None or student.shape != teacher.shape:
            raise ValueError(
                "expected offsets of the same shape of module and teacher, got "
                f"{_shape(student)} and {_shape(teacher)}"
            )
        losses.append(F.smooth_l1_loss(student, teacher.detach()))
    return torch.stack(losses).mean()


def _shape(offsets: Tensor | None) -> str:
    return "none" if offsets is None else str(list(offsets.shape))


def to_grid(x: Tensor, grid: Pair) -> Tensor:
    """Return x [B,T,C,h,w] as [B T,C,*grid], averaged if its grid is another one."""
    maps = x.flatten(0, 1)
    if tuple(x.shape[-2:]) == tuple(grid):
        return maps
    return F.adaptive_avg_pool2d(maps, grid)


def full_precision(x: Tensor) -> Tensor:
    """Return x in float32 at least.

    A coordinate in bfloat16 has steps of an eighth of a cell on a map of 32.
    """
    return x.float() if x.dtype in (torch.bfloat16, torch.float16) else x


def check_grid(grid: Pair) -> None:
    """Raise ValueError for a map that f cannot take."""
    least, most = GRIDS
    if least <= min(grid) and max(grid) <= most:
        return
    direction = "deeper in" if max(grid) > most else "higher up"
    raise ValueError(
        f"DyReg predicts regions from maps of {least} to {most} cells per side, got {grid[0]} x "
        f"{grid[1]}: insert the module {direction} the network, or change the size of the frames"
    )
