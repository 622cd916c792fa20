"""I3D on ResNet-101: STRG's largest models (Table 3). 128 frames at 288² give 2048×16×18×18.

The options are those of `_i3d.resnet3d`; STRG: reduce=512.

The paper does not state how 128 frames become 16 steps. Here conv1, pool1 and pool2 halve time
each, as in the models of 32 and 128 frames of the non-local networks' code, which STRG builds on.
"""

from functools import partial

from pipeline.backbones._i3d import resnet3d

build = partial(
    resnet3d, 101, temporal="alternating", res5_stride=1, conv1_stride=2, pool1_stride=2
)
