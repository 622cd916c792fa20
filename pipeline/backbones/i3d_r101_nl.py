"""I3D on ResNet-101 with five non-local blocks: STRG's Table 3, rows NL.

128 frames at 288² give 2048×16×18×18. The blocks follow res3.1, res3.3, res4.6, res4.13 and
res4.20, which the paper does not state: those of the non-local networks' code. Time is halved as in
i3d_r101. The options are those of `_i3d.resnet3d`; STRG: reduce=512.
"""

from functools import partial

from pipeline.backbones._i3d import resnet3d

build = partial(
    resnet3d,
    101,
    temporal="alternating",
    res5_stride=1,
    conv1_stride=2,
    pool1_stride=2,
    non_local="gaussian",
)
