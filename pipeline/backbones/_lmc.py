"""EAN's Latent Motion Code (eq. 12; see `ean_r50`): motion added to the stem's map.

It is the motion of five adjacent frames per segment; the stem sees one of them.
"""

from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._ean import SMALL, Taps, kaiming, taps
from pipeline.backbones._layers import Conv, MaxPool, Triple
from pipeline.backbones._resnet import ResNetStem

FRAMES = 5  # adjacent frames per segment


class LatentMotion(nn.Module):
    """Motion of each segment from the differences of its five frames.

    [B,3,5T,H,W] -> [B,width,T,H/4,W/4]. A patch of a difference, one per 32×32 pixels of the frame,
    becomes D values: [B·T,D,4,H/32,W/32]. Two 3×3×3 convolutions mix them among the four
    differences of a segment and across space. Each is then spread over 8×8 cells of width/4
    channels. The layers before the differences are spread are, with BN behind each convolution:

        paper                 h = second(relu(first(h)))
        released              h = h + first(h), h = h + second(h)
        released, 16 segments the same between two more 1×1×1 convolutions, BN and ReLU at each

    No layer has a bias, so that a still clip gives exactly 0 at first.

    Args:
        width: channels of the result.
        released: whether the release's layers are built.
        segments: T; the release has two more layers for 16.
    """

    def __init__(self, width: int, released: bool, segments: int):
        super().__init__()
        self.released, self.cell = released, 8
        # The release sees every other pixel: its patches are half as wide.
        inner, patch = 2 * width, 32
        if released:
            inner, patch = 4 * width, 16
        self.project = Conv(3, inner, (1, patch, patch), (1, patch, patch), bias=False)
        self.first = nn.Sequential(*self._layers(inner, deep=released))
        self.second = nn.Sequential(*self._layers(inner, deep=False))
        self.enter = self.leave = None
        if released and segments == 16:
            self.enter = nn.Sequential(
                nn.BatchNorm3d(inner), nn.ReLU(inplace=True), taps(inner, inner, (1, 1, 1))
            )
        kaiming(self.modules())

        # Made after `kaiming`: the last convolution keeps its default start, times SMALL. With one
        # more before it, that one is the small one in the release.
        self.back = Conv(inner, width // 4 * self.cell**2, (1, 1, 1), bias=False)
        small = self.back
        if self.enter is not None:
            small = taps(inner, inner, (1, 1, 1))
            self.leave = nn.Sequential(small, nn.BatchNorm3d(inner), nn.ReLU(inplace=True))
        with torch.no_grad():
            small.weight.mul_(SMALL)

    @staticmethod
    def _layers(inner: int, deep: bool) -> list[nn.Module]:
        layers = [taps(inner, inner, (3, 3, 3), groups=gcd(16, inner)), nn.BatchNorm3d(inner)]
        if deep:
            layers += [nn.ReLU(inplace=True), taps(inner, inner, (1, 1, 1)), nn.BatchNorm3d(inner)]
        return layers

    def code(self, segments: Tensor) -> Tensor:
        """Return the code of each patch: differences [B·T,3,4,H,W] -> [B·T,D,4,h,w]."""
        h = self.project(segments)
        if not self.released:
            return self.second(F.relu(self.first(h)))
        if self.enter is not None:
            h = self.enter(h)
        h = h + self.first(h)
        h = h + self.second(h)
        return h if self.leave is None else self.leave(h)

    def forward(self, frames: Tensor) -> Tensor:
        # [B·T,3,4,H,W], or half of H and W: the differences take the place of time.
        segments = differences(frames, self.released).transpose(1, 2).flatten(0, 1)
        y = self.back(self.code(segments))
        y = y.unflatten(1, (-1, self.cell, self.cell))  # [B·T,c,8,8,4,H/32,W/32]
        y = y.permute(0, 1, 4, 5, 2, 6, 3)  # [B·T,c,4,H/32,8,W/32,8]
        # [B·T,4c,H/4,W/4], the four differences of a channel side by side
        y = y.flatten(5).flatten(3, 4).flatten(1, 2)
        return y.unflatten(0, (frames.shape[0], -1)).transpose(1, 2)


def differences(frames: Tensor, half: bool) -> Tensor:
    """Return the four differences of each segment's five frames.

    Args:
        frames: [B,3,5T,H,W].
        half: take every other pixel.

    Returns:
        [B,3,T,4,H,W], or [B,3,T,4,H/2,W/2].
    """
    segments = frames.unflatten(2, (-1, FRAMES))
    if half:
        segments = segments[..., ::2, ::2]
    return segments[:, :, :, 1:] - segments[:, :, :, :-1]


class MotionStack(nn.Module):
    """The second branch of the released 16-segment model: a small 2-D network.

    [B,3,5T,H,W] -> [B,width,T,H/4,W/4], from the twelve channels of a segment's differences. Its
    convolutions: 3×3 to 24 channels with stride 2, ReLU, BN; 3×3 to width in 4 groups, ReLU, BN;
    1×1 with a bias; 3×3 in 16 groups.

    Args:
        width: channels of the result.
    """

    def __init__(self, width: int):
        super().__init__()
        self.convs = nn.Sequential(
            _flat(12, 24, 3, stride=2),
            nn.ReLU(inplace=True),
            nn.BatchNorm3d(24),
            _flat(24, width, 3, groups=4),
            nn.ReLU(inplace=True),
            nn.BatchNorm3d(width),
            _flat(width, width, 1, bias=True),
            _flat(width, width, 3, groups=16),
        )
        kaiming(self.modules())

    def forward(self, frames: Tensor) -> Tensor:
        d = differences(frames, half=True)  # [B,3,T,4,H/2,W/2]
        return self.convs(d.transpose(2, 3).flatten(1, 2))


def _flat(
    source: int, target: int, size: int, *, stride: int = 1, groups: int = 1, bias: bool = False
) -> Taps:
    """Build a convolution within each frame; fewer groups where the channels allow no more."""
    return Taps(
        source,
        target,
        (1, size, size),
        (1, stride, stride),
        (0, size // 2, size // 2),
        groups=gcd(groups, gcd(source, target)),
        bias=bias,
    )


@dataclass(frozen=True)
class MiddleFrame:
    """One frame of every segment, as a layer of a stem's `path`."""

    kernel_size: Triple = (FRAMES, 1, 1)
    stride: Triple = (FRAMES, 1, 1)
    padding: Triple = (0, 0, 0)


class MotionStem(ResNetStem):
    """The stem of one RGB frame per segment, plus Latent Motion Code of all five.

    [B,3,5T,H,W] -> [B,width,T,H/4,W/4]. The sum is x + m, in the released 16-segment model 0.6 x +
    0.2 m + 0.2 stack. The paper's RGB frame is a segment's first, the release's its middle one.

    Args:
        width: channels of the result.
        pool: the stem's maximum.
        released: whether the release's layers are built.
        segments: T, 8 or 16.
    """

    def __init__(self, width: int, pool: MaxPool, released: bool, segments: int):
        super().__init__(3, width, 1, 1, pool)
        self.segments = segments
        self.rgb = FRAMES // 2 if released else 0  # which frame of a segment the stem sees
        self.lmc = LatentMotion(width, released, segments)
        self.stack = None
        if released and segments == 16:
            self.stack = MotionStack(width)
        kaiming([self.conv1])

    @property
    def path(self) -> tuple:
        return MiddleFrame(), self.conv1, self.pool1

    def forward(self, x: Tensor) -> Tensor:
        # 32: the patches of LatentMotion, whose cells must be those of the stem's map.
        frames, (height, width) = x.shape[2], x.shape[3:]
        if frames != FRAMES * self.segments or height % 32 or width % 32:
            raise ValueError(
                f"ean_r50 with lmc expects {FRAMES * self.segments} frames, {FRAMES} adjacent ones "
                f"for each of {self.segments} segments, of a height and width that 32 divides, got "
                f"{frames} of {height}×{width}; sample them so"
            )
        rgb = super().forward(x[:, :, self.rgb :: FRAMES])
        if self.stack is None:
            return rgb + self.lmc(x)
        return 0.6 * rgb + 0.2 * self.lmc(x) + 0.2 * self.stack(x)
