"""What a head receives and returns.

`Clips` is a batch of views, `Dims` the sizes that a head is built for, `HeadOutput` its result.

Dimension letters: B views in the batch, T steps, N boxes per step, C channels, h w grid, M
neighbours, K classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.fields import FIELDS, LABELS, field_of, grid_at, is_cut

# Fields that index other tensors, or are compared with indices.
INTEGERS = ("nearest", "similar", "grid", *LABELS)


@dataclass
class Clips:
    """A batch of B views: the tensors that a head reads.

    A field that was not read is None, and a cut that was not read is missing from `maps`. Features
    are float32 whatever the cache stores, unless `to` was asked for another dtype.

    Attributes:
        boxes: [B,T,N,4], xyxy in [0,1] of the view's crop; padded rows are 0.
        scores: [B,T,N], objectness of the boxes.
        valid: [B,T,N] bool, whether a row is a box. Rows without one may lie between others.
        box_class: int64 [B,T,N], the class of each box (`Dims.box_classes`); -1 for none.
        track: int64 [B,T,N], the object of the clip that each box is; -1 for none.
        nodes: [B,T,N,C], RoIAlign features of the boxes; invalid rows are 0.
        pooled: [B,T,C], the mean over the grid of the last cut.
        tokens: [B,S,P,C], class and register tokens at the last cut; S is T or 1.
        maps: by cut, [B,T,C,h,w].
        grid: [B,2], the true height and width, in cells, of the one map that was read.
        flip: [B] bool, whether the view is mirrored.
        iou: [B,T-1,N,N], IoU of box i at step t with box j at t+1.
        nearest: [B,T,N,T], for each node, the most similar node of every step.
        similar: [B,T,N,M], the M most similar other nodes, as flat indices t N + i.
        similarity: [B,T,N,M], their inner products.
        frames: uint8 [B,F,H,W,3], RGB, in fine-tuning runs only.
        one_grid: (h, w), the row of `grid` that all views have, where that is known: to look at
            `grid` on a GPU is to wait for it.
    """

    boxes: Tensor | None = None
    scores: Tensor | None = None
    valid: Tensor | None = None
    nodes: Tensor | None = None
    pooled: Tensor | None = None
    maps: dict[str, Tensor] = field(default_factory=dict)
    grid: Tensor | None = None
    flip: Tensor | None = None
    iou: Tensor | None = None
    nearest: Tensor | None = None
    similar: Tensor | None = None
    similarity: Tensor | None = None
    frames: Tensor | None = None
    # Younger fields come last: heads and tests of others give fields by their place, too.
    box_class: Tensor | None = None
    track: Tensor | None = None
    tokens: Tensor | None = None
    one_grid: tuple[int, int] | None = None

    @property
    def size(self) -> int:
        """B, the number of views.

        Raises:
            ValueError: the record holds no tensor.
        """
        for tensor in self.tensors().values():
            return tensor.shape[0]
        raise ValueError("Clips: expected at least one tensor, got none")

    def tensors(self) -> dict[str, Tensor]:
        """Return the fields that were read, by name; maps under the name of their cut."""
        found = {}
        for f in fields(self):
            value = getattr(self, f.name)
            if f.name not in _NO_FIELDS and value is not None:
                found[f.name] = value
        return found | self.maps

    def grid_sizes(self) -> list[tuple[int, int]]:
        """Return the true sizes (h, w), in cells, that the maps of the batch have, each once.

        It waits for a GPU unless `one_grid` is known.
        """
        if self.grid is None:
            return []
        if self.one_grid is not None:
            return [self.one_grid]
        return [(h, w) for h, w in torch.unique(self.grid, dim=0).tolist()]

    def get(self, name: str) -> Tensor:
        """Return the tensor of a field or cut.

        Args:
            name: a field, such as "nodes", or a cut, such as "res5".

        Returns:
            The tensor; the attributes list the shapes.

        Raises:
            ValueError: the batch was read without it.
        """
        tensor = self.maps.get(name) if is_cut(name) else getattr(self, name, None)
        if tensor is None:
            names = ", ".join(self.tensors()) or "nothing"
            raise ValueError(f"the batch has no {name}: it holds {names}; read {name} too")
        return tensor

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Clips":
        """Return a copy on another device or in another dtype.

        Args:
            device: where the tensors go; None leaves them where they are.
            dtype: the dtype of floating tensors; None leaves them as they are. The copy to the
                device comes first, so that float16 crosses the bus before it is widened.

        Returns:
            The copy.
        """
        # A copy may still be in flight when this returns only on its way to a GPU: kernels there
        # wait for it. The CPU would read half a tensor.
        non_blocking = device is not None and torch.device(device).type != "cpu"

        moved = {}
        for name, tensor in self.tensors().items():
            if device is not None:
                tensor = tensor.to(device, non_blocking=non_blocking)
            if dtype is not None and tensor.is_floating_point():
                tensor = tensor.to(dtype)
            moved[name] = tensor
        return replace(clips_of(moved, dtype=None), one_grid=self.one_grid)

    def without(self, *names: str) -> "Clips":
        """Return a copy without some fields.

        Args:
            *names: fields and cuts; those that were not read are ignored.

        Returns:
            The copy.
        """
        maps = {cut: tensor for cut, tensor in self.maps.items() if cut not in names}
        return replace(self, maps=maps, **dict.fromkeys(_FIELD_NAMES.intersection(names)))


_NO_FIELDS = {"maps", "one_grid"}
_FIELD_NAMES = {f.name for f in fields(Clips)} - _NO_FIELDS


def grid_field(names: Iterable[str]) -> str | None:
    """Return which of some fields and cuts becomes `Clips.grid`; None for none of them."""
    names = list(names)
    cuts = list(filter(is_cut, names))
    # A head reads one grid: with a single map, that map's own and not the last cut's.
    if len(cuts) == 1 and grid_at(cuts[0]) in names:
        return grid_at(cuts[0])
    return "grid" if "grid" in names else None


def clips_of(
    arrays: Mapping[str, np.ndarray | Tensor], dtype: torch.dtype | None = torch.float32
) -> Clips:
    """Make `Clips` from arrays, as `cache[group].batch()` returns them.

    Args:
        arrays: by field or cut. "grid.CUT" becomes `grid` if CUT is the only map.
        dtype: of floating tensors; None leaves them as they are. `INTEGERS` become int64.

    Returns:
        The batch.

    Raises:
        ValueError: a name is neither a cut nor a field that heads read.
    """
    arrays = dict(arrays)
    chosen = grid_field(arrays)
    if chosen is not None:
        arrays["grid"] = arrays[chosen]
    for name in list(arrays):
        if name.startswith(grid_at("")):
            del arrays[name]

    plain: dict[str, Tensor] = {}
    maps: dict[str, Tensor] = {}
    for name, array in arrays.items():
        tensor = array
        if not isinstance(array, Tensor):
            tensor = torch.from_numpy(np.ascontiguousarray(array))
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        # Caches store small integers, torch indexes with int64.
        if name in INTEGERS:
            tensor = tensor.long()

        if is_cut(name):
            maps[name] = tensor
        elif name in _FIELD_NAMES:
            plain[name] = tensor
        else:
            # An unknown name gets the message that lists the fields.
            field_of(name)
            raise ValueError(
                f"field {name!r} describes a row of the cache: expected a field that heads read, "
                f"one of {', '.join(sorted(_FIELD_NAMES))}, or a cut"
            )
    return Clips(**plain, maps=maps)


class MissingFields(ValueError):
    """The cache or batch lacks fields that a head needs.

    Args:
        head: the head's name, for the message.
        names: the fields that are missing; kept as the attribute `names`.
    """

    def __init__(self, head: str, names: Iterable[str]):
        self.names = tuple(names)
        super().__init__(f"head {head} needs {', '.join(self.names)}, which the views do not have")


@dataclass(frozen=True)
class Dims:
    """The sizes that a head is built for.

    Attributes:
        T: steps.
        N: boxes per step; 0 if the cache has no boxes.
        C: channels of `nodes` and `pooled`; 0 if the cache has neither.
        maps: by cut, (C, h, w) of the training views. Test views may have a wider grid.
        box_classes: how many classes boxes have; 0 if the cache does not know them.
    """

    T: int
    N: int = 0
    C: int = 0
    maps: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)
    box_classes: int = 0

    def require(self, head: str, *names: str) -> None:
        """Check that views of these sizes can hold what a head needs.

        Args:
            head: the head's name, for the message.
            *names: fields and cuts.

        Raises:
            MissingFields: some of `names` are not there; the error names all of them.
        """
        axes = {"T": self.T, "N": self.N, "C": self.C}
        missing = []
        for name in names:
            if is_cut(name):
                present = name in self.maps
            else:
                present = all(axes.get(axis, 1) > 0 for axis in FIELDS[name].dims)
                if name == "box_class":
                    present = present and self.box_classes > 0
            if not present:
                missing.append(name)
        if missing:
            raise MissingFields(head, missing)

    @property
    def last_cut(self) -> str:
        """The deepest cut whose map is there; "res5", which most heads read, if none is."""
        return max(self.maps, key=_depth, default="res5")

    def as_dict(self) -> dict:
        """Return plain lists and numbers for a checkpoint; `dims_from` reads them."""
        record = {**asdict(self), "maps": {cut: list(size) for cut, size in self.maps.items()}}
        # Checkpoints without classes of boxes stay as they were before there were any.
        if not self.box_classes:
            del record["box_classes"]
        return record


def _depth(cut: str) -> tuple[int, str, float]:
    """Order cuts of one backbone from its first stage to its last: block 3 of res4, then res4."""
    stage, _, block = cut.partition(".")
    ends = {"stem": 0, "reduced": 2}
    return ends.get(stage, 1), stage, float(block or "inf")


def dims_from(record: Mapping) -> Dims:
    """Read what `Dims.as_dict` returned.

    Args:
        record: {"T": int, "N": int, "C": int, "maps": {cut: [C, h, w]}}, and "box_classes" where
            boxes have classes.

    Returns:
        The sizes.
    """
    maps = {cut: tuple(map(int, size)) for cut, size in record["maps"].items()}
    box_classes = int(record.get("box_classes", 0))
    return Dims(int(record["T"]), int(record["N"]), int(record["C"]), maps, box_classes)


def dims_of(shapes: Mapping[str, Iterable[int]]) -> Dims:
    """Work out `Dims` from the shapes of stored fields.

    Args:
        shapes: by field or cut; with or without a leading R or B, because the last axes count.

    Returns:
        The sizes; 0 for an axis that no field has.

    Raises:
        ValueError: two fields disagree, e.g. nodes of 512 channels beside pooled of 2048.
    """
    # For each axis its length and the first field that has it, for the message.
    axes: dict[str, tuple[int, str]] = {}
    maps = {}
    for name, shape in shapes.items():
        dims = field_of(name).dims
        shape = tuple(map(int, shape))
        shape = shape[len(shape) - len(dims) :]

        if is_cut(name):
            # A map has channels of its own, so it tells T alone.
            maps[name] = shape[1:]
            axes.setdefault("T", (shape[0], name))
            continue
        for axis, size in zip(dims, shape, strict=True):
            if axis not in ("T", "N", "C"):
                continue
            other, first = axes.setdefault(axis, (size, name))
            if other != size:
                raise ValueError(
                    f"{name} has {axis}={size} but {first} has {axis}={other}: the fields come "
                    "from different extractions"
                )

    T, N, C = (axes.get(axis, (0, ""))[0] for axis in ("T", "N", "C"))
    return Dims(T, N, C, maps)


@dataclass
class HeadOutput:
    """What a head returns.

    Attributes:
        logits: [B,K].
        losses: auxiliary losses by name: scalars, already weighted, that are added to the loss of
            the logits.
        maps: what a person may want to look at, such as graphs and attention. Filled only by
            `head(clips, want_maps=True)`.
        stored: what the head decided for each view, a few numbers [B,...] by name. Evaluation
            writes them beside the logits.
        branches: further logits [B,K], of parts of the head that learn the labels by themselves.
            The loss is the mean of theirs and that of `logits`. Evaluation ignores them.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)
    branches: tuple[Tensor, ...] = ()
