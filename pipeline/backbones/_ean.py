"""The modules of EAN (see `ean_r50`): motion excitation, trainable shift, Event Adaptive Block.

All maps are [B,C,T,h,w]. Letters: C channels of a stage, u = C/4 channels inside a block, p
channels of ESP-Net.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import gcd

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from pipeline.backbones._layers import Conv, MaxPool, Triple
from pipeline.backbones._options import require_allowed
from pipeline.backbones._resnet import Bottleneck, conv
from pipeline.networks.memory_format import convolve

VARIANTS = ("paper", "released")
# Factor on the default start of the last convolution of a branch that is added to the trunk.
SMALL = 0.01


@dataclass(frozen=True)
class Design:
    """What an Event Adaptive Block is made of; ValueError for another value.

    `ean_r50.build` explains the fields, which are its options.
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
            "variant": (self.variant, VARIANTS),
            "fusion": (self.fusion, ("dynamic", "static", "shuffle", "identity")),
            "pool": (self.pool, ("max", "avg", "none")),
            "scales": (self.scales, ("multi", "small", "large")),
            "expand": (self.expand, ("small", "zero")),
        }
        require_allowed(allowed)

    @property
    def released(self) -> bool:
        return self.variant == "released"

    @property
    def taps(self) -> tuple[int, int, int]:
        """The receptive field of the three channel groups along an axis."""
        return {"multi": (1, 3, 5), "small": (3, 3, 3), "large": (5, 5, 5)}[self.scales]


class Taps(Conv):
    """A `Conv` that may be dilated or grouped, folded in the same way."""

    def _convolved(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            frames = x.transpose(1, 2).flatten(0, 1)  # [B·T,C,h,w]
            y = convolve(
                frames,
                self.weight.squeeze(2),
                self.bias,
                self.stride[1:],
                self.padding[1:],
                self.dilation[1:],
                self.groups,
            )
            return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

        if self.kernel_size[1:] == (1, 1) and self.stride == (1, 1, 1):
            flat, weight = x.flatten(3), self.weight.squeeze(4)  # [B,C,T,h·w]
            padding, dilation = (self.padding[0], 0), (self.dilation[0], 1)
            y = convolve(flat, weight, self.bias, 1, padding, dilation, self.groups)
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
    """Build a convolution without bias; only its stride changes the size of a map.

    `dilation` applies to the axes on which the kernel has more than one tap.
    """
    dilations, padding = [], []
    for k in kernel:
        along_axis = dilation if k > 1 else 1
        dilations.append(along_axis)
        padding.append(along_axis * (k // 2))
    return Taps(
        channels_in,
        channels_out,
        kernel,
        stride,
        tuple(padding),
        tuple(dilations),
        groups,
        bias=False,
    )


def kaiming(modules: Iterable[nn.Module]) -> None:
    """Start EAN's convolutions as its release does: Kaiming over the outputs (fan-out)."""
    for module in modules:
        if isinstance(module, Conv):
            nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")


class MotionExcitation(nn.Module):
    """Channels weighted by motion (TEA's motion excitation).

        x + x·s, s = σ(BN(W2 mean_hw d)) − 0.5
        d_t = DW3×3(u)_{t+1} − u_t, 0 for the last t;  u = BN(W1 x), C/16 channels

    Args:
        channels: C.
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
        """Return mean_hw d: [B,C,T,h,w] -> [B,C/16,T,1,1]; the last step is 0."""
        u = self.bn1(self.conv1(x))
        # A single step has no next one to differ from.
        if u.shape[2] == 1:
            return torch.zeros_like(u[..., :1, :1])
        d = self.depthwise(u[:, :, 1:]) - u[:, :, :-1]
        # F.pad counts axes from the last one: this appends a step of zeros.
        return F.pad(d.mean((3, 4), keepdim=True), (0, 0, 0, 0, 0, 1))

    def forward(self, x: Tensor) -> Tensor:
        # x + x s with s = σ − 0.5
        return x * (self.bn2(self.conv2(self.difference(x))).sigmoid() + 0.5)


class TrainableShift(nn.Module):
    """A depth-wise convolution of three taps over time that starts as TSM's shift.

    At the start y_t = x_{t+1} for the first eighth of the channels, x_{t−1} for the second, x_t for
    the rest. Beyond the ends x is zero.

    Args:
        channels: C.
    """

    calls_convolve = True  # see `Conv`

    def __init__(self, channels: int):
        super().__init__()
        self.in_channels = self.out_channels = channels
        kernel, fold = torch.zeros(channels, 1, 3, 1, 1), channels // 8
        # Tap 2 reads the step after, tap 0 the step before, tap 1 the step itself.
        kernel[:fold, 0, 2] = 1
        kernel[fold : 2 * fold, 0, 0] = 1
        kernel[2 * fold :, 0, 1] = 1
        # Not a `Conv`: `kaiming` must leave it as it is.
        self.weight = nn.Parameter(kernel)

    def forward(self, x: Tensor) -> Tensor:
        y = convolve(x.flatten(3), self.weight.squeeze(4), padding=(1, 0), groups=x.shape[1])
        return y.unflatten(3, x.shape[3:])


class MotionBottleneck(Bottleneck):
    """A bottleneck with motion excitation and the trainable shift before its 3×3 convolution.

    The arguments are those of `Bottleneck`.
    """

    def __init__(self, channels_in: int, width: int, kernel: int = 1, stride: int = 1):
        super().__init__(channels_in, width, kernel, stride)
        self.me = MotionExcitation(width)
        self.shift = TrainableShift(width)

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)), inplace=True)
        y = F.relu(self.bn2(self.conv2(self.shift(self.me(y)))), inplace=True)
        y = self.bn3(self.conv3(y))
        return F.relu(y.add_(self.shortcut(x)), inplace=True)


class ESPNet(nn.Module):
    """The matrix M [B,u,u] of every sample.

    It is computed from the block's input (paper, C channels) or from its compression (released, u
    channels).

    Args:
        channels: C.
        inner: u.
        released: whether the release's layers are built.
    """

    def __init__(self, channels: int, inner: int, released: bool):
        super().__init__()
        # Convolutions (from, to, taps, stride); those of the release have biases.
        if released:
            p = max(1, inner // 16)
            layers = [(inner, p, 1, 1), (p, p, 3, 1), (p, p, 3, 1), (p, 2 * p, 3, 2)]
            layers += [(2 * p, 2 * p, 3, 1), (2 * p, 2 * p, 3, 1), (2 * p, 4 * p, 3, 2)]
        else:
            # At least two: the next BN would remove a lone channel's scale. Only networks narrower
            # than the paper's come that low.
            p = max(2, channels // 16)
            layers = [(channels, p, 1, 1), (p, p, 5, 2), (p, p, 5, 2)]

        modules: list[nn.Module] = []
        for source, target, size, stride in layers:
            # The release pads its strided convolutions by 2, too.
            padding = 2 if stride == 2 else size // 2
            modules.append(Conv(source, target, (size,) * 3, stride, padding, bias=released))
            modules += [nn.BatchNorm3d(target), nn.ReLU(inplace=True)]
        self.convs = nn.Sequential(*modules)
        self.fc = nn.Linear(layers[-1][1], inner * inner)

    def forward(self, x: Tensor) -> Tensor:
        m = self.fc(self.convs(x).mean((2, 3, 4)))
        # [B,u²] -> [B,u,u]
        return m.unflatten(1, (-1, round(m.shape[1] ** 0.5)))


class Static(nn.Module):
    """One learned M [u,u] for every sample.

    It starts as the identity plus noise of 0.01, which the paper does not state.

    Args:
        inner: u.
    """

    def __init__(self, inner: int):
        super().__init__()
        self.matrix = nn.Parameter(torch.eye(inner) + 0.01 * torch.randn(inner, inner))

    def forward(self, x: Tensor) -> Tensor:
        return self.matrix.expand(x.shape[0], -1, -1)


def thirds(channels: int) -> list[int]:
    """Return the sizes of the three channel groups: ⌊u/3⌋, ⌊u/3⌋ and the rest."""
    return [channels // 3, channels // 3, channels - 2 * (channels // 3)]


def shuffled(channels: int) -> Tensor:
    """Return the order of channels after channel shuffle: one from each group, in turn."""
    a, b, _ = thirds(channels)
    groups = [list(range(a)), list(range(a, a + b)), list(range(a + b, channels))]
    order = []
    for k in range(len(groups[2])):  # the last group is the longest
        for group in groups:
            if k < len(group):
                order.append(group[k])
    return torch.tensor(order)


def fuse(matrix: Tensor, z: Tensor) -> Tensor:
    """Return z_o = Σ_i M_oi z_i at every position: matrix [B,u,u], z [B,u,T,h,w]."""
    # The matrix comes from a linear layer, whose dtype autocast may have changed.
    return torch.bmm(matrix.to(z.dtype), z.flatten(2)).view_as(z)


class MultiScale(nn.Module):
    """The three channel groups, each convolved with its own number of taps.

    Five taps are three with dilation 2 unless the design says otherwise. One tap is a 1×1×1
    convolution (paper) or nothing (released).

    Args:
        channels: u.
        axis: "time" or "space".
        design: the block's design.
        norm: put a BN behind. There is one per group, which is the same, so that freezing can fold
            it.
    """

    def __init__(self, channels: int, axis: str, design: Design, norm: bool):
        super().__init__()
        self.sizes, self.axis = thirds(channels), axis
        groups = []
        for size, reach in zip(self.sizes, design.taps, strict=True):
            if size:
                layers = _convolutions(size, axis, reach, design)
                if norm:
                    layers.append(nn.BatchNorm3d(size))
                groups.append(nn.Sequential(*layers))
        self.groups = nn.ModuleList(groups)

    def forward(self, x: Tensor) -> Tensor:
        parts = x.split([size for size in self.sizes if size], dim=1)
        results = [group(part) for group, part in zip(self.groups, parts, strict=True)]
        return torch.cat(results, dim=1)


def _convolutions(size: int, axis: str, reach: int, design: Design) -> list[nn.Module]:
    if reach == 1 and design.released:
        return []
    if reach == 1:
        return [taps(size, size, (1, 1, 1))]
    k, dilation = reach, 1
    if design.dilation:
        k, dilation = 3, reach // 2
    if axis == "time":
        kernels = [(k, 1, 1)]
    elif design.factorised:
        kernels = [(1, k, 1), (1, 1, k)]
    else:
        kernels = [(1, k, k)]
    return [taps(size, size, kernel, dilation=dilation) for kernel in kernels]


class EventAdaptiveBlock(nn.Module):
    """EAN's block (eq. 2), with z = compress(x) [B,u,T,h,w].

        x + expand(second(M·relu(BN(first(z)))) + W·pool(z))

    Args:
        channels: C.
        design: see `ean_r50`.
    """

    path = ()

    def __init__(self, channels: int, design: Design):
        super().__init__()
        self.channels, self.design = channels, design
        inner = max(1, channels // 4)
        groups, axes = 1, ("space", "time")
        if design.released:
            # 4 groups, or fewer in a network that is narrower than the release.
            groups, axes = gcd(4, gcd(inner, channels)), ("time", "space")
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

        # Without a pool its convolution stays (Table 10 counts it).
        self.pooled = taps(inner, inner, (1, 1, 1))
        self.pool = nn.Identity()
        if design.pool == "max":
            self.pool = MaxPool((3, 3, 3), (1, 1, 1), (1, 1, 1))
        elif design.pool == "avg":
            self.pool = nn.AvgPool3d(3, 1, 1, count_include_pad=False)

        # The last convolution starts from its default, before all others get Kaiming's.
        self.expand = taps(inner, channels, (1, 1, 1), groups=groups)
        start = self.expand.weight.detach().clone()
        kaiming(self.modules())
        factor = 0.0 if design.expand == "zero" else SMALL
        with torch.no_grad():
            self.expand.weight.copy_(start * factor)

    def forward(self, x: Tensor) -> Tensor:
        """Fuse branches by the matrix M of each clip.

        Args:
            x: [B,C,T,h,w].

        Returns:
            x plus what the block adds, [B,C,T,h,w].
        """
        z = self.compress(x)
        y = self.first(z)
        if self.design.inter_relu:
            y = F.relu(y, inplace=True)
        if self.matrix is not None:
            y = fuse(self.matrix(z if self.design.released else x), y)
        elif self.design.fusion == "shuffle":
            y = y[:, self.order]
        y = self.second(y) + self.pooled(self.pool(z))
        return x + self.expand(y)
