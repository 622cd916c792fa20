"""A small non-local network for digit videos: the NL row of RSTG's Table 1, whose network the paper
does not describe.

Not stated in the paper: everything. Chosen here: `digit_i3d` with the five non-local blocks (Wang
et al. 2018) that I3D-R50 has in res3 and res4; 17 536 238 parameters with a classifier of 46
classes, 19.8 G multiply-adds. Options: those of `digit_i3d`.
"""

from functools import partial

from pipeline.backbones.digit_i3d import build as digit_i3d

build = partial(digit_i3d, non_local="gaussian")
