"""RSTG's digit network: three times a 3×3 valid convolution, ReLU and a 2×2 maximum, per frame.

It is the network of RSTG's experiments on SyncMNIST (sec. 3.1).
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._base import Backbone
from pipeline.backbones._layers import Conv, Grey, MaxPool


class ConvPool(nn.Module):
    """A 3×3 valid convolution, ReLU and a 2×2 maximum.

    Args:
        channels_in: C.
        width: channels of the result.
    """

    def __init__(self, channels_in: int, width: int):
        super().__init__()
        self.conv = Conv(channels_in, width, (1, 3, 3))
        self.pool = MaxPool((1, 2, 2), (1, 2, 2), (0, 0, 0))
        self.channels = width

    @property
    def path(self) -> tuple[nn.Module, ...]:
        """The layers that change the size of a map."""
        return self.conv, self.pool

    def forward(self, x: Tensor) -> Tensor:
        """Compute the map.

        Args:
            x: [B,C,T,h,w].

        Returns:
            [B,width,T,(h−2)//2,(w−2)//2].
        """
        return self.pool(F.relu(self.conv(x), inplace=True))


class DigitCNN(Backbone):
    """Stages conv1, conv2, conv3; T = F. Frames of 64×64 give 31, 14 and 6 cells a side.

    Args:
        width: channels of every stage.
        std: see `Backbone`; the mean is 0.
    """

    def __init__(self, width: int, std: float):
        super().__init__(mean=(0.0, 0.0, 0.0), std=(std, std, std))
        self.grey = Grey()  # the digits are grey, the videos that hold them are RGB
        self.conv1 = ConvPool(1, width)
        self.conv2 = ConvPool(width, width)
        self.conv3 = ConvPool(width, width)

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        """Return the modules in the order in which they run (see `Backbone.units`)."""
        return [
            ((), self.grey),
            (("conv1",), self.conv1),
            (("conv2",), self.conv2),
            (("conv3",), self.conv3),
        ]


def build(width: int = 512, pixels: str = "raw") -> Backbone:
    """Build RSTG's digit network.

    Args:
        width: filters of each convolution.
        pixels: "raw" feeds 0..255 as RSTG does, "unit" feeds 0..1.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: another value of `pixels`.
    """
    if pixels not in ("raw", "unit"):
        raise ValueError(f"pixels {pixels!r}: expected 'raw' (0..255) or 'unit' (0..1)")
    return DigitCNN(width, std=1 / 255 if pixels == "raw" else 1.0)
