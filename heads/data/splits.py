"""Cached views with labels: which rows a split has, what their classes are, and in which order an
epoch visits them.

Rows that were not extracted (`ok` False) are never read; they are counted in `SplitViews.failed`, so that
a run can say so. The reading itself is in heads/data/feature_store.py.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch

from heads.config.recipe_tables import DataOptions
from heads.interface.clips import Dims, MissingFields, dims_of
from pipeline.cache.fields import FIELDS, grid_at, is_cut
from pipeline.manifests.manifest import Manifest, about_withheld, label_ids, withheld
from pipeline.text import text_files as texts
from pipeline.text.suggestions import nearest

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache, Group


MOST_CLASSES = 1_000_000  # ids beyond are no classes: they would be listed until the memory is full


def find_classes(manifest: Manifest, data: DataOptions) -> tuple[str, ...]:
    """Class names in the order of their ids: those of `data.class_list`, else the manifest's labels
    over all its splits.

    Labels that are whole numbers keep them, and the classes reach to the largest, or to
    `data.num_classes`. With `data.labels` or `data.first_labels` only those, renumbered from 0.
    ValueError for a label outside the classes, for one that reads like none at all (`-1`), for no
    label at all, and for fewer than 2 classes.
    """
    labels = {label for clip in manifest.clips for label in clip.labels} - set(data.no_label)
    unknown_labels = {
        label: clips for label, clips in withheld(manifest).items() if label in labels
    }
    if data.class_list:
        classes = _read_classes(Path(data.class_list))
        _refuse_withheld(manifest, unknown_labels, classes)
        if unknown := sorted(labels - set(classes)):
            raise ValueError(
                f"{manifest.path}: label {unknown[0]!r} is not in {data.class_list}; "
                f"{nearest(unknown[0], classes)}"
            )
    elif not labels:
        raise ValueError(
            f"{manifest.path}: no clip has a label; training needs them in the column `label`"
        )
    else:
        _refuse_withheld(manifest, unknown_labels)
        ids = label_ids(labels)
        highest = max(ids, key=lambda name: ids[name])
        if data.num_classes and ids[highest] >= data.num_classes:
            limit = f"classes 0 to {data.num_classes - 1} (data.num_classes = {data.num_classes})"
            raise ValueError(
                f"{manifest.path}: label {highest!r} is class {ids[highest]}, expected {limit}"
            )
        if max(ids[highest], data.num_classes) > MOST_CLASSES:
            asked = (
                f"data.num_classes = {data.num_classes}"
                if data.num_classes > ids[highest]
                else f"label {highest!r}"
            )
            raise ValueError(
                f"{manifest.path}: {asked}: expected class ids up to {MOST_CLASSES:,}; count the "
                f"classes from 0"
            )
        names = {number: name for name, number in ids.items()}
        classes = tuple(
            names.get(k, str(k)) for k in range(max(ids[highest] + 1, data.num_classes))
        )
    for pair in data.swap_on_flip:
        if absent := [name for name in pair if name not in classes]:
            raise ValueError(
                f"data.swap_on_flip: {absent[0]!r} is no class; {nearest(absent[0], classes)}"
            )
    classes = _subset(classes, data)
    for pair in data.swap_on_flip:
        if len(set(pair) & set(classes)) == 1:
            raise ValueError(
                f"data.labels: {pair[0]!r} and {pair[1]!r} are exchanged by a flip: keep both, or "
                f"none of them"
            )
    if len(classes) < 2:
        raise ValueError(f"{manifest.path}: expected at least 2 classes, got {list(classes)}")
    return classes


def _refuse_withheld(
    manifest: Manifest, found: Mapping[str, Sequence], classes: Collection[str] = ()
) -> None:
    """ValueError for the first of the withheld labels `found` that is not one of the classes."""
    for label, clips in found.items():
        if label not in classes:
            raise ValueError(f"{manifest.path}: {about_withheld(label, clips)}")


def _subset(classes: tuple[str, ...], data: DataOptions) -> tuple[str, ...]:
    """The classes that `data` keeps, in the order of their ids."""
    if data.first_labels > len(classes):
        raise ValueError(
            f"data.first_labels: expected at most the {len(classes)} classes that there are, got "
            f"{data.first_labels}"
        )
    if unknown := [name for name in data.labels if name not in classes]:
        raise ValueError(f"data.labels: {unknown[0]!r} is no class; {nearest(unknown[0], classes)}")
    if data.labels:
        return tuple(name for name in classes if name in data.labels)
    return classes[: data.first_labels or None]


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        return texts.read_names(path, "a text file with one class name per line")
    except ValueError as error:
        raise ValueError(f"data.class_list: {error}") from None


@dataclass(frozen=True)
class SplitViews:
    """The videos of one split, their views in one group of the cache, and their targets.

    clips: V ids, in the manifest's order; rows [V,k] row numbers, padded with -1; counts [V] views
    of each; targets [V] int64 class ids or [V,K] float32 of 0 and 1, None where the split carries
    no labels; failed: ids left out because none of their views was extracted; absent: ids of the
    split that the cache does not have; others: ids left out because their label is not among those
    that are trained.

    An order of the videos belongs to the whole split, of `whole` videos, where these have the
    numbers `place` [V]: whoever keeps fewer labels sees the same videos in the same order, with
    gaps. `balanced`: classes alike often, see heads.config.recipe.
    """

    split: str
    group: "Group"
    clips: tuple[str, ...]
    rows: np.ndarray
    counts: np.ndarray
    targets: np.ndarray | None
    failed: tuple[str, ...]
    absent: tuple[str, ...]
    others: tuple[str, ...]
    whole: int
    place: np.ndarray
    balanced: bool = False

    def __len__(self) -> int:
        return len(self.clips)

    def all_rows(self) -> tuple[np.ndarray, np.ndarray]:
        """Every view: its row and the number of its video, both [R], video by video."""
        video, column = np.nonzero(self.rows >= 0)
        return self.rows[video, column], video

    def draw(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """One view of every video in random order, as (row, video, turn), all [V]; a function of
        (seed, epoch) and nothing else. `turn`, ascending, is the position in the order of the whole
        split.
        """
        rng = np.random.default_rng([seed, epoch])
        if self.balanced:
            weights = 1 / np.bincount(self.targets)[self.targets]
            turn, video = (
                np.arange(len(self)),
                rng.choice(len(self), len(self), p=weights / weights.sum()),
            )
            chance = rng.random(len(self))
        else:
            order, chance = rng.permutation(self.whole), rng.random(self.whole)
            mine = np.full(self.whole, -1)
            mine[self.place] = np.arange(len(self))
            turn = np.flatnonzero(mine[order] >= 0)
            video, chance = mine[order[turn]], chance[turn]
        choice = (chance * self.counts[video]).astype(int)
        return self.rows[video, choice], video, turn

    def class_weights(self, classes: int) -> np.ndarray:
        """[K] float32 of so many classes: what makes rare ones as heavy as frequent ones, 1 on
        average over the videos.
        """
        count = np.bincount(self.targets, minlength=classes)
        return (len(self) / (np.count_nonzero(count) * np.maximum(count, 1))).astype(np.float32)


def split_views(
    cache: "Cache",
    group: str,
    split: str,
    manifest: Manifest,
    classes: Sequence[str],
    data: DataOptions,
) -> SplitViews | None:
    """The videos of `split` with their views in `group` ("train" or "test"); None where the
    manifest has no such split.

    ValueError when the cache has none of their views, when some but not all clips lack a label, or
    a label is out of place.
    """
    wanted = [clip for clip in manifest.clips if clip.split == split]
    if data.no_label:
        wanted = [
            replace(
                clip, labels=tuple(label for label in clip.labels if label not in data.no_label)
            )
            for clip in wanted
        ]
    _refuse_withheld(manifest, withheld(replace(manifest, clips=tuple(wanted))), classes)
    if not wanted:
        return None
    rows = cache[group]
    limit = data.train_views if group == "train" and data.train_views else None
    there = {clip for clip, present in zip(rows.clips, rows.present, strict=True) if present}
    good: dict[str, list[int]] = {}
    for row, (clip, view, ok) in enumerate(zip(rows.clips, rows.views, rows.ok, strict=True)):
        if ok and (limit is None or view < limit):
            good.setdefault(clip, []).append(row)
    whole = [clip for clip in wanted if clip.clip in good]
    failed = tuple(clip.clip for clip in wanted if clip.clip in there and clip.clip not in good)
    absent = tuple(clip.clip for clip in wanted if clip.clip not in there)
    if not whole:
        why = f"{len(failed)} failed, {len(absent)} are not in the cache"
        raise ValueError(
            f"{cache.path}: no {group} view of the {len(wanted)} clips of split {split!r} ({why})"
        )
    subset = set(classes) if data.labels or data.first_labels else None
    place = [
        k
        for k, clip in enumerate(whole)
        if subset is None or not clip.labels or subset & set(clip.labels)
    ]
    kept, chosen = [whole[k] for k in place], set(place)
    others = tuple(clip.clip for k, clip in enumerate(whole) if k not in chosen)
    if not kept:
        raise ValueError(
            f"{manifest.path}: no clip of split {split!r} has one of the {len(classes)} labels "
            f"that are kept"
        )
    table = np.full((len(kept), max(len(good[clip.clip]) for clip in kept)), -1)
    for k, clip in enumerate(kept):
        table[k, : len(good[clip.clip])] = good[clip.clip]
    targets = _targets(kept, classes, data.target, subset is not None)
    return SplitViews(
        split,
        rows,
        tuple(clip.clip for clip in kept),
        table,
        (table >= 0).sum(1),
        targets,
        failed,
        absent,
        others,
        len(whole),
        np.array(place),
        group == "train" and data.balance == "sampling" and targets is not None,
    )


def _targets(
    clips: Sequence, classes: Sequence[str], target: str, subset: bool
) -> np.ndarray | None:
    """Class ids [V], or [V,K] of 0 and 1 for `target` "multi"; None when no clip of the split has a
    label (a withheld test set). `subset`: the classes are not all there are, other labels of a clip
    are not looked at.
    """
    ids = {name: k for k, name in enumerate(classes)}
    unlabelled = [clip.clip for clip in clips if not clip.labels]
    if len(unlabelled) == len(clips):
        return None
    for clip in [] if subset else clips:
        for label in clip.labels:
            if label not in ids:
                raise ValueError(
                    f"clip {clip.clip}: label {label!r} is none of the {len(ids)} classes; "
                    f"{nearest(label, ids)}"
                )
    if target == "multi":
        table = np.zeros((len(clips), len(classes)), dtype=np.float32)
        for k, clip in enumerate(clips):
            table[k, [ids[label] for label in clip.labels if label in ids]] = 1
        return table
    if unlabelled:
        raise ValueError(
            f"clip {unlabelled[0]}: no label, expected one (data.target = 'single'); label or "
            f"remove it"
        )
    if many := [clip for clip in clips if len(clip.labels) > 1]:
        raise ValueError(
            f"clip {many[0].clip}: {len(many[0].labels)} labels, expected one; set data.target = "
            f"'multi'"
        )
    return np.array([ids[clip.labels[0]] for clip in clips])


def swap_table(classes: Sequence[str], data: DataOptions) -> np.ndarray:
    """[K]: the class that a mirrored view of class k shows; k itself but for the pairs of
    `data.swap_on_flip`.
    """
    table = np.arange(len(classes))
    for one, other in data.swap_on_flip:
        if one not in classes:  # a subset of the labels, without this pair
            continue
        a, b = classes.index(one), classes.index(other)
        table[a], table[b] = b, a
    return table


def cache_dims(cache: "Cache") -> Dims:
    """The sizes of the cache's views, from its training group, or its test group where that one is
    empty.
    """
    group = cache["train" if "train" in cache.groups else "test"]
    return dims_of(
        {name: group.shape(name) for name in group.fields if is_cut(name) or name in FIELDS}
    )


def fields_for(head: torch.nn.Module, group: "Group") -> tuple[str, ...]:
    """What to read for `head`: its needs, and of its uses what the cache has; for `grid`, the one
    of the cut that it reads.

    MissingFields names the needs that are not there."""
    if missing := [name for name in head.needs if name not in group.fields]:
        raise MissingFields(type(head).__name__, missing)
    own = [grid_at(name) for name in head.needs if is_cut(name) and grid_at(name) in group.fields]
    uses = [name for use in head.uses for name in (own if use == "grid" and own else [use])]
    return (*head.needs, *(name for name in uses if name in group.fields))


def how_to_add(cache: "Cache", head: str, missing: Sequence[str]) -> str:
    """The one-line error for a head that needs fields which the cache lacks: the command that would
    add them.
    """
    graphs = [name for name in missing if name in FIELDS and FIELDS[name].stage == "graphs"]
    what = f"head {head} needs {', '.join(missing)}, which {cache.path} lacks"
    if len(graphs) == len(missing):
        return f"{what}: run `vidgraph graphs --cache {cache.path}`"
    stored = [
        name
        for name in cache[cache.groups[0]].fields
        if is_cut(name) or name in ("pooled", "nodes", "boxes")
    ]
    added = [
        "boxes" if name in ("valid", "scores") else name for name in missing if name not in graphs
    ]
    where = f"--manifest {cache.manifest.path} --root {cache.manifest.root} --cache NEW"
    command = f"vidgraph extract {where} --keep {','.join(dict.fromkeys([*stored, *added]))}"
    then = ", then `vidgraph graphs --cache NEW`" if graphs else ""
    return f"{what}: run `{command}`, NEW being another folder, with the other options that {cache.path}/cache.json lists{then}"
