"""EAN's Sparse Object Interaction Transformer.

Tian et al., EAN: Event Adaptive Network for Enhanced Action Recognition, IJCV 2022, sec. 3.2.

    X = W_s map, C -> 512, no bias                       [B,T,P,512]     P = h w cells
    O_{m,t} = softmax over p of Saliency-Net(X)_m        [B,T,M,P]       eq. (4), M = 4 objects
    F_{m,t} = sum_p O_{m,t}(p) (X_{t,p} + E_p)           [B,T M,512]     eq. (5)
    F = two transformer layers of F                      [B,T M,512]
    BN(W_o mean F), gain and offset 0 at first           [B,C]

Saliency-Net is in heads/papers/ean/regions.py, the layers are in heads/papers/ean/transformer.py. E
is N(0,1) at first: one vector per cell (paper), one per cell and step (released).

Differs from the paper: `regions="boxes"` masks padded boxes. Not stated in the paper, and chosen:
- a transformer before the last stage adds its vector at every position;
- on another grid than E was built for, such as that of larger test views, E is interpolated
  bilinearly.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.clips import Clips
from heads.interface.masked_layers import masked_mean
from heads.papers.ean.regions import SaliencyNet, coverage, tiles
from heads.papers.ean.transformer import DEPTH, RowNorm, TransformerLayer


class SparseObjects(nn.Module):
    """From a map to a vector that is added to the mean of the map.

    `saliency` is for the caller to set with regions="saliency" (see `new_objects`).

    Args:
        channels: C of the map.
        grid: (h, w) of the map.
        steps: T.
        width: channels of the tokens.
        objects: M, regions per step.
        regions: "saliency", "fixed", "all" or "boxes".
        position: E: "spatial", "spatio_temporal" or "none".
    """

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
        self.position = None
        if position != "none":
            repeats = steps if position == "spatio_temporal" else 1
            self.position = nn.Parameter(torch.randn(repeats, grid[0] * grid[1], width))
        self.saliency = None
        self.layers = nn.ModuleList(TransformerLayer(width) for _ in range(DEPTH))
        self.out = nn.Linear(width, channels, bias=False)
        self.norm = RowNorm(channels)
        # Gain and offset 0 make the transformer add 0 at first.
        nn.init.zeros_(self.norm.weight)

    def weights(self, x: Tensor, grid: tuple[int, int], boxes: Tensor | None) -> Tensor:
        """Compute the weights of the cells.

        Args:
            x: [B,T,P,width].
            grid: (h, w).
            boxes: [B,T,N,4], xyxy in [0,1], for regions="boxes".

        Returns:
            O [B,T,M,P].
        """
        if self.saliency is not None:
            return self.saliency(x, grid)
        if self.regions == "boxes":
            return coverage(boxes, grid).to(x.dtype)
        return coverage(tiles(self.objects).to(x), grid).expand(*x.shape[:2], -1, -1)

    def forward(
        self, x: Tensor, grid: tuple[int, int], clips: Clips
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Run the transformer.

        Args:
            x: [B,T,P,C].
            grid: (h, w).
            clips: boxes and valid are read for regions="boxes".

        Returns:
            [B,C], and the maps "regions" [B,T,M,P], unless every cell is a token, and "attention"
            [B,layers,heads,n,n].

        Raises:
            ValueError: another number of steps than E has vectors for.
        """
        steps = x.shape[1]
        x = self.squeeze(x)
        tokens = x if self.position is None else x + self.positions(grid, steps)

        maps = {}
        boxes = mask = None
        if self.regions == "boxes":
            boxes, mask = clips.get("boxes"), clips.get("valid").flatten(1)
        if self.regions != "all":
            maps["regions"] = self.weights(x, grid, boxes)
            tokens = maps["regions"] @ tokens  # [B,T,M,width], eq. (5)
        tokens = tokens.flatten(1, 2)
        valid = mask
        if mask is None:
            valid = tokens.new_ones(tokens.shape[:2], dtype=torch.bool)
        tokens = tokens.masked_fill(~valid[..., None], 0)

        attention = []
        for layer in self.layers:
            tokens, weights = layer(tokens, valid, mask)
            attention.append(weights)
        maps["attention"] = torch.stack(attention, 1)
        return self.norm(self.out(masked_mean(tokens, valid))), maps

    def positions(self, grid: tuple[int, int], steps: int) -> Tensor:
        """Return E for a grid, interpolated between its cells where that is not the built one.

        Args:
            grid: (h, w).
            steps: T.

        Returns:
            [1 or T,P,width].

        Raises:
            ValueError: E has a vector for each of another number of steps.
        """
        built = self.position.shape[0]
        if built not in (1, steps):
            raise ValueError(
                f"head ean has one position vector for each of {built} steps, got {steps} steps: "
                "sample the views alike, or build it with position=spatial"
            )
        if grid == self.grid:
            return self.position
        maps = self.position.unflatten(1, self.grid).movedim(-1, 1)  # [1 or T,width,h,w]
        return F.interpolate(maps, grid, mode="bilinear").flatten(2).mT


class ObjectsAdded(nn.Module):
    """Add the vector of `SparseObjects` at every position of a map: the identity at first.

    Args:
        objects: the transformer.
    """

    def __init__(self, objects: SparseObjects):
        super().__init__()
        self.objects = objects

    def forward(self, x: Tensor) -> Tensor:
        """Map [B,C,T,h,w] to the same shape."""
        # [B,C,T,h,w] -> [B,T,P,C], the layout of tokens
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
    """Build the transformer.

    Args:
        channels: C of the map.
        grid: (h, w) of the map.
        steps: T.
        width: channels of the tokens.
        released: whether to build the released Saliency-Net and E.
        regions: "saliency", "fixed", "all" or "boxes".
        objects: M, regions per step.
        position: E: "spatial", "spatio_temporal", "none", or "auto" for the variant's.

    Returns:
        The transformer with fresh weights.
    """
    if position == "auto":
        position = "spatio_temporal" if released else "spatial"
    soi = SparseObjects(channels, grid, steps, width, objects, regions, position)
    if regions == "saliency":
        soi.saliency = SaliencyNet(width, objects, released)
    return soi
