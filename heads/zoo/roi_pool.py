"""Average pooling over regions: the baseline that sees objects, but not how they relate.

    y = W drop(mean of x_i over the valid nodes) + b       [B,K],  x [B,T,N,C] the `nodes`

It is GOS's row "pooling over RoIs" (CVPR 2020, Table 2; no dropout, the default). No release
differs from that: both variants are the paper.

Differs from the paper: only the classifier learns. The nodes are aligned on the cached cut, not on
a reduced map that is learned too.
"""

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.masked_layers import masked_mean
from heads.interface.variants import SAME, one_of


class RoiPool(nn.Module):
    """Dropout and a linear layer on the mean of the valid nodes."""

    needs = ("nodes", "valid")

    def __init__(self, channels: int, num_classes: int, dropout: float):
        super().__init__()
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(channels, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: nodes [B,T,N,C] and valid [B,T,N].
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K]; W 0 + b for a view without boxes.
        """
        return HeadOutput(self.fc(self.drop(masked_mean(clips.get("nodes"), clips.get("valid")))))


def build(dims: Dims, num_classes: int, *, variant: str = "paper", dropout: float = 0.0) -> RoiPool:
    """Build the head: GOS, Table 2, "pooling over RoIs".

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        dropout: on the pooled feature. Not stated in the paper.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: unknown variant.
        MissingFields: the cache lacks `nodes` or `valid`.
    """
    one_of("roi_pool", "variant", variant, SAME)
    dims.require("roi_pool", "nodes", "valid")
    return RoiPool(dims.C, num_classes, dropout)
