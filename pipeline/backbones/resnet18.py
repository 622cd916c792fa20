"""ResNet-18 on every frame by itself, T = F.

DyReg's trunk on MultiSyncMNIST (Table 6) is stages=3, grey=True.
"""

from pipeline.backbones._base import Backbone
from pipeline.backbones._layers import MaxPool
from pipeline.backbones._resnet import BasicBlock, ResNet


def build(stages: int = 4, grey: bool = False, reduce: int = 0, width: int = 64) -> Backbone:
    """Build a ResNet-18 over frames.

    Args:
        stages: how many of res2 .. res5 there are.
        grey: one input channel, the mean over colours.
        reduce: channels of the stage "reduced" (see `ResNet`), 0 for none.
        width: channels of the stem.

    Returns:
        The backbone, with random weights.

    Raises:
        ValueError: `stages` is not 1 to 4.
    """
    if stages not in (1, 2, 3, 4):
        raise ValueError(f"stages={stages!r}: expected 1 to 4, the number of stages after the stem")
    return ResNet(
        BasicBlock,
        [[1, 1]] * stages,
        width=width,
        conv1_taps=1,
        conv1_stride=1,
        pool1=MaxPool((1, 3, 3), (1, 2, 2), (0, 1, 1)),
        pool2=None,
        res5_stride=2,
        reduce=reduce,
        imagenet="ResNet18",
        grey=grey,
    )
