"""A model of another library as a backbone: maps at its blocks, by the library's own forward.

The shapes of maps are read off a copy of the model without values (on torch's meta device). So
there is no arithmetic of sizes here, and a size that the library refuses is refused in its words.
"""

from collections.abc import Callable, Iterable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.backbones import Backbone
from pipeline.encoders.layouts import Layout, Size
from pipeline.encoders.taps import Reached, Taps, state_of, with_state

# Numbers of frames that are tried to say which ones work.
_USUAL_FRAMES = (8, 16, 32, 64)

# Cuts of maps have the shapes of these axes.
Shape = tuple[int, int, int, int]  # (C, T, h, w)


@dataclass(frozen=True)
class Encoder:
    """What an adapter says of a library's model.

    Attributes:
        make: builds the model with random weights, without its classifier.
        run: (model, pixels) -> its last features, by its own forward. The pixels are [B,3,F,H,W],
            or frames [B·F,3,H,W] for a model that reads frames.
        blocks: the names of the modules whose outputs are cuts, in the order in which they run.
        layout: how the model orders its output; its `prefix` is counted here.
        size: (F, H, W) that the model was trained with.
        mean: of RGB in [0,1].
        std: of RGB in [0,1].
        reroll: the name of the module whose `reroll` puts a block's tokens in order; None where
            they are in order.
        last: the name of the module whose output is the last cut; "": what `run` returns.
        stages: names of the cuts at `blocks`; none: layer0, layer1, ... or stage1, stage2, ...
        sequential: nothing that learns lies between the blocks, so that the model can start
            behind any of them.
    """

    make: Callable[[], nn.Module]
    run: Callable[[nn.Module, Tensor], Any]
    blocks: tuple[str, ...]
    layout: Layout
    size: Size
    mean: tuple[float, ...]
    std: tuple[float, ...]
    reroll: str | None = None
    last: str = ""
    stages: tuple[str, ...] = ()
    sequential: bool = True


@dataclass
class _Shapes:
    """What a pass without values found for one size.

    Attributes:
        outputs: what each block returned, without values.
        maps: the shape (C, T, h, w) of each cut.
    """

    outputs: list[Any]
    maps: list[Shape]


class EncoderBackbone(Backbone):
    """A library's model with the cuts of its blocks and `last`, its final features.

    Args:
        name: as `build_backbone` was given it, for messages.
        model: the model with its weights.
        encoder: what the adapter says of it.

    Attributes:
        model: the library's model.
        prefix: P, how many class and register tokens it has beside the map.
    """

    def __init__(self, name: str, model: nn.Module, encoder: Encoder):
        super().__init__(encoder.mean, encoder.std)
        self.name, self.model = name, model
        with torch.device("meta"):
            skeleton = encoder.make().eval()
        # In a tuple, so that it is no part of this module.
        self._skeleton = (skeleton.to("meta"),)
        self._known: dict[Size, _Shapes] = {}

        self.encoder = encoder
        outputs = self._outputs(encoder.size)
        prefix = _count_prefix(encoder, outputs)
        self.encoder = replace(encoder, layout=replace(encoder.layout, prefix=prefix))
        self._cuts = (*_cut_names(encoder, outputs), "last")

    @property
    def prefix(self) -> int:
        """P, how many class and register tokens the model has beside the map."""
        return self.encoder.layout.prefix

    # The sizes of maps

    def _outputs(self, size: Size) -> list[Any]:
        """What each block and the model return for clips of a size, without values."""
        encoder, outputs = self.encoder, []

        def seen(number: int, output: Any) -> Any:
            outputs.append(output)
            return output

        (model,) = self._skeleton
        taps = Taps(_blocks(model, encoder), seen)
        with torch.no_grad(), torch.device("meta"), taps.open():
            last = encoder.run(model, _pixels(encoder, size, "meta"))
        if not encoder.last:
            outputs.append(last)
        return outputs

    def _shapes(self, size: Size) -> _Shapes:
        """The shapes at every cut for clips of a size; ValueError for a size that does not work."""
        if size not in self._known:
            try:
                self._known[size] = self._measured(size)
            except Exception as error:
                raise ValueError(self._refusal(size, error)) from error
        return self._known[size]

    def _measured(self, size: Size) -> _Shapes:
        outputs, (model,) = self._outputs(size), self._skeleton
        maps = []
        for number, output in enumerate(outputs):
            _, C, T, h, w = self._to_map(model, number, output, size).shape
            maps.append((C, T, h, w))
        return _Shapes(outputs, maps)

    def _refusal(self, size: Size, error: Exception) -> str:
        F, H, W = size
        said = " ".join(str(error).split())[:160]
        _, native_h, native_w = self.encoder.size
        works = []
        per_frame = self.encoder.layout.per_frame
        candidates = {F} if per_frame else {*_USUAL_FRAMES, self.encoder.size[0]}
        for frames in sorted(candidates):
            for side in dict.fromkeys([(H, W), (native_h, native_w)]):
                try:
                    self._measured((frames, *side))
                except Exception:
                    continue
                works.append(_clips_of(per_frame, frames, side))
                break
        options = "; it takes " + ", ".join(works) if works else ""
        asked = _clips_of(per_frame, F, (H, W))
        flags = "--size" if per_frame else "--frames, --size"
        return f"{self.name} does not take {asked} pixels ({said}){options} ({flags})"

    def _shape_at(self, point: str, size: Size) -> Shape:
        position = self._position(point)
        return self._shapes(size).maps[position - 2]

    def channels(self, point: str | None = None) -> int:
        """Return C, the channels of the map at a cut; see `Backbone.channels`."""
        return self._shape_at(point or self.last, self.encoder.size)[0]

    def steps(self, frames: int, point: str | None = None) -> int:
        """Return T, the time steps of the map at a cut; see `Backbone.steps`."""
        size = (frames, *self.encoder.size[1:])
        return self._shape_at(point or self.last, size)[1]

    def grid(self, point: str, size: tuple[int, int]) -> tuple[int, int]:
        """Return (h, w), the grid of the map at a cut; see `Backbone.grid`."""
        return self._shape_at(point, (self.encoder.size[0], *size))[2:]

    def token_shape(self, frames: int, point: str | None = None) -> tuple[int, int, int]:
        """Return (S, P, C) of the class and register tokens at a cut.

        Args:
            frames: F, the number of frames of a clip.
            point: a cut; the last one unless given.

        Raises:
            ValueError: the model has none, or the point is unknown.
        """
        if not self.prefix:
            raise ValueError(
                f"{self.name} has no class or register tokens: leave tokens out of --keep"
            )
        position = self._position(point or self.last)
        if state_of(self._shapes(self.encoder.size).outputs[position - 2]).dim() != 3:
            raise ValueError(
                f"{self.name} has class tokens beside {self.last} alone, not beside {point}: keep "
                f"{self.last}, or leave tokens out of --keep"
            )
        steps = frames if self.encoder.layout.per_frame else 1
        return steps, self.prefix, self.channels(point)

    # Cuts and units

    def cuts(self) -> tuple[str, ...]:
        """Return every name of a cut; see `Backbone.cuts`."""
        return self._cuts

    def _position(self, cut: str) -> int:
        if cut in self._cuts:
            # The first unit is what comes before the first block.
            return self._cuts.index(cut) + 2
        expected = f"{self._cuts[0]} to {self._cuts[-2]}, or last"
        raise ValueError(f"cut {cut!r} is not one of {self.name}: expected {expected}")

    def _point(self, point: str) -> tuple[int, None]:
        return self._position(point), None

    def units(self) -> list[tuple[tuple[str, ...], nn.Module]]:
        """Return what comes before the blocks, the blocks, and what comes after.

        Returns:
            (names, module) pairs; see `Backbone.units`. The first and the last module only list
            parts of the model. They are never called.
        """
        blocks = _named(self.model, self.encoder.blocks)
        before, after = self._others()
        units = [((), before)]
        units += [((cut,), block) for cut, block in zip(self._cuts[:-1], blocks, strict=True)]
        return [*units, (("last",), after)]

    def _others(self) -> tuple[nn.Module, nn.Module]:
        """The parts of the model outside its blocks: those before, and those after.

        A part is a module that has parameters of its own. A module whose parent is listed in the
        model after the blocks comes after.
        """
        before, after, seen_block = _Parts(), _Parts(), False
        for name, module in self.model.named_modules():
            if any(name == block or name.startswith(f"{block}.") for block in self.encoder.blocks):
                seen_block = True
            elif next(module.parameters(recurse=False), None) is not None:
                (after if seen_block else before).add(module)
        return before, after

    def compile_units(self) -> None:
        """Compile every block with `torch.compile`; what reads their outputs stays outside."""
        blocks: dict[nn.Module, None] = {}
        for name in self.encoder.blocks:
            # Of a stage of Swin, only the last block has a cut; those before it are in its list.
            listed = self.model.get_submodule(name.rpartition(".")[0])
            some = listed if isinstance(listed, nn.ModuleList) else _named(self.model, [name])
            blocks.update(dict.fromkeys(some))
        for block in blocks:
            block.forward = torch.compile(block.forward)

    def keep_above(self, cut: str) -> None:
        """Free the parameters of blocks up to a cut; see `Backbone.keep_above`.

        The embedding of patches stays: the library's forward runs it, and it is small.
        """
        position = self._position(cut)
        for point in self.inserted:
            if self._position(point) < position:
                raise ValueError(f"a module at {point} runs before {cut}: keep what is above it")
        for _, unit in self.units()[1:position]:
            for module in unit.modules():
                tensors = dict(module.named_parameters(recurse=False))
                tensors.update(module.named_buffers(recurse=False))
                for name in tensors:
                    setattr(module, name, None)
                if isinstance(module, nn.modules.batchnorm._BatchNorm):
                    module.track_running_stats = False
        self._emptied = position

    # The pass

    def maps_with_tokens(self, x: Tensor, cuts: Iterable[str], at: str) -> tuple[dict, Tensor]:
        """Compute maps, and the class and register tokens of one cut, in one pass.

        Args:
            x: [B,3,F,H,W] from `prepare`.
            cuts: names of cuts.
            at: the cut of the tokens.

        Returns:
            (cut -> [B,C,T,h,w], tokens [B,S,P,C]); S is F for a model of frames, else 1.

        Raises:
            ValueError: the model has no such tokens, or a cut is unknown.
        """
        self.token_shape(x.shape[2], at)
        with torch.inference_mode() if self.frozen else nullcontext():
            tokens: list[Tensor] = []
            maps = self._pass(x, tuple(cuts), None, {self._position(at): tokens.append})
        return maps, tokens[0]

    def _maps(self, x: Tensor, cuts: tuple[str, ...], start: str | None) -> dict[str, Tensor]:
        return self._pass(x, cuts, start, {})

    def _pass(
        self,
        x: Tensor,
        cuts: tuple[str, ...],
        start: str | None,
        take_tokens: dict[int, Callable[[Tensor], None]],
    ) -> dict[str, Tensor]:
        encoder = self.encoder
        wanted = {cut: self._position(cut) for cut in cuts}
        first = self._position(start) if start else 0
        self._check(x, wanted, first, start)
        parameter = next(self.model.parameters())
        x = x.to(parameter.device, parameter.dtype)

        after = {self._position(point): point for point in self.inserted}
        ends_at = max([*wanted.values(), *take_tokens], default=0)
        found: dict[str, Tensor] = {}
        size, given = tuple(x.shape[2:]), None
        if start:
            size, given = self._resumed(x, first, start)
            if first in after:
                x = self.inserted.run(after[first], x)
                given = self._put(x, first - 2, given)

        def seen(number: int, output: Any) -> Any:
            position = number + 2
            here = [cut for cut, at in wanted.items() if at == position]
            if here or position in after:
                fmap = self._to_map(self.model, number, output, size)
                if position in after:
                    fmap = self.inserted.run(after[position], fmap)
                    output = self._put(fmap, number, output)
                found.update(dict.fromkeys(here, fmap))
            if position in take_tokens:
                take_tokens[position](encoder.layout.prefix_of(state_of(output), size))
            if position == ends_at:
                raise Reached
            return output

        found.update({cut: x for cut, at in wanted.items() if start and at == first})
        if ends_at <= first:
            return {cut: found[cut] for cut in wanted}
        blocks = _blocks(self.model, encoder)
        pixels = x.new_zeros(x.shape[0], 3, *size) if start else x
        with Taps(blocks, seen, max(first - 1, 0), given).open():
            last = encoder.run(self.model, _ordered(encoder, pixels))
            if not encoder.last:
                seen(len(blocks), last)
        return {cut: found[cut] for cut in wanted}

    def _to_map(self, model: nn.Module, number: int, output: Any, size: Size) -> Tensor:
        """The map of a block's output."""
        encoder = self.encoder
        layout, state = encoder.layout, state_of(output)
        if encoder.reroll is not None and number < len(encoder.blocks):
            # Libraries number the blocks or stages in the order of their list.
            place = int(encoder.blocks[number].rpartition(".")[2])
            rolled = model.get_submodule(encoder.reroll).reroll(state, place)
            layout, state = replace(layout, channels_last=True), rolled
        return layout.to_map(state, size)

    def _put(self, fmap: Tensor, number: int, output: Any) -> Any:
        """A block's output with another map."""
        encoder = self.encoder
        if encoder.reroll is not None and number < len(encoder.blocks):
            raise ValueError(
                f"{self.name}: the map at {self._cuts[number]} can be read but not replaced, since "
                f"the model reorders its tokens: choose last"
            )
        return with_state(output, encoder.layout.from_map(fmap, state_of(output)))

    def _resumed(self, x: Tensor, first: int, start: str) -> tuple[Size, Any]:
        """The size of the clips that a map at `start` came from, and what its block returned."""
        if not self.encoder.sequential:
            raise ValueError(
                f"{self.name} computes more between its cuts than their blocks: run it from the "
                f"frames, not from {start}"
            )
        size = self._size_of(tuple(x.shape[2:]), first - 2, start)
        empty = self._shapes(size).outputs[first - 2]
        if self.prefix and state_of(empty).dim() == 3:
            raise ValueError(
                f"{self.name} has {self.prefix} class or register tokens beside the map at "
                f"{start}, which a map alone lacks: run it from the frames"
            )
        return size, self._put(x, first - 2, _with_batch(empty, x))

    def _size_of(self, shape: Size, number: int, start: str) -> Size:
        """(F, H, W) whose map at a cut has the shape (T, h, w)."""
        native, (_, T, h, w) = self.encoder.size, self._shapes(self.encoder.size).maps[number]
        size = []
        for have, full, length in zip(shape, (T, h, w), native, strict=True):
            size.append(max(1, have * length // full))
        if self._shapes(tuple(size)).maps[number][1:] != shape:
            raise ValueError(
                f"{self.name}: no clip has a map of {shape} at {start}: run it from the frames"
            )
        return tuple(size)


class _Parts(nn.Module):
    """Modules of a model, for those who freeze or count them; it is never called.

    The modules' own parameters are those of the model, not copies.
    """

    def add(self, module: nn.Module) -> None:
        """List a module, without the modules below it."""
        part = nn.Module()
        # The same norms must be found by those who keep them in evaluation mode.
        if not list(module.children()):
            part = module
        else:
            part._parameters.update(module._parameters)
        self.add_module(str(len(self._modules)), part)


def _clips_of(per_frame: bool, frames: int, side: tuple[int, int]) -> str:
    """How messages call clips of a size; a model of frames takes any number of them."""
    pixels = f"{side[0]}x{side[1]}"
    return f"frames of {pixels}" if per_frame else f"{frames} frames of {pixels}"


def _cut_names(encoder: Encoder, outputs: Sequence[Any]) -> list[str]:
    """layer0, layer1, ... for blocks whose tokens keep their shape; stage1, ... for others."""
    if encoder.stages:
        return list(encoder.stages)
    states = [state_of(output) for output in outputs[: len(encoder.blocks)]]
    if states[0].dim() == 3 and len({state.shape for state in states}) == 1:
        return [f"layer{number}" for number in range(len(states))]
    return [f"stage{number}" for number in range(1, len(states) + 1)]


def _count_prefix(encoder: Encoder, outputs: Sequence[Any]) -> int:
    """P, the class and register tokens of the first output that consists of tokens."""
    if encoder.reroll is not None:
        return 0
    for output in (outputs[0], outputs[-1]):
        state = state_of(output)
        if state.dim() == 3:
            return encoder.layout.count_prefix(state.shape[1], encoder.size)
    return 0


def _named(model: nn.Module, names: Iterable[str]) -> list[nn.Module]:
    return [model.get_submodule(name) for name in names]


def _blocks(model: nn.Module, encoder: Encoder) -> list[nn.Module]:
    """The modules whose outputs are cuts: the blocks, and `last` where it is a module."""
    names = encoder.blocks
    return _named(model, (*names, encoder.last) if encoder.last else names)


def _pixels(encoder: Encoder, size: Size, device: str) -> Tensor:
    return _ordered(encoder, torch.zeros(1, 3, *size, device=device))


def _ordered(encoder: Encoder, x: Tensor) -> Tensor:
    """[B,3,F,H,W], or frames [B·F,3,H,W] for a model that reads frames."""
    return x.transpose(1, 2).flatten(0, 1) if encoder.layout.per_frame else x


def _with_batch(empty: Any, x: Tensor) -> Any:
    """A block's output for one clip without values, with a state of x's device."""
    return with_state(empty, x.new_zeros([0] * state_of(empty).dim()))
