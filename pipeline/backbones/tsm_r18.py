"""TSM on ResNet-18 (Lin et al., ICCV 2019): 2-D convolutions per frame, and shifts along time.

T = F. A clip's frames are its segments, in one chunk: sample 8 or 16 of them.
"""

from pipeline.backbones._base import Backbone
from pipeline.backbones._tsm import tsm


def build(shift: int = 8, reduce: int = 0, width: int = 64) -> Backbone:
    """Build TSM on ResNet-18.

    Args:
        shift: 1/shift of the channels come from the next step, as many from the step before; 0
            for no shift.
        reduce: channels of the stage "reduced" (see `ResNet`), 0 for none.
        width: channels of the stem.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: `shift` is 1 or below 0.
    """
    return tsm(18, shift, reduce, width)
