"""EAN with its Sparse Object Interaction Transformer.

Tian et al., EAN: Event Adaptive Network for Enhanced Action Recognition, IJCV 2022, sec. 3.2.

    v = GAP(res5) + SOI(res5),  SOI = 0 at first         [B,2048]
    y = W drop(v) + b                                    [B,K]      W from N(0, 0.001), b = 0

The equations of SOI are in heads/papers/ean/sparse_objects.py. variant="released" differs from
"paper" in two places:

    Saliency-Net, paper      1x1x1 to 64, BN, ReLU, 3x1x1, BN, ReLU, 1x5x5, BN, ReLU, 1x1x1 to M
    Saliency-Net, released   1x1x1 to 128, ReLU, BN, 3x3x3, ReLU, BN, 1x3x3, ReLU, BN, 1x3x3 to M
    E, paper                 one vector per cell
    E, released              one vector per cell and step

Parameters at 2048x8x7x7, released: 6 645 380, of which E is 200 704; paper: 5 956 932, of which E
is 25 088.

The last Event Adaptive Block and res5 can be learned with it, from the map before that block. That
is the cut res4.5 of ean_r50 (1024 x 8 x 14 x 14, 3.2 MB a view in float16): backbone="ean_r50",
cut="res4.5". Table 6 has transformers at the stages without a block too: `soi_at="res4"` with
cut="res4" and a trunk of eab="stem,res2,res3" is its row 1-3.

Differs from the paper:
- what is below `cut` is frozen;
- `regions="boxes"` masks padded boxes: they attend to nothing, count in no mean and in no batch
  statistics;
- a batch norm that would see a single row in training (a batch of one view) uses its running
  statistics.

Dead in training in both variants, as in the release: biases in front of a batch norm or of the
softmax over cells.

E is made for the grid of the training views. For views of another grid, such as the 256x256 test
views of Table 2, it is interpolated. In the released variant E fixes the number of steps; another
one is refused.

Not stated in the paper, and chosen:
- how E fits another grid: bilinearly;
- the kernel of the last layer of Saliency-Net;
- fixed regions are a grid of equal tiles (2x2 for 4);
- a box weighs each cell by the part of it that the box covers;
- a transformer before the last stage has a quarter of its channels, as the last has, and adds its
  vector at every position.
"""

from collections.abc import Mapping
from typing import Any

from torch import nn

from heads.interface.changes import Change
from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import grid_mean
from heads.interface.network_above_cut import (
    HeadAboveCut,
    head_above_cut,
    smallest_frames,
    split_points,
)
from heads.interface.variants import one_of
from heads.papers.ean.sparse_objects import ObjectsAdded, SparseObjects, new_objects
from pipeline.backbones import Backbone


def _has_other_heads(options: Mapping[str, Any]) -> bool:
    """Whether some transformer has another width than 512, whose heads have 64 channels."""
    return options["width"] != 512 or bool(options["soi_at"])


CHANGES = (
    Change(
        2,
        "attention heads had 64 channels at every width and have width / 8 now",
        lambda options: options["regions"] != "none" and _has_other_heads(options),
    ),
    Change(
        2,
        "the paper's Saliency-Net had three layers and has four now",
        lambda options: (options["variant"], options["regions"]) == ("paper", "saliency"),
    ),
    Change(
        2,
        "blocks without a pool had no convolution in its place and have one now",
        lambda options: options["backbone_options"].get("pool") == "none",
    ),
)
NO_OPTIONS: dict = {}
REGIONS = ("saliency", "fixed", "all", "boxes", "none")
POSITIONS = ("auto", "spatial", "spatio_temporal", "none")


class EANHead(nn.Module):
    """The head; see the top of this file.

    Args:
        cut: the map.
        channels: C of the map.
        num_classes: K.
        objects: the transformer; None leaves the mean of the map.
        dropout: before the classifier.
    """

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
        self.needs = (cut,)
        if objects is not None and objects.regions == "boxes":
            self.needs = (cut, "boxes", "valid")
        self.uses = ("grid",)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the fields of `needs`.
            want_maps: whether to return the maps "regions" [B,T,M,P] and "attention"
                [B,layers,heads,n,n].

        Returns:
            logits [B,K].

        Raises:
            ValueError: a part of the map is padding, or E has vectors for another number of steps.
        """
        fmap = clips.get(self.cut)  # [B,T,C,h,w]
        v, maps = grid_mean(fmap, clips.grid).mean(1), {}
        if self.objects is not None:
            h, w = fmap.shape[-2:]
            # Tiles and E lie over the whole map, so none of it may be padding.
            if any(size != (h, w) for size in clips.grid_sizes()):
                raise ValueError(
                    f"head ean takes views of one size, got maps of {h}×{w} cells of which some "
                    "are padding: extract square views"
                )
            more, maps = self.objects(fmap.flatten(3).mT, (h, w), clips)
            v = v + more

        logits = self.fc(self.drop(v))
        if not want_maps:
            return HeadOutput(logits)
        return HeadOutput(logits, maps={name: m.detach() for name, m in maps.items()})


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
    """Build EAN: Tian et al., IJCV 2022, sec. 3.2, Tables 5 to 7.

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", see the top of this file.
        regions: "saliency" learns `objects` maps per step, "fixed" takes as many equal tiles, "all"
            makes every cell a token, "boxes" every valid box (Table 7). "none" leaves the
            transformer out: the mean of the map (Table 5 without SOI).
        objects: M, regions per step.
        position: E: "spatial", "spatio_temporal", "none", or "auto" for the variant's.
        cut: the map [B,T,C,h,w].
        backbone: the network that is run from the map at `cut`, and learned; "" puts the head on
            that map. "ean_r50" with cut="res4.5" learns the last EAB and res5 too.
        backbone_options: its options, as at the extraction; the trunk's variant is one of them.
        weights: its weights, as at the extraction.
        soi_at: earlier cuts of it, separated by commas, that have a transformer too (Table 6).
        width: channels of the transformer.
        dropout: before the classifier.

    Returns:
        The head with fresh weights; those of the backbone are loaded.

    Raises:
        ValueError: a value that an option cannot have, or a cut that does not fit.
        MissingFields: the cache lacks the map or the boxes.
    """
    one_of("ean", "variant", variant, ("paper", "released"))
    one_of("ean", "regions", regions, REGIONS)
    one_of("ean", "position", position, POSITIONS)
    if objects < 1 or width < 1:
        raise ValueError(
            f"head ean: expected objects and width of at least 1, got objects={objects}, "
            f"width={width}"
        )
    needs = (cut, "boxes", "valid") if regions == "boxes" else (cut,)
    dims.require("ean", *needs)
    if soi_at and (not backbone or regions in ("boxes", "none")):
        raise ValueError(
            "head ean, option soi_at: expected a backbone and regions of the map alone, got "
            f"backbone={backbone!r}, regions={regions!r}"
        )

    released = variant == "released"
    options = {"regions": regions, "objects": objects, "position": position}
    # Without a backbone the head reads the cached map itself.
    last, network = cut, None
    if backbone:
        # `dims` becomes that of the last map; `_insert` needs the grid of the cached one.
        cached = dims
        network, dims = head_above_cut("ean", dims, backbone, backbone_options, weights, cut)
        last = network.last
        for point in split_points(soi_at):
            _insert(network, cut, point, cached, released, width, options)

    channels, h, w = dims.maps[last]
    soi = None
    if regions != "none":
        soi = new_objects(channels, (h, w), dims.T, width, released, **options)
    head = EANHead(last, channels, num_classes, soi, dropout)
    return head if network is None else HeadAboveCut("ean", cut, network, head)


def _insert(
    network: Backbone, cut: str, point: str, dims: Dims, released: bool, width: int, options: dict
) -> None:
    """Put a transformer at a point, its width in proportion to the channels there."""
    cuts = network.cuts()
    if point not in cuts[cuts.index(cut) :] or point in network.units()[-1][0]:
        raise ValueError(
            f"head ean, option soi_at: expected cuts from {cut} on and before {network.last}, got "
            f"{point!r}"
        )
    # The last transformer has `width` for the channels of the last map.
    channels = network.channels(point)
    grid = network.grid(point, smallest_frames(network, cut, dims.maps[cut][1:]))
    width = max(1, width * channels // network.channels())
    objects = new_objects(channels, grid, dims.T, width, released, **options)
    network.insert(point, ObjectsAdded(objects))
