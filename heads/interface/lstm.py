"""An LSTM that runs on every CPU under autocast."""

import torch
from torch import Tensor, nn

from pipeline.networks.precision import autocast_runs_lstm


class LSTM(nn.LSTM):
    """`nn.LSTM` from a zero state, in float32 where this CPU cannot run autocast's LSTM (bf16 with
    AVX2 alone).

    The result has autocast's dtype in any case, so that the next layers do not depend on the CPU.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """x [B,T,C], or [T,B,C] without `batch_first` -> as `nn.LSTM`."""
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return nn.LSTM.forward(self, x)  # super() is what torch.compile cannot follow here
        dtype = torch.get_autocast_dtype("cpu")
        if autocast_runs_lstm(dtype):
            return nn.LSTM.forward(self, x)
        with torch.autocast("cpu", enabled=False):
            y, (h, c) = nn.LSTM.forward(self, x.to(self.weight_ih_l0.dtype))
        return y.to(dtype), (h.to(dtype), c.to(dtype))
