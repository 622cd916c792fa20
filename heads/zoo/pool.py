"""Global average pooling: the baseline that sees no regions.

y = W drop(mean_t p_t) + b, with p [B,T,C] the per-frame features (`pooled`) -> logits [B,K].

It is the classifier of the I3D baseline (STRG, ECCV 2018: average pooling, dropout 0.3, one linear
layer) and of GOS's "global pooling" row (CVPR 2020, Table 1). No release differs from that: both
variants are the paper.

Differs from the paper: only the classifier learns, the backbone is frozen.
"""

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.variants import SAME, one_of


class PoolHead(nn.Module):
    needs = ("pooled",)
    uses = ()

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """pooled [B,T,C] -> logits [B,K]; no maps."""
        return HeadOutput(self.fc(self.drop(clips.get("pooled").mean(1))))


def build(
    dims: Dims, num_classes: int, *, variant: str = "paper", dropout: float = 0.3
) -> PoolHead:
    """`variant`: "paper" or "released", which are the same here. `dropout`: on the pooled feature
    (STRG 0.3, GOS none).
    """
    one_of("pool", "variant", variant, SAME)
    dims.require("pool", "pooled")
    return PoolHead(dims.C, num_classes, dropout)
