"""C2D on ResNet-50: I3D without temporal kernels, so that only its pools look across time.

RSTG's backbone of that name: res5_stride=1, pool1_pad=0, pool2_time=2. Per frame, T = F:
pool2_time=1.
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
    """Build C2D on ResNet-50. `_i3d.resnet3d` says what the options mean.

    Args:
        res5_stride: spatial stride of res5, 1 or 2.
        pool1_time: window in time of the maximum after conv1: 1, 2 or 3.
        pool1_stride: its stride in time, 1 or 2.
        pool1_pad: its padding in space, 0 or 1.
        pool2_time: window of the maximum over time before res3: 3, 2, or 1 for none.
        reduce: channels of the stage "reduced", 0 for none.
        width: channels of the stem.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: another value.
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
