"""Global pooling beside pooling over regions: the two halves of STRG's classifier without any
graph.

y = W [drop(mean_t p_t) ; mean of x_i over the valid nodes] + b, with p [B,T,C] (`pooled`), x
[B,T,N,C] (`nodes`) -> logits [B,K].

STRG (ECCV 2018), Table 2a, "Proposal + AvgPool". Global half first, dropout on it alone, as in
`strg`. No release differs from that: both variants are the paper.

Differs from the paper: the backbone is frozen, so this is the classifier's part of that row.
"""

import torch
from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import SAME, one_of


class GlobalRoiPool(nn.Module):
    needs = ("pooled", "nodes", "valid")
    uses = ()

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """pooled [B,T,C], nodes [B,T,N,C], valid [B,T,N] -> logits [B,K]; no maps."""
        regions = masked_mean(clips.get("nodes"), clips.get("valid"))  # [B,C]
        return HeadOutput(
            self.fc(torch.cat([self.drop(clips.get("pooled").mean(1)), regions], dim=1))
        )


def build(
    dims: Dims, num_classes: int, *, variant: str = "paper", dropout: float = 0.3
) -> GlobalRoiPool:
    """`variant`: "paper" or "released", which are the same here. `dropout`: on the global half
    (STRG's 0.3).
    """
    one_of("global_roi_pool", "variant", variant, SAME)
    dims.require("global_roi_pool", "pooled", "nodes", "valid")
    return GlobalRoiPool(dims.C, num_classes, dropout)
