"""What every backbone shares: the walk from cut to cut, the arithmetic of its shapes, and the folded convolution."""

from collections.abc import Iterable
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from torch import Tensor, nn

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[int, int, int]


class Conv(nn.Conv3d):
    """A convolution over [B,C,T,h,w]. One that looks only across space or only across time runs as a 2-D convolution.

    In channels_last_3d both foldings are views: B·T frames of h×w, or B maps of T×(h·w). The 2-D kernels are the better
    tuned ones: with one thread PyTorch sends a k×1×1 convolution in 3-D to a routine that takes twice as long. The parameters
    are those of `nn.Conv3d` either way.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            frames = x.transpose(1, 2).flatten(0, 1)  # [B·T,C,h,w]
            y = F.conv2d(frames, self.weight.squeeze(2), self.bias, self.stride[1:], self.padding[1:])
            return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        if self.kernel_size[1:] == (1, 1) and self.stride[1:] == (1, 1):
            y = F.conv2d(x.flatten(3), self.weight.squeeze(4), self.bias, (self.stride[0], 1), (self.padding[0], 0))
            return y.unflatten(3, x.shape[3:])
        return super().forward(x)


class MaxPool(nn.MaxPool3d):
    """A maximum over a (time, height, width) window of [B,C,T,h,w]; kernel, stride and padding are triples."""


class Grey(nn.Module):
    """The mean over colours, [B,C,T,h,w] -> [B,1,T,h,w]."""

    channels = 1
    path = ()

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


def size_after(module: nn.Module, size: Triple) -> Triple:
    """(time, height, width) after a `Conv`, a pool, or a module that lists those on its way as `path`."""
    for layer in getattr(module, "path", (module,)):
        triples = zip(size, layer.kernel_size, layer.stride, layer.padding, strict=True)
        size = tuple((n + 2 * padding - kernel) // stride + 1 for n, kernel, stride, padding in triples)
    return size


class Backbone(nn.Module):
    """Frames [B,3,F,H,W] to maps [B,C,T,h,w] at named cuts.

    A cut is the output of a stage ("res4") or of a block of it counted from 0 ("res4.3"); "res4.5" and "res4" are the same
    point of a stage with six blocks. `stages` are the names of the stages in order, `last` the last of them. `mean` and
    `std` normalise RGB in [0,1]; they are saved with the parameters, because weights are worth nothing with other ones.
    `name` and `options` say how it was built; `weights_sha256` is the SHA-256 of the weights that were loaded, "" if none.
    `imagenet` is the name of torchvision's image network with the same kernels, "" if there is none. `frozen`: see `freeze`.

    A subclass gives `units()`: the modules in the order in which they run. A unit has `channels` (those of its output) and
    `path` (see `size_after`) unless it is itself a `Conv` or a pool.
    """

    def __init__(self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD):
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(mean))
        self.register_buffer("pixel_std", torch.tensor(std))
        self.name, self.options, self.weights_sha256 = "", {}, ""
        self.imagenet = ""
        self.frozen = False

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.pixel_mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.pixel_std.tolist())

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        """(names, module) in the order in which they run; names are the cuts that the module's output is, maybe none."""
        raise NotImplementedError

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for names, _ in self.units() for name in names if "." not in name)

    @property
    def last(self) -> str:
        return self.stages[-1]

    def cuts(self) -> tuple[str, ...]:
        """Every name that `maps`, `upto` and `start` take, in the order in which the network reaches them."""
        return tuple(name for names, _ in self.units() for name in names)

    def _position(self, cut: str) -> int:
        """How many units have run at `cut`. ValueError for a name that is not a cut."""
        for position, (names, _) in enumerate(self.units(), 1):
            if cut in names:
                return position
        blocks = [name for name in self.cuts() if "." in name]
        example = f", or a block such as {blocks[-1]}" if blocks else ""
        raise ValueError(
            f"cut {cut!r} is not one of {self.name or 'this backbone'}: expected {', '.join(self.stages)}{example}"
        )

    def channels(self, cut: str | None = None) -> int:
        """Channels of the map at `cut` (the last stage unless given)."""
        units = self.units()[: self._position(cut or self.last)]
        return next(size for size in (_channels(module) for _, module in reversed(units)) if size)

    def steps(self, frames: int, cut: str | None = None) -> int:
        """T, the time steps of the map at `cut` (the last stage unless given) for a clip of `frames` frames."""
        return self._size(cut or self.last, (frames, 64, 64))[0]

    def grid(self, cut: str, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the map at `cut` for frames of `size` = (H, W) pixels."""
        return self._size(cut, (64, *size))[1:]

    def _size(self, cut: str, size: Triple) -> Triple:
        for _, module in self.units()[: self._position(cut)]:
            size = size_after(module, size)
        return size

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(mode and not self.frozen)

    def prepare(self, frames: Tensor) -> Tensor:
        """RGB frames uint8 [B,F,H,W,3] to the normalised input [B,3,F,H,W], in this backbone's dtype and on its device.

        The result is in channels_last_3d, which is how the frames lie already. ValueError for another dtype or shape.
        """
        if frames.dtype != torch.uint8 or frames.dim() != 5 or frames.shape[-1] != 3:
            raise ValueError(f"prepare expects uint8 [B,F,H,W,3], got {frames.dtype} {list(frames.shape)}")
        parameter = next(self.parameters())
        scale, shift = 1 / (255 * self.pixel_std), self.pixel_mean / self.pixel_std
        rows = frames.to(parameter.device).flatten(3).float()  # [B,F,H,W·3]: a last axis of three would run in scalar code
        rows.mul_(scale.repeat(frames.shape[3])).sub_(shift.repeat(frames.shape[3]))
        return rows.to(parameter.dtype).unflatten(3, (-1, 3)).permute(0, 4, 1, 2, 3)

    def forward(self, x: Tensor, upto: str | None = None, start: str | None = None) -> Tensor:
        """The map at `upto` (the last stage unless given), [B,C,T,h,w].

        x: frames from `prepare`, or with `start` the map at that cut, of which only what comes after is run.
        ValueError for an unknown cut, one that lies before `start`, or an x whose channels are not those at `start`.
        """
        upto = upto or self.last
        return self.maps(x, (upto,), start)[upto]

    def maps(self, x: Tensor, cuts: Iterable[str], start: str | None = None) -> dict[str, Tensor]:
        """The maps at all of `cuts` in one pass, by name; otherwise as `forward`. Runs no further than the last of them."""
        with torch.inference_mode() if self.frozen else nullcontext():
            return self._maps(x, tuple(cuts), start)

    def _maps(self, x: Tensor, cuts: tuple[str, ...], start: str | None) -> dict[str, Tensor]:
        wanted = {cut: self._position(cut) for cut in cuts}
        first = self._position(start) if start else 0
        for cut, position in wanted.items():
            if position < first:
                raise ValueError(f"cut {cut} lies before start {start}: a map can only be computed from an earlier one")
        expected = self.channels(start) if start else 3
        if x.dim() != 5 or x.shape[1] != expected:
            raise ValueError(f"expected [B,{expected},T,h,w] at {start or 'the input'}, got {list(x.shape)}")
        parameter = next(self.parameters())
        x = x.to(parameter.device, parameter.dtype)
        found = {}
        for position, (_, module) in enumerate(self.units(), 1):
            if position > max(wanted.values(), default=0):
                break
            if position > first:
                # Every convolution is fastest, and folding time into the batch free, when channels lie together in memory.
                x = module(x.contiguous(memory_format=torch.channels_last_3d))
            found.update((cut, x) for cut, at in wanted.items() if at == position)
        return {cut: found[cut] for cut in wanted}


def _channels(module: nn.Module) -> int:
    return getattr(module, "channels", None) or getattr(module, "out_channels", 0)
