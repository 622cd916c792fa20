"""A small non-local network for digit videos: the row NL of RSTG's Table 1 (NeurIPS 2019).

The paper does not describe this network; everything about it is our choice. It is `digit_i3d` with
the five non-local blocks (Wang et al. 2018) that I3D-R50 has in res3 and res4. With a classifier of
46 classes it has 17 536 238 parameters and takes 19.8 G multiply-adds a video.

The options are those of `digit_i3d.build`.
"""

from functools import partial

from pipeline.backbones.digit_i3d import build as digit_i3d

build = partial(digit_i3d, non_local="gaussian")
