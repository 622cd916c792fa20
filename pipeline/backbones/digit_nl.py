"""A small non-local network for digit videos: the row NL of RSTG's Table 1 (NeurIPS 2019).

The paper (sec. 3.1) says that it has one non-local block, in the second residual stage; everything
else about it is our choice. It is `digit_i3d` with an embedded Gaussian block (Wang et al. 2018)
before the last block of res3, where Wang et al. put a single one (Table 2). With a classifier of 46
classes it has 10 704 366 parameters and takes 15.3 G multiply-adds a video.

The options are those of `digit_i3d.build`.
"""

from functools import partial

from pipeline.backbones.digit_i3d import build as digit_i3d

build = partial(digit_i3d, non_local="gaussian", non_local_at="res3.2")
