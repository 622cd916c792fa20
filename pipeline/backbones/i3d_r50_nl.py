"""I3D on ResNet-50 with five non-local blocks (Wang et al. 2018): two in res3, three in res4, after every other block."""

from pipeline.backbones._base import Backbone
from pipeline.backbones._i3d import resnet3d
from pipeline.backbones._non_local import KINDS, NonLocal


def build(
    temporal: str = "alternating",
    non_local: str = "gaussian",
    non_local_pool: bool = True,
    res5_stride: int = 2,
    conv1_stride: int = 1,
    pool1_time: int = 3,
    pool1_stride: int = 1,
    pool1_pad: int = 1,
    pool2_time: int = 3,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Options as in `_i3d.resnet3d`, with `non_local` and `non_local_pool` as in `NonLocal`: "gaussian" or "dot_product".

    The blocks follow res3.1, res3.3, res4.1, res4.3 and res4.5 and belong to those cuts. ValueError for another kind.
    """
    if non_local not in KINDS:
        raise ValueError(f"non_local={non_local!r}: expected one of {', '.join(KINDS)}")
    backbone = resnet3d(
        50,
        temporal,
        conv1_stride=conv1_stride,
        pool1_time=pool1_time,
        pool1_stride=pool1_stride,
        pool1_pad=pool1_pad,
        pool2_time=pool2_time,
        res5_stride=res5_stride,
        reduce=reduce,
        width=width,
    )
    for block in (*backbone.res3[1::2], *backbone.res4[1::2]):
        block.non_local = NonLocal(block.channels, non_local, non_local_pool)
    return backbone
