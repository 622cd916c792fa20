"""An LSTM that runs on every CPU under autocast."""

import torch
from torch import Tensor, nn

from pipeline.networks.precision import autocast_runs_lstm


class LSTM(nn.LSTM):
    """`nn.LSTM` from a zero state that also runs where autocast's LSTM does not.

    A CPU with AVX2 alone cannot run it in bf16; there the LSTM computes in float32. The result has
    autocast's dtype in any case, so that the next layers do not depend on the CPU.

    Args:
        *args, **kwargs: those of `nn.LSTM`.
    """

    def forward(self, x: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Run the LSTM along T.

        Args:
            x: [B,T,C] with `batch_first`, else [T,B,C].

        Returns:
            (output, (h, c)) as `nn.LSTM` returns them.
        """
        # torch.compile cannot follow super() here.
        if x.device.type != "cpu" or not torch.is_autocast_enabled("cpu"):
            return nn.LSTM.forward(self, x)
        dtype = torch.get_autocast_dtype("cpu")
        if autocast_runs_lstm(dtype):
            return nn.LSTM.forward(self, x)

        with torch.autocast("cpu", enabled=False):
            y, (h, c) = nn.LSTM.forward(self, x.to(self.weight_ih_l0.dtype))
        return y.to(dtype), (h.to(dtype), c.to(dtype))
