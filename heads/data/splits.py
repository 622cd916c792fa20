"""Cached views with labels: which rows a split has, their targets, and their order in an epoch.

Rows that could not be extracted (`ok` False) are never read. `SplitViews.failed` lists their clips,
so that a run can print them. heads/data/feature_store.py does the reading.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, replace
from shlex import quote
from typing import TYPE_CHECKING

import numpy as np
import torch

from heads.config.recipe_tables import DataOptions
from heads.data.classes import refuse_withheld
from heads.interface.clips import Dims, MissingFields, dims_of
from pipeline.cache.fields import FIELDS, grid_at, is_cut
from pipeline.cache.joined import caches_of
from pipeline.manifests.folds import FOLD
from pipeline.manifests.labels import withheld
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.text.counted import agree, counted
from pipeline.text.suggestions import nearest

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache, Group


@dataclass(frozen=True)
class SplitViews:
    """The V videos of one split, with their views and targets.

    The order of an epoch belongs to the whole split, of `whole` videos, of which these V have the
    numbers `place`. A run that keeps fewer labels sees its videos in the same order, with gaps, and
    so can share a pass with others.

    Attributes:
        split: the split's name.
        group: the training or test views of the cache.
        clips: V clip ids, in the manifest's order.
        rows: [V,k] row numbers in `group`, padded with -1.
        counts: [V] views of each video.
        targets: [V] int64 class ids, or [V,K] float32 of 0 and 1; None if the split has no labels.
        failed: clips that were left out because no view of them could be extracted.
        absent: clips that were left out because the cache does not have them.
        others: clips that were left out because their label is not trained.
        whole: videos of the whole split.
        place: [V] numbers of these videos in the whole split.
        balanced: draw every class equally often (`data.balance = "sampling"`).
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
        """Return every view, video by video: its row [R], and its video's number in 0..V-1 [R]."""
        video, column = np.nonzero(self.rows >= 0)
        return self.rows[video, column], video

    def draw(self, seed: int, epoch: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Draw one view per video in random order; depends on (seed, epoch) alone.

        Args:
            seed: the order seed.
            epoch: the epoch, from 0, counted over all phases.

        Returns:
            row [V], video [V], and turn [V], the ascending position in the whole split's order.
        """
        rng = np.random.default_rng([seed, epoch])
        if self.balanced:
            weights = 1 / np.bincount(self.targets)[self.targets]
            video = rng.choice(len(self), len(self), p=weights / weights.sum())
            turn = np.arange(len(self))
            chance = rng.random(len(self))
        else:
            # Draw for the whole split, then keep these videos: labels do not change the order.
            order, chance = rng.permutation(self.whole), rng.random(self.whole)
            number_of_place = np.full(self.whole, -1)
            number_of_place[self.place] = np.arange(len(self))
            turn = np.flatnonzero(number_of_place[order] >= 0)
            video, chance = number_of_place[order[turn]], chance[turn]
        view = (chance * self.counts[video]).astype(int)
        return self.rows[video, view], video, turn

    def class_weights(self, classes: int) -> np.ndarray:
        """Return weights of the loss that make rare classes count as much as frequent ones.

        Args:
            classes: the number of classes K.

        Returns:
            [K] float32, whose mean over the videos is 1.
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
    """Return the videos of a split with their cached views and targets.

    Args:
        cache: the features.
        group: "train" or "test", which views to take.
        split: the split's name in the manifest.
        manifest: labels and splits.
        classes: what `find_classes` returned.
        data: the recipe's table `data`.

    Returns:
        The split; None if the manifest has no clip in it.

    Raises:
        ValueError: the cache has no view of these clips, some but not all clips have no label, or
            a label is none of the classes.
    """
    wanted = [clip for clip in manifest.clips if clip.split == split]
    if data.no_label:
        wanted = [_without_labels(clip, data.no_label) for clip in wanted]
    refuse_withheld(manifest, withheld(replace(manifest, clips=tuple(wanted))), classes)
    if not wanted:
        return None

    views = cache[group]
    limit = data.train_views if group == "train" and data.train_views else None
    cached, rows_of = _rows_by_clip(views, limit)
    _refuse_without_views(cache, group, split, manifest, wanted)

    # A clip has failed if no view of it is there.
    extracted: list[Clip] = []
    failed: list[str] = []
    absent: list[str] = []
    for clip in wanted:
        if clip.clip in rows_of:
            extracted.append(clip)
        if clip.clip not in cached:
            absent.append(clip.clip)
        elif clip.clip not in rows_of:
            failed.append(clip.clip)
    if not extracted:
        why = f"{len(failed)} failed, {len(absent)} not in the cache"
        raise ValueError(
            f"{cache.path}: no {group} view of the {counted(len(wanted), 'clip')} of split "
            f"{split!r} ({why})"
        )

    subset = bool(data.labels or data.first_labels)
    known = set(classes)
    place: list[int] = []
    others: list[str] = []
    for number, clip in enumerate(extracted):
        # A clip without a label is kept, so that `_targets` can report it.
        if not subset or not clip.labels or known & set(clip.labels):
            place.append(number)
        else:
            others.append(clip.clip)
    kept = [extracted[number] for number in place]
    if not kept:
        raise ValueError(
            f"{manifest.path}: no clip of split {split!r} has a label that is kept "
            f"({counted(len(classes), 'label')})"
        )

    rows = np.full((len(kept), max(len(rows_of[clip.clip]) for clip in kept)), -1)
    for number, clip in enumerate(kept):
        clip_rows = rows_of[clip.clip]
        rows[number, : len(clip_rows)] = clip_rows
    targets = _targets(kept, classes, data.target, subset)
    return SplitViews(
        split=split,
        group=views,
        clips=tuple(clip.clip for clip in kept),
        rows=rows,
        counts=(rows >= 0).sum(1),
        targets=targets,
        failed=tuple(failed),
        absent=tuple(absent),
        others=tuple(others),
        whole=len(extracted),
        place=np.array(place),
        balanced=group == "train" and data.balance == "sampling" and targets is not None,
    )


def _refuse_without_views(
    cache: "Cache", group: str, split: str, manifest: Manifest, wanted: Sequence[Clip]
) -> None:
    """Raise ValueError if clips of the cache lack the views that their split is read from.

    A cache stores training views of clips that were in the split train when it was extracted, and
    test views of the others.
    """
    there = set(cache[group].clips)
    for part in caches_of(cache):
        stored = {clip.clip for clip in part.stored.clips}
        lacking = [clip.clip for clip in wanted if clip.clip in stored and clip.clip not in there]
        if not lacking:
            continue
        command = f"vidgraph extract --cache {quote(str(part.path))} --add views"
        needed = "train" if split == "train" else "test"
        if needed != group or FOLD in manifest.columns:
            # Not its own views are asked for; or they are those of one fold of several.
            command += " --views-for-all"
        elif manifest.sha256 not in (part.stored.sha256, cache.manifest.sha256):
            command += f" --manifest {quote(str(manifest.path))}"
        which = lacking[0] if len(lacking) == 1 else f"such as {lacking[0]}"
        raise ValueError(
            f"{part.path}: {counted(len(lacking), 'clip')} of split {split!r} ({which}) "
            f"{agree(len(lacking), 'has', 'have')} no {group} views; run `{command}`"
        )


def _rows_by_clip(views: "Group", limit: int | None) -> tuple[set[str], dict[str, list[int]]]:
    """Return the clips that the cache has, and the rows of those that were extracted.

    `limit`: only the views of lower numbers than this.
    """
    cached: set[str] = set()
    rows_of: dict[str, list[int]] = {}
    columns = zip(views.clips, views.views, views.ok, views.present, strict=True)
    for row, (clip, view, ok, present) in enumerate(columns):
        if present:
            cached.add(clip)
        if ok and (limit is None or view < limit):
            rows_of.setdefault(clip, []).append(row)
    return cached, rows_of


def _without_labels(clip: Clip, labels: Collection[str]) -> Clip:
    kept = tuple(label for label in clip.labels if label not in labels)
    return replace(clip, labels=kept)


def _targets(
    clips: Sequence[Clip], classes: Sequence[str], target: str, subset: bool
) -> np.ndarray | None:
    """Return class ids [V], or [V,K] of 0 and 1 for `target` "multi".

    None if no clip has a label (a withheld test set). `subset`: the run keeps some classes only,
    and other labels of a clip do not matter.
    """
    ids = {name: k for k, name in enumerate(classes)}
    unlabelled = [clip.clip for clip in clips if not clip.labels]
    if len(unlabelled) == len(clips):
        return None

    if not subset:
        for clip in clips:
            for label in clip.labels:
                if label not in ids:
                    raise ValueError(
                        f"clip {clip.clip}: label {label!r} is none of the "
                        f"{counted(len(ids), 'class', 'classes')}; {nearest(label, ids)}"
                    )

    if target == "multi":
        table = np.zeros((len(clips), len(classes)), dtype=np.float32)
        for k, clip in enumerate(clips):
            for label in clip.labels:
                if label in ids:
                    table[k, ids[label]] = 1
        return table

    if unlabelled:
        raise ValueError(
            f"clip {unlabelled[0]}: no label, expected one (data.target = 'single'); label or "
            f"remove it"
        )
    for clip in clips:
        if len(clip.labels) > 1:
            raise ValueError(
                f"clip {clip.clip}: {len(clip.labels)} labels, expected one; set data.target = "
                f"'multi'"
            )
    return np.array([ids[clip.labels[0]] for clip in clips])


def require_split_views(
    cache: "Cache",
    group: str,
    split: str,
    manifest: Manifest,
    classes: Sequence[str],
    data: DataOptions,
) -> SplitViews:
    """Return what `split_views` does, for a split that must have clips.

    Args:
        cache, group, split, manifest, classes, data: as for `split_views`.

    Returns:
        The split.

    Raises:
        ValueError: the manifest has no clip in the split, or an error of `split_views`.
    """
    views = split_views(cache, group, split, manifest, classes, data)
    if views is None:
        splits = ", ".join(splits_of(manifest))
        raise ValueError(f"{manifest.path}: no clip in split {split!r}; its splits: {splits}")
    return views


def splits_of(manifest: Manifest) -> list[str]:
    """Return the splits that a manifest has clips in, sorted."""
    return sorted({clip.split for clip in manifest.clips})


def print_excluded(part: SplitViews, say: Callable[[str], None]) -> None:
    """Print which clips of a split are left out, one line per reason.

    Args:
        part: the split.
        say: prints one line for a person.
    """
    excluded = {
        ("failed", "failed", "at extraction"): part.failed,
        ("is", "are", "not in the cache"): part.absent,
        ("has", "have", "other labels than those that are kept"): part.others,
    }
    total = len(part) + sum(len(clips) for clips in excluded.values())
    for (one, many, what), clips in excluded.items():
        if clips:
            reason = f"{agree(len(clips), one, many)} {what}"
            more = ", …" if len(clips) > 5 else ""
            say(
                f"split {part.split}: {len(clips):,} of {counted(total, 'clip')} {reason} and "
                f"{agree(len(clips), 'is', 'are')} left out: {', '.join(clips[:5])}{more}"
            )


def cache_dims(cache: "Cache") -> Dims:
    """Return the sizes of a cache's views, which every head is built for.

    Args:
        cache: its training views decide, or its test views if it has no others.
    """
    group = cache["train" if "train" in cache.groups else "test"]
    shapes = {}
    for name in group.fields:
        if is_cut(name) or name in FIELDS:
            shapes[name] = group.shape(name)
    return replace(dims_of(shapes), box_classes=len(cache.box_classes))


def fields_for(head: torch.nn.Module, group: "Group") -> tuple[str, ...]:
    """Return the fields to read for a head: all that it needs, and what the cache has of its uses.

    Args:
        head: its `needs` and `uses` name fields.
        group: the training or test views of a cache.

    Raises:
        MissingFields: the cache lacks fields that the head needs.
    """
    missing = [name for name in head.needs if name not in group.fields]
    if missing:
        raise MissingFields(type(head).__name__, missing)

    # A head that reads one map needs that map's own grid size, not the last cut's.
    grids = []
    for name in head.needs:
        if is_cut(name) and grid_at(name) in group.fields:
            grids.append(grid_at(name))

    optional = []
    for name in getattr(head, "uses", ()):
        if name == "grid" and grids:
            optional += grids
        elif name in group.fields:
            optional.append(name)
    return (*head.needs, *optional)
