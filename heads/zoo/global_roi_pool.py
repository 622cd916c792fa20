"""Global pooling and pooling over regions: the two halves of STRG's classifier, without a graph.

    y = W [drop(mean_t p_t) ; mean of x_i over the valid nodes] + b       [B,K]

p [B,T,C] is `pooled`, x [B,T,N,C] is `nodes`. It is STRG's row "Proposal + AvgPool" (ECCV 2018,
Table 2a). As in `strg`, the global half comes first and dropout is on it alone. No release differs
from that: both variants are the paper.

Differs from the paper: the backbone is frozen, so this is the classifier's part of that row.
"""

import torch
from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import SAME, one_of


class GlobalRoiPool(nn.Module):
    """A linear layer on the mean of `pooled` and the mean of the valid nodes."""

    needs = ("pooled", "nodes", "valid")

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(2 * channels, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: pooled [B,T,C], nodes [B,T,N,C] and valid [B,T,N].
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K].
        """
        view = self.drop(clips.get("pooled").mean(1))  # [B,C]
        regions = masked_mean(clips.get("nodes"), clips.get("valid"))  # [B,C]
        return HeadOutput(self.fc(torch.cat([view, regions], dim=1)))


def build(
    dims: Dims, num_classes: int, *, variant: str = "paper", dropout: float = 0.3
) -> GlobalRoiPool:
    """Build the head: STRG, Table 2a, "Proposal + AvgPool".

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        dropout: on the global half (STRG's 0.3).

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: unknown variant.
        MissingFields: the cache lacks `pooled`, `nodes` or `valid`.
    """
    one_of("global_roi_pool", "variant", variant, SAME)
    dims.require("global_roi_pool", "pooled", "nodes", "valid")
    return GlobalRoiPool(dims.C, num_classes, dropout)
