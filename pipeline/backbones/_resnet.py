"""The residual trunk of every ResNet here: 3-D convolutions in which time may have a tap of one, so
2-D nets are a case.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._base import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    Backbone,
    Conv,
    Grey,
    MaxPool,
    Triple,
)


def conv(channels_in: int, channels_out: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> Conv:
    """A convolution without bias, padded by half its kernel, so that only its stride changes the
    size of a map.
    """
    return Conv(
        channels_in, channels_out, kernel, stride, tuple(k // 2 for k in kernel), bias=False
    )


class ResNetStem(nn.Module):
    """k×7×7 convolution with spatial stride 2, BN, ReLU, maximum: the first rows of GOS's and
    STRG's tables.
    """

    def __init__(self, channels_in: int, width: int, kernel: int, stride: int, pool: MaxPool):
        super().__init__()
        self.conv1 = conv(channels_in, width, (kernel, 7, 7), (stride, 2, 2))
        self.bn1 = nn.BatchNorm3d(width)
        self.pool1 = pool
        self.channels = width

    @property
    def path(self) -> tuple[nn.Module, ...]:
        return self.conv1, self.pool1

    def forward(self, x: Tensor) -> Tensor:
        return self.pool1(F.relu(self.bn1(self.conv1(x)), inplace=True))


class Bottleneck(nn.Module):
    """k×1×1, 1×3×3 (with the spatial stride), 1×1×1 convolution, BN after each; the input is added
    before the last ReLU.
    """

    expansion = 4

    def __init__(self, channels_in: int, width: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.channels = width * self.expansion
        self.conv1 = conv(channels_in, width, (kernel, 1, 1))
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = conv(width, width, (1, 3, 3), (1, stride, stride))
        self.bn2 = nn.BatchNorm3d(width)
        self.conv3 = conv(width, self.channels, (1, 1, 1))
        self.bn3 = nn.BatchNorm3d(self.channels)
        self.downsample = _downsample(channels_in, self.channels, stride)
        self.enter = (
            None  # a module [B,C,T,h,w] -> the same, on the way into conv1 and not on the shortcut
        )
        self.non_local = None  # a module [B,C,T,h,w] -> the same, run after the block

    @property
    def path(self) -> tuple[nn.Module, ...]:
        return self.conv1, self.conv2, self.conv3

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.enter is None else self.enter(x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        y = F.relu(y.add_(x if self.downsample is None else self.downsample(x)), inplace=True)
        return y if self.non_local is None else self.non_local(y)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions on every frame, BN after each; the input is added before the last ReLU
    (ResNet-18).
    """

    expansion = 1

    def __init__(self, channels_in: int, width: int, kernel: int = 1, stride: int = 1):
        super().__init__()
        self.channels = width
        self.conv1 = conv(channels_in, width, (kernel, 3, 3), (1, stride, stride))
        self.bn1 = nn.BatchNorm3d(width)
        self.conv2 = conv(width, width, (1, 3, 3))
        self.bn2 = nn.BatchNorm3d(width)
        self.downsample = _downsample(channels_in, width, stride)
        self.enter = None  # as in `Bottleneck`

    @property
    def path(self) -> tuple[nn.Module, ...]:
        return self.conv1, self.conv2

    def forward(self, x: Tensor) -> Tensor:
        y = x if self.enter is None else self.enter(x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        return F.relu(y.add_(x if self.downsample is None else self.downsample(x)), inplace=True)


def _downsample(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    if channels_in == channels_out and stride == 1:
        return None
    return nn.Sequential(
        conv(channels_in, channels_out, (1, 1, 1), (1, stride, stride)),
        nn.BatchNorm3d(channels_out),
    )


class ResNet(Backbone):
    """Stages stem, res2 .. res5 (or fewer), and "reduced" if asked for. Each stage is a sequence of
    blocks.

    block: `Bottleneck` or `BasicBlock`. taps: for every stage, the temporal taps of each of its
    blocks, so that its length is the number of blocks. width: channels of the stem, 64 in every
    paper; tests use less. conv1_taps, conv1_stride: time of the first convolution. pool1: the
    stem's maximum. pool2: the maximum before res3, None for none; it is no part of the cut "res2",
    which still has all frames. res5_stride: spatial stride of res5, 1 or 2; nothing is dilated.
    reduce: channels of the stage "reduced", a 1×1×1 convolution with bias and without BN or ReLU
    (STRG sec. 2.1), 0 for no such stage. imagenet: see `Backbone`. grey: colours are averaged and
    conv1 has one input channel.
    """

    def __init__(
        self,
        block: type[Bottleneck] | type[BasicBlock],
        taps: Sequence[Sequence[int]],
        *,
        width: int,
        conv1_taps: int,
        conv1_stride: int,
        pool1: MaxPool,
        pool2: MaxPool | None,
        res5_stride: int,
        reduce: int,
        imagenet: str,
        grey: bool = False,
    ):
        super().__init__(IMAGENET_MEAN, IMAGENET_STD)
        self.imagenet = imagenet
        self.grey = Grey() if grey else None
        self.stem = ResNetStem(1 if grey else 3, width, conv1_taps, conv1_stride, pool1)
        self.pool2 = pool2
        channels = width
        self._stage_names = [f"res{2 + i}" for i in range(len(taps))]
        for i, (name, stage_taps) in enumerate(zip(self._stage_names, taps, strict=True)):
            stride = 1 if i == 0 else res5_stride if i == 3 else 2
            blocks = []
            for j, kernel in enumerate(stage_taps):
                blocks.append(block(channels, width * 2**i, kernel, stride if j == 0 else 1))
                channels = blocks[-1].channels
            self.add_module(name, nn.Sequential(*blocks))
        self.reduced = Conv(channels, reduce, (1, 1, 1)) if reduce else None
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        units = [((), self.grey)] if self.grey else []
        units.append((("stem",), self.stem))
        for name in self._stage_names:
            if name == "res3" and self.pool2 is not None:
                units.append(((), self.pool2))
            blocks = self.get_submodule(name)
            units += [((f"{name}.{j}",), block) for j, block in enumerate(blocks)]
            units[-1] = ((f"{name}.{len(blocks) - 1}", name), blocks[-1])
        if self.reduced is not None:
            units.append((("reduced",), self.reduced))
        return units
