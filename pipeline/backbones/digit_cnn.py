"""The digit network of RSTG (spec 4.4): three times a 3×3 valid convolution, ReLU and a 2×2
maximum, frame by frame.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._base import Backbone, Conv, Grey, MaxPool


class ConvPool(nn.Module):
    """3×3 valid convolution, ReLU, 2×2 maximum: [B,C,T,h,w] -> [B,width,T,(h-2)//2,(w-2)//2]."""

    def __init__(self, channels_in: int, width: int):
        super().__init__()
        self.conv = Conv(channels_in, width, (1, 3, 3))
        self.pool = MaxPool((1, 2, 2), (1, 2, 2), (0, 0, 0))
        self.channels = width

    @property
    def path(self) -> tuple[nn.Module, ...]:
        return self.conv, self.pool

    def forward(self, x: Tensor) -> Tensor:
        return self.pool(F.relu(self.conv(x), inplace=True))


class DigitCNN(Backbone):
    """Stages conv1, conv2, conv3; T = F. Frames of 64×64 give 31, 14 and 6 cells a side."""

    def __init__(self, width: int, std: float):
        super().__init__(mean=(0.0, 0.0, 0.0), std=(std, std, std))
        self.grey = Grey()  # the digits are grey, the videos that hold them are RGB
        self.conv1 = ConvPool(1, width)
        self.conv2 = ConvPool(width, width)
        self.conv3 = ConvPool(width, width)

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        return [
            ((), self.grey),
            (("conv1",), self.conv1),
            (("conv2",), self.conv2),
            (("conv3",), self.conv3),
        ]


def build(width: int = 512, pixels: str = "raw") -> Backbone:
    """width: filters of each convolution. pixels: "raw" feeds 0..255 as RSTG does, "unit" feeds
    0..1.

    ValueError for another `pixels`.
    """
    if pixels not in ("raw", "unit"):
        raise ValueError(f"pixels {pixels!r}: expected 'raw' (0..255) or 'unit' (0..1)")
    return DigitCNN(width, std=1 / 255 if pixels == "raw" else 1.0)
