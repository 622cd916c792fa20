"""EAN's Sparse Object Interaction Transformer: Tian et al., EAN, Event Adaptive Network, IJCV 2022,
sec. 3.3.

    X = W_s res5, 2048 -> 512, no bias                                [B,T,P,512]     P = h w cells
    O_{m,t} = softmax over p of Saliency-Net(X)_m                     [B,T,M,P]       eq. (4); M = 4
    objects
    F_{m,t} = Σ_p O_{m,t}(p) (X_{t,p} + E_p)                          [B,T·M,512]     eq. (5)
    F = F + MHSA(BN(F)),  F = F + FF(BN(F)), twice                                    8 heads of 64,
                          scale 1/8
    FF = Linear, BN, ReLU, Linear, BN, ReLU, Linear, all of 512
    v = GAP(res5) + BN(W_o mean F),  BN starts at gain and offset 0   [B,2048]        so v = GAP at
                                     first
    y = W drop(v) + b                                                 [B,K]           W starts at
    N(0, 0.001), b at 0

Saliency-Net, paper: 1×1×1 to 64, BN, ReLU, 3×1×1, BN, ReLU, 1×5×5 to M. Released: 1×1×1 to 128,
ReLU, BN, 3×3×3, ReLU, BN, 1×3×3, ReLU, BN, 1×3×3 to M. E is N(0,1) at first: one vector per cell
(paper), one per cell and step (released). Parameters at 2048×8×7×7, released: 6 645 380, of which E
is 200 704; paper: 5 860 484, of which E is 25 088.

variant="released" differs from "paper" in Saliency-Net and in E, as above.

The last Event Adaptive Block and res5 are learned with it from the map before that block, the cut
res4.5 of ean_r50 (1024 x 8 x 14 x 14, 3.2 MB a view in float16): backbone="ean_r50", cut="res4.5".
Table 6 has transformers at the stages without a block too: `soi_at="res4"` with cut="res4" and a
trunk of eab="stem,res2,res3" is its row 1-3.

Differs from the paper:
- what is below `cut` is frozen;
- `regions="boxes"` masks padded boxes: they attend to nothing, count in no mean and in no batch
  statistics;
- a batch norm that would see a single row in training (a batch of one view) uses its running
  statistics.

Dead in training in both variants, as in the release: biases in front of a batch norm or of the
softmax over cells.

The grid is fixed by E, and in the released variant the number of steps; another one is refused. Not
stated in the paper, and chosen: fixed regions are a grid of equal tiles (2×2 for 4); a box weighs
each cell by the part of it that the box covers; a transformer before the last stage has a quarter
of its channels, as the last, and adds its vector at every position.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import grid_mean, masked_mean, masked_softmax, row_normalise
from heads.interface.network_above_cut import HeadAboveCut, frames_of, head_above_cut, points_of
from heads.interface.variants import one_of
from pipeline.backbones import Backbone

NO_OPTIONS: dict = {}
REGIONS = ("saliency", "fixed", "all", "boxes", "none")
POSITIONS = ("auto", "spatial", "spatio_temporal", "none")
HEADS, HEAD_WIDTH, DEPTH = 8, 64, 2


class RowNorm(nn.BatchNorm1d):
    """Batch norm of x [...,C] over the rows where valid [...] holds (all unless given); the other
    rows come out as 0.
    """

    def forward(self, x: Tensor, valid: Tensor | None = None) -> Tensor:
        rows = x.flatten(0, -2) if valid is None else x[valid]
        if not len(rows):
            return torch.zeros_like(x)
        training = (
            self.training and len(rows) > 1
        )  # the variance of one row is nothing to divide by
        y = F.batch_norm(
            rows,
            self.running_mean,
            self.running_var,
            self.weight,
            self.bias,
            training,
            self.momentum,
            self.eps,
        )
        return (
            y.view_as(x)
            if valid is None
            else torch.zeros_like(x, dtype=y.dtype).index_put((valid,), y)
        )


class SaliencyNet(nn.Module):
    """The maps O (eq. 4): x [B,T,P,C] -> [B,T,M,P], each the softmax over the P = h w cells of its
    step.
    """

    def __init__(self, channels: int, objects: int, released: bool):
        super().__init__()
        kernels = (
            [(1, 1, 1), (3, 3, 3), (1, 3, 3), (1, 3, 3)]
            if released
            else [(1, 1, 1), (3, 1, 1), (1, 5, 5)]
        )
        inner = max(1, channels // (4 if released else 8))
        sizes = [channels, *[inner] * (len(kernels) - 1), objects]
        layers: list[nn.Module] = []
        for i, kernel in enumerate(kernels):
            layers.append(
                nn.Conv3d(sizes[i], sizes[i + 1], kernel, padding=tuple(k // 2 for k in kernel))
            )
            nn.init.kaiming_normal_(layers[-1].weight, mode="fan_out", nonlinearity="relu")
            if i < len(kernels) - 1:
                pair = [nn.BatchNorm3d(inner), nn.ReLU()]
                layers += reversed(pair) if released else pair
        self.layers = nn.Sequential(*layers)

    def forward(self, x: Tensor, grid: tuple[int, int]) -> Tensor:
        y = self.layers(x.unflatten(2, grid).movedim(-1, 1))  # [B,M,T,h,w]
        return y.flatten(3).transpose(1, 2).softmax(-1)


class TokenAttention(nn.Module):
    """Multi-head self-attention of x [B,n,C] among the tokens where valid [B,n] holds; no bias in
    q, k and v.
    """

    def __init__(self, width: int):
        super().__init__()
        self.qkv = nn.Linear(width, 3 * HEADS * HEAD_WIDTH, bias=False)
        self.out = nn.Linear(HEADS * HEAD_WIDTH, width)

    def forward(self, x: Tensor, valid: Tensor) -> tuple[Tensor, Tensor]:
        """Also returns the weights [B,heads,n,n]; each row sums to 1, or is 0 in a view without any
        token.
        """
        q, k, v = (
            self.qkv(x).unflatten(-1, (3, HEADS, HEAD_WIDTH)).permute(2, 0, 3, 1, 4)
        )  # each [B,heads,n,64]
        weights = masked_softmax(q @ k.mT * HEAD_WIDTH**-0.5, valid[:, None, None])
        return self.out((weights @ v).transpose(1, 2).flatten(2)), weights


class TransformerLayer(nn.Module):
    """x + MHSA(BN(x)), then x + FF(BN(x)): x [B,n,C] -> the same, and the attention weights."""

    def __init__(self, width: int):
        super().__init__()
        self.norm1, self.norm2 = RowNorm(width), RowNorm(width)
        self.attention = TokenAttention(width)
        self.linears = nn.ModuleList(nn.Linear(width, width) for _ in range(3))
        self.norms = nn.ModuleList(RowNorm(width) for _ in range(2))

    def forward(self, x: Tensor, valid: Tensor, mask: Tensor | None) -> tuple[Tensor, Tensor]:
        """valid [B,n]; mask: the same where some token may be invalid, None where all count."""
        y, weights = self.attention(self.norm1(x, mask), valid)
        x = x + y
        y = self.norm2(x, mask)
        for linear, norm in zip(self.linears, self.norms, strict=False):
            y = norm(linear(y), mask).relu()
        return x + self.linears[-1](y), weights


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


def tiles(count: int) -> Tensor:
    """`count` boxes [count,4] that tile the frame in equal rows and columns, as square as the
    number allows.
    """
    rows = max(k for k in range(1, count + 1) if count % k == 0 and k * k <= count)
    columns = count // rows
    corners = [
        (j / columns, i / rows, (j + 1) / columns, (i + 1) / rows)
        for i in range(rows)
        for j in range(columns)
    ]
    return torch.tensor(corners)


def coverage(boxes: Tensor, grid: tuple[int, int]) -> Tensor:
    """The part of each cell that a box covers, divided by their sum: boxes [...,4] xyxy in [0,1] ->
    [...,h·w]; empty: zeros.
    """
    h, w = grid
    rows, columns = (torch.arange(n, device=boxes.device, dtype=boxes.dtype) for n in grid)
    x1, y1, x2, y2 = (side[..., None] for side in boxes.unbind(-1))
    along_y = (torch.minimum(y2 * h, rows + 1) - torch.maximum(y1 * h, rows)).clamp_min(0)
    along_x = (torch.minimum(x2 * w, columns + 1) - torch.maximum(x1 * w, columns)).clamp_min(0)
    return row_normalise((along_y[..., :, None] * along_x[..., None, :]).flatten(-2))


class EANHead(nn.Module):
    """The head; see the top of this file."""

    def __init__(
        self,
        cut: str,
        channels: int,
        num_classes: int,
        objects: SparseObjects | None,
        dropout: float,
    ):
        super().__init__()
        self.cut, self.objects = cut, objects
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)
        nn.init.normal_(self.fc.weight, std=0.001)
        nn.init.zeros_(self.fc.bias)
        self.needs = (
            (cut, "boxes", "valid")
            if objects is not None and objects.regions == "boxes"
            else (cut,)
        )
        self.uses = ("grid",)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Clips with `needs` -> logits [B,K]; maps: regions and attention of `SparseObjects`."""
        fmap = clips.get(self.cut)  # [B,T,C,h,w]
        v, maps = grid_mean(fmap, clips.grid).mean(1), {}
        if self.objects is not None:
            size = tuple(fmap.shape[-2:])
            if clips.grid is not None and (clips.grid != clips.grid.new_tensor(size)).any():
                raise ValueError(
                    f"head ean takes views of one size, got maps of {size[0]}×{size[1]} cells of "
                    f"which some are padding: "
                    "extract square views"
                )
            more, maps = self.objects(fmap.flatten(3).mT, size, clips)
            v = v + more
        return HeadOutput(
            self.fc(self.drop(v)),
            maps={k: m.detach() for k, m in maps.items()} if want_maps else {},
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


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    regions: str = "saliency",
    objects: int = 4,
    position: str = "auto",
    cut: str = "res5",
    backbone: str = "",
    backbone_options: dict = NO_OPTIONS,
    weights: str = "none",
    soi_at: str = "",
    width: int = 512,
    dropout: float = 0.5,
) -> EANHead | HeadAboveCut:
    """EAN's head on the map at `cut`, or with a `backbone` on its last map, which is run from the
    one at `cut` and learned: `backbone="ean_r50"`, `cut="res4.5"` learns the last EAB and res5 too.
    `backbone_options` (the trunk's own variant is among them) and `weights` as at the extraction.
    `soi_at` (Table 6): earlier cuts of it, a comma between them, that have a transformer too.

    `variant`: "paper" or "released", see the top of this file. `regions` (Table 7): "saliency"
    learns `objects` maps per step, "fixed" takes as many equal tiles, "all" makes every cell a
    token, "boxes" every valid box, "none" leaves the transformer away: the mean of the map, Table 5
    without SOI. `position`, E: "spatial", "spatio_temporal", "none", or "auto" for the variant's.
    `width`: channels of the transformer. `dropout`: before the classifier.
    """
    for option, value, choices in (
        ("variant", variant, ("paper", "released")),
        ("regions", regions, REGIONS),
        ("position", position, POSITIONS),
    ):
        one_of("ean", option, value, choices)
    if objects < 1 or width < 1:
        raise ValueError(
            f"head ean: expected objects and width of at least 1, got objects={objects}, "
            f"width={width}"
        )
    dims.require("ean", cut, *(("boxes", "valid") if regions == "boxes" else ()))
    if soi_at and (not backbone or regions in ("boxes", "none")):
        raise ValueError(
            f"head ean, option soi_at: expected a backbone and regions of the map alone, got "
            f"backbone={backbone!r}, "
            f"regions={regions!r}"
        )
    how = {"regions": regions, "objects": objects, "position": position}
    last, network = cut, None
    if backbone:
        lower = dims
        network, dims = head_above_cut("ean", dims, backbone, backbone_options, weights, cut)
        last = network.last
        for point in points_of(soi_at):
            _insert(network, cut, point, lower, variant == "released", width, how)
    channels, *grid = dims.maps[last]
    soi = (
        None
        if regions == "none"
        else new_objects(channels, tuple(grid), dims.T, width, variant == "released", **how)
    )
    head = EANHead(last, channels, num_classes, soi, dropout)
    return head if network is None else HeadAboveCut("ean", cut, network, head)


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


def _insert(
    network: Backbone, cut: str, point: str, dims: Dims, released: bool, width: int, how: dict
) -> None:
    """Puts a transformer at `point`, its width in proportion to the channels there; `dims` has the
    map at `cut`.
    """
    cuts = network.cuts()
    if point not in cuts[cuts.index(cut) :] or point in network.units()[-1][0]:
        raise ValueError(
            f"head ean, option soi_at: expected cuts from {cut} on and before {network.last}, got "
            f"{point!r}"
        )
    channels = network.channels(point)
    grid = network.grid(point, frames_of(network, cut, dims.maps[cut][1:]))
    width = max(1, width * channels // network.channels())
    network.insert(point, ObjectsAdded(new_objects(channels, grid, dims.T, width, released, **how)))
