"""A small I3D for digit videos: the I3D row of RSTG's Table 1 (NeurIPS 2019), whose network the
paper does not describe.

Not stated in the paper: everything. Chosen here: I3D on ResNet-50 as far as res4, with temporal
taps in every other block and no pool in time, so that T = F, and no maximum in the stem, so that
frames of 64×64 give 1024 channels on 8×8 cells. With a classifier of 46 classes it has 10 177 774
parameters and 13.6 G multiply-adds a video; RSTG's digit network has 10 565 168 parameters, and its
convolutions alone take 23.4 G.
"""

from pipeline.backbones._base import Backbone, MaxPool
from pipeline.backbones._i3d import non_local_places, temporal_taps
from pipeline.backbones._non_local import KINDS, NonLocal
from pipeline.backbones._resnet import Bottleneck, ResNet


def build(
    temporal: str = "alternating",
    non_local: str = "none",
    non_local_pool: bool = True,
    grey: bool = True,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Stages stem, res2, res3, res4; frames of 64×64 have 32, 32, 16 and 8 cells a side there.

    temporal: see `_i3d.temporal_taps`. non_local: "gaussian" or "dot_product" puts five blocks of
    that kind where I3D-R50 has them; non_local_pool: see `NonLocal`. grey: one input channel, the
    mean over colours. reduce, width: see `ResNet`. ValueError for any other value.
    """
    allowed = {
        "temporal": (temporal, ("every", "alternating", "none")),
        "non_local": (non_local, (*KINDS, "none")),
    }
    for option, (value, values) in allowed.items():
        if value not in values:
            raise ValueError(f"{option}={value!r}: expected one of {', '.join(values)}")
    if reduce < 0 or width < 1:
        raise ValueError(
            f"reduce={reduce}, width={width}: expected reduce at least 0 (no reduction) and width "
            f"at least 1"
        )
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
    for place in non_local_places(50) if non_local != "none" else ():
        block = backbone.get_submodule(place)
        block.non_local = NonLocal(block.channels, non_local, non_local_pool)
    return backbone
