"""I3D on ResNet-50. Without options it is GOS's backbone (spec 1.2): 32×224² frames give
2048×16×7×7.

Options: `_i3d.resnet3d`. STRG (spec 2.2): temporal="alternating", res5_stride=1, pool1_time=1,
reduce=512, 16×14×14. PySlowFast and pytorchvideo I3D_8x8_R50: temporal="alternating", pool1_time=1,
pool2_time=2. The kinetics-res50 port: the same with pool1_pad=0; its authors ran it with
conv1_stride=2, pool1_time=2, pool1_stride=2.
"""

from functools import partial

from pipeline.backbones._i3d import resnet3d

build = partial(resnet3d, 50)
