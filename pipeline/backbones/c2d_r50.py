"""C2D on ResNet-50 (spec 4.4): I3D without temporal kernels, so that only the pools look across
time.
"""

from pipeline.backbones._base import Backbone
from pipeline.backbones._i3d import resnet3d


def build(
    res5_stride: int = 2,
    pool1_time: int = 1,
    pool1_stride: int = 1,
    pool1_pad: int = 1,
    pool2_time: int = 3,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Options as in `_i3d.resnet3d`. RSTG: res5_stride=1, pool1_pad=0, pool2_time=2. Per frame, T =
    F: pool2_time=1.
    """
    return resnet3d(
        50,
        temporal="none",
        pool1_time=pool1_time,
        pool1_stride=pool1_stride,
        pool1_pad=pool1_pad,
        pool2_time=pool2_time,
        res5_stride=res5_stride,
        reduce=reduce,
        width=width,
    )
