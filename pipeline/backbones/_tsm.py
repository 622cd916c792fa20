"""The temporal shift of TSM (Lin et al., ICCV 2019) and 2-D ResNets that have it on the way into
every residual block.
"""

from torch import Tensor, nn

from pipeline.backbones._base import MaxPool
from pipeline.backbones._resnet import BasicBlock, Bottleneck, ResNet

DEPTHS = {18: (BasicBlock, (2, 2, 2, 2)), 50: (Bottleneck, (3, 4, 6, 3))}


class TemporalShift(nn.Module):
    """[B,C,T,h,w] -> the same: the first C/part channels come from step t+1, the next C/part from
    t-1, zeros at the ends.
    """

    def __init__(self, part: int):
        super().__init__()
        self.part = part

    def forward(self, x: Tensor) -> Tensor:
        fold = x.shape[1] // self.part
        y = x.clone()
        later, earlier = y[:, :fold], y[:, fold : 2 * fold]
        later[:, :, :-1] = x[:, :fold, 1:]
        later[:, :, -1] = 0
        earlier[:, :, 1:] = x[:, fold : 2 * fold, :-1]
        earlier[:, :, 0] = 0
        return y


def tsm(depth: int, part: int, reduce: int, width: int) -> ResNet:
    """A ResNet over single frames, T = F, whose blocks look one step back and ahead through `TemporalShift`
    (spec 3.3).

    part: 1/part of the channels each way, 0 for no shift. reduce, width: see `ResNet`. ValueError
    for a part of 1 or below 0.
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
