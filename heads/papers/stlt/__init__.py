"""Layouts and appearance of Radevski et al., BMVC 2021.

blocks        attention, and the transformer blocks made of it
layout        STLT: boxes and classes of a step, then steps
appearance    a transformer over the cells of a map, or over pooled features
fusion        blocks in which layout and appearance read each other, and the classifiers
"""
