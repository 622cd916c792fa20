"""Conv + LSTM: RSTG's baseline that sees where things are (NeurIPS 2019, Table 1, "Conv+LSTM").

    y_t = ReLU(conv(ReLU(conv(x_t))))                             [B,T,width,h-4,w-4]
    h_t = LSTM(flatten(y_t), h_{t-1}),  logits = W drop(h_T) + b  [B,K]

x is the map at `cut`; the two 3x3 convolutions have no padding. RSTG's release differs in the
graph, not in this row: both variants are the paper.

Differs from the paper: the convolutional network below is frozen. Not stated in the paper: the
number of convolutions and their width (512, the paper's node width), the LSTM's width (512) and
depth (1).
"""

from itertools import pairwise

import torch.nn.functional as F
from torch import nn

from heads.interface.clips import Clips, Dims, HeadOutput
from heads.interface.lstm import LSTM
from heads.interface.variants import SAME, at_least, one_of


class ConvLSTM(nn.Module):
    """Convolutions on a map of one grid, an LSTM, and a linear layer on its last state.

    Args:
        cut: the map.
        size: its (C, h, w).
        num_classes: K.
        width: channels of the convolutions.
        convs: how many convolutions.
        hidden: units of the LSTM.
        dropout: on the last state.
    """

    def __init__(
        self,
        cut: str,
        size: tuple[int, int, int],
        num_classes: int,
        width: int,
        convs: int,
        hidden: int,
        dropout: float,
    ):
        super().__init__()
        channels, h, w = size
        self.cut, self.grid = cut, (h, w)
        sizes = [channels] + [width] * convs
        self.convs = nn.ModuleList(nn.Conv2d(a, b, 3) for a, b in pairwise(sizes))
        # Each convolution takes one cell off every side.
        cells = (h - 2 * convs) * (w - 2 * convs)
        self.lstm = LSTM(sizes[-1] * cells, hidden, batch_first=True)
        self.drop = nn.Dropout(dropout)
        self.fc = nn.Linear(hidden, num_classes)
        self.needs = (cut,)

    def forward(self, clips: Clips, want_maps: bool = False) -> HeadOutput:
        """Classify a batch.

        Args:
            clips: the map [B,T,C,h,w].
            want_maps: ignored, there are no maps.

        Returns:
            logits [B,K], from the last step's state.

        Raises:
            ValueError: the map has another grid than the one the head was built for.
        """
        fmap = clips.get(self.cut)
        if tuple(fmap.shape[-2:]) != self.grid:
            (h, w), (H, W) = self.grid, fmap.shape[-2:]
            raise ValueError(
                f"head conv_lstm reads a {h} x {w} map of {self.cut}, got {H} x {W}; extract test "
                "views of the training views' size (one square crop)"
            )
        # [B,T,C,h,w] -> [B*T,C,h,w]: time is left to the LSTM.
        y = fmap.flatten(0, 1)
        for conv in self.convs:
            y = F.relu(conv(y))
        states, _ = self.lstm(y.flatten(1).unflatten(0, fmap.shape[:2]))  # [B,T,hidden]
        return HeadOutput(self.fc(self.drop(states[:, -1])))


def build(
    dims: Dims,
    num_classes: int,
    *,
    variant: str = "paper",
    cut: str = "res5",
    width: int = 512,
    convs: int = 2,
    hidden: int = 512,
    dropout: float = 0.0,
) -> ConvLSTM:
    """Build the head: RSTG, Table 1, "Conv+LSTM".

    Args:
        dims: the sizes of the cached views.
        num_classes: K.
        variant: "paper" or "released", which are the same here.
        cut: the map [B,T,C,h,w].
        width: channels of the convolutions. Not stated in the paper.
        convs: how many convolutions. Not stated in the paper.
        hidden: units of the LSTM. Not stated in the paper.
        dropout: on the last state. Not stated in the paper.

    Returns:
        The head with fresh weights.

    Raises:
        ValueError: unknown variant, a size below 1, or a map of fewer than 2 convs + 1 cells a
            side.
        MissingFields: the cache lacks the map.
    """
    one_of("conv_lstm", "variant", variant, SAME)
    at_least("conv_lstm", 1, width=width, convs=convs, hidden=hidden)
    dims.require("conv_lstm", cut)
    _, h, w = dims.maps[cut]
    if min(h, w) <= 2 * convs:
        raise ValueError(
            f"head conv_lstm: {convs} convolutions need {2 * convs + 1} cells a side, {cut} has "
            f"{h} x {w}"
        )
    return ConvLSTM(cut, dims.maps[cut], num_classes, width, convs, hidden, dropout)
