"""Mean + LSTM: RSTG's weakest baseline, which sees time but no space (NeurIPS 2019, Table 1).

    h_t = LSTM(p_t, h_{t-1}),  y = W drop(h_T) + b       [B,K]

p [B,T,C] is the spatial mean of the map at each step (`pooled`). RSTG's release differs in the
graph, not in this row ("Mean+LSTM"): both variants are the paper.

Differs from the paper: the convolutional network below is frozen. Not stated in the paper for this
row: the LSTM's width (512, the paper's node width) and depth (1).
"""

from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.lstm import LSTM
from heads.interface.variants import SAME, at_least, one_of


class MeanLSTM(nn.Module):
    """An LSTM on `pooled`, and a linear layer on its last state."""

    needs = ("pooled",)

    def __init__(self, channels: int, num_classes: int, hidden: int, layers: int, dropout: float):
        super().__init__()
        self.lstm = LSTM(channels, hidden, layers, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: pooled [B,T,C].
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K], from the last step's state.
        """
        states, _ = self.lstm(clips.get("pooled"))  # [B,T,hidden]
        return HeadOutput(self.fc(self.drop(states[:, -1])))


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    hidden: int = 512,
    layers: int = 1,
    dropout: float = 0.0,
) -> MeanLSTM:
    """Build the head: RSTG, Table 1, "Mean+LSTM".

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        hidden: units per layer. Not stated in the paper.
        layers: how many layers are stacked. Not stated in the paper.
        dropout: on the last state. Not stated in the paper.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: unknown variant, or a size below 1.
        MissingFields: the cache lacks `pooled`.
    """
    one_of("mean_lstm", "variant", variant, SAME)
    at_least("mean_lstm", 1, hidden=hidden, layers=layers)
    dims.require("mean_lstm", "pooled")
    return MeanLSTM(dims.C, num_classes, hidden, layers, dropout)
