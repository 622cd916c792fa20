"""Layer normalisation over several axes with one scale and shift per channel (DyReg-GNN's LN)."""

import torch.nn.functional as F
from torch import Tensor, nn


class JointNorm(nn.LayerNorm):
    """Normalise over several axes at once, then scale and shift each channel.

        y = (x - mean) / std * scale_c + shift_c

    Mean and std are over the last `axes` axes; c runs along the axis `channel`. Maps [..,C,h,w]
    take axes=3 and channel=-3. Nodes [..,N,C] take axes=2, messages [..,N,N,C] axes=3.

    Args:
        channels: C.
        axes: how many of the last axes are normalised together.
        channel: which axis of x holds the channels, counted from the end; default -1.
        start: the initial scale; default 1.
    """

    def __init__(self, channels: int, axes: int, channel: int = -1, start: float = 1.0):
        super().__init__(channels)
        nn.init.constant_(self.weight, start)
        self.axes = axes
        self.broadcast = (channels,) + (1,) * (-channel - 1)

    def forward(self, x: Tensor) -> Tensor:
        """Normalise x.

        Args:
            x: [..,C,..]; its grid may differ from the grid in training.

        Returns:
            The same shape.
        """
        # The sizes come from x, not from the constructor, so that any grid will do.
        y = F.layer_norm(x, x.shape[-self.axes :], eps=self.eps)
        return y * self.weight.view(self.broadcast) + self.bias.view(self.broadcast)
