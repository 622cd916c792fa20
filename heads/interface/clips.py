"""What a head receives and returns: `Clips`, the typed record of a batch of views; `Dims`, its
sizes; `HeadOutput`.

Dimension letters: B views in the batch, T steps, N boxes per step, C channels, h w grid, M
neighbours, K classes.
"""

from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np
import torch
from torch import Tensor

from pipeline.cache.fields import FIELDS, field_of, grid_at, is_cut


@dataclass
class Clips:
    """A batch of B views, as far as they were read: a field that was not asked for is None, a cut
    is missing from `maps`.

    boxes [B,T,N,4] xyxy in [0,1] of the view's crop, padded rows 0; scores [B,T,N]; valid [B,T,N]
    bool; nodes [B,T,N,C], invalid rows 0; pooled [B,T,C]; maps[cut] [B,T,C,h,w]; grid [B,2] true
    height and width in cells of the one map; flip [B] bool; iou [B,T-1,N,N]; nearest [B,T,N,T];
    similar and similarity [B,T,N,M]; frames, whatever pixels a fine-tuning run adds. Features are
    float32 unless `to` was asked for another dtype, whatever the cache stores.
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

    @property
    def size(self) -> int:
        """B. ValueError for a record without any tensor."""
        for tensor in self.tensors().values():
            return tensor.shape[0]
        raise ValueError("Clips: expected at least one tensor, got none")

    def tensors(self) -> dict[str, Tensor]:
        """The fields that are there, maps under the name of their cut."""
        plain = {f.name: getattr(self, f.name) for f in fields(self) if f.name != "maps"}
        return {name: tensor for name, tensor in plain.items() if tensor is not None} | self.maps

    def get(self, name: str) -> Tensor:
        """The tensor of a field or cut; ValueError naming it when the batch was read without it."""
        tensor = self.maps.get(name) if is_cut(name) else getattr(self, name, None)
        if tensor is None:
            raise ValueError(
                f"the batch has no {name}: it holds {', '.join(self.tensors()) or 'nothing'}; "
                f"read {name} too"
            )
        return tensor

    def to(
        self, device: torch.device | str | None = None, dtype: torch.dtype | None = None
    ) -> "Clips":
        """A copy on `device`, its floating tensors in `dtype`; float16 goes over the bus before it
        is widened.
        """
        # Only on its way to a GPU may a copy still be under way when this returns: there, what
        # reads it waits for it.
        late = device is not None and torch.device(device).type != "cpu"

        def move(tensor: Tensor) -> Tensor:
            tensor = tensor if device is None else tensor.to(device, non_blocking=late)
            return tensor.to(dtype) if dtype is not None and tensor.is_floating_point() else tensor

        return clips_of({name: move(tensor) for name, tensor in self.tensors().items()}, dtype=None)

    def without(self, *names: str) -> "Clips":
        """A copy without these fields."""
        kept = {cut: tensor for cut, tensor in self.maps.items() if cut not in names}
        return replace(self, maps=kept, **{name: None for name in names if not is_cut(name)})


def clips_of(
    arrays: Mapping[str, np.ndarray | Tensor], dtype: torch.dtype | None = torch.float32
) -> Clips:
    """Clips from arrays by field name, as `cache[group].batch()` returns them; floats are cast to
    `dtype` (None: left alone).

    Integer fields become int64 where they index. The `grid` of a single map is its own where that
    was read. ValueError for a name that is neither a field nor a cut.
    """
    known, maps = {f.name for f in fields(Clips)} - {"maps"}, {}
    plain: dict[str, Tensor] = {}
    grids = {name: array for name, array in arrays.items() if name.startswith(grid_at(""))}
    cuts = [name for name in arrays if is_cut(name)]
    arrays = {name: array for name, array in arrays.items() if name not in grids}
    if len(cuts) == 1 and grid_at(cuts[0]) in grids:
        arrays["grid"] = grids[grid_at(cuts[0])]
    for name, array in arrays.items():
        tensor = (
            array if isinstance(array, Tensor) else torch.from_numpy(np.ascontiguousarray(array))
        )
        if dtype is not None and tensor.is_floating_point():
            tensor = tensor.to(dtype)
        if name in ("nearest", "similar", "grid"):
            tensor = tensor.long()
        if is_cut(name):
            maps[name] = tensor
        elif name in known:
            plain[name] = tensor
        else:
            field_of(name)  # a name that is no field at all gets the message that lists them
            raise ValueError(
                f"field {name!r} describes a row of the cache and is nothing that a head reads"
            )
    return Clips(**plain, maps=maps)


class MissingFields(ValueError):
    """A head needs fields (`names`) that are not there."""

    def __init__(self, head: str, names: Iterable[str]):
        self.names = tuple(names)
        super().__init__(f"head {head} needs {', '.join(self.names)}, which the views do not have")


@dataclass(frozen=True)
class Dims:
    """The sizes that a head is built for: T steps, N boxes per step, C channels of nodes and pooled
    (0: not in the cache).

    maps: cut -> (C, h, w) of the training views; test views may have a wider grid.
    """

    T: int
    N: int = 0
    C: int = 0
    maps: Mapping[str, tuple[int, int, int]] = field(default_factory=dict)

    def require(self, head: str, *names: str) -> None:
        """MissingFields unless these sizes can hold all of `names`."""
        axes = {"T": self.T, "N": self.N, "C": self.C}
        missing = [
            name
            for name in names
            if (
                name not in self.maps
                if is_cut(name)
                else not all(axes.get(axis, 1) > 0 for axis in FIELDS[name].dims)
            )
        ]
        if missing:
            raise MissingFields(head, missing)

    def as_dict(self) -> dict:
        """Plain lists and numbers, for a checkpoint; `dims_from` reads them back."""
        return {**asdict(self), "maps": {cut: list(size) for cut, size in self.maps.items()}}


def dims_from(record: Mapping) -> Dims:
    """The inverse of `Dims.as_dict`."""
    maps = {cut: tuple(int(n) for n in size) for cut, size in record["maps"].items()}
    return Dims(int(record["T"]), int(record["N"]), int(record["C"]), maps)


def dims_of(shapes: Mapping[str, Iterable[int]]) -> Dims:
    """Dims from the shapes of stored fields (with or without a leading R: the last axes count), by
    field name.

    ValueError if two fields disagree, e.g. nodes of 512 channels beside pooled of 2048.
    """
    sizes: dict[str, tuple[int, str]] = {}
    maps = {}
    for name, shape in shapes.items():
        axes = field_of(name).dims
        shape = tuple(int(n) for n in shape)[len(tuple(shape)) - len(axes) :]
        if is_cut(name):
            maps[name] = shape[1:]
            sizes.setdefault("T", (shape[0], name))
            continue
        for axis, size in zip(axes, shape, strict=True):
            if axis in ("T", "N", "C") and sizes.setdefault(axis, (size, name))[0] != size:
                other, first = sizes[axis]
                raise ValueError(
                    f"{name} has {axis}={size} but {first} has {axis}={other}: the fields are not "
                    f"of one extraction"
                )
    return Dims(*(sizes.get(axis, (0, ""))[0] for axis in "TNC"), maps=maps)


@dataclass
class HeadOutput:
    """logits [B,K]; losses: auxiliary losses by name, scalars already weighted, added to the main
    loss; maps: what a person may want to look at (graphs, attention), filled only by `head(clips,
    want_maps=True)`; stored: what the head decided for each view, a few numbers [B,...] by name,
    which evaluation writes beside its logits.
    """

    logits: Tensor
    losses: dict[str, Tensor] = field(default_factory=dict)
    maps: dict[str, Tensor] = field(default_factory=dict)
    stored: dict[str, Tensor] = field(default_factory=dict)
