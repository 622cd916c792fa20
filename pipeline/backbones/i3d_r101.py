"""I3D on ResNet-101, as STRG's largest models (Charades, spec 7): 128 frames at 288² give 16 steps."""

from pipeline.backbones._base import Backbone
from pipeline.backbones._i3d import resnet3d


def build(
    temporal: str = "alternating",
    res5_stride: int = 1,
    conv1_stride: int = 2,
    pool1_time: int = 3,
    pool1_stride: int = 2,
    pool1_pad: int = 1,
    pool2_time: int = 3,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Options as in `_i3d.resnet3d`; temporal "every" or "alternating".

    How 128 frames become 16 steps is not stated in the paper. Our choice: conv1, pool1 and pool2 halve time each, as in the
    32-frame models of the Non-local networks' release, which STRG builds on.
    """
    return resnet3d(
        101,
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
