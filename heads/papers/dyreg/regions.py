"""Where DyReg-GNN looks: N = 9 regions per step of a map [B,T,C,h,w].

Duta, Nicolicioiu and Leordeanu, Discovering Dynamic Salient Regions for Spatio-Temporal Graph
Neural Networks, NeurIPS 2021, eq. (2) to (6). Lengths are in grid cells.

    z_{i,t} = GRU(LN(g_i(f(X_t))))                                          eq. (2), (3)
    o_{i,t} = alpha * (W LN(z_{i,t}) + b),  alpha = 0 at first  [B,T,N,4]   eq. (4)
    K_i(y,x) = relu(r_h - |y - c_y|) relu(r_w - |x - c_x|),     [B,T,N,h,w] eq. (5), (6)
               divided by its sum

Half size r and centre c come from o = (o_h, o_w, o_y, o_x), see heads/papers/dyreg/kernels.py. f
and g_i are the generators "big" and "lite" of heads/papers/dyreg/generators.py.

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

Differs from the paper:
- kernels sum to 1, see heads/papers/dyreg/kernels.py;
- a detector's half size is at least 1 cell, so that no kernel is empty; a padded box has the kernel
  0;
- a map of another grid than the built one is averaged to the built one before f, as in the release.
  Semantic weights are then stretched back, keeping their sum.

The paper says that the z_i of static regions are parameters, and that constant-time regions are
shared over time. Not stated in any source, and chosen: z_i from the mean of f(X) over time.
"""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.joint_norm import JointNorm
from heads.papers.dyreg.generators import HIDDEN, BigGenerator, Fishnet, LiteGenerator
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
    size_of,
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
        # At 0 every region starts at its anchor, whatever the layers before alpha give.
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
            # [B*T,N,width] -> [B,T,N,width]; constant_time has one step
            z = self.time(self.norm_in(z.unflatten(0, (B, -1))))
        return self.linear(self.norm(z)) * self.alpha

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """Return the regions of x [B,T,C,h,w]; boxes and valid are not read."""
        offsets = full_precision(self.offsets(x))
        grid = tuple(x.shape[-2:])
        anchors = anchor_points(self.anchors, grid, offsets.device)
        centres, radii = geometry(offsets, anchors, grid)
        if self.kind == "position_only":
            radii = (size_of(grid, radii) / (2 * SIDE) + 1).expand_as(radii)
        return Regions(kernels_of(centres, radii, grid, self.normalise), offsets, centres, radii)


class FixedRegions(nn.Module):
    """The cells of a 3 x 3 grid, the same for every step; no parameters."""

    def forward(
        self, x: Tensor, boxes: Tensor | None = None, valid: Tensor | None = None
    ) -> Regions:
        """Return the regions of x [B,T,C,h,w]; only its grid is read."""
        # The empty slice tells the dtype without converting the map.
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
        # F.pad counts axes from the last one: this appends boxes, not coordinates.
        boxes = F.pad(boxes[:, :, :NODES], (0, 0, 0, missing))
        valid = F.pad(valid[:, :, :NODES], (0, missing))
        boxes = full_precision(torch.where(valid[..., None], boxes, 0))

        grid = tuple(x.shape[-2:])
        size = size_of(grid, boxes)
        low, high = boxes[..., :2].flip(-1), boxes[..., 2:].flip(-1)  # (y, x)
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
