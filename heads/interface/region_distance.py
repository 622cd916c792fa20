"""How far a head's regions are from annotated boxes: Dist of DyReg-GNN's Table 1.

Duta, Nicolicioiu and Leordeanu, NeurIPS 2021, Table 1: the mean L2 distance between predicted
regions and the objects of Something-Else. The paper does not define it further outside its
supplement. Our reading takes the middles of boxes and regions, in fractions of the view's sides:

    dist          the mean over all boxes of the distance to the nearest region of their step
    dist_regions  the mean over all regions of the distance to the nearest box of their step

Of several modules, the mean over modules counts. Steps without a box do not count.

A region's middle is its centre, (c + 1/2) / (h, w) for the centre c in cells. A region without a
centre (fixed, semantic) has the centre of mass of its kernel, negative weights counting as 0.
"""

from collections import defaultdict
from collections.abc import Mapping

import torch
from torch import Tensor

KERNELS = "kernels."
# The figures, and the same before training.
FIGURES = ("dist", "dist_regions")
BEFORE = "_start"


def region_middles(maps: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Find the middles of regions in a head's maps.

    Args:
        maps: `HeadOutput.maps` with "kernels.POINT" [..,N,h,w] and, where regions have one,
            "centres.POINT" [..,N,2], (y, x) in cells. Other maps are ignored.

    Returns:
        By point, [..,N,2]: (x, y) in [0,1] of the view; NaN for a region whose kernel is empty.
    """
    found = {}
    for name, kernels in maps.items():
        if not name.startswith(KERNELS):
            continue
        point = name.removeprefix(KERNELS)
        centres = maps.get(f"centres.{point}")
        if centres is None:
            centres = _centres_of_mass(kernels)
        # The middle of a cell is half a cell from its corner.
        places = (centres.float() + 0.5) / centres.new_tensor(kernels.shape[-2:]).float()
        is_empty = kernels.amax((-1, -2)) <= 0
        found[point] = places.flip(-1).masked_fill(is_empty[..., None], torch.nan)
    return found


def _centres_of_mass(kernels: Tensor) -> Tensor:
    """Return (y, x) in cells, [..,N,2], of kernels [..,N,h,w]."""
    mass = kernels.float().clamp_min(0)
    whole = mass.sum((-1, -2)).clamp_min(torch.finfo(mass.dtype).tiny)
    centres = []
    for axis, other in ((-2, -1), (-1, -2)):
        cells = torch.arange(mass.shape[axis], device=mass.device, dtype=mass.dtype)
        centres.append((mass.sum(other) * cells).sum(-1) / whole)
    return torch.stack(centres, -1)


class RegionDistance:
    """The distances of regions and boxes, summed over batches.

    Attributes:
        boxes: how many annotated boxes have counted.
        steps: how many steps with a box have counted.
    """

    def __init__(self):
        self.boxes = self.steps = 0
        # (point, figure) -> sum of distances, number of them
        self._sums: dict[tuple[str, str], float] = defaultdict(float)
        self._counts: dict[tuple[str, str], int] = defaultdict(int)

    def add(self, maps: Mapping[str, Tensor], boxes: Tensor, valid: Tensor | None = None) -> None:
        """Add a batch.

        Args:
            maps: of the head, see `region_middles`.
            boxes: [B,T,M,4], xyxy in [0,1] of the view.
            valid: [B,T,M] bool, which rows are boxes; None: all.

        Raises:
            ValueError: the maps have no regions, or regions of another number of steps.
        """
        points = region_middles(maps)
        if not points:
            raise ValueError(
                f"expected maps with kernels.POINT, as head dyreg gives them, got "
                f"{', '.join(maps) or 'no maps'}"
            )
        boxes = boxes.float()
        if valid is None:
            valid = boxes.new_ones(boxes.shape[:-1], dtype=torch.bool)
        self.boxes += int(valid.sum())
        self.steps += int(valid.any(-1).sum())
        middles = (boxes[..., :2] + boxes[..., 2:]) / 2
        for point, places in points.items():
            # Regions that all steps share have T = 1.
            if places.shape[1] not in (1, boxes.shape[1]):
                raise ValueError(
                    f"expected boxes of {places.shape[1]} steps as the regions at {point}, got "
                    f"{boxes.shape[1]}"
                )
            places = places.expand(-1, boxes.shape[1], -1, -1)
            self._add_point(point, places, middles, valid)

    def _add_point(self, point: str, places: Tensor, middles: Tensor, valid: Tensor) -> None:
        """Add the regions [B,T,N,2] of a point and the middles [B,T,M,2] of boxes."""
        gaps = (middles[..., :, None, :] - places[..., None, :, :]).norm(dim=-1)  # [B,T,M,N]
        there = valid[..., None] & ~places.isnan().any(-1)[..., None, :]
        gaps = gaps.masked_fill(~there, torch.inf)
        for figure, axis in zip(FIGURES, (-1, -2), strict=True):
            nearest = gaps.amin(axis)
            counted = nearest[nearest.isfinite()]
            self._sums[point, figure] += counted.sum(dtype=torch.float64).item()
            self._counts[point, figure] += len(counted)

    def figures(self) -> dict[str, float]:
        """Return the figures, by the names of `FIGURES`; none where no box counted."""
        found = {}
        for figure in FIGURES:
            means = []
            for key, count in self._counts.items():
                if key[1] == figure and count:
                    means.append(self._sums[key] / count)
            if means:
                found[figure] = sum(means) / len(means)
        return found
