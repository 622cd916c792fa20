"""EAN's Sparse Object Interaction Transformer: Tian et al., EAN, Event Adaptive Network, IJCV 2022, sec. 3.3."""

import torch
from torch import Tensor, nn

from heads.interface.clips import Clips
from heads.interface.masked_layers import masked_mean
from heads.papers.ean.regions import SaliencyNet, coverage, tiles
from heads.papers.ean.transformer import DEPTH, RowNorm, TransformerLayer


class SparseObjects(nn.Module):
    """From the map to what is added to its mean: x [B,T,P,C] -> [B,C]; see the top of this file."""

    def __init__(
        self,
        channels: int,
        grid: tuple[int, int],
        steps: int,
        width: int,
        objects: int,
        regions: str,
        position: str,
    ):
        super().__init__()
        self.grid, self.regions, self.objects = grid, regions, objects
        self.squeeze = nn.Linear(channels, width, bias=False)
        cells = {
            "none": None,
            "spatial": (1, grid[0] * grid[1]),
            "spatio_temporal": (steps, grid[0] * grid[1]),
        }[position]
        self.position = None if cells is None else nn.Parameter(torch.randn(*cells, width))
        self.saliency = None
        self.layers = nn.ModuleList(TransformerLayer(width) for _ in range(DEPTH))
        self.out = nn.Linear(width, channels, bias=False)
        self.norm = RowNorm(channels)
        nn.init.zeros_(self.norm.weight)

    def weights(self, x: Tensor, grid: tuple[int, int], boxes: Tensor | None) -> Tensor:
        """O [B,T,M,P] of squeezed x [B,T,P,width]; boxes [B,T,N,4] for regions="boxes"."""
        if self.saliency is not None:
            return self.saliency(x, grid)
        if self.regions == "boxes":
            return coverage(boxes, grid).to(x.dtype)
        return coverage(tiles(self.objects).to(x), grid).expand(*x.shape[:2], -1, -1)

    def forward(
        self, x: Tensor, grid: tuple[int, int], clips: Clips
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Also returns maps: regions [B,T,M,P] (but for "all") and attention
        [B,layers,heads,n,n].
        """
        self._check(grid, x.shape[1])
        x = self.squeeze(x)
        placed = x if self.position is None else x + self.position
        maps = {}
        if self.regions != "all":
            maps["regions"] = self.weights(
                x, grid, clips.get("boxes") if self.regions == "boxes" else None
            )
            placed = maps["regions"] @ placed  # [B,T,M,width], eq. (5)
        tokens = placed.flatten(1, 2)
        mask = clips.get("valid").flatten(1) if self.regions == "boxes" else None
        valid = tokens.new_ones(tokens.shape[:2], dtype=torch.bool) if mask is None else mask
        tokens = tokens.masked_fill(~valid[..., None], 0)
        attention = []
        for layer in self.layers:
            tokens, weights = layer(tokens, valid, mask)
            attention.append(weights)
        maps["attention"] = torch.stack(attention, 1)
        return self.norm(self.out(masked_mean(tokens, valid))), maps

    def _check(self, grid: tuple[int, int], steps: int) -> None:
        fixed = 1 if self.position is None else self.position.shape[0]
        if self.position is not None and (grid != self.grid or fixed not in (1, steps)):
            wanted = f"{self.grid[0]}×{self.grid[1]} cells" + (
                f" and {fixed} steps" if fixed > 1 else ""
            )
            raise ValueError(
                f"head ean has one position vector for each of {wanted}, got a map of "
                f"{grid[0]}×{grid[1]} cells and {steps} "
                "steps: cut the views to one size, or build it with position=none"
            )


class ObjectsAdded(nn.Module):
    """What `SparseObjects` makes of a map, added at every position of it: [B,C,T,h,w] -> the same,
    the identity at first.
    """

    def __init__(self, objects: SparseObjects):
        super().__init__()
        self.objects = objects

    def forward(self, x: Tensor) -> Tensor:
        v, _ = self.objects(x.transpose(1, 2).flatten(3).mT, tuple(x.shape[-2:]), Clips())
        return x + v[:, :, None, None, None]


def new_objects(
    channels: int,
    grid: tuple[int, int],
    steps: int,
    width: int,
    released: bool,
    *,
    regions: str = "saliency",
    objects: int = 4,
    position: str = "auto",
) -> SparseObjects:
    """The transformer on maps of `channels` and `grid`; the options are those of `build`."""
    if position == "auto":
        position = "spatio_temporal" if released else "spatial"
    soi = SparseObjects(channels, grid, steps, width, objects, regions, position)
    if regions == "saliency":
        soi.saliency = SaliencyNet(width, objects, released)
    return soi
