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

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import grid_mean
from heads.interface.network_above_cut import (
    HeadAboveCut,
    smallest_frames,
    head_above_cut,
    split_points,
)
from heads.interface.variants import one_of
from heads.papers.ean.sparse_objects import ObjectsAdded, SparseObjects, new_objects
from pipeline.backbones import Backbone

NO_OPTIONS: dict = {}
REGIONS = ("saliency", "fixed", "all", "boxes", "none")
POSITIONS = ("auto", "spatial", "spatio_temporal", "none")


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
        for point in split_points(soi_at):
            _insert(network, cut, point, lower, variant == "released", width, how)
    channels, *grid = dims.maps[last]
    soi = (
        None
        if regions == "none"
        else new_objects(channels, tuple(grid), dims.T, width, variant == "released", **how)
    )
    head = EANHead(last, channels, num_classes, soi, dropout)
    return head if network is None else HeadAboveCut("ean", cut, network, head)


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
    grid = network.grid(point, smallest_frames(network, cut, dims.maps[cut][1:]))
    width = max(1, width * channels // network.channels())
    network.insert(point, ObjectsAdded(new_objects(channels, grid, dims.T, width, released, **how)))
