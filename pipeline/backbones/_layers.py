"""Layers over maps [B,C,T,h,w] that tell how they change a map's size, and inserted modules."""

from collections.abc import Iterator

from torch import Tensor, nn

from pipeline.networks.memory_format import convolve

Triple = tuple[int, int, int]  # (time, height, width)


class Inserted(nn.Module):
    """The modules that were inserted into a backbone, by their points: `inserted["res4.4"]`.

    A module's name may have no dots. They are therefore registered, and saved, under the point with
    underscores in place of its dots.
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
        """Run the module at `point` on x. ValueError if it changes the shape."""
        y = self[point](x)
        if y.shape != x.shape:
            raise ValueError(
                f"the module at {point} must keep the shape of its input: {list(x.shape)} became "
                f"{list(y.shape)}"
            )
        return y


class Conv(nn.Conv3d):
    """A 3-D convolution over [B,C,T,h,w] that runs as a 2-D convolution where it can.

    It can if its kernel covers only space (1×k×k) or only time (k×1×1). In channels_last_3d both
    foldings are views: B·T frames of h×w, or B maps of T×(h·w). The 2-D kernels are better tuned:
    with one thread, PyTorch's routine for a k×1×1 convolution in 3-D takes twice as long. The
    parameters are those of `nn.Conv3d` either way.

    Attributes:
        after: (the backbone's inserted modules, point) if `Backbone.insert` put a module right
            behind this convolution.
    """

    calls_convolve = True  # `pipeline.networks.memory_format.convolve` decides the memory format
    # In a tuple, so that only the backbone registers the module.
    after: "tuple[Inserted, str] | None" = None

    def forward(self, x: Tensor) -> Tensor:
        """Convolve, then run the module that was inserted behind this layer.

        Args:
            x: [B,C,T,h,w].

        Returns:
            [B,C',T',h',w'].
        """
        y = self._convolved(x)
        if self.after is None:
            return y
        inserted, point = self.after
        return inserted.run(point, y)

    def _convolved(self, x: Tensor) -> Tensor:
        if self.kernel_size[0] == 1 and self.stride[0] == 1:
            frames = x.transpose(1, 2).flatten(0, 1)  # [B·T,C,h,w]
            weight = self.weight.squeeze(2)
            y = convolve(frames, weight, self.bias, self.stride[1:], self.padding[1:])
            return y.unflatten(0, (x.shape[0], x.shape[2])).transpose(1, 2)

        if self.kernel_size[1:] == (1, 1) and self.stride[1:] == (1, 1):
            weight = self.weight.squeeze(4)
            stride, padding = (self.stride[0], 1), (self.padding[0], 0)
            y = convolve(x.flatten(3), weight, self.bias, stride, padding)  # [B,C,T,h·w]
            return y.unflatten(3, x.shape[3:])

        return convolve(x, self.weight, self.bias, self.stride, self.padding)


class MaxPool(nn.MaxPool3d):
    """A maximum over windows of [B,C,T,h,w]; kernel, stride and padding are triples."""


class Grey(nn.Module):
    """The mean over colours: [B,C,T,h,w] -> [B,1,T,h,w]."""

    channels = 1
    path = ()  # it changes no size

    def forward(self, x: Tensor) -> Tensor:
        return x.mean(1, keepdim=True)


def size_after(module: nn.Module, size: Triple) -> Triple:
    """Return the size of a map behind a module.

    Args:
        module: a `Conv`, a pool, or a module whose `path` lists the convolutions and pools on the
            way through it.
        size: (T, h, w) of its input.

    Returns:
        (T, h, w) of its output.
    """
    for layer in getattr(module, "path", (module,)):
        after = []
        for n, kernel, stride, padding in zip(
            size, layer.kernel_size, layer.stride, layer.padding, strict=True
        ):
            after.append((n + 2 * padding - kernel) // stride + 1)
        size = tuple(after)
    return size
