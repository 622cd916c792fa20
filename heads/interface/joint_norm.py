"""Layer normalisation over several axes at once with one scale and shift per channel (DyReg-GNN's
LN).
"""

import torch.nn.functional as F
from torch import Tensor, nn


class JointNorm(nn.LayerNorm):
    """y = (x - mean) / std * scale_c + shift_c, mean and std over the last `axes` axes, c along the
    axis `channel` of x.

    Maps [..,C,h,w]: axes=3, channel=-3. Nodes [..,N,C]: axes=2, messages [..,N,N,C]: axes=3;
    channel=-1. The normalised sizes are those of x, so that a map may have another grid than in
    training. start: the initial scale.
    """

    def __init__(self, channels: int, axes: int, channel: int = -1, start: float = 1.0):
        super().__init__(channels)
        nn.init.constant_(self.weight, start)
        self.axes = axes
        self.broadcast = (channels,) + (1,) * (-channel - 1)

    def forward(self, x: Tensor) -> Tensor:
        y = F.layer_norm(x, x.shape[-self.axes :], eps=self.eps)
        return y * self.weight.view(self.broadcast) + self.bias.view(self.broadcast)
