"""The modules of the published heads, one folder for each paper.

strg (ECCV 2018), rstg (NeurIPS 2019), gos (CVPR 2020), dyreg (NeurIPS 2021) and ean (IJCV 2022).
Each module opens with the equations that it computes, what differs from the paper, and what the
paper does not state. The folders import `heads.interface` and never one another.
"""
