"""I3D on ResNet-50. Without options it is GOS's backbone (spec 1.2): 32×224² frames give 2048×16×7×7."""

from pipeline.backbones._base import Backbone
from pipeline.backbones._i3d import resnet3d


def build(
    temporal: str = "every",
    res5_stride: int = 2,
    conv1_stride: int = 1,
    pool1_time: int = 3,
    pool1_stride: int = 1,
    pool1_pad: int = 1,
    pool2_time: int = 3,
    reduce: int = 0,
    width: int = 64,
) -> Backbone:
    """Options as in `_i3d.resnet3d`; temporal "every" or "alternating".

    GOS: the defaults. STRG (spec 2.2): temporal="alternating", res5_stride=1, pool1_time=1, reduce=512, 16×14×14.
    PySlowFast and pytorchvideo I3D_8x8_R50: temporal="alternating", pool1_time=1, pool2_time=2.
    The kinetics-res50 port: the same with pool1_pad=0; its authors ran it with conv1_stride=2, pool1_time=2, pool1_stride=2.
    """
    return resnet3d(
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
