"""A small I3D for digit videos: the row I3D of RSTG's Table 1 (NeurIPS 2019).

The paper does not describe this network; everything about it is our choice. It is I3D on ResNet-50
as far as res4, with temporal taps in every other block and no pool in time, so that T = F. The stem
has no maximum, so that frames of 64×64 give 1024 channels on 8×8 cells.

With a classifier of 46 classes it has 10 177 774 parameters and takes 13.6 G multiply-adds a video.
RSTG's digit network has 10 565 168 parameters, and its convolutions alone take 23.4 G.
"""

from pipeline.backbones._base import Backbone
from pipeline.backbones._i3d import TEMPORAL, add_non_local, non_local_places, temporal_taps
from pipeline.backbones._layers import MaxPool
from pipeline.backbones._non_local import KINDS
from pipeline.backbones._options import require_allowed, require_widths
from pipeline.backbones._resnet import Bottleneck, ResNet


def build(
    temporal: str = "alternating",
    non_local: str = "none",
    non_local_at: str = "",
    non_local_pool: bool = True,
    grey: bool = True,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Build a small I3D with the stages stem, res2, res3 and res4.

    Frames of 64×64 have 32, 32, 16 and 8 cells a side there.

    Args:
        temporal: "every", "alternating" or "none", see `_i3d.temporal_taps`.
        non_local: "gaussian" or "dot_product" adds non-local blocks of that kind; "none" adds
            none.
        non_local_at: the blocks of res3 and res4 that a non-local block follows, separated by
            commas; "" for the five of I3D-R50.
        non_local_pool: see `NonLocal`.
        grey: one input channel, the mean over colours.
        reduce: channels of the stage "reduced", 0 for none.
        width: channels of the stem.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: another value.
    """
    allowed = {"temporal": (temporal, TEMPORAL), "non_local": (non_local, (*KINDS, "none"))}
    require_allowed(allowed)
    require_widths(reduce, width)
    backbone = ResNet(
        Bottleneck,
        temporal_taps(50, temporal)[:3],
        width=width,
        conv1_taps=1 if temporal == "none" else 5,
        conv1_stride=1,
        pool1=MaxPool((1, 1, 1), (1, 1, 1), (0, 0, 0)),
        pool2=None,
        res5_stride=1,
        reduce=reduce,
        imagenet="",
        grey=grey,
    )
    places = non_local_places(50)
    if non_local_at:
        blocks = tuple(cut for cut in backbone.cuts() if "." in cut)
        places = non_local_at.split(",")
        for place in places:
            require_allowed({"non_local_at": (place, blocks)})
        # Version 2: the backbone digit_nl had five blocks without this option.
        backbone.version = 2
    if non_local != "none":
        add_non_local(backbone, places, non_local, non_local_pool)
    return backbone
