"""Keep the fields of cached views in memory, or read them on demand; share one pass over them.

store = FeatureStore(cache["train"], ("nodes", "valid"), rows, "auto", str(cache.path))
for reader, clips, where in shared_pass(store, requests):
    ...
"""

import math
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heads.data.device_lane import DeviceLane, Sent, Tensors, as_float32
from heads.interface.clips import Clips, clips_of, grid_field
from pipeline.cache.fields import grid_at
from pipeline.workers.memory import free_memory

if TYPE_CHECKING:
    from pipeline.cache.reader import Group

RESIDENT = ("auto", "gpu", "ram", "disk")
# Bytes per read while fields are loaded: limits the memory used beside the destination.
BLOCK = 1 << 28
# Bytes that are checked for NaN before training starts, where rows are not loaded.
SAMPLE = 1 << 30
# A batch in memory below this size is gathered sooner than a thread would wake up.
SMALL = 1 << 22
# Batches that are prepared while one is used.
AHEAD = 2
# "auto" loads fields where they take at most this share of the free memory.
SHARE = 0.5


class FeatureStore:
    """The fields of some rows of a group.

    Args:
        group: the training or test views of a cache.
        fields: the fields to read.
        rows: row numbers of the group; repeats count once.
        resident: "gpu" and "ram" load the fields once, in the cache's dtype, into the memory of
            the device or of the machine. "disk" reads every batch, ahead of its use. "auto" takes
            the first of these where the fields take less than half of the free memory.
        where: the cache's path, for messages.
        device: where batches go.

    Raises:
        ValueError: a value is NaN or infinite. Loaded rows are all checked at once; with "disk" a
            sample is checked at once, and every row when it is read.
    """

    def __init__(
        self,
        group: "Group",
        fields: Sequence[str],
        rows: np.ndarray,
        resident: str,
        where: str,
        device: torch.device | str = "cpu",
    ):
        if resident not in RESIDENT:
            raise ValueError(f"resident: expected one of {', '.join(RESIDENT)}, got {resident!r}")
        self.group, self.fields, self.where = group, tuple(fields), where
        self.device = torch.device(device)
        self.lane = DeviceLane(self.device)
        # The size of the maps that all rows have which were read so far; None: they differ.
        self._one_grid: dict[str, tuple[int, int] | None] = {}
        if resident == "gpu" and self.device.type == "cpu":
            raise ValueError(
                "resident gpu: the run computes on the CPU; pass --resident ram, or --device cuda"
            )

        rows = np.unique(rows)
        # Row of the group -> row of the loaded tensors; -1 for rows that are not loaded.
        self.position = np.full(len(group), -1)
        self.position[rows] = np.arange(len(rows))
        self.row_bytes = 0
        for name in fields:
            self.row_bytes += math.prod(group.shape(name)) * group.dtype(name).itemsize
        self.bytes = len(rows) * self.row_bytes

        self.free = free_memory()
        if self.device.type == "cuda":
            self.free_on_device = torch.cuda.mem_get_info(self.device)[0]
        self.resident = self._choose(resident)
        self.tensors: Tensors | None = None
        if self.resident == "disk":
            # `_read` raises for values that are not finite.
            sample = rows[:: max(1, math.ceil(self.bytes / SAMPLE))]
            for block in self._blocks(sample):
                self._read(block)
        else:
            self.tensors = self._load(rows)

    def _choose(self, resident: str) -> str:
        if resident != "auto":
            return resident
        if self.device.type == "cuda" and self.bytes < SHARE * self.free_on_device:
            return "gpu"
        return "ram" if self.bytes < SHARE * self.free else "disk"

    def describe(self) -> str:
        """Say in one line where the fields are kept, and in how much free memory."""
        size = f"{_size(self.bytes)} of features"
        if self.resident == "gpu":
            return f"{size} in the GPU's memory, of which {_size(self.free_on_device)} were free"
        if self.resident == "ram":
            place = f"{size} in this machine's memory, of which {_size(self.free)} were free"
        else:
            place = f"{size} on disk"
        return f"{place}; batches are copied to the GPU ahead of their use"

    def _load(self, rows: np.ndarray) -> Tensors:
        device = self.device if self.resident == "gpu" else None
        tensors: Tensors = {}
        done = 0
        for block in self._blocks(rows):
            for name, values in self._read(block).items():
                if name not in tensors:
                    tensors[name] = values.new_empty((len(rows), *values.shape[1:]), device=device)
                tensors[name][done : done + len(block)] = values
            done += len(block)
        return tensors

    def _blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """Divide rows into blocks that are read at once."""
        size = max(1, BLOCK // max(1, self.row_bytes))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _read(self, rows: np.ndarray) -> Tensors:
        arrays = self.group.batch([int(row) for row in rows], fields=self.fields)
        tensors = {name: torch.from_numpy(arrays[name]) for name in self.fields}
        for name, tensor in tensors.items():
            if tensor.is_floating_point():
                self._require_finite(name, tensor, rows)
            elif name == "grid" or name.startswith(grid_at("")):
                self._note_grid(name, arrays[name])
        return tensors

    def _note_grid(self, name: str, grid: np.ndarray) -> None:
        """Note whether all rows have one size of maps; a GPU is not asked for it then."""
        if not len(grid):
            return
        size = (int(grid[0, 0]), int(grid[0, 1]))
        same = bool((grid == grid[0]).all()) and self._one_grid.get(name, size) == size
        self._one_grid[name] = size if same else None

    def one_grid(self, fields: Sequence[str]) -> tuple[int, int] | None:
        """Return the size of the maps, if it is the same in all rows that were read so far.

        Args:
            fields: which a reader gets.
        """
        return self._one_grid.get(grid_field(fields))

    def _require_finite(self, name: str, tensor: Tensor, rows: np.ndarray) -> None:
        # The sum of finite values is finite unless it overflows, so values are rarely looked at
        # one by one.
        if torch.isfinite(tensor.sum(dtype=torch.float64)):
            return
        bad = ~torch.isfinite(tensor).flatten(1).all(1)
        if bad.any():
            row = int(rows[int(bad.nonzero()[0])])
            view = f"clip {self.group.clips[row]}, view {self.group.views[row]}"
            raise ValueError(
                f"{self.where}, {view}: {name} holds NaN or infinity; run `vidgraph verify "
                f"--cache {self.where}`"
            )

    def batch(self, rows: np.ndarray) -> Tensors:
        """Return the fields of rows, in the order of `rows`.

        Args:
            rows: B row numbers of the group.

        Returns:
            field -> [B,...] in the cache's dtype; on the device if the fields are resident there.
        """
        if self.tensors is None:
            return self._read(rows)
        positions = torch.from_numpy(self.position[rows])
        if self.resident == "gpu":
            return self._of_positions(positions.to(self.device))
        return {name: self.lane.gather(table, positions) for name, table in self.tensors.items()}

    def _of_positions(self, positions: Tensor) -> Tensors:
        """Return rows of the loaded tensors; positions are on the tensors' device."""
        return {name: table.index_select(0, positions) for name, table in self.tensors.items()}

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensors, slice]]:
        """Yield consecutive batches of rows, on the device.

        A thread prepares the next batches while the caller works, unless they are small or already
        on the device.

        Args:
            rows: row numbers of the group.
            size: rows per batch; the last batch may be smaller.

        Yields:
            The fields, floats as float32, and which part of `rows` they are.
        """
        slices = []
        for start in range(0, len(rows), size):
            slices.append(slice(start, min(start + size, len(rows))))

        if self.resident == "gpu":
            # All row numbers cross at once: the host waits for no batch.
            positions = self.lane.put(self.position[rows])
            for part in slices:
                yield as_float32(self._of_positions(positions[part])), part
            return

        def prepare(part: slice) -> Sent:
            return self.lane.send(self.batch(rows[part]))

        if self.resident == "ram" and size * self.row_bytes < SMALL:
            for part in slices:
                yield prepare(part).receive(), part
            return

        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(prepare, part) for part in slices[:AHEAD]]
            for k, part in enumerate(slices):
                sent = ahead.pop(0).result()
                if k + AHEAD < len(slices):
                    ahead.append(reader.submit(prepare, slices[k + AHEAD]))
                yield sent.receive(), part


def _size(count: float) -> str:
    """Write a number of bytes."""
    units = ["B", "kB", "MB", "GB", "TB"]
    while count >= 1000 and len(units) > 1:
        count /= 1000
        units.pop(0)
    return f"{count:.3g} {units[0]}"


@dataclass(frozen=True)
class ReadRequest:
    """What one reader wants from a pass.

    Attributes:
        rows: [n] row numbers, in the order of `turns`.
        turns: [n] ascending positions in the order of views that all readers follow.
        fields: the fields that it reads.
        batch: rows per batch.
    """

    rows: np.ndarray
    turns: np.ndarray
    fields: tuple[str, ...]
    batch: int


def shared_pass(
    store: FeatureStore, requests: Sequence[ReadRequest]
) -> Iterator[tuple[int, Clips, slice]]:
    """Read every requested row once, in order, and give each reader its batches.

    A reader gets what it would get alone: the same values, order, batch sizes and memory layout.

    Args:
        store: where rows are read.
        requests: what each reader wants. At the same turn, all readers must want the same row.

    Yields:
        The reader's number, the views, and which part of its `rows` they are.
    """
    all_turns = np.concatenate([request.turns for request in requests])
    all_rows = np.concatenate([request.rows for request in requests])
    # At one turn all readers want the same row: read the first reader's.
    turns, first = np.unique(all_turns, return_index=True)
    rows = all_rows[first]

    # Where each reader's rows are among all rows.
    positions = [np.searchsorted(turns, request.turns) for request in requests]
    cutters = [_BatchCutter(request, store) for request in requests]
    batches = store.batches(rows, max(request.batch for request in requests))
    try:
        for tensors, part in batches:
            for k, (cutter, position) in enumerate(zip(cutters, positions, strict=True)):
                low, high = np.searchsorted(position, (part.start, part.stop))
                for clips, own_part in cutter.take(tensors, position[low:high], part.start):
                    yield k, clips, own_part
        for k, cutter in enumerate(cutters):
            for clips, own_part in cutter.rest():
                yield k, clips, own_part
    finally:
        # Ends the reading thread if the caller leaves early.
        batches.close()


class _BatchCutter:
    """Cut one reader's batches from a stream of batches that have other rows and sizes."""

    def __init__(self, request: ReadRequest, store: FeatureStore):
        self.request, self.store = request, store
        self.given = 0
        self.kept: list[Tensors] = []
        self.size = 0

    def take(
        self, tensors: Tensors, positions: np.ndarray, start: int
    ) -> Iterator[tuple[Clips, slice]]:
        """Add rows of a batch of the stream, and yield the batches that are full now.

        Args:
            tensors: the batch of the stream.
            positions: where the reader's rows are in the stream.
            start: where the batch starts in the stream.
        """
        length, rows = len(next(iter(tensors.values()))), positions - start
        batch = self.request.batch
        while len(rows):
            now = rows[: batch - self.size]
            rows = rows[len(now) :]
            chosen = {name: tensors[name] for name in self.request.fields}
            if len(now) < length:
                # A copy and not a slice: a slice may be aligned differently in memory, and then
                # sums differ in the last bit.
                index = self.store.lane.put(now)
                for name, tensor in chosen.items():
                    chosen[name] = tensor.index_select(0, index)
            self.kept.append(chosen)
            self.size += len(now)
            if self.size == batch:
                yield from self.rest()

    def rest(self) -> Iterator[tuple[Clips, slice]]:
        """Yield what was added and not yielded yet, as one batch, if there is anything."""
        if not self.size:
            return
        pieces, part = self.kept, slice(self.given, self.given + self.size)
        self.kept, self.given, self.size = [], part.stop, 0
        joined = pieces[0]
        if len(pieces) > 1:
            joined = {}
            for name in self.request.fields:
                joined[name] = torch.cat([piece[name] for piece in pieces])
        clips = clips_of(joined, dtype=None)
        yield replace(clips, one_grid=self.store.one_grid(self.request.fields)), part
