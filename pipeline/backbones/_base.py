"""What every backbone shares: the walk from cut to cut, the arithmetic of its shapes, and the
folded convolution.
"""

from collections.abc import Iterable, Iterator
from contextlib import nullcontext

import torch
from torch import Tensor, nn

from pipeline.networks.memory_format import convolve, guard

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)

Triple = tuple[int, int, int]


class Inserted(nn.Module):
    """The modules that were put into a backbone, by their points: `inserted["res4.4"]`.

    They are registered, and so saved, under the point with its dots as underscores, because a
    module's name has no dots.
    """

    def __init__(self):
        super().__init__()
        self.points: tuple[str, ...] = ()

    def put(self, point: str, module: nn.Module) -> None:
        self.add_module(point.replace(".", "_"), module)
        self.points += (point,)

    def __getitem__(self, point: str) -> nn.Module:
        if point not in self.points:
            raise KeyError(point)
        return getattr(self, point.replace(".", "_"))

    def __iter__(self) -> Iterator[str]:
        return iter(self.points)

    def __len__(self) -> int:
        return len(self.points)

    def run(self, point: str, x: Tensor) -> Tensor:
        """What the module at `point` makes of x. ValueError if that has another shape."""
        y = self[point](x)
        if y.shape != x.shape:
            raise ValueError(
                f"the module at {point} must keep the shape of its input: {list(x.shape)} became "
                f"{list(y.shape)}"
            )
        return y


class Conv(nn.Conv3d):
    """A convolution over [B,C,T,h,w]. One that looks only across space or only across time runs as
    a 2-D convolution.

    In channels_last_3d both foldings are views: B·T frames of h×w, or B maps of T×(h·w). The 2-D
    kernels are the better tuned ones: with one thread PyTorch sends a k×1×1 convolution in 3-D to a
    routine that takes twice as long. The parameters are those of `nn.Conv3d` either way. `after` is
    where a module was put right behind it (`Backbone.insert`).
    """

    calls_convolve = True  # which decides the memory format
    after: "tuple[Inserted, str] | None" = (
        None  # in a tuple, so that the module is registered once, by the backbone
    )

    def forward(self, x: Tensor) -> Tensor:
        y = self._convolved(x)
        if self.after is None:
            return y
        inserted, point = self.after
        return inserted.run(point, y)

    def _convolved(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            frames = x.transpose(1, 2).flatten(0, 1)  # [B·T,C,h,w]
            y = convolve(
                frames, self.weight.squeeze(2), self.bias, self.stride[1:], self.padding[1:]
            )
            return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)
        if self.kernel_size[1:] == (1, 1) and self.stride[1:] == (1, 1):
            y = convolve(
                x.flatten(3),
                self.weight.squeeze(4),
                self.bias,
                (self.stride[0], 1),
                (self.padding[0], 0),
            )
            return y.unflatten(3, x.shape[3:])
        return convolve(x, self.weight, self.bias, self.stride, self.padding)


class MaxPool(nn.MaxPool3d):
    """A maximum over a (time, height, width) window of [B,C,T,h,w]; kernel, stride and padding are
    triples.
    """


class Grey(nn.Module):
    """The mean over colours, [B,C,T,h,w] -> [B,1,T,h,w]."""

    channels = 1
    path = ()

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


def size_after(module: nn.Module, size: Triple) -> Triple:
    """(time, height, width) after a `Conv`, a pool, or a module that lists those on its way as
    `path`.
    """
    for layer in getattr(module, "path", (module,)):
        triples = zip(size, layer.kernel_size, layer.stride, layer.padding, strict=True)
        size = tuple(
            (n + 2 * padding - kernel) // stride + 1 for n, kernel, stride, padding in triples
        )
    return size


class Backbone(nn.Module):
    """Frames [B,3,F,H,W] to maps [B,C,T,h,w] at named cuts.

    A cut is the output of a stage ("res4") or of a block of it counted from 0 ("res4.3"); "res4.5"
    and "res4" are the same point of a stage with six blocks. `stages` are the names of the stages
    in order, `last` the last of them. `mean` and `std` normalise RGB in [0,1]; they are saved with
    the parameters, because weights are worth nothing with other ones. `name` and `options` say how
    it was built; `weights_sha256` is the SHA-256 of the weights that were loaded, "" if none.
    `imagenet` is the name of torchvision's image network with the same kernels, "" if there is
    none. `frozen`: see `freeze`.

    A point is where `insert` puts a module that maps [B,C,T,h,w] to the same shape: after a cut
    ("res3", "res4.4") or right after a convolution inside a block, before its batch norm
    ("res4.4.conv2"). `inserted` holds the modules by their points. RSTG's and DyReg's modules come
    that way, and a `NonLocal` or `EventAdaptiveBlock` can, at any point of any backbone. In
    i3d_r50_nl and ean_r50 these two are parts of the trunk instead, because they are frozen and
    cached with it: a map at res3.1 is the one behind its non-local block, and `start` must not run
    that again, whereas an inserted module is what a cached map has not passed yet. So too their
    weights keep the names that published checkpoints are read by.

    A subclass gives `units()`: the modules in the order in which they run. A unit has `channels`
    (those of its output) and `path` (see `size_after`) unless it is itself a `Conv` or a pool.
    """

    def __init__(
        self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
    ):
        super().__init__()
        self.register_buffer("pixel_mean", torch.tensor(mean))
        self.register_buffer("pixel_std", torch.tensor(std))
        self.name, self.options, self.weights_sha256 = "", {}, ""
        self.imagenet = ""
        self.frozen = False
        self.inserted = Inserted()
        self._above = 0  # how many units `keep_above` has emptied

    @property
    def mean(self) -> tuple[float, ...]:
        return tuple(self.pixel_mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        return tuple(self.pixel_std.tolist())

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        """(names, module) in the order in which they run; names are the cuts that the module's
        output is, maybe none.
        """
        raise NotImplementedError

    @property
    def stages(self) -> tuple[str, ...]:
        return tuple(name for names, _ in self.units() for name in names if "." not in name)

    @property
    def last(self) -> str:
        return self.stages[-1]

    def cuts(self) -> tuple[str, ...]:
        """Every name that `maps`, `upto` and `start` take, in the order in which the network
        reaches them.
        """
        return tuple(name for names, _ in self.units() for name in names)

    def _position(self, cut: str) -> int:
        """How many units have run at `cut`. ValueError for a name that is not a cut."""
        for position, (names, _) in enumerate(self.units(), 1):
            if cut in names:
                return position
        blocks = [name for name in self.cuts() if "." in name]
        example = f", or a block such as {blocks[-1]}" if blocks else ""
        raise ValueError(
            f"cut {cut!r} is not one of {self.name or 'this backbone'}: expected "
            f"{', '.join(self.stages)}{example}"
        )

    def _point(self, point: str) -> tuple[int, Conv | None]:
        """The position of the unit that ends at `point` or holds it, and the convolution where the
        point lies inside.
        """
        block, _, name = point.rpartition(".")
        for position, (names, module) in enumerate(self.units(), 1):
            convolution = getattr(module, name, None)
            if block in names[:1] and isinstance(convolution, Conv):
                return position, convolution
        return self._position(point), None

    def insert(self, point: str, module: nn.Module) -> None:
        """Puts `module`, [B,C,T,h,w] -> the same shape, at `point`: whatever passes there goes
        through it from now on.

        Its parameters join those of the backbone, in its state dict under "inserted." and the point
        with its dots as underscores. Load weights before. ValueError for an unknown point, a point
        that has a module, a frozen copy.
        """
        if self.frozen:
            raise ValueError(
                f"a frozen copy takes no module at {point}: insert it into the original, then "
                f"freeze"
            )
        position, convolution = self._point(point)
        if any(self._point(other) == (position, convolution) for other in self.inserted):
            raise ValueError(
                f"{point} has a module already: a point takes one, so join the two in an "
                f"nn.Sequential"
            )
        self.inserted.put(point, guard(module))
        if convolution is not None:
            convolution.after = (self.inserted, point)

    def before(self, point: str) -> str | None:
        """The last cut that is reached before a module at `point` runs; None where that is the
        input.

        A cached map at this cut, from the backbone without modules, is the `start` that runs the
        module at `point` and all that follows. For a point after a block that is the block itself.
        """
        position, convolution = self._point(point)
        if convolution is None:
            return point
        return next(
            (names[-1] for names, _ in reversed(self.units()[: position - 1]) if names), None
        )

    def keep_above(self, cut: str) -> None:
        """Frees the parameters of everything up to `cut`: from now on only a `start` at or after it
        can be run.

        ValueError if a module was inserted into what would be freed.
        """
        position = self._position(cut)
        for point in self.inserted:
            at, convolution = self._point(point)
            if at < position or (at == position and convolution is not None):
                raise ValueError(
                    f"a module at {point} runs before {cut}: keep what is above "
                    f"{self.before(point)}"
                )
        for _, unit in self.units()[:position]:
            for module in unit.modules():
                for name in dict(
                    [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
                ):
                    setattr(module, name, None)
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.track_running_stats = (
                        False  # else it would miss its counter in a state dict, and add one
                    )
        self._above = position

    def channels(self, point: str | None = None) -> int:
        """Channels of the map at a cut or point (the last stage unless given)."""
        position, convolution = self._point(point or self.last)
        if convolution is not None:
            return convolution.out_channels
        return next(
            size
            for size in (_channels(module) for _, module in reversed(self.units()[:position]))
            if size
        )

    def steps(self, frames: int, point: str | None = None) -> int:
        """T, the time steps of the map at a cut or point (the last stage unless given) for a clip
        of `frames` frames.
        """
        return self._size(point or self.last, (frames, 64, 64))[0]

    def grid(self, point: str, size: tuple[int, int]) -> tuple[int, int]:
        """(h, w) of the map at a cut or point for frames of `size` = (H, W) pixels."""
        return self._size(point, (64, *size))[1:]

    def _size(self, point: str, size: Triple) -> Triple:
        position, convolution = self._point(point)
        units = [module for _, module in self.units()[:position]]
        if convolution is not None:
            path = units.pop().path
            units += path[: path.index(convolution) + 1]
        for module in units:
            size = size_after(module, size)
        return size

    def train(self, mode: bool = True) -> "Backbone":
        return super().train(mode and not self.frozen)

    def prepare(self, frames: Tensor) -> Tensor:
        """RGB frames uint8 [B,F,H,W,3] to the normalised input [B,3,F,H,W], in this backbone's
        dtype and on its device.

        The result is in channels_last_3d, which is how the frames lie already. ValueError for
        another dtype or shape.
        """
        if frames.dtype != torch.uint8 or frames.dim() != 5 or frames.shape[-1] != 3:
            raise ValueError(
                f"prepare expects uint8 [B,F,H,W,3], got {frames.dtype} {list(frames.shape)}"
            )
        parameter = next(self.parameters())
        scale, shift = 1 / (255 * self.pixel_std), self.pixel_mean / self.pixel_std
        rows = (
            frames.to(parameter.device).flatten(3).float()
        )  # [B,F,H,W·3]: a last axis of three would run in scalar code
        rows.mul_(scale.repeat(frames.shape[3])).sub_(shift.repeat(frames.shape[3]))
        return rows.to(parameter.dtype).unflatten(3, (-1, 3)).permute(0, 4, 1, 2, 3)

    def forward(self, x: Tensor, upto: str | None = None, start: str | None = None) -> Tensor:
        """The map at `upto` (the last stage unless given), [B,C,T,h,w].

        x: frames from `prepare`, or with `start` the map at that cut, of which only what comes
        after is run. A module inserted at a cut comes after it as far as `start` is concerned,
        which takes a map that was cached without it, and belongs to the cut as far as the result
        is. ValueError for an unknown cut, one that lies before `start`, or an x whose channels are
        not those at `start`.
        """
        upto = upto or self.last
        return self.maps(x, (upto,), start)[upto]

    def maps(self, x: Tensor, cuts: Iterable[str], start: str | None = None) -> dict[str, Tensor]:
        """The maps at all of `cuts` in one pass, by name; otherwise as `forward`. Runs no further
        than the last of them.
        """
        with torch.inference_mode() if self.frozen else nullcontext():
            return self._maps(x, tuple(cuts), start)

    def _maps(self, x: Tensor, cuts: tuple[str, ...], start: str | None) -> dict[str, Tensor]:
        wanted = {cut: self._position(cut) for cut in cuts}
        first = self._position(start) if start else 0
        for cut, position in wanted.items():
            if position < first:
                raise ValueError(
                    f"cut {cut} lies before start {start}: a map can only be computed from an "
                    f"earlier one"
                )
        expected = self.channels(start) if start else 3
        if x.dim() != 5 or x.shape[1] != expected:
            raise ValueError(
                f"expected [B,{expected},T,h,w] at {start or 'the input'}, got {list(x.shape)}"
            )
        if first < self._above:
            kept = self.units()[self._above - 1][0][-1]
            raise ValueError(
                f"only what is above {kept} was kept: pass its map and start={kept}, or a later one"
            )
        after = {
            position: point
            for point in self.inserted
            for position, inside in [self._point(point)]
            if inside is None
        }
        parameter = next(self.parameters())
        x = x.to(parameter.device, parameter.dtype)
        found = {}
        for position, (_, module) in enumerate(self.units(), 1):
            if position > max(wanted.values(), default=0):
                break
            if position > first:
                # Every convolution is fastest, and folding time into the batch free, when channels
                # lie together in memory.
                x = module(x.contiguous(memory_format=torch.channels_last_3d))
            if position >= first and position in after:
                x = self.inserted.run(after[position], x)
            found.update((cut, x) for cut, at in wanted.items() if at == position)
        return {cut: found[cut] for cut in wanted}


def _channels(module: nn.Module) -> int:
    return getattr(module, "channels", None) or getattr(module, "out_channels", 0)
