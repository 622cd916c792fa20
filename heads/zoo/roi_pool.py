"""Average pooling over regions: the baseline that sees objects but not how they relate.

y = W drop(mean of x_i over the valid nodes) + b, with x [B,T,N,C] the RoIAlign features (`nodes`)
-> logits [B,K].

GOS (CVPR 2020), Table 2, "pooling over RoIs" (no dropout, the default). No release differs from
that: both variants are the paper.

Differs from the paper: only the classifier learns, and the nodes are aligned on the cached cut, not
on a reduced map learned beside it.
"""

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import SAME, one_of


class RoiPool(nn.Module):
    needs = ("nodes", "valid")
    uses = ()

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """nodes [B,T,N,C], valid [B,T,N] -> logits [B,K]; a view without boxes gets W 0 + b; no
        maps.
        """
        return HeadOutput(self.fc(self.drop(masked_mean(clips.get("nodes"), clips.get("valid")))))


def build(dims: Dims, num_classes: int, *, variant: str = "paper", dropout: float = 0.0) -> RoiPool:
    """`variant`: "paper" or "released", which are the same here. `dropout`: on the pooled feature
    (not stated in the paper).
    """
    one_of("roi_pool", "variant", variant, SAME)
    dims.require("roi_pool", "nodes", "valid")
    return RoiPool(dims.C, num_classes, dropout)
