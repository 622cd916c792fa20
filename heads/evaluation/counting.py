"""Parameters and multiply-accumulates of a backbone or a head, module by module, and what the
counter leaves out.

count_backbone("i3d_r50", {"temporal": "alternating"}, frames=32, size=(224, 224)).total.macs

`torch.utils.flop_counter` counts convolutions and matrix products, two operations for each
multiply-accumulate (MAC). It leaves out what some papers count: norms, activations, pools, softmax,
arithmetic. Those operations are listed in `NetworkCount.left_out` with their elements, so that a paper's
convention can be applied to them (`tool_macs`).

Everything runs on the meta device, where tensors have a shape and no values: no memory, no time. A
head that asks for values (RoIAlign checks its grid, a discrete structure its choice) is run on
zeros on the CPU instead; `NetworkCount.device` says which. What a head computes only where its values
say so, GOS's discrete structure, is then that of a fresh network, and another one with another
seed.
"""

from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import FlopCounterMode, flop_registry

from heads.interface.clips import Clips, Dims, clips_of
from heads.zoo import build_head
from pipeline.backbones import build_backbone
from pipeline.cache.fields import field_of, is_cut

# What moves or makes values without computing with them: in no paper's count, and not listed.
MOVES = frozenset(
    (
        *(
            "_to_copy",
            "_unsafe_view",
            "clone",
            "copy",
            "copy_",
            "cat",
            "stack",
            "index",
            "index_put",
            "index_put_",
        ),
        *(
            "index_select",
            "gather",
            "scatter",
            "scatter_",
            "roll",
            "constant_pad_nd",
            "flip",
            "fill_",
            "zero_",
            "zeros_like",
        ),
        *(
            "new_zeros",
            "new_ones",
            "ones_like",
            "empty_like",
            "repeat",
            "masked_fill",
            "masked_fill_",
            "where",
            "lift_fresh",
        ),
        "_reshape_copy",
    )
)
KINDS = {  # part of an operation's name -> kind
    "batch_norm": "norm",
    "layer_norm": "norm",
    "relu": "activation",
    "sigmoid": "activation",
    "tanh": "activation",
    "pool": "pool",
    "softmax": "softmax",
    "mean": "sum",
    "sum": "sum",
    "embedding_bag": "RoIAlign",  # its bilinear samples, pipeline/regions/roi_align.py
}


@dataclass(frozen=True)
class ModuleCount:
    """A module: its dotted name ("" is the whole), class, parameters, and MACs that ran inside it,
    those of its parts included.

    A parameter that several modules share is counted once in each module that holds it.
    """

    name: str
    kind: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class UncountedOperation:
    """An operation of PyTorch that ran and was not counted: how often, and the elements that went
    in (its first tensor) and came out. `kind`: norm, activation, pool, softmax, sum, RoIAlign or
    arithmetic.
    """

    operation: str
    kind: str
    calls: int
    elements_in: int
    elements_out: int


@dataclass(frozen=True)
class NetworkCount:
    """`rows`: the whole, then every module in order of registration. `device`: "meta", or "cpu"
    where values were needed. `input`: what was run, for a person."""

    rows: tuple[ModuleCount, ...]
    left_out: tuple[UncountedOperation, ...]
    device: str
    input: str

    @property
    def total(self) -> ModuleCount:
        return self.rows[0]

    def row(self, name: str) -> ModuleCount:
        """The row of the module with this dotted name; KeyError if there is none."""
        return {row.name: row for row in self.rows}[name]

    @property
    def tool_macs(self) -> int:
        """MACs as GOS's tool counts them: with 2 per element of a norm, 1 of an activation and of a
        pool's input.
        """
        price = {"norm": 2, "activation": 1, "pool": 1}
        return self.total.macs + sum(
            price.get(row.kind, 0) * row.elements_in for row in self.left_out
        )


class _UncountedOperations(TorchDispatchMode):
    """Records the operations on real numbers that `flop_counter` has no formula for."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, Counter[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if name == "native_batch_norm" and args[0].is_meta:
            # PyTorch's own for meta tensors is Python code, and half the time of a network; nobody
            # reads the statistics.
            out = torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        else:
            out = func(*args, **(kwargs or {}))
        first, made = (next(_tensors(values), None) for values in (args, (out,)))
        if (
            func._overloadpacket in flop_registry
            or func.is_view
            or name in MOVES
            or first is None
            or made is None
        ):
            return out
        if not made.is_floating_point():
            return out  # masks and indices
        row = self.seen.setdefault(name.strip("_"), Counter())  # relu_ is relu
        row.update(calls=1, elements_in=first.numel(), elements_out=made.numel())
        return out

    def rows(self) -> tuple[UncountedOperation, ...]:
        """The most elements first."""
        found = (UncountedOperation(name, _kind(name), **seen) for name, seen in self.seen.items())
        return tuple(sorted(found, key=lambda row: -row.elements_out))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _kind(operation: str) -> str:
    return next((kind for part, kind in KINDS.items() if part in operation), "arithmetic")


def count(module: nn.Module, run: Callable[[], Any], described: str) -> NetworkCount:
    """What `run`, one forward pass of `module`, costs; `described` says on what input.

    The module is left in eval mode and without gradients: PyTorch's module tracker fails on
    parameters that want one.
    """
    module.eval().requires_grad_(False)
    with (
        torch.no_grad(),
        FlopCounterMode(display=False) as counter,
        _UncountedOperations() as left_out,
    ):
        run()
    flops, root = counter.get_flop_counts(), type(module).__name__
    rows = []
    for name, part in module.named_modules():
        macs = _macs(part, f"{root}.{name}".strip("."), flops)
        rows.append(
            ModuleCount(name, type(part).__name__, sum(p.numel() for p in part.parameters()), macs)
        )
    device = next((p.device.type for p in module.parameters()), "cpu")
    return NetworkCount(tuple(rows), left_out.rows(), device, described)


def _macs(part: nn.Module, name: str, flops: dict[str, dict[Any, int]]) -> int:
    """Half the operations of a module; of one that only holds others, and is not called itself,
    theirs.
    """
    if name in flops:
        return sum(flops[name].values()) // 2
    return sum(_macs(child, f"{name}.{key}", flops) for key, child in part.named_children())


def count_backbone(
    name: str,
    options: dict[str, Any],
    *,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    upto: str | None = None,
) -> NetworkCount:
    """A backbone with these options on one clip [1,3,frames,*size], as far as the cut `upto` (the
    last unless given).

    ValueError as `build_backbone` and for a clip that is too small for the network.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, **options).to("meta")
        x = torch.empty(1, 3, frames, *size)
        upto = upto or backbone.last
        backbone.channels(upto)  # names the cuts there are
        try:
            return count(
                backbone,
                lambda: backbone(x, upto),
                f"1 clip of {frames} frames of {size[0]}×{size[1]}, as far as {upto}",
            )
        except RuntimeError as error:
            raise ValueError(
                f"backbone {name} cannot run {frames} frames of {size[0]}×{size[1]}: "
                f"{str(error).splitlines()[0]}; "
                "pass more frames or a larger size"
            ) from None


def count_head(name: str, dims: Dims, num_classes: int, options: dict[str, Any]) -> NetworkCount:
    """A head on one view of these sizes, every box valid. ValueError as `build_head`."""
    with torch.device("meta"):
        head = build_head(name, dims, num_classes, **options)
    described = (
        f"1 view: {', '.join(f'{field} {list(_shape(field, dims))}' for field in head.needs)}"
    )
    try:
        head, clips = head.to("meta"), inputs(head.needs, dims, "meta")
        with torch.device("meta"):
            return count(head, lambda: head(clips), described)
    except (
        NotImplementedError,
        RuntimeError,
    ):  # it asked for a value, which a meta tensor does not have
        head, clips = (
            build_head(name, dims, num_classes, **options),
            inputs(head.needs, dims, "cpu"),
        )
        return count(head, lambda: head(clips), described)


def dims_on(
    name: str, options: dict[str, Any], *, frames: int, size: tuple[int, int], boxes: int
) -> Dims:
    """The sizes of a view that this backbone would have cached: T and C of its last cut, the maps
    of all cuts, N = `boxes`.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, **options)
    cuts = [cut for cut in backbone.cuts() if is_cut(cut)]
    steps = backbone.steps(frames)
    maps = {
        c: (backbone.channels(c), *backbone.grid(c, size))
        for c in cuts
        if backbone.steps(frames, c) == steps
    }
    return Dims(steps, boxes, backbone.channels(), maps)


def inputs(fields: tuple[str, ...], dims: Dims, device: str) -> Clips:
    """One view with these fields: features 0, boxes in the middle of the frame and valid,
    neighbours the first nodes.
    """
    arrays = {}
    for name in fields:
        shape = (1, *_shape(name, dims))
        if name == "valid":
            arrays[name] = torch.ones(shape, dtype=torch.bool, device=device)
        elif name in ("nearest", "similar"):
            arrays[name] = torch.zeros(shape, dtype=torch.long, device=device)
        elif name == "boxes":
            arrays[name] = torch.tensor([0.25, 0.25, 0.75, 0.75], device=device).expand(shape)
        else:
            arrays[name] = torch.zeros(shape, device=device)
    return clips_of(arrays)


def _shape(name: str, dims: Dims) -> tuple[int, ...]:
    """The axes of a field without R; M is what stage two keeps by default, as far as there are
    nodes.
    """
    if is_cut(name):
        return dims.T, *dims.maps[name]
    sizes = {
        "T": dims.T,
        "T-1": dims.T - 1,
        "N": dims.N,
        "C": dims.C,
        "4": 4,
        "M": min(10, dims.T * dims.N - 1),
    }
    return tuple(sizes[axis] for axis in field_of(name).dims)
