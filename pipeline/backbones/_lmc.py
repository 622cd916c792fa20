"""EAN's Latent Motion Code (see `ean_r50`): motion of five adjacent frames per segment, added to
the stem's map of one.
"""

from dataclasses import dataclass
from math import gcd

import torch
from torch import Tensor, nn

from pipeline.backbones._base import Conv, MaxPool, Triple
from pipeline.backbones._ean import SMALL, Taps, kaiming, taps
from pipeline.backbones._resnet import ResNetStem

FRAMES = 5  # adjacent frames per segment


class LatentMotion(nn.Module):
    """Motion of each segment from the differences of its five frames: [B,3,5T,H,W] ->
    [B,width,T,H/4,W/4] (EAN sec. 3.4).

    Patches of a difference, one per 32×32 pixels of the frame, go to D values each:
    [B·T,D,4,H/32,W/32]. Two residual groups of 3×3×3 convolutions mix them among the four
    differences of a segment and across space. Each is then spread over 8×8 cells of width/4
    channels. No layer has a bias, so that a still clip gives exactly 0.
    """

    def __init__(self, width: int, released: bool):
        super().__init__()
        self.released, self.cell = released, 8
        inner = (4 if released else 2) * width
        patch = 16 if released else 32
        self.project = Conv(3, inner, (1, patch, patch), (1, patch, patch), bias=False)
        self.first = nn.Sequential(*self._layers(inner, deep=released))
        self.second = nn.Sequential(*self._layers(inner, deep=False))
        kaiming(self.modules())
        self.back = Conv(inner, width // 4 * self.cell**2, (1, 1, 1), bias=False)
        with torch.no_grad():
            self.back.weight.mul_(SMALL)

    @staticmethod
    def _layers(inner: int, deep: bool) -> list[nn.Module]:
        layers = [taps(inner, inner, (3, 3, 3), groups=gcd(16, inner)), nn.BatchNorm3d(inner)]
        if deep:
            layers += [nn.ReLU(inplace=True), taps(inner, inner, (1, 1, 1)), nn.BatchNorm3d(inner)]
        return layers

    def forward(self, frames: Tensor) -> Tensor:
        h = self.project(differences(frames, self.released).transpose(1, 2).flatten(0, 1))
        h = h + self.first(h)
        h = h + self.second(h)
        y = self.back(h).unflatten(1, (-1, self.cell, self.cell))  # [B·T,c,8,8,4,H/32,W/32]
        y = y.permute(0, 1, 4, 5, 2, 6, 3)  # [B·T,c,4,H/32,8,W/32,8]
        y = (
            y.flatten(5).flatten(3, 4).flatten(1, 2)
        )  # [B·T,4c,H/4,W/4], the differences of a channel side by side
        return y.unflatten(0, (frames.shape[0], -1)).transpose(1, 2)


def differences(frames: Tensor, half: bool) -> Tensor:
    """The four differences of each segment's five frames: [B,3,5T,H,W] -> [B,3,T,4,H,W], of every
    other pixel if `half`.
    """
    segments = frames.unflatten(2, (-1, FRAMES))
    segments = segments[..., ::2, ::2] if half else segments
    return segments[:, :, :, 1:] - segments[:, :, :, :-1]


class MotionStack(nn.Module):
    """The released 16-segment model's second branch: a small 2-D network over the twelve channels
    of a segment's differences.

    [B,3,5T,H,W] -> [B,width,T,H/4,W/4]; 3×3 to 24 with stride 2, 3×3 to width in 4 groups, 1×1, 3×3
    in 16 groups; BN, ReLU.
    """

    def __init__(self, width: int):
        super().__init__()
        rows = [
            (12, 24, 3, 2, 1),
            (24, width, 3, 1, 4),
            (width, width, 1, 1, 1),
            (width, width, 3, 1, 16),
        ]
        modules: list[nn.Module] = []
        for source, target, size, stride, groups in rows:
            convolution = Taps(
                source,
                target,
                (1, size, size),
                (1, stride, stride),
                (0, size // 2, size // 2),
                groups=gcd(groups, gcd(source, target)),
                bias=False,
            )
            modules += [convolution, nn.BatchNorm3d(target), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*modules)
        kaiming(self.modules())

    def forward(self, frames: Tensor) -> Tensor:
        d = differences(frames, half=True)  # [B,3,T,4,H/2,W/2]
        return self.convs(d.transpose(2, 3).flatten(1, 2))


@dataclass(frozen=True)
class MiddleFrame:
    """One frame of every segment, as a row of a stem's `path`."""

    kernel_size: Triple = (FRAMES, 1, 1)
    stride: Triple = (FRAMES, 1, 1)
    padding: Triple = (0, 0, 0)


class MotionStem(ResNetStem):
    """The stem of one RGB frame per segment, plus Latent Motion Code of all five: [B,3,5T,H,W] ->
    [B,width,T,H/4,W/4].

    The paper's frame is a segment's first, the release's its middle one. Sum: x + m, in the
    released 16-segment model 0.6 x + 0.2 m + 0.2 stack.
    """

    def __init__(self, width: int, pool: MaxPool, released: bool, segments: int):
        super().__init__(3, width, 1, 1, pool)
        self.segments, self.rgb = segments, FRAMES // 2 if released else 0
        self.lmc = LatentMotion(width, released)
        self.stack = MotionStack(width) if released and segments == 16 else None
        kaiming([self.conv1])

    @property
    def path(self) -> tuple:
        return MiddleFrame(), self.conv1, self.pool1

    def forward(self, x: Tensor) -> Tensor:
        frames, (height, width) = x.shape[2], x.shape[3:]
        if frames != FRAMES * self.segments or height % 32 or width % 32:
            raise ValueError(
                f"ean_r50 with lmc expects {FRAMES * self.segments} frames, {FRAMES} adjacent "
                f"ones for each of {self.segments} "
                f"segments, of a height and width that 32 divides, got {frames} of "
                f"{height}×{width}; sample them so"
            )
        rgb = super().forward(x[:, :, self.rgb :: FRAMES])
        if self.stack is None:
            return rgb + self.lmc(x)
        return 0.6 * rgb + 0.2 * self.lmc(x) + 0.2 * self.stack(x)
