"""The modules of EAN (see `ean_r50`): motion excitation, trainable shift, Event Adaptive Block with
ESP-Net.

All maps are [B,C,T,h,w]. Letters: C channels of a stage, u = C/4 channels inside a block, p
channels of ESP-Net.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._base import Conv, MaxPool, Triple
from pipeline.backbones._resnet import Bottleneck, conv
from pipeline.networks.memory_format import convolve

VARIANTS = ("paper", "released")
# factor on the default start of the last convolution of a branch that is added to the trunk
SMALL = 0.01


@dataclass(frozen=True)
class Design:
    """What an Event Adaptive Block is made of; the options of `ean_r50.build`, which explains them.
    ValueError for others.
    """

    variant: str = "paper"
    fusion: str = "dynamic"
    pool: str = "max"
    scales: str = "multi"
    inter_relu: bool = True
    dilation: bool = True
    factorised: bool = False
    expand: str = "small"

    def __post_init__(self):
        allowed = {
            "variant": VARIANTS,
            "fusion": ("dynamic", "static", "shuffle", "identity"),
            "pool": ("max", "avg", "none"),
            "scales": ("multi", "small", "large"),
            "expand": ("small", "zero"),
        }
        for option, values in allowed.items():
            if getattr(self, option) not in values:
                raise ValueError(
                    f"{option}={getattr(self, option)!r}: expected one of {', '.join(values)}"
                )

    @property
    def released(self) -> bool:
        return self.variant == "released"

    @property
    def taps(self) -> tuple[int, int, int]:
        """Receptive field along an axis of the three channel groups."""
        return {"multi": (1, 3, 5), "small": (3, 3, 3), "large": (5, 5, 5)}[self.scales]


class Taps(Conv):
    """A `Conv` that may be dilated or grouped, folded in the same way."""

    def _convolved(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            frames, weight = x.transpose(1, 2).flatten(0, 1), self.weight.squeeze(2)  # [B·T,C,h,w]
            y = convolve(
                frames,
                weight,
                self.bias,
                self.stride[1:],
                self.padding[1:],
                self.dilation[1:],
                self.groups,
            )
            return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        if self.kernel_size[1:] == (1, 1) and self.stride == (1, 1, 1):
            padding, dilation = (self.padding[0], 0), (self.dilation[0], 1)
            y = convolve(
                x.flatten(3), self.weight.squeeze(4), self.bias, 1, padding, dilation, self.groups
            )
            return y.unflatten(3, x.shape[3:])
        return convolve(
            x, self.weight, self.bias, self.stride, self.padding, self.dilation, self.groups
        )


def taps(
    channels_in: int,
    channels_out: int,
    kernel: Triple,
    *,
    dilation: int = 1,
    groups: int = 1,
    stride: int = 1,
) -> Taps:
    """A convolution without bias that keeps the size of a map but for its stride; `dilation` is
    that of axes with taps.
    """
    spread = tuple(dilation if k > 1 else 1 for k in kernel)
    padding = tuple(d * (k // 2) for k, d in zip(kernel, spread, strict=True))
    return Taps(channels_in, channels_out, kernel, stride, padding, spread, groups, bias=False)


def kaiming(modules: Iterable[nn.Module]) -> None:
    """The start of EAN's convolutions: Kaiming over what leaves them (spec 5.5)."""
    for module in modules:
        if isinstance(module, Conv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class MotionExcitation(nn.Module):
    """x + x·s, s = σ(BN(W2·mean_hw d)) − 0.5, d_t = DW3×3(u)_{t+1} − u_t and 0 for the last t, u =
    BN(W1 x), C/16 channels.
    """

    def __init__(self, channels: int):
        super().__init__()
        inner = max(1, channels // 16)
        self.conv1 = conv(channels, inner, (1, 1, 1))
        self.bn1 = nn.BatchNorm3d(inner)
        self.depthwise = taps(inner, inner, (1, 3, 3), groups=inner)
        self.conv2 = conv(inner, channels, (1, 1, 1))
        self.bn2 = nn.BatchNorm3d(channels)

    def difference(self, x: Tensor) -> Tensor:
        """mean_hw d: [B,C,T,h,w] -> [B,C/16,T,1,1], the last step 0."""
        u = self.bn1(self.conv1(x))
        if u.shape[2] == 1:
            return torch.zeros_like(u[..., :1, :1])
        d = self.depthwise(u[:, :, 1:]) - u[:, :, :-1]
        return F.pad(d.mean((3, 4), keepdim=True), (0, 0, 0, 0, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        return x * (self.bn2(self.conv2(self.difference(x))).sigmoid() + 0.5)


class TrainableShift(nn.Module):
    """A depth-wise convolution of three taps over time that starts as TSM's shift and is learned.

    y_t = x_{t+1} for the first eighth of the channels, x_{t-1} for the second, x_t for the rest;
    zeros beyond the ends.
    """

    calls_convolve = True  # see `Conv`

    def __init__(self, channels: int):
        super().__init__()
        self.in_channels = self.out_channels = channels
        kernel, fold = torch.zeros(channels, 1, 3, 1, 1), channels // 8
        kernel[:fold, 0, 2] = kernel[fold : 2 * fold, 0, 0] = kernel[2 * fold :, 0, 1] = 1
        self.weight = nn.Parameter(
            kernel
        )  # no `Conv`: whoever starts those anew must leave this one

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x.flatten(3), self.weight.squeeze(4), padding=(1, 0), groups=x.shape[1])
        return y.unflatten(3, x.shape[3:])


class MotionBottleneck(Bottleneck):
    """The bottleneck with motion excitation and the trainable shift between its first ReLU and its
    3×3 convolution.
    """

    def __init__(self, channels_in: int, width: int, kernel: int = 1, stride: int = 1):
        super().__init__(channels_in, width, kernel, stride)
        self.me = MotionExcitation(width)
        self.shift = TrainableShift(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(self.shift(self.me(y)))), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y.add_(x if self.downsample is None else self.downsample(x)), inplace=True)


class ESPNet(nn.Module):
    """The matrix M [B,u,u] of every sample, from the block's input (paper, C channels) or its
    compression (released, u).
    """

    def __init__(self, channels: int, inner: int, released: bool):
        super().__init__()
        # A lone channel's scale would be lost in the next BN, which matters to nets narrower than
        # any paper's.
        p = max(1, inner // 16) if released else max(2, channels // 16)
        if released:  # convolutions (from, to, taps, stride); here they have biases
            layers = [(inner, p, 1, 1), (p, p, 3, 1), (p, p, 3, 1), (p, 2 * p, 3, 2)]
            layers += [(2 * p, 2 * p, 3, 1), (2 * p, 2 * p, 3, 1), (2 * p, 4 * p, 3, 2)]
        else:
            layers = [(channels, p, 1, 1), (p, p, 5, 2), (p, p, 5, 2)]
        modules: list[nn.Module] = []
        for source, target, size, stride in layers:
            padding = 2 if stride == 2 else size // 2  # the release pads the strided ones by 2
            modules.append(Conv(source, target, (size,) * 3, stride, padding, bias=released))
            modules += [nn.BatchNorm3d(target), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*modules)
        self.fc = nn.Linear(layers[-1][1], inner * inner)

    def forward(self, x: Tensor) -> Tensor:
        m = self.fc(self.convs(x).mean((2, 3, 4)))
        return m.unflatten(1, (-1, round(m.shape[1] ** 0.5)))


class Static(nn.Module):
    """One learned M [u,u] for every sample; identity plus noise of 0.01 at first (not stated in the
    paper).
    """

    def __init__(self, inner: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(inner) + 0.01 * torch.randn(inner, inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix.expand(x.shape[0], -1, -1)


def thirds(channels: int) -> list[int]:
    """The sizes of the three channel groups: ⌊u/3⌋, ⌊u/3⌋ and the rest."""
    return [channels // 3, channels // 3, channels - 2 * (channels // 3)]


def shuffled(channels: int) -> Tensor:
    """Channel numbers dealt out of the three groups in turn: what channel shuffle puts at each
    place.
    """
    a, b, _ = thirds(channels)
    groups = [list(range(a)), list(range(a, a + b)), list(range(a + b, channels))]
    return torch.tensor(
        [group[k] for k in range(len(groups[2])) for group in groups if k < len(group)]
    )


def fuse(matrix: Tensor, z: Tensor) -> Tensor:
    """z_o = Σ_i M_oi z_i at every position: matrix [B,u,u], z [B,u,T,h,w]."""
    return torch.bmm(matrix.to(z.dtype), z.flatten(2)).view_as(z)


class MultiScale(nn.Module):
    """Each of the three channel groups convolved by itself with its own number of taps, along time
    or across space.

    Five taps are three with dilation 2 unless the design says otherwise; one tap is a 1×1×1
    convolution (paper) or nothing (released). `norm` puts a BN behind; it is kept group by group,
    which is the same, so that freezing can fold it.
    """

    def __init__(self, channels: int, axis: str, design: Design, norm: bool):
        super().__init__()
        self.sizes = thirds(channels)
        self.groups = nn.ModuleList(
            nn.Sequential(
                *_convolutions(size, axis, reach, design), *([nn.BatchNorm3d(size)] if norm else [])
            )
            for size, reach in zip(self.sizes, design.taps, strict=True)
            if size
        )

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split([size for size in self.sizes if size], dim=1)
        return torch.cat(
            [group(part) for group, part in zip(self.groups, parts, strict=True)], dim=1
        )


def _convolutions(size: int, axis: str, reach: int, design: Design) -> list[Taps]:
    if reach == 1:
        return [] if design.released else [taps(size, size, (1, 1, 1))]
    k, dilation = (3, reach // 2) if design.dilation else (reach, 1)
    across = [(1, k, 1), (1, 1, k)] if design.factorised else [(1, k, k)]
    kernels = [(k, 1, 1)] if axis == "time" else across
    return [taps(size, size, kernel, dilation=dilation) for kernel in kernels]


class EventAdaptiveBlock(nn.Module):
    """x + expand(second(M·relu(BN(first(z)))) + W·pool(z)), z = compress(x) [B,u,T,h,w] (EAN eq. 2;
    see `ean_r50`).
    """

    path = ()

    def __init__(self, channels: int, design: Design):
        super().__init__()
        self.channels, self.design = channels, design
        inner = max(1, channels // 4)
        groups = gcd(4, gcd(inner, channels)) if design.released else 1
        axes = ("time", "space") if design.released else ("space", "time")
        self.compress = taps(channels, inner, (1, 1, 1), groups=groups)
        self.first = MultiScale(inner, axes[0], design, norm=True)
        self.second = MultiScale(inner, axes[1], design, norm=False)
        self.matrix = None
        if design.fusion == "dynamic":
            self.matrix = ESPNet(channels, inner, design.released)
        elif design.fusion == "static":
            self.matrix = Static(inner)
        elif design.fusion == "shuffle":
            self.register_buffer("order", shuffled(inner), persistent=False)
        self.pooled = None if design.pool == "none" else taps(inner, inner, (1, 1, 1))
        self.pool = {
            "max": lambda: MaxPool((3, 3, 3), (1, 1, 1), (1, 1, 1)),
            "avg": lambda: nn.AvgPool3d(3, 1, 1, count_include_pad=False),
            "none": lambda: None,
        }[design.pool]()
        self.expand = taps(inner, channels, (1, 1, 1), groups=groups)
        start = self.expand.weight.detach().clone()
        kaiming(self.modules())
        with torch.no_grad():
            self.expand.weight.copy_(start * (0.0 if design.expand == "zero" else SMALL))

    def forward(self, x: Tensor) -> Tensor:
        z = self.compress(x)
        y = self.first(z)
        y = F.relu(y, inplace=True) if self.design.inter_relu else y
        if self.matrix is not None:
            y = fuse(self.matrix(z if self.design.released else x), y)
        elif self.design.fusion == "shuffle":
            y = y[:, self.order]
        y = self.second(y)
        if self.pooled is not None:
            y = y + self.pooled(self.pool(z))
        return x + self.expand(y)
