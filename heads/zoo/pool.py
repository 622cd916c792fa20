"""Global average pooling: the baseline that sees no regions.

    y = W drop(mean_t p_t) + b       [B,K],  p [B,T,C] the per-frame features (`pooled`)

It is the classifier of the I3D baseline (STRG, ECCV 2018: average pooling, dropout 0.3, one linear
layer) and of GOS's row "global pooling" (CVPR 2020, Table 1). No release differs from that: both
variants are the paper.

Differs from the paper: only the classifier learns, the backbone is frozen.
"""

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.variants import SAME, one_of


class PoolHead(nn.Module):
    """Dropout and a linear layer on the mean of `pooled` over time."""

    needs = ("pooled",)

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: pooled [B,T,C].
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K].
        """
        return HeadOutput(self.fc(self.drop(clips.get("pooled").mean(1))))


def build(
    dims: Dims, num_classes: int, *, variant: str = "paper", dropout: float = 0.3
) -> PoolHead:
    """Build the head: STRG's I3D baseline; GOS, Table 1, "global pooling".

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        dropout: on the pooled feature (STRG 0.3, GOS none).

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: unknown variant.
        MissingFields: the cache lacks `pooled`.
    """
    one_of("pool", "variant", variant, SAME)
    dims.require("pool", "pooled")
    return PoolHead(dims.C, num_classes, dropout)
