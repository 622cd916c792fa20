"""Cached views with labels, as batches: which rows a split has, what their classes are, and the reading itself.

Rows that were not extracted (`ok` False) are never read; they are counted in `Part.failed`, so that a run can say so.
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

from heads.batch import Clips, Dims, MissingFields, clips_of, dims_of
from heads.recipe import Data
from heads.zoo import nearest
from pipeline.manifest import Manifest, label_ids
from pipeline.tensors import FIELDS, grid_at, is_cut

if TYPE_CHECKING:
    from pipeline.cache import Cache, Group

RESIDENT = ("auto", "ram", "disk")
BLOCK = 256  # rows per read while a field is loaded: bounds the memory beside the destination


def find_classes(manifest: Manifest, data: Data) -> tuple[str, ...]:
    """Class names in the order of their ids: those of `data.class_list`, else the manifest's labels over all its splits.

    Labels that are whole numbers keep them, and the classes reach to the largest, or to `data.num_classes`. ValueError for a
    label outside the classes, for no label at all, and for fewer than 2 classes.
    """
    labels = {label for clip in manifest.clips for label in clip.labels}
    if data.class_list:
        classes = _read_classes(Path(data.class_list))
        if unknown := sorted(labels - set(classes)):
            raise ValueError(
                f"{manifest.path}: label {unknown[0]!r} is not in {data.class_list}; {nearest(unknown[0], classes)}"
            )
    elif not labels:
        raise ValueError(f"{manifest.path}: no clip has a label; training needs them in the column `label`")
    else:
        ids = label_ids(labels)
        highest = max(ids, key=lambda name: ids[name])
        if data.num_classes and ids[highest] >= data.num_classes:
            limit = f"classes 0 to {data.num_classes - 1} (data.num_classes = {data.num_classes})"
            raise ValueError(f"{manifest.path}: label {highest!r} is class {ids[highest]}, expected {limit}")
        names = {number: name for name, number in ids.items()}
        classes = tuple(names.get(k, str(k)) for k in range(max(ids[highest] + 1, data.num_classes)))
    if len(classes) < 2:
        raise ValueError(f"{manifest.path}: expected at least 2 classes, got {list(classes)}")
    for pair in data.swap_on_flip:
        if absent := [name for name in pair if name not in classes]:
            raise ValueError(f"data.swap_on_flip: {absent[0]!r} is no class; {nearest(absent[0], classes)}")
    return classes


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        names = tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except OSError as error:
        raise ValueError(
            f"data.class_list: {path}: {error.strerror}; expected a text file with one class name per line"
        ) from None
    if len(set(names)) < len(names):
        twice = next(name for k, name in enumerate(names) if name in names[:k])
        raise ValueError(f"data.class_list: {path}: {twice!r} is there twice")
    return names


@dataclass(frozen=True)
class Part:
    """The videos of one split, their views in one group of the cache, and their targets.

    clips: V ids, in the manifest's order; rows [V,k] row numbers, padded with -1; counts [V] views of each; targets [V] int64
    class ids or [V,K] float32 of 0 and 1, None where the split carries no labels; failed: ids left out because none of their
    views was extracted; absent: ids of the split that the cache does not have.
    """

    split: str
    group: "Group"
    clips: tuple[str, ...]
    rows: np.ndarray
    counts: np.ndarray
    targets: np.ndarray | None
    failed: tuple[str, ...]
    absent: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.clips)

    def all_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Every view: its row and the number of its video, both [R], video by video."""
        video, column = np.nonzero(self.rows >= 0)
        return self.rows[video, column], video

    def draw(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray]:
        """One view of every video in random order, as (row, video), both [V]; a function of (seed, epoch) and nothing else."""
        rng = np.random.default_rng([seed, epoch])
        video = rng.permutation(len(self))
        choice = (rng.random(len(self)) * self.counts[video]).astype(int)
        return self.rows[video, choice], video


def part_of(cache: "Cache", group: str, split: str, manifest: Manifest, classes: Sequence[str], data: Data) -> Part | None:
    """The videos of `split` with their views in `group` ("train" or "test"); None where the manifest has no such split.

    ValueError when the cache has none of their views, when some but not all clips lack a label, or a label is out of place.
    """
    wanted = [clip for clip in manifest.clips if clip.split == split]
    if not wanted:
        return None
    rows = cache[group]
    limit = data.train_views if group == "train" and data.train_views else None
    there = {clip for clip, present in zip(rows.clips, rows.present, strict=True) if present}
    good: dict[str, list[int]] = {}
    for row, (clip, view, ok) in enumerate(zip(rows.clips, rows.views, rows.ok, strict=True)):
        if ok and (limit is None or view < limit):
            good.setdefault(clip, []).append(row)
    kept = [clip for clip in wanted if clip.clip in good]
    failed = tuple(clip.clip for clip in wanted if clip.clip in there and clip.clip not in good)
    absent = tuple(clip.clip for clip in wanted if clip.clip not in there)
    if not kept:
        why = f"{len(failed)} failed, {len(absent)} are not in the cache"
        raise ValueError(f"{cache.path}: no {group} view of the {len(wanted)} clips of split {split!r} ({why})")
    table = np.full((len(kept), max(len(good[clip.clip]) for clip in kept)), -1)
    for k, clip in enumerate(kept):
        table[k, : len(good[clip.clip])] = good[clip.clip]
    targets = _targets(kept, classes, data.target)
    return Part(split, rows, tuple(clip.clip for clip in kept), table, (table >= 0).sum(1), targets, failed, absent)


def _targets(clips: Sequence, classes: Sequence[str], target: str) -> np.ndarray | None:
    """Class ids [V], or [V,K] of 0 and 1 for `target` "multi"; None when no clip of the split has a label (a withheld test
    set)."""
    ids = {name: k for k, name in enumerate(classes)}
    unlabelled = [clip.clip for clip in clips if not clip.labels]
    if len(unlabelled) == len(clips):
        return None
    for clip in clips:
        for label in clip.labels:
            if label not in ids:
                raise ValueError(f"clip {clip.clip}: label {label!r} is none of the {len(ids)} classes; {nearest(label, ids)}")
    if target == "multi":
        table = np.zeros((len(clips), len(classes)), dtype=np.float32)
        for k, clip in enumerate(clips):
            table[k, [ids[label] for label in clip.labels]] = 1
        return table
    if unlabelled:
        raise ValueError(f"clip {unlabelled[0]}: no label, expected one (data.target = 'single'); label or remove it")
    if many := [clip for clip in clips if len(clip.labels) > 1]:
        raise ValueError(f"clip {many[0].clip}: {len(many[0].labels)} labels, expected one; set data.target = 'multi'")
    return np.array([ids[clip.labels[0]] for clip in clips])


def swap_table(classes: Sequence[str], data: Data) -> np.ndarray:
    """[K]: the class that a mirrored view of class k shows; k itself but for the pairs of `data.swap_on_flip`."""
    table = np.arange(len(classes))
    for one, other in data.swap_on_flip:
        a, b = classes.index(one), classes.index(other)
        table[a], table[b] = b, a
    return table


def cache_dims(cache: "Cache") -> Dims:
    """The sizes of the cache's views, from its training group, or its test group where that one is empty."""
    group = cache["train" if "train" in cache.groups else "test"]
    return dims_of({name: group.shape(name) for name in group.fields if is_cut(name) or name in FIELDS})


def fields_for(head: torch.nn.Module, group: "Group") -> tuple[str, ...]:
    """What to read for `head`: its needs, and of its uses what the cache has; for `grid`, the one of the cut that it reads.

    MissingFields names the needs that are not there."""
    if missing := [name for name in head.needs if name not in group.fields]:
        raise MissingFields(type(head).__name__, missing)
    own = [grid_at(name) for name in head.needs if is_cut(name) and grid_at(name) in group.fields]
    uses = [name for use in head.uses for name in (own if use == "grid" and own else [use])]
    return (*head.needs, *(name for name in uses if name in group.fields))


def how_to_add(cache: "Cache", head: str, missing: Sequence[str]) -> str:
    """The one-line error for a head that needs fields which the cache lacks: the command that would add them."""
    graphs = [name for name in missing if name in FIELDS and FIELDS[name].stage == "graphs"]
    what = f"head {head} needs {', '.join(missing)}, which {cache.path} lacks"
    if len(graphs) == len(missing):
        return f"{what}: run `vidgraph graphs --cache {cache.path}`"
    stored = [name for name in cache[cache.groups[0]].fields if is_cut(name) or name in ("pooled", "nodes", "boxes")]
    added = ["boxes" if name in ("valid", "scores") else name for name in missing if name not in graphs]
    where = f"--manifest {cache.manifest.path} --root {cache.manifest.root} --cache NEW"
    command = f"vidgraph extract {where} --keep {','.join(dict.fromkeys([*stored, *added]))}"
    then = ", then `vidgraph graphs --cache NEW`" if graphs else ""
    return f"{what}: run `{command}`, NEW being another folder, with the other options that {cache.path}/cache.json lists{then}"


class Store:
    """The fields of some rows of a group, in memory or read as they are asked for.

    `resident`: "ram" loads them once, in the dtype of the cache; "disk" reads every batch; "auto" loads them when they take
    less than half of the free memory. ValueError when a value that is read is not finite.
    """

    def __init__(self, group: "Group", fields: Sequence[str], rows: np.ndarray, resident: str, where: str):
        if resident not in RESIDENT:
            raise ValueError(f"resident: expected one of {', '.join(RESIDENT)}, got {resident!r}")
        self.group, self.fields, self.where = group, tuple(fields), where
        self.position = {int(row): k for k, row in enumerate(rows)}
        self.bytes = len(rows) * sum(math.prod(group.shape(name)) * group.dtype(name).itemsize for name in fields)
        self.tensors: dict[str, Tensor] | None = None
        if resident == "ram" or (resident == "auto" and self.bytes < free_memory() / 2):
            self.tensors = self._load(rows)

    def _load(self, rows: np.ndarray) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for start in range(0, len(rows), BLOCK):
            for name, block in self._read(rows[start : start + BLOCK]).items():
                if name not in tensors:
                    tensors[name] = block.new_empty((len(rows), *block.shape[1:]))
                tensors[name][start : start + len(block)] = block
        return tensors

    def _read(self, rows: np.ndarray) -> dict[str, Tensor]:
        arrays = self.group.batch([int(row) for row in rows], fields=self.fields)
        tensors = {name: torch.from_numpy(arrays[name]) for name in self.fields}
        for name, tensor in tensors.items():
            # A sum is finite unless a term is not, or it overflows: only then is every value looked at.
            if tensor.is_floating_point() and not torch.isfinite(tensor.sum(dtype=torch.float64)):
                bad = ~torch.isfinite(tensor).flatten(1).all(1)
                if bad.any():
                    row = int(rows[int(bad.nonzero()[0])])
                    view = f"clip {self.group.clips[row]}, view {self.group.views[row]}"
                    raise ValueError(
                        f"{self.where}, {view}: {name} holds NaN or infinity; run `vidgraph verify --cache {self.where}`"
                    )
        return tensors

    def batch(self, rows: np.ndarray) -> dict[str, Tensor]:
        """The fields of these rows, in this order, in the dtype of the cache."""
        if self.tensors is None:
            return self._read(rows)
        at = torch.tensor([self.position[int(row)] for row in rows])
        return {name: tensor.index_select(0, at) for name, tensor in self.tensors.items()}

    def batches(self, rows: np.ndarray, size: int, device: torch.device | str) -> Iterator[tuple[Clips, slice]]:
        """Consecutive batches of `rows` as float32 Clips on `device`, each with its place in `rows`; the last may be smaller.

        A thread prepares the next batch while the caller works on this one.
        """
        places = [slice(start, min(start + size, len(rows))) for start in range(0, len(rows), size)]

        def ready(place: slice) -> Clips:
            return clips_of(self.batch(rows[place]), dtype=None).to(device, torch.float32)

        with ThreadPoolExecutor(1) as reader:
            ahead = [reader.submit(ready, place) for place in places[:1]]
            for k, place in enumerate(places):
                if k + 1 < len(places):
                    ahead.append(reader.submit(ready, places[k + 1]))
                yield ahead.pop(0).result(), place


def free_memory() -> int:
    """Bytes that this process may still take: what the machine has free, or less where its control group allows less."""
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
