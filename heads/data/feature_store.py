"""The fields of cached views, in memory or read as they are asked for, and one pass over them for
several readers.
"""

import math
import os
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from heads.interface.clips import Clips, clips_of

if TYPE_CHECKING:
    from pipeline.cache.reader import Group

RESIDENT = ("auto", "gpu", "ram", "disk")
BLOCK = 1 << 28  # bytes per read while fields are loaded: bounds the memory beside the destination
SAMPLE = 1 << 30  # bytes that are looked at before training starts where rows are not loaded
SMALL = 1 << 22  # bytes of a batch in memory that is gathered sooner than a thread would be woken
AHEAD = 2  # batches that are prepared while one is used

Tensors = dict[str, Tensor]


class FeatureStore:
    """The fields of some rows of a group, in memory or read as they are asked for.

    `resident`: "gpu" and "ram" load them once, in the dtype of the cache, into the memory of
    `device` or of the machine; "disk" reads every batch, ahead of its use; "auto" takes the first
    of these where they need less than half of what is free. ValueError when a value that is read is
    not finite; rows that are not loaded are looked at in a sample at once, and all of them when
    they are read.
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
        self.group, self.fields, self.where, self.device = (
            group,
            tuple(fields),
            where,
            torch.device(device),
        )
        if resident == "gpu" and self.device.type == "cpu":
            raise ValueError(
                "resident gpu: the run computes on the CPU; say --resident ram, or --device cuda"
            )
        rows = np.unique(rows)
        self.position = np.full(len(group), -1)
        self.position[rows] = np.arange(len(rows))
        self.row_bytes = sum(
            math.prod(group.shape(name)) * group.dtype(name).itemsize for name in fields
        )
        self.bytes = len(rows) * self.row_bytes
        self.resident = self._choose(resident)
        self.tensors: Tensors | None = None
        if self.resident == "disk":
            for some in self._blocks(rows[:: max(1, math.ceil(self.bytes / SAMPLE))]):
                self._read(some)
        else:
            self.tensors = self._load(rows)

    def _choose(self, resident: str) -> str:
        if resident != "auto":
            return resident
        if self.device.type == "cuda" and self.bytes < torch.cuda.mem_get_info(self.device)[0] / 2:
            return "gpu"
        return "ram" if self.bytes < free_memory() / 2 else "disk"

    def _load(self, rows: np.ndarray) -> Tensors:
        tensors: Tensors = {}
        done = 0
        for some in self._blocks(rows):
            for name, block in self._read(some).items():
                if name not in tensors:
                    place = self.device if self.resident == "gpu" else None
                    tensors[name] = block.new_empty((len(rows), *block.shape[1:]), device=place)
                tensors[name][done : done + len(some)] = block
            done += len(some)
        return tensors

    def _blocks(self, rows: np.ndarray) -> list[np.ndarray]:
        """The rows in portions that are read at once."""
        size = max(1, BLOCK // max(1, self.row_bytes))
        return [rows[start : start + size] for start in range(0, len(rows), size)]

    def _read(self, rows: np.ndarray) -> Tensors:
        arrays = self.group.batch([int(row) for row in rows], fields=self.fields)
        tensors = {name: torch.from_numpy(arrays[name]) for name in self.fields}
        for name, tensor in tensors.items():
            # A sum is finite unless a term is not, or it overflows: only then is every value looked
            # at.
            if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
                bad = ~torch.isfinite(tensor).flatten(1).all(1)
                if bad.any():
                    row = int(rows[int(bad.nonzero()[0])])
                    view = f"clip {self.group.clips[row]}, view {self.group.views[row]}"
                    raise ValueError(
                        f"{self.where}, {view}: {name} holds NaN or infinity; run `vidgraph "
                        f"verify --cache {self.where}`"
                    )
        return tensors

    def batch(self, rows: np.ndarray) -> Tensors:
        """The fields of these rows, in this order, in the dtype of the cache; on the device where
        they are resident there.
        """
        if self.tensors is None:
            return self._read(rows)
        at = torch.from_numpy(self.position[rows])
        return {
            name: tensor.index_select(0, at.to(tensor.device))
            for name, tensor in self.tensors.items()
        }

    def batches(self, rows: np.ndarray, size: int) -> Iterator[tuple[Tensors, slice]]:
        """Consecutive batches of `rows` on the device, floats as float32, each with its place in
        `rows`; the last may be smaller. A thread prepares the next ones while the caller works,
        unless they are small, or on the device.
        """
        places = [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]

        def ready(place: slice) -> Tensors:
            return {
                name: _moved(tensor, self.device)
                for name, tensor in self.batch(rows[place]).items()
            }

        if self.resident == "gpu" or (self.resident == "ram" and size * self.row_bytes < SMALL):
            yield from ((ready(place), place) for place in places)
            return
        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(ready, place) for place in places[:AHEAD]]
            for k, place in enumerate(places):
                tensors = ahead.pop(0).result()
                if k + AHEAD < len(places):
                    ahead.append(reader.submit(ready, places[k + AHEAD]))
                yield tensors, place


def _moved(tensor: Tensor, device: torch.device) -> Tensor:
    """On `device`, float32 if it is floating: half as many bytes go over the bus before it is
    widened.
    """
    tensor = tensor.to(device)
    return tensor.float() if tensor.is_floating_point() else tensor


@dataclass(frozen=True)
class ReadRequest:
    """What one reader wants from a pass: `rows` [n] in the order of their `turns` [n] (ascending,
    the position in the order that all readers follow), of these only `fields`, in batches of
    `batch`.
    """

    rows: np.ndarray
    turns: np.ndarray
    fields: tuple[str, ...]
    batch: int


def shared_pass(
    store: FeatureStore, shares: Sequence[ReadRequest]
) -> Iterator[tuple[int, Clips, slice]]:
    """Every row that somebody wants, read once and in order, and given out as (number of the
    reader, Clips, place in its rows). What a reader gets does not depend on the others: values,
    order, sizes of its batches and their memory's layout.

    Readers of the same turn must want the same row.
    """
    turns, first = np.unique(np.concatenate([share.turns for share in shares]), return_index=True)
    rows = np.concatenate([share.rows for share in shares])[first]
    spans = [
        np.searchsorted(turns, share.turns) for share in shares
    ]  # where a reader's rows are among all
    cuts = [_Cut(share) for share in shares]
    # batches.close() ends the reading thread when the caller leaves early.
    batches = store.batches(rows, max(share.batch for share in shares))
    try:
        for tensors, place in batches:
            for k, (cut, span) in enumerate(zip(cuts, spans, strict=True)):
                low, high = np.searchsorted(span, (place.start, place.stop))
                for clips, own in cut.take(tensors, span[low:high] - place.start):
                    yield k, clips, own
        for k, cut in enumerate(cuts):
            for clips, own in cut.rest():
                yield k, clips, own
    finally:
        batches.close()


class _Cut:
    """A reader's batches, cut from a stream of larger or other ones."""

    def __init__(self, share: ReadRequest):
        self.share, self.given = share, 0
        self.kept: list[Tensors] = []
        self.size = 0

    def take(self, tensors: Tensors, at: np.ndarray) -> Iterator[tuple[Clips, slice]]:
        """Adds the rows `at` of a batch of the stream; gives the batches that are full now."""
        whole = len(next(iter(tensors.values())))
        batch = self.share.batch
        while len(at):
            now = at[: batch - self.size]
            at = at[len(now) :]
            mine = {name: tensors[name] for name in self.share.fields}
            if len(now) < whole:
                index = torch.from_numpy(now)
                # A copy: a part of another's memory might be aligned otherwise, and sums differ in
                # the last bit.
                mine = {
                    name: tensor.index_select(0, index.to(tensor.device))
                    for name, tensor in mine.items()
                }
            self.kept.append(mine)
            self.size += len(now)
            if self.size == batch:
                yield from self.rest()

    def rest(self) -> Iterator[tuple[Clips, slice]]:
        """What was added and not given yet, as one batch, if anything."""
        if not self.size:
            return
        parts, place = self.kept, slice(self.given, self.given + self.size)
        self.kept, self.given, self.size = [], place.stop, 0
        joined = (
            parts[0]
            if len(parts) == 1
            else {name: torch.cat([p[name] for p in parts]) for name in self.share.fields}
        )
        yield clips_of(joined, dtype=None), place


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or less where its control
    group allows less.
    """
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):  # counts the page cache, which gives way
                free = int(line.split()[1]) * 1024
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        if limit != "max":
            free = min(free, int(limit) - int(Path("/sys/fs/cgroup/memory.current").read_text()))
    except (OSError, ValueError):
        return free  # no such files on this system: the first figure stands
    return free
