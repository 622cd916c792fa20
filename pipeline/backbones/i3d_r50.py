"""I3D on ResNet-50. Without options it is GOS's backbone (supp. Table 3): 32×224² -> 2048×16×7×7.

The options are those of `_i3d.resnet3d`. Published models:
- STRG: temporal="alternating", res5_stride=1, pool1_time=1, reduce=512; 16×14×14. Its Table 1 has
  3×1×1 in every block (temporal="every"), which is not the network of its 153 GFLOPs (sec. 6.1).
- PySlowFast's and pytorchvideo's I3D_8x8_R50: temporal="alternating", pool1_time=1, pool2_time=2.
- The kinetics-res50 port: the same with pool1_pad=0. Its authors ran it with conv1_stride=2,
  pool1_time=2, pool1_stride=2. So is i3d_baseline_32x2_IN_pretrain_400k.pkl of video-nonlocal-net.
- mmaction2: temporal="alternating", conv1_stride=2, pool1_time=1, pool1_stride=2, pool2_time=2.
docs/weights.md has more of them.
"""

from functools import partial

from pipeline.backbones._i3d import resnet3d

build = partial(resnet3d, 50)
