"""Count parameters and multiply-accumulates of a backbone or a head, module by module.

    count_backbone("i3d_r50", {"temporal": "alternating"}, frames=32, size=(224, 224)).total.macs

`torch.utils.flop_counter` counts convolutions and matrix products: two operations for each
multiply-accumulate (MAC). It leaves out what some papers count: norms, activations, pools, softmax
and arithmetic. `NetworkCount.left_out` lists these operations with their elements, so that a
paper's convention can be applied to them (see `NetworkCount.tool_macs`).

Networks run on the meta device, where tensors have a shape and no values, which takes no memory and
little time. A head that needs values (RoIAlign checks its grid, a discrete structure its choice)
runs on zeros on the CPU instead. What a head computes depending on its values, such as GOS's
discrete structure, is then that of a fresh network, and differs with the seed.
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
from pipeline.cache.fields import LABELS, field_of, is_cut

# Operations that move or create values without computing: no paper counts them, and they are not
# listed.
MOVES = frozenset(
    [
        "_reshape_copy",
        "_to_copy",
        "_unsafe_view",
        "cat",
        "clone",
        "constant_pad_nd",
        "copy",
        "copy_",
        "empty_like",
        "fill_",
        "flip",
        "gather",
        "index",
        "index_put",
        "index_put_",
        "index_select",
        "lift_fresh",
        "masked_fill",
        "masked_fill_",
        "new_ones",
        "new_zeros",
        "ones_like",
        "repeat",
        "roll",
        "scatter",
        "scatter_",
        "stack",
        "where",
        "zero_",
        "zeros_like",
    ]
)
# Part of an operation's name -> its kind.
KINDS = {
    "batch_norm": "norm",
    "layer_norm": "norm",
    "relu": "activation",
    "sigmoid": "activation",
    "tanh": "activation",
    "pool": "pool",
    "softmax": "softmax",
    "mean": "sum",
    "sum": "sum",
    # The bilinear samples of pipeline/regions/roi_align.py.
    "embedding_bag": "RoIAlign",
}
# What GOS's counting tool adds per element that goes into an operation of a kind.
TOOL_MACS = {"norm": 2, "activation": 1, "pool": 1}


@dataclass(frozen=True)
class ModuleCount:
    """The cost of a module, its children included.

    Attributes:
        name: its dotted name; "" is the whole network.
        kind: its class.
        parameters: a parameter that several modules share counts once in each of them.
        macs: multiply-accumulates that ran inside it.
    """

    name: str
    kind: str
    parameters: int
    macs: int


@dataclass(frozen=True)
class UncountedOperation:
    """An operation of PyTorch that ran and was not counted.

    Attributes:
        operation: its name in PyTorch.
        kind: norm, activation, pool, softmax, sum, RoIAlign or arithmetic.
        calls: how often it ran.
        elements_in: elements of its first tensor, over all calls.
        elements_out: elements of its result, over all calls.
    """

    operation: str
    kind: str
    calls: int
    elements_in: int
    elements_out: int


@dataclass(frozen=True)
class NetworkCount:
    """The cost of a network.

    Attributes:
        rows: the whole network, then every module in the order of registration.
        left_out: the operations that were not counted, the most elements first.
        device: "meta", or "cpu" if the network needed values.
        input: what was run, in words.
    """

    rows: tuple[ModuleCount, ...]
    left_out: tuple[UncountedOperation, ...]
    device: str
    input: str

    @property
    def total(self) -> ModuleCount:
        """The row of the whole network."""
        return self.rows[0]

    def row(self, name: str) -> ModuleCount:
        """Return the row of a module.

        Args:
            name: its dotted name.

        Raises:
            KeyError: there is no such module.
        """
        return {row.name: row for row in self.rows}[name]

    @property
    def tool_macs(self) -> int:
        """MACs as GOS's tool counts them: plus 2 per element of a norm, and 1 per element that goes
        into an activation or a pool.
        """
        macs = self.total.macs
        for row in self.left_out:
            macs += TOOL_MACS.get(row.kind, 0) * row.elements_in
        return macs


class _UncountedOperations(TorchDispatchMode):
    """Record the operations on floating numbers that `flop_counter` has no formula for."""

    def __init__(self):
        super().__init__()
        self.seen: dict[str, Counter[str]] = {}

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._overloadpacket.__name__
        if name == "native_batch_norm" and args[0].is_meta:
            # PyTorch's own implementation for meta tensors is Python code, and takes half the time
            # of a whole network. Nobody reads the statistics.
            out = torch.empty_like(args[0]), args[0].new_empty(0), args[0].new_empty(0)
        else:
            out = func(*args, **(kwargs or {}))

        counted = func._overloadpacket in flop_registry
        if counted or func.is_view or name in MOVES:
            return out
        tensor_in, tensor_out = next(_tensors(args), None), next(_tensors((out,)), None)
        if tensor_in is None or tensor_out is None:
            return out
        # Masks and indices are no arithmetic.
        if not tensor_out.is_floating_point():
            return out
        # The operations in place, such as relu_, count with the others.
        row = self.seen.setdefault(name.strip("_"), Counter())
        row.update(calls=1, elements_in=tensor_in.numel(), elements_out=tensor_out.numel())
        return out

    def rows(self) -> tuple[UncountedOperation, ...]:
        """Return what was recorded, the most elements first."""
        rows = []
        for name, counts in self.seen.items():
            rows.append(UncountedOperation(name, _kind(name), **counts))
        return tuple(sorted(rows, key=lambda row: -row.elements_out))


def _tensors(values: Any) -> Iterator[Tensor]:
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, (list, tuple)):
            yield from _tensors(value)


def _kind(operation: str) -> str:
    for part, kind in KINDS.items():
        if part in operation:
            return kind
    return "arithmetic"


def count(module: nn.Module, run: Callable[[], Any], described: str) -> NetworkCount:
    """Count one forward pass of a module.

    The module is left in eval mode and without gradients: PyTorch's module tracker fails on
    parameters that require one.

    Args:
        module: the network.
        run: runs the forward pass.
        described: the input in words.

    Returns:
        The cost of the module and of each of its children.
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
        parameters = sum(p.numel() for p in part.parameters())
        macs = _macs(part, f"{root}.{name}".strip("."), flops)
        rows.append(ModuleCount(name, type(part).__name__, parameters, macs))
    device = next((p.device.type for p in module.parameters()), "cpu")
    return NetworkCount(tuple(rows), left_out.rows(), device, described)


def _macs(part: nn.Module, name: str, flops: dict[str, dict[Any, int]]) -> int:
    """Return the MACs of a module: half its operations."""
    if name in flops:
        return sum(flops[name].values()) // 2
    # A container that is never called itself, such as a ModuleList.
    return sum(_macs(child, f"{name}.{key}", flops) for key, child in part.named_children())


def count_backbone(
    name: str,
    options: dict[str, Any],
    *,
    frames: int = 32,
    size: tuple[int, int] = (224, 224),
    upto: str | None = None,
) -> NetworkCount:
    """Count a backbone on one clip [1,3,frames,height,width].

    Args:
        name: a module of `pipeline.backbones`.
        options: options of its `build`.
        frames: frames of the clip.
        size: height and width of the frames.
        upto: the cut at which the backbone ends; None: the last one.

    Raises:
        ValueError: as `build_backbone`, or the clip is too small for the network.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, **options).to("meta")
        x = torch.empty(1, 3, frames, *size)
        upto = upto or backbone.last
        # Raises for an unknown cut, with the names of the cuts there are.
        backbone.channels(upto)
        clip = f"{frames} frames of {size[0]}×{size[1]}"
        try:
            # An encoder refuses here what torch would count without values.
            backbone.steps(frames, upto)
            backbone.grid(upto, size)
            return count(backbone, lambda: backbone(x, upto), f"1 clip of {clip}, as far as {upto}")
        except RuntimeError as error:
            raise ValueError(
                f"backbone {name} cannot run {clip}: {str(error).splitlines()[0]}; pass more "
                f"frames or a larger size"
            ) from None


def count_head(name: str, dims: Dims, num_classes: int, options: dict[str, Any]) -> NetworkCount:
    """Count a head on one view with all boxes valid.

    Args:
        name: a module of `heads.zoo`.
        dims: the sizes of the view.
        num_classes: the number of classes.
        options: options of its `build`.

    Raises:
        ValueError: as `build_head`.
    """
    with torch.device("meta"):
        head = build_head(name, dims, num_classes, **options)
    fields = [f"{field} {list(_shape(field, dims))}" for field in head.needs]
    described = f"1 view: {', '.join(fields)}"
    try:
        head, clips = head.to("meta"), inputs(head.needs, dims, "meta")
        with torch.device("meta"):
            return count(head, lambda: head(clips), described)
    except (NotImplementedError, RuntimeError):
        # The head needs values, which a meta tensor does not have.
        clips = inputs(head.needs, dims, "cpu")
        # Built again, because weights on the meta device have no values to copy.
        head = build_head(name, dims, num_classes, **options)
        return count(head, lambda: head(clips), described)


def dims_on(
    name: str, options: dict[str, Any], *, frames: int, size: tuple[int, int], boxes: int
) -> Dims:
    """Return the sizes of the views that a backbone would cache.

    Args:
        name: a module of `pipeline.backbones`.
        options: options of its `build`.
        frames: frames of a clip.
        size: height and width of the frames.
        boxes: N, boxes per step.

    Returns:
        T and C of the last cut, N, and the maps of all cuts that have T steps. Boxes have two
        classes, as hand and object.
    """
    with torch.device("meta"):
        backbone = build_backbone(name, **options)
    steps = backbone.steps(frames)
    maps = {}
    for cut in backbone.cuts():
        if is_cut(cut) and backbone.steps(frames, cut) == steps:
            maps[cut] = (backbone.channels(cut), *backbone.grid(cut, size))
    return Dims(steps, boxes, backbone.channels(), maps, box_classes=2 if boxes else 0)


def inputs(fields: tuple[str, ...], dims: Dims, device: str) -> Clips:
    """Return one view to count a head on.

    Args:
        fields: the fields that the head needs.
        dims: the sizes of the view.
        device: "meta" or "cpu".

    Returns:
        Features are 0, boxes are valid and in the middle of the frame, neighbours are the first
        node.
    """
    arrays = {}
    for name in fields:
        shape = (1, *_shape(name, dims))
        if name == "valid":
            arrays[name] = torch.ones(shape, dtype=torch.bool, device=device)
        elif name in ("nearest", "similar", *LABELS):
            arrays[name] = torch.zeros(shape, dtype=torch.long, device=device)
        elif name == "boxes":
            arrays[name] = torch.tensor([0.25, 0.25, 0.75, 0.75], device=device).expand(shape)
        else:
            arrays[name] = torch.zeros(shape, device=device)
    return clips_of(arrays)


def _shape(name: str, dims: Dims) -> tuple[int, ...]:
    """Return the shape of a field of one view."""
    if is_cut(name):
        return dims.T, *dims.maps[name]
    sizes = {
        "T": dims.T,
        "T-1": dims.T - 1,
        "N": dims.N,
        "C": dims.C,
        "4": 4,
        # A class token per step.
        "S": dims.T,
        "P": 1,
        # The neighbours that stage two keeps by default, if there are as many nodes.
        "M": min(10, dims.T * dims.N - 1),
    }
    return tuple(sizes[axis] for axis in field_of(name).dims)
