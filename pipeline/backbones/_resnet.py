"""The residual trunk of every ResNet here.

Its convolutions are 3-D. A 2-D network is the case in which all kernels have one tap in time.
"""

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._base import IMAGENET_MEAN, IMAGENET_STD, Backbone
from pipeline.backbones._layers import Conv, Grey, MaxPool, Triple


def conv(channels_in: int, channels_out: int, kernel: Triple, stride: Triple = (1, 1, 1)) -> Conv:
    """Build a convolution without bias, padded by half its kernel.

    Only its stride changes the size of a map.
    """
    padding = tuple(k // 2 for k in kernel)
    return Conv(channels_in, channels_out, kernel, stride, padding, bias=False)


class ResNetStem(nn.Module):
    """k×7×7 convolution with spatial stride 2, BN, ReLU, maximum.

    The first rows of GOS's supp. Table 3 and STRG's Table 1.

    Args:
        channels_in: of the frames.
        width: channels of the result.
        kernel: k, taps in time.
        stride: in time.
        pool: the maximum.
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
    """k×1×1, 1×3×3 and 1×1×1 convolution, BN after each; the input is added before the last ReLU.

    Args:
        channels_in: of the input.
        width: channels inside; the result has 4·width.
        kernel: k, taps in time.
        stride: in space, of the 1×3×3 convolution.

    Attributes:
        enter: a module [B,C,T,h,w] -> the same on the way into conv1, not on the shortcut; or None.
        non_local: a module [B,C,T,h,w] -> the same that runs after the block; or None.
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
        self.enter = None
        self.non_local = None

    @property
    def path(self) -> tuple[nn.Module, ...]:
        return self.conv1, self.conv2, self.conv3

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.enter is not None:
            y = self.enter(x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = F.relu(self.bn2(self.conv2(y)), inplace=True)
        y = self.bn3(self.conv3(y))
        # In place: a new tensor for the sum would be as large as the map.
        y = F.relu(y.add_(self.shortcut(x)), inplace=True)
        if self.non_local is not None:
            y = self.non_local(y)
        return y

    def shortcut(self, x: Tensor) -> Tensor:
        """Return what is added to the result: x, in the shape of the result."""
        return x if self.downsample is None else self.downsample(x)


class BasicBlock(nn.Module):
    """Two 3×3 convolutions, BN after each; the input is added before the last ReLU (ResNet-18).

    Args:
        channels_in: of the input.
        width: channels of the result.
        kernel: taps in time of the first convolution.
        stride: in space, of the first convolution.

    Attributes:
        enter: as in `Bottleneck`.
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
        self.enter = None

    @property
    def path(self) -> tuple[nn.Module, ...]:
        return self.conv1, self.conv2

    def forward(self, x: Tensor) -> Tensor:
        y = x
        if self.enter is not None:
            y = self.enter(x)
        y = F.relu(self.bn1(self.conv1(y)), inplace=True)
        y = self.bn2(self.conv2(y))
        shortcut = x if self.downsample is None else self.downsample(x)
        return F.relu(y.add_(shortcut), inplace=True)


def _downsample(channels_in: int, channels_out: int, stride: int) -> nn.Sequential | None:
    """The shortcut's convolution, where the block changes the shape of its input."""
    if channels_in == channels_out and stride == 1:
        return None
    return nn.Sequential(
        conv(channels_in, channels_out, (1, 1, 1), (1, stride, stride)),
        nn.BatchNorm3d(channels_out),
    )


class ResNet(Backbone):
    """A ResNet with the stages stem, res2 .. res5 (or fewer), and "reduced" if asked for.

    Args:
        block: `Bottleneck` or `BasicBlock`.
        taps: the temporal taps of each block, stage by stage; so also the number of blocks.
        width: channels of the stem; 64 in every paper, fewer in tests.
        conv1_taps: temporal taps of the first convolution.
        conv1_stride: its stride in time.
        pool1: the stem's maximum.
        pool2: a maximum before res3, None for none. It is no part of the cut "res2", which still
            has all frames.
        res5_stride: spatial stride of res5, 1 or 2; nothing is dilated.
        reduce: channels of the stage "reduced", 0 for no such stage. It is a 1×1×1 convolution with
            bias and without BN or ReLU (STRG).
        imagenet: see `Backbone`.
        grey: average the colours; conv1 has one input channel.
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

        # res2 has stride 1: the stem's maximum has halved h and w just before it.
        channels = width
        strides = (1, 2, 2, res5_stride)
        self._stage_names = [f"res{2 + i}" for i in range(len(taps))]
        for i, (name, stage_taps) in enumerate(zip(self._stage_names, taps, strict=True)):
            blocks = []
            stride = strides[i]
            for kernel in stage_taps:
                blocks.append(block(channels, width * 2**i, kernel, stride))
                channels = blocks[-1].channels
                stride = 1  # only the first block of a stage shrinks the map
            self.add_module(name, nn.Sequential(*blocks))

        self.reduced = Conv(channels, reduce, (1, 1, 1)) if reduce else None
        # As torchvision's ResNets start.
        for module in self.modules():
            if isinstance(module, Conv):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        units: list[tuple[tuple[str, ...], nn.Module]] = []
        if self.grey:
            units.append(((), self.grey))
        units.append((("stem",), self.stem))
        for name in self._stage_names:
            if name == "res3" and self.pool2 is not None:
                units.append(((), self.pool2))
            blocks = self.get_submodule(name)
            units += [((f"{name}.{j}",), block) for j, block in enumerate(blocks)]
            # The last block ends the stage, too.
            units[-1] = ((f"{name}.{len(blocks) - 1}", name), blocks[-1])
        if self.reduced is not None:
            units.append((("reduced",), self.reduced))
        return units
