"""Which rows of a cache an export has: those of a split, with their clips, and their fields."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from pipeline.cache.folder import CacheError
from pipeline.cache.joined import JoinedCache, JoinedGroup
from pipeline.cache.reader import Cache, Group
from pipeline.manifests.manifest import Clip, Manifest

# Bytes that are read at once.
BLOCK = 1 << 28


@dataclass(frozen=True)
class SplitRows:
    """The extracted views of one split.

    Attributes:
        split: its name.
        group: the views.
        rows: [R] rows of the group.
        clips: the clip of each row, with the labels that were asked for.
        fields: what is exported of each view.
        left_out: reason -> ids of clips without a view here.
    """

    split: str
    group: Group | JoinedGroup
    rows: tuple[int, ...]
    clips: tuple[Clip, ...]
    fields: tuple[str, ...]
    left_out: dict[str, list[str]] = field(default_factory=dict)

    def blocks(self, fields: Sequence[str] = ()) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        """Yield (which of `rows`, field -> [n,...]), a block after the other.

        Args:
            fields: what to read; () for `self.fields`.
        """
        fields = tuple(fields) or self.fields
        size = 0
        for name in fields:
            size += int(np.prod(self.group.shape(name))) * self.group.dtype(name).itemsize
        count = max(1, BLOCK // max(1, size))
        for start in range(0, len(self.rows), count):
            part = slice(start, min(start + count, len(self.rows)))
            yield part, self.group.batch(self.rows[part], fields)


def rows_of_split(
    cache: Cache | JoinedCache,
    split: str,
    manifest: Manifest,
    fields: Sequence[str] | None,
    views: str = "",
) -> SplitRows:
    """Choose the rows of a split.

    Args:
        cache: the cache, or several as one.
        split: its name in the manifest.
        manifest: labels and splits.
        fields: what to export; None for all fields.
        views: "train" or "test"; "" for training views of the train split and test views of the
            others, as far as the cache has them.

    Returns:
        The rows in the order of the manifest. Clips that failed, or that the cache lacks, are in
        `left_out`.

    Raises:
        CacheError: the cache lacks the views or a field.
    """
    name = views
    if not name:
        name = "train" if split == "train" and "train" in cache.groups else "test"
        if name not in cache.groups:
            name = cache.groups[0] if cache.groups else "test"
    group = cache[name]
    chosen = tuple(group.fields if fields is None else fields)
    for one in chosen:
        # Raises CacheError, with what to do, for a field that is not there.
        group.shape(one)

    rows: list[int] = []
    clips: list[Clip] = []
    left_out: dict[str, list[str]] = {}
    for clip in manifest.clips:
        if clip.split != split:
            continue
        try:
            of_clip = group.rows_of(clip.clip)
        except CacheError:
            left_out.setdefault("not in the cache", []).append(clip.clip)
            continue
        good = [row for row in of_clip if group.ok[row]]
        if not good:
            reason = "failed at extraction"
            if not len(of_clip):
                reason = f"no {name} views"
            elif not any(group.present[row] for row in of_clip):
                reason = "in a shard that is not complete"
            left_out.setdefault(reason, []).append(clip.clip)
        rows += good
        clips += [clip] * len(good)
    return SplitRows(split, group, tuple(rows), tuple(clips), chosen, left_out)


def label_text(clip: Clip) -> str:
    """The labels of a clip in one cell, as in a manifest."""
    return ";".join(clip.labels)
