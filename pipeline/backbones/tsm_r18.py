"""TSM on ResNet-18: 2-D convolutions on every frame, T = F, and a shift of channels along time in
every block (spec 3.3).
"""

from pipeline.backbones._base import Backbone
from pipeline.backbones._tsm import tsm


def build(shift: int = 8, reduce: int = 0, width: int = 64) -> Backbone:
    """shift: 1/shift of the channels come from the next step, as many from the last; 0 for none.
    reduce, width: see `ResNet`.

    A clip's frames are its segments, one chunk: sample 8 or 16 of them. ValueError for a shift of 1
    or below 0.
    """
    return tsm(18, shift, reduce, width)
