"""What GOS's operations see of a view (Li et al., CVPR 2020, sec. 3.1): nodes, background, layout;
and the stem that makes it.

    V = LeakyReLU(R res5 + r), per location, 2048 -> 256                    [B,T,C,h,w]   before
    RoIAlign: they do not commute
    background y = V, every cell of every frame                             [B,T,G,C]     G = h w
    nodes x = RoIAlign 7x7 of V at every box, then the mean                 [B,T,N,C]
    layout [x1,y1,x2,y2, cx,cy, w,h, t], in [0,1] of the crop, t = step / T [B,T,N,9]

Differs from the paper:
- padded boxes give zeros and `valid` goes with them, cells in the padding of narrower maps are left
  out;
- `regions="nodes"` reduces the cached nodes and pooled features instead of the map: approximate,
  because the LeakyReLU comes after RoIAlign then, but it reads a quarter of the values. It has no
  background, so that back_incor cannot use it.

Not stated in the paper: the LeakyReLU's place and slope, the mean after RoIAlign (the released
code's).
"""

from dataclasses import dataclass, replace
from functools import cached_property

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims
from heads.interface.masked_layers import grid_mean, masked_mean
from heads.papers.gos.affinity import linear, unit
from pipeline.networks.memory_format import convolve
from pipeline.regions.roi_align import roi_align

LAYOUT = 9  # numbers of a node's layout
REGIONS = ("map", "nodes")


@dataclass(frozen=True)
class OperationInputs:
    """A batch of B views beside their nodes; what the operations at hand do not read is None.

    valid [B,T,N] bool; layout [B,T,N,9]; y [B,T,G,C]; cells [B,G] bool, whether a cell lies on the
    view; nearest [B,T,N,T] and similar [B,T,N,M], as stage two stored them.
    """

    valid: Tensor
    layout: Tensor | None = None
    y: Tensor | None = None
    cells: Tensor | None = None
    nearest: Tensor | None = None
    similar: Tensor | None = None

    @property
    def position(self) -> Tensor:
        """(cx, cy, t) [B,T,N,3]."""
        return self.layout[..., [4, 5, 8]]

    @cached_property
    def directions(self) -> Tensor:
        """y / |y| [B,T,G,C], computed once for all operations."""
        return unit(self.y)

    def take(self, rows: Tensor) -> "OperationInputs":
        """The scene of some views: rows [b], their numbers in the batch."""
        tensors = {
            name: tensor[rows] for name, tensor in vars(self).items() if isinstance(tensor, Tensor)
        }
        directions = tensors.pop("directions", None)
        scene = replace(self, **tensors)
        if directions is not None:
            vars(scene)["directions"] = (
                directions  # where a frozen dataclass keeps a cached property
            )
        return scene


def layout_of(boxes: Tensor) -> Tensor:
    """boxes [B,T,N,4] xyxy in [0,1] -> [B,T,N,9]."""
    low, high = boxes[..., :2], boxes[..., 2:]
    t = torch.arange(boxes.shape[1], device=boxes.device, dtype=boxes.dtype) / boxes.shape[1]
    t = t[:, None, None].expand(*boxes.shape[:3], 1)
    return torch.cat([boxes, (low + high) / 2, high - low, t], -1)


def old_roi_mean(y: Tensor, boxes: Tensor, valid: Tensor, grid: Tensor, size: int) -> Tensor:
    """RoIAlign as GOS's release has it, then the mean of its size x size samples.

    y [B,T,h,w,C], boxes [B,T,N,4] xyxy in [0,1], valid [B,T,N], grid [B,2] true (h, w) ->
    [B,T,N,C]; invalid boxes give zeros. One bilinear sample per bin, at x1 + k (x2 - x1 + 1) /
    (size - 1) cells, k = 0 .. size - 1, so that the last one lies at x2 + 1; it is 0 outside the
    map, and beyond the last cell's centre the last two cells are continued linearly. So a map of
    ones does not give 1 for a box near the right or lower border.
    """
    boxes = torch.where(valid[..., None], boxes, 0)
    rows = _old_weights(boxes[..., 1], boxes[..., 3], grid[:, 0], y.shape[2], size)  # [B,T,N,h]
    columns = _old_weights(boxes[..., 0], boxes[..., 2], grid[:, 1], y.shape[3], size)  # [B,T,N,w]
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(3) * valid[..., None]
    return weights.to(y.dtype) @ y.flatten(2, 3)


def _old_weights(low: Tensor, high: Tensor, cells: Tensor, length: int, size: int) -> Tensor:
    """Along one axis: low, high [B,T,N] in [0,1], cells [B] true length -> the mean weight of each
    cell [B,T,N,length].
    """
    cells = cells[:, None, None, None]
    step = ((high - low)[..., None] * cells + 1).clamp_min(0) / max(1, size - 1)
    at = low[..., None] * cells + step * torch.arange(size, device=low.device)  # [B,T,N,size]
    inside = ((at >= 0) & (at < cells)).to(at.dtype) / size
    left = at.floor().clamp_min(0).minimum(cells - 2).clamp_min(0)
    right = (left + 1).minimum(cells - 1)
    weights = at.new_zeros(*at.shape[:3], length).scatter_add_(
        -1, left.long(), (1 - (at - left)) * inside
    )
    return weights.scatter_add_(-1, right.long(), (at - left) * inside)


class NodeStem(nn.Module):
    """The reduction with its nodes and background; `reads` is what the operations take from the
    scene.

    `regions`: "map" (exact) or "nodes" (approximate); `roi`: "aligned" (pipeline.regions.roi_align)
    or "old". Where "y" is read, a view must have the grid that the head was built for.
    """

    def __init__(
        self,
        dims: Dims,
        cut: str,
        width: int,
        roi: str,
        roi_size: int,
        regions: str,
        reads: tuple[str, ...],
    ):
        super().__init__()
        self.cut, self.roi, self.roi_size, self.regions, self.reads = (
            cut,
            roi,
            roi_size,
            regions,
            reads,
        )
        channels, *self.grid = dims.maps[cut] if regions == "map" else (dims.C, 0, 0)
        self.reduce = linear(channels, width)
        fields = (cut, "boxes", "valid") if regions == "map" else ("pooled", "nodes", "valid")
        needs = (*fields, "boxes") if "layout" in reads else fields
        self.needs = tuple(
            dict.fromkeys((*needs, *(name for name in ("nearest", "similar") if name in reads)))
        )
        self.uses = ("grid",) if regions == "map" else ()

    def forward(self, clips: Clips) -> tuple[Tensor, OperationInputs, Tensor, Tensor]:
        """Clips with `needs` -> x [B,T,N,C], the scene, the mean of y over the view [B,C], the mean
        of the map [B,channels].
        """
        valid = clips.get("valid")
        given = {name: clips.get(name) for name in ("nearest", "similar") if name in self.reads}
        if "layout" in self.reads:
            given["layout"] = layout_of(clips.get("boxes"))
        if self.regions == "nodes":
            x, pooled = self._reduced(clips.get("nodes")), clips.get("pooled")
            return x, OperationInputs(valid, **given), self._reduced(pooled).mean(1), pooled.mean(1)
        fmap = clips.get(self.cut)
        y = self._background(fmap)  # [B,T,h,w,C]
        grid = self._true_grid(clips.grid, y)
        x = self._nodes(y, clips.get("boxes"), valid, grid)
        cells = self._cells(grid, y)
        scene = OperationInputs(valid, y=y.flatten(2, 3), cells=cells, **given)
        mean = masked_mean(scene.y, cells[:, None].expand(scene.y.shape[:3]))
        return x, scene, mean, grid_mean(fmap, clips.grid).mean(1)

    def _reduced(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.reduce(x), 0.01)
        return (
            x.float() if x.dtype in (torch.bfloat16, torch.float16) else x
        )  # what follows normalises and subtracts

    def _background(self, fmap: Tensor) -> Tensor:
        """fmap [B,T,channels,h,w] -> V [B,T,h,w,C]."""
        if "y" in self.reads and list(fmap.shape[-2:]) != self.grid:
            (h, w), (H, W) = self.grid, fmap.shape[-2:]
            raise ValueError(
                f"back_incor weighs each cell of a {h} x {w} map of {self.cut}, got {H} x {W}; "
                f"extract test views of the "
                "training views' size (one square crop)"
            )
        v = convolve(
            fmap.flatten(0, 1), self.reduce.weight[..., None, None], self.reduce.bias
        )  # faster than a linear layer here
        v = (
            F.leaky_relu(v, 0.01, inplace=True)
            .movedim(1, -1)
            .contiguous()
            .unflatten(0, fmap.shape[:2])
        )
        return v.float() if v.dtype in (torch.bfloat16, torch.float16) else v

    def _nodes(self, y: Tensor, boxes: Tensor, valid: Tensor, grid: Tensor) -> Tensor:
        if self.roi == "old":
            return old_roi_mean(y, boxes, valid, grid, self.roi_size)
        return roi_align(
            y.permute(0, 4, 1, 2, 3), boxes, valid, size=self.roi_size, pool="mean", grid=grid
        ).to(y.dtype)

    @staticmethod
    def _true_grid(grid: Tensor | None, y: Tensor) -> Tensor:
        """[B,2]: (h, w) of each view, the whole map where the batch does not say."""
        return (
            y.new_tensor(y.shape[2:4], dtype=torch.long).expand(len(y), 2) if grid is None else grid
        )

    @staticmethod
    def _cells(grid: Tensor, y: Tensor) -> Tensor:
        """Whether a cell lies on the view [B,G]."""
        rows, columns = (
            torch.arange(n, device=y.device) < grid[:, k, None] for k, n in enumerate(y.shape[2:4])
        )
        return (rows[:, :, None] & columns[:, None]).flatten(1)
