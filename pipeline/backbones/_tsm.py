"""The temporal shift of TSM (Lin et al., ICCV 2019), and 2-D ResNets with it in every block.

    y_t = x_{t+1} in the first C/part channels, x_{t−1} in the next C/part, x_t in the rest

Beyond the ends of the clip x is zero. The shift is on the way into a residual block's first
convolution and not on its shortcut (the paper's residual shift).
"""

from torch import Tensor, nn

from pipeline.backbones._layers import MaxPool
from pipeline.backbones._resnet import BasicBlock, Bottleneck, ResNet

DEPTHS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


class TemporalShift(nn.Module):
    """The shift of channels along time: [B,C,T,h,w] -> the same.

    Args:
        part: C/part channels are shifted each way.
    """

    def __init__(self, part: int):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        fold = x.shape[1] // self.part
        # A copy: both shifts read x, and the two parts below are views of y.
        y = x.clone()
        later, earlier = y[:, :fold], y[:, fold : 2 * fold]
        later[:, :, :-1] = x[:, :fold, 1:]
        later[:, :, -1] = 0
        earlier[:, :, 1:] = x[:, fold : 2 * fold, :-1]
        earlier[:, :, 0] = 0
        return y


def tsm(depth: int, part: int, reduce: int, width: int) -> ResNet:
    """Build a 2-D ResNet over frames, T = F, whose blocks see one step back and one ahead.

    Args:
        depth: 18 or 50.
        part: 1/part of the channels are shifted each way; 0 for no shift.
        reduce: see `ResNet`.
        width: see `ResNet`.

    Raises:
        ValueError: `part` is 1 or below 0.
    """
    if part < 0 or part == 1:
        raise ValueError(
            f"shift={part}: expected 8 (1/8 of the channels each way) or another number from 2, "
            f"or 0 for none"
        )
    block, blocks = DEPTHS[depth]
    backbone = ResNet(
        block,
        [[1] * n for n in blocks],
        width=width,
        conv1_taps=1,
        conv1_stride=1,
        pool1=MaxPool((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        pool2=None,
        res5_stride=2,
        reduce=reduce,
        imagenet=f"ResNet{depth}",
    )
    if part:
        for _, unit in backbone.units():
            if isinstance(unit, block):
                unit.enter = TemporalShift(part)
    return backbone
