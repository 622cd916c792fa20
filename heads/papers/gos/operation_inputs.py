"""What GOS's operations see of a view, and the stem that makes it.

Li et al., Adaptive Interaction Modeling via Graph Operations Search, CVPR 2020, sec. 3.1.

    V = LeakyReLU(R res5 + r), per location, 2048 -> 256           [B,T,C,h,w]
    background y = V, every cell of every step                     [B,T,G,C]    G = h w
    nodes x = RoIAlign 7x7 of V at every box, then the mean        [B,T,N,C]
    layout [x1,y1,x2,y2, cx,cy, w,h, t], in [0,1] of the crop      [B,T,N,9]    t = step / T

V comes before RoIAlign, because the two do not commute.

Differs from the paper:
- padded boxes give zeros and have `valid` False; cells in the padding of narrower maps are left
  out;
- `regions="nodes"` reduces the cached nodes and pooled features in place of the map. This is
  approximate, because the LeakyReLU then comes after RoIAlign, but it reads a quarter of the
  values. It has no background, so that back_incor cannot use it.

Not stated in the paper, and taken from the release: the LeakyReLU's place and slope, the mean after
RoIAlign.
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
HALF = (torch.bfloat16, torch.float16)


@dataclass(frozen=True)
class OperationInputs:
    """What the operations read of a batch of B views, beside the nodes.

    A field that no operation of the head reads is None.

    Attributes:
        valid: [B,T,N] bool, whether a row is a box.
        layout: [B,T,N,9], see the top of this file.
        y: [B,T,G,C], the background.
        cells: [B,G] bool, whether a cell lies on the view.
        nearest: [B,T,N,T], as stage two stored it.
        similar: [B,T,N,M], as stage two stored it.
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
        """Select some views.

        Args:
            rows: [b], their numbers in the batch.

        Returns:
            The inputs of these views.
        """
        tensors = {}
        for name, value in vars(self).items():
            if isinstance(value, Tensor):
                tensors[name] = value[rows]

        # `directions`, once computed, is no field; a cached property lives in the instance's dict.
        directions = tensors.pop("directions", None)
        taken = replace(self, **tensors)
        if directions is not None:
            vars(taken)["directions"] = directions
        return taken


def layout_of(boxes: Tensor) -> Tensor:
    """Compute the layout of boxes.

    Args:
        boxes: [B,T,N,4], xyxy in [0,1].

    Returns:
        [B,T,N,9], see the top of this file.
    """
    low, high = boxes[..., :2], boxes[..., 2:]
    t = torch.arange(boxes.shape[1], device=boxes.device, dtype=boxes.dtype) / boxes.shape[1]
    t = t[:, None, None].expand(*boxes.shape[:3], 1)
    return torch.cat([boxes, (low + high) / 2, high - low, t], -1)


def old_roi_mean(y: Tensor, boxes: Tensor, valid: Tensor, grid: Tensor, size: int) -> Tensor:
    """Compute GOS's released RoIAlign, then the mean of its size x size samples.

    There is one bilinear sample per bin, at x1 + k (x2 - x1 + 1) / (size - 1) cells for k = 0 ..
    size - 1, so that the last one lies at x2 + 1. A sample outside the map is 0. Beyond the centre
    of the last cell, the last two cells are continued linearly. So a map of ones does not give 1
    for a box near the right or lower border.

    Args:
        y: [B,T,h,w,C].
        boxes: [B,T,N,4], xyxy in [0,1].
        valid: [B,T,N] bool.
        grid: [B,2], true (h, w) in cells.
        size: samples per side.

    Returns:
        [B,T,N,C]; zeros for invalid boxes.
    """
    boxes = torch.where(valid[..., None], boxes, 0)
    rows = _old_weights(boxes[..., 1], boxes[..., 3], grid[:, 0], y.shape[2], size)  # [B,T,N,h]
    columns = _old_weights(boxes[..., 0], boxes[..., 2], grid[:, 1], y.shape[3], size)  # [B,T,N,w]
    weights = (rows[..., :, None] * columns[..., None, :]).flatten(3) * valid[..., None]
    # [B,T,N,h*w] @ [B,T,h*w,C]: the mean of all samples in one product.
    return weights.to(y.dtype) @ y.flatten(2, 3)


def _old_weights(low: Tensor, high: Tensor, cells: Tensor, length: int, size: int) -> Tensor:
    """Compute the mean weight of each cell along one axis.

    Args:
        low, high: [B,T,N] in [0,1].
        cells: [B], the true number of cells.
        length: the number of cells of the map, padding included.
        size: samples per side.

    Returns:
        [B,T,N,length].
    """
    cells = cells[:, None, None, None]
    step = ((high - low)[..., None] * cells + 1).clamp_min(0) / max(1, size - 1)
    at = low[..., None] * cells + step * torch.arange(size, device=low.device)  # [B,T,N,size]
    inside = ((at >= 0) & (at < cells)).to(at.dtype) / size

    # The last pair of cells also serves the samples beyond the last centre, as in the release.
    left = at.floor().clamp_min(0).minimum(cells - 2).clamp_min(0)
    right = (left + 1).minimum(cells - 1)
    weights = at.new_zeros(*at.shape[:3], length)
    # Added, not written: several samples of a box can fall into one cell.
    weights = weights.scatter_add_(-1, left.long(), (1 - (at - left)) * inside)
    return weights.scatter_add_(-1, right.long(), (at - left) * inside)


class NodeStem(nn.Module):
    """The reduction, and the nodes and background made from it.

    Where "y" is read, a view must have the grid that the head was built for.

    Args:
        dims: the sizes of the cached views.
        cut: the map.
        width: C.
        roi: "aligned" (`pipeline.regions.roi_align`) or "old" (`old_roi_mean`).
        roi_size: bins per side.
        regions: "map" (exact) or "nodes" (approximate).
        reads: what the operations read: "y", "layout", "nearest", "similar".
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
        self.cut, self.roi, self.roi_size = cut, roi, roi_size
        self.regions, self.reads = regions, reads

        if regions == "map":
            channels, *self.grid = dims.maps[cut]
            needs = [cut, "boxes", "valid"]
            self.uses = ("grid",)
        else:
            # Without a map there is no background, so back_incor gets no cells.
            channels, self.grid = dims.C, [0, 0]
            needs = ["pooled", "nodes", "valid"]
            self.uses = ()
        self.reduce = linear(channels, width)

        if "layout" in reads:
            needs.append("boxes")
        needs += [name for name in ("nearest", "similar") if name in reads]
        self.needs = tuple(dict.fromkeys(needs))

    def forward(self, clips: Clips) -> tuple[Tensor, OperationInputs, Tensor, Tensor]:
        """Make the nodes and what the operations read.

        Args:
            clips: the fields of `needs`.

        Returns:
            Nodes x [B,T,N,C], the inputs of the operations, the mean of y over the view [B,C], and
            the mean of the map [B,channels].
        """
        valid = clips.get("valid")
        read = {name: clips.get(name) for name in ("nearest", "similar") if name in self.reads}
        if "layout" in self.reads:
            read["layout"] = layout_of(clips.get("boxes"))

        if self.regions == "nodes":
            x, pooled = self._reduced(clips.get("nodes")), clips.get("pooled")
            mean = self._reduced(pooled).mean(1)
            return x, OperationInputs(valid, **read), mean, pooled.mean(1)

        fmap = clips.get(self.cut)
        y = self._background(fmap)  # [B,T,h,w,C]
        grid = clips.grid
        # A cache without grids has no padding.
        if grid is None:
            h, w = y.shape[2:4]
            # Filled on the device: nothing is copied there.
            grid = torch.full((len(y), 2), h, device=y.device)
            grid[:, 1] = w

        x = self._nodes(y, clips.get("boxes"), valid, grid)
        cells = self._cells(grid, y)
        inputs = OperationInputs(valid, y=y.flatten(2, 3), cells=cells, **read)
        # [B,C]: the global feature of the classifier, and g with alpha_input="reduced".
        mean = masked_mean(inputs.y, cells[:, None].expand(inputs.y.shape[:3]))
        return x, inputs, mean, grid_mean(fmap, clips.grid).mean(1)

    def _reduced(self, x: Tensor) -> Tensor:
        x = F.leaky_relu(self.reduce(x), 0.01)
        # What follows normalises and subtracts: half precision is too coarse for it.
        return x.float() if x.dtype in HALF else x

    def _background(self, fmap: Tensor) -> Tensor:
        """Reduce a map [B,T,channels,h,w] to V [B,T,h,w,C]."""
        if "y" in self.reads and list(fmap.shape[-2:]) != self.grid:
            (h, w), (H, W) = self.grid, fmap.shape[-2:]
            raise ValueError(
                f"back_incor weighs each cell of a {h} x {w} map of {self.cut}, got {H} x {W}; "
                "extract test views of the training views' size (one square crop)"
            )
        # A 1x1 convolution is faster here than a linear layer.
        weight = self.reduce.weight[..., None, None]
        v = convolve(fmap.flatten(0, 1), weight, self.reduce.bias)
        # [B*T,C,h,w] -> [B*T,h,w,C]
        v = F.leaky_relu(v, 0.01, inplace=True).movedim(1, -1).contiguous()
        v = v.unflatten(0, fmap.shape[:2])
        return v.float() if v.dtype in HALF else v

    def _nodes(self, y: Tensor, boxes: Tensor, valid: Tensor, grid: Tensor) -> Tensor:
        if self.roi == "old":
            return old_roi_mean(y, boxes, valid, grid, self.roi_size)
        # [B,T,h,w,C] -> [B,C,T,h,w], as RoIAlign reads it
        maps = y.permute(0, 4, 1, 2, 3)
        x = roi_align(maps, boxes, valid, size=self.roi_size, pool="mean", grid=grid)
        return x.to(y.dtype)

    @staticmethod
    def _cells(grid: Tensor, y: Tensor) -> Tensor:
        """Return whether each cell lies on the view [B,G]."""
        h, w = y.shape[2:4]
        rows = torch.arange(h, device=y.device) < grid[:, 0, None]
        columns = torch.arange(w, device=y.device) < grid[:, 1, None]
        return (rows[:, :, None] & columns[:, None]).flatten(1)
