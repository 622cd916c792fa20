"""The class that all backbones share: the walk from cut to cut, and the sizes of its maps."""

from collections.abc import Iterable
from contextlib import nullcontext
from typing import Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from pipeline.backbones._layers import Conv, Inserted, Triple, size_after
from pipeline.networks.memory_format import guard

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


class Backbone(nn.Module):
    """A network from frames [B,3,F,H,W] to maps [B,C,T,h,w] at named cuts.

    A cut is the output of a stage ("res4") or of one of its blocks, counted from 0 ("res4.3"). In a
    stage with six blocks, "res4.5" and "res4" are the same cut.

    A point is where `insert` puts a module that keeps the shape of its input [B,C,T,h,w]. It is a
    cut, or a convolution inside a block, before its batch norm ("res4.4.conv2"). RSTG's and DyReg's
    modules are inserted; a `NonLocal` or an `EventAdaptiveBlock` can be.

    In i3d_r50_nl and ean_r50 these two are parts of the trunk, because they are frozen and cached
    with it. A map at res3.1 is then the one behind the non-local block, and `start` must not run
    the block again. A cached map has not passed an inserted module. Their weights also keep the
    names that published checkpoints use.

    A subclass defines `units`. A unit that is not a `Conv` or a pool has `channels` (those of its
    output) and `path` (see `size_after`).

    Args:
        mean: of RGB in [0,1]. Mean and std are saved with the parameters, since weights are of no
            use with other ones.
        std: of RGB in [0,1].

    Attributes:
        name: the name that `build_backbone` was given, "" if it was not built by it.
        options: the options of `build`, with their defaults.
        weights_sha256: SHA-256 of the weights that were loaded, "" if none.
        version: 1, or more where the same options once computed something else. Caches and runs
            record it, so that those of other versions are not continued.
        imagenet: torchvision's image network with the same kernels, "" if there is none.
        frozen: whether `freeze` made it.
        inserted: the inserted modules by their points.
    """

    def __init__(
        self, mean: tuple[float, ...] = IMAGENET_MEAN, std: tuple[float, ...] = IMAGENET_STD
    ):
        super().__init__()
        # Buffers, so that they are saved with the weights and set by a checkpoint.
        self.register_buffer("pixel_mean", torch.tensor(mean))
        self.register_buffer("pixel_std", torch.tensor(std))
        self.name, self.options, self.weights_sha256 = "", {}, ""
        self.imagenet, self.version = "", 1
        self.frozen = False
        self.inserted = Inserted()
        self._emptied = 0  # how many units `keep_above` has emptied

    @property
    def mean(self) -> tuple[float, ...]:
        """The mean that `prepare` subtracts from RGB in [0,1]."""
        return tuple(self.pixel_mean.tolist())

    @property
    def std(self) -> tuple[float, ...]:
        """The standard deviation that `prepare` divides by."""
        return tuple(self.pixel_std.tolist())

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        """Return the modules in the order in which they run.

        Returns:
            (names, module) pairs. The names are the cuts that the module's output is; the last unit
            of a stage has two, other units may have none.
        """
        raise NotImplementedError

    @property
    def stages(self) -> tuple[str, ...]:
        """The names of the stages, in order."""
        return tuple(cut for cut in self.cuts() if "." not in cut)

    @property
    def last(self) -> str:
        """The last stage."""
        return self.stages[-1]

    def cuts(self) -> tuple[str, ...]:
        """Return every name of a cut, in the order in which the network reaches them."""
        cuts: list[str] = []
        for names, _ in self.units():
            cuts += names
        return tuple(cuts)

    def _position(self, cut: str) -> int:
        """How many units have run at `cut`. ValueError for a name that is not a cut."""
        for position, (names, _) in enumerate(self.units(), 1):
            if cut in names:
                return position
        expected = ", ".join(self.stages)
        blocks = [name for name in self.cuts() if "." in name]
        if blocks:
            expected += f", or a block such as {blocks[-1]}"
        raise ValueError(
            f"cut {cut!r} is not one of {self.name or 'this backbone'}: expected {expected}"
        )

    def _point(self, point: str) -> tuple[int, Conv | None]:
        """Where a point is: (how many units have run, the convolution if it lies inside one)."""
        block, _, name = point.rpartition(".")
        for position, (names, module) in enumerate(self.units(), 1):
            convolution = getattr(module, name, None)
            if block in names[:1] and isinstance(convolution, Conv):
                return position, convolution
        return self._position(point), None

    def insert(self, point: str, module: nn.Module) -> None:
        """Insert a module: from now on, the map at `point` goes through it.

        Its parameters join those of the backbone, in the state dict under "inserted." and the point
        with underscores in place of its dots. Load weights before.

        Args:
            point: a cut ("res3", "res4.4") or a convolution inside a block ("res4.4.conv2").
            module: [B,C,T,h,w] -> the same shape.

        Raises:
            ValueError: the point is unknown or has a module, or the backbone is frozen.
        """
        if self.frozen:
            raise ValueError(
                f"a frozen copy takes no module at {point}: insert it into the original, then "
                f"freeze"
            )
        position, convolution = self._point(point)
        # Compared by position: "res4.5" and "res4" are the same point.
        if any(self._point(other) == (position, convolution) for other in self.inserted):
            raise ValueError(
                f"{point} has a module already: a point takes one, so join the two in an "
                f"nn.Sequential"
            )
        # guard: a module of somebody else may have convolutions that are unsafe in channels last.
        self.inserted.put(point, guard(module))
        if convolution is not None:
            convolution.after = (self.inserted, point)

    def before(self, point: str) -> str | None:
        """Return the last cut that is reached before a module at `point` runs.

        A cached map at this cut, made without the module, is the `start` that runs the module and
        all that follows. For a cut it is the cut itself.

        Args:
            point: as for `insert`.

        Returns:
            The cut, or None if only the input comes before.

        Raises:
            ValueError: the point is unknown.
        """
        position, convolution = self._point(point)
        if convolution is None:
            return point
        for names, _ in reversed(self.units()[: position - 1]):
            if names:
                return names[-1]
        return None

    def keep_above(self, cut: str) -> None:
        """Free the parameters up to a cut: from now on `start` must be this cut or a later one.

        Args:
            cut: the cut.

        Raises:
            ValueError: the cut is unknown, or a module was inserted into what would be freed.
        """
        position = self._position(cut)
        for point in self.inserted:
            at, convolution = self._point(point)
            # A module after the cut is run by `start`, one inside the cut's last unit is not.
            if at < position or (at == position and convolution is not None):
                raise ValueError(
                    f"a module at {point} runs before {cut}: keep what is above "
                    f"{self.before(point)}"
                )
        for _, unit in self.units()[:position]:
            for module in unit.modules():
                tensors = dict(module.named_parameters(recurse=False))
                tensors.update(module.named_buffers(recurse=False))
                # None, not deleted: the modules stay at their places in `units`.
                for name in tensors:
                    setattr(module, name, None)
                # Otherwise it would miss its counter in a state dict, and add one.
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.track_running_stats = False
        self._emptied = position

    def channels(self, point: str | None = None) -> int:
        """Return C, the channels of the map at a cut or point.

        Args:
            point: a cut or point; the last stage unless given.

        Raises:
            ValueError: the point is unknown.
        """
        position, convolution = self._point(point or self.last)
        if convolution is not None:
            return convolution.out_channels
        # A pool keeps the channels of the unit before.
        for _, module in reversed(self.units()[:position]):
            channels = getattr(module, "channels", None) or getattr(module, "out_channels", 0)
            if channels:
                return channels
        return 3

    def steps(self, frames: int, point: str | None = None) -> int:
        """Return T, the time steps of the map at a cut or point.

        Args:
            frames: F, the number of frames of a clip.
            point: a cut or point; the last stage unless given.

        Raises:
            ValueError: the point is unknown.
        """
        # T does not depend on the size of the frames.
        return self._size(point or self.last, (frames, 64, 64))[0]

    def grid(self, point: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w), the grid of the map at a cut or point.

        Args:
            point: a cut or point.
            size: (H, W) of the frames in pixels.

        Raises:
            ValueError: the point is unknown.
        """
        # The grid does not depend on the number of frames.
        return self._size(point, (64, *size))[1:]

    def _size(self, point: str, size: Triple) -> Triple:
        position, convolution = self._point(point)
        units = [module for _, module in self.units()[:position]]
        # Inside a unit, only the layers up to the convolution count.
        if convolution is not None:
            path = units.pop().path
            units += path[: path.index(convolution) + 1]
        for module in units:
            size = size_after(module, size)
        return size

    def compile_units(self) -> None:
        """Have `torch.compile` compile every unit, on its first call for every new shape."""
        for _, module in self.units():
            module.compile()

    def train(self, mode: bool = True) -> "Backbone":
        """Set the training mode; a frozen backbone stays in evaluation mode.

        Args:
            mode: training (True) or evaluation.

        Returns:
            This backbone.
        """
        return super().train(mode and not self.frozen)

    def prepare(self, frames: Tensor) -> Tensor:
        """Turn RGB frames into the normalised input of `forward`.

        Args:
            frames: uint8 [B,F,H,W,3], on any device.

        Returns:
            [B,3,F,H,W] in this backbone's dtype and on its device, in channels_last_3d: the memory
            order that the frames have already.

        Raises:
            ValueError: another dtype or shape.
        """
        if frames.dtype != torch.uint8 or frames.dim() != 5 or frames.shape[-1] != 3:
            raise ValueError(
                f"prepare expects uint8 [B,F,H,W,3], got {frames.dtype} {list(frames.shape)}"
            )
        parameter = next(self.parameters())
        scale, shift = 1 / (255 * self.pixel_std), self.pixel_mean / self.pixel_std
        # [B,F,H,W·3]: PyTorch runs a last axis of three in scalar code.
        rows = frames.to(parameter.device).flatten(3).float()
        rows.mul_(scale.repeat(frames.shape[3])).sub_(shift.repeat(frames.shape[3]))
        return rows.to(parameter.dtype).unflatten(3, (-1, 3)).permute(0, 4, 1, 2, 3)

    def forward(self, x: Tensor, upto: str | None = None, start: str | None = None) -> Tensor:
        """Compute the map at one cut.

        A module that was inserted at a cut runs after `start` = that cut, whose map was cached
        without it. It runs before `upto` = that cut: the result includes it.

        Args:
            x: [B,3,F,H,W] from `prepare`; with `start` the map [B,C,T,h,w] at that cut.
            upto: the cut of the result; the last stage unless given.
            start: the cut of x. Only what comes after it runs.

        Returns:
            [B,C,T,h,w].

        Raises:
            ValueError: a cut is unknown or lies before `start`, or x has other channels.
        """
        upto = upto or self.last
        return self.maps(x, (upto,), start)[upto]

    def maps(self, x: Tensor, cuts: Iterable[str], start: str | None = None) -> dict[str, Tensor]:
        """Compute the maps at several cuts in one pass, which ends at the last of them.

        Args:
            x: as for `forward`.
            cuts: names of cuts.
            start: as for `forward`.

        Returns:
            cut -> [B,C,T,h,w], in the order of `cuts`.

        Raises:
            ValueError: as for `forward`.
        """
        # A frozen backbone saves what autograd would keep.
        with torch.inference_mode() if self.frozen else nullcontext():
            return self._maps(x, tuple(cuts), start)

    def _maps(self, x: Tensor, cuts: tuple[str, ...], start: str | None) -> dict[str, Tensor]:
        wanted = {cut: self._position(cut) for cut in cuts}
        first = self._position(start) if start else 0
        self._check(x, wanted, first, start)

        # Modules after a unit; `Conv` runs those inside one.
        after: dict[int, str] = {}
        for point in self.inserted:
            position, convolution = self._point(point)
            if convolution is None:
                after[position] = point

        parameter = next(self.parameters())
        x = x.to(parameter.device, parameter.dtype)
        found: dict[str, Tensor] = {}
        for position, (_, module) in enumerate(self.units(), 1):
            # No caller asked for what comes after the last cut.
            if position > max(wanted.values(), default=0):
                break
            if position > first:
                # In channels_last_3d every convolution is fastest, and `Conv` folds without a copy.
                x = module(x.contiguous(memory_format=torch.channels_last_3d))
            # Also at `start` itself: its cached map has not passed the module.
            if position >= first and position in after:
                x = self.inserted.run(after[position], x)
            for cut, at in wanted.items():
                if at == position:
                    found[cut] = x
        return {cut: found[cut] for cut in wanted}

    def _check(self, x: Tensor, wanted: dict[str, int], first: int, start: str | None) -> None:
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
        if first < self._emptied:
            kept = self.units()[self._emptied - 1][0][-1]
            raise ValueError(
                f"only what is above {kept} was kept: pass its map and start={kept}, or a later one"
            )


@runtime_checkable
class HasTokens(Protocol):
    """A backbone that has class and register tokens beside its maps."""

    def token_shape(self, frames: int, point: str | None = None) -> tuple[int, int, int]:
        """Return (S, P, C) of the tokens at a cut, for clips of so many frames."""

    def maps_with_tokens(
        self, x: Tensor, cuts: Iterable[str], at: str
    ) -> tuple[dict[str, Tensor], Tensor]:
        """Compute maps, and the tokens [B,S,P,C] at a cut, in one pass."""
