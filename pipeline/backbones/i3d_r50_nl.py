"""I3D on ResNet-50 with five non-local blocks (Wang et al. 2018).

They follow res3.1, res3.3, res4.1, res4.3 and res4.5. The options are those of `_i3d.resnet3d`.
STRG (Tables 2b and 4): res5_stride=1, pool1_time=1, reduce=512.
"""

from functools import partial

from pipeline.backbones._i3d import resnet3d

build = partial(resnet3d, 50, temporal="alternating", non_local="gaussian")
