"""Several caches that are read as one: the same configuration, other clips.

    cache = open_caches(["caches/first", "caches/second"])
    cache["train"].batch([3, 1, 2], fields=("nodes", "boxes"))

The rows of the first cache come first, then those of the second, and so on. Nothing is copied.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache.fields import GROUPS, is_cut
from pipeline.cache.folder import CacheError
from pipeline.cache.identity import CONTENT_OF_SAMPLING, deciding, differing_keys, flat
from pipeline.cache.reader import Cache, Group
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.text import as_typed
from pipeline.text.counted import agree

# A message names at most so many settings or clips.
MOST_NAMED = 3


def open_caches(
    paths: "str | Path | Cache | JoinedCache | Sequence[str | Path]",
) -> "Cache | JoinedCache":
    """Open one cache, or several as one.

    Args:
        paths: the path of a cache, or several paths; an open cache is returned as it is.

    Returns:
        A `Cache` for one path, else a `JoinedCache`.

    Raises:
        CacheError: a path holds no cache, two caches were made with different options, or two
            caches have the same clip.
        Damaged: cache.json or the manifest of a cache has changed.
    """
    if isinstance(paths, (Cache, JoinedCache)):
        return paths
    given = [paths] if isinstance(paths, (str, Path)) else list(paths)
    if not given:
        raise CacheError("expected the path of a cache, or several, got none")
    caches = [Cache(path) for path in given]
    return caches[0] if len(caches) == 1 else JoinedCache(caches)


def caches_of(cache: "Cache | JoinedCache") -> tuple[Cache, ...]:
    """Return the caches that are read as one; one cache alone."""
    return cache.parts if isinstance(cache, JoinedCache) else (cache,)


def paths_of(cache: "Cache | JoinedCache") -> list[Path]:
    """Return the folders of a cache, absolute; `open_caches` takes them."""
    return [part.path.resolve() for part in caches_of(cache)]


def require_same_values(first: Cache, other: Cache) -> None:
    """Check that two caches hold values of the same kind, so that one head can read both.

    This is the only place that decides it.

    Args:
        first: a cache.
        other: another cache.

    Raises:
        CacheError: they were made with different options; the message names some.
    """
    if first.fingerprint == other.fingerprint or first.config == other.config:
        return
    stored, found = flat(first.config), flat(other.config)
    # Fields and numbers of views may differ; caches of format 1 have nothing else to name.
    keys = differing_keys(flat(deciding(first.config)), flat(deciding(other.config)))
    differing = []
    for key in keys or differing_keys(stored, found):
        differing.append(f"{as_typed(stored, [key])} there, {as_typed(found, [key])} here")
    more = "; …" if len(differing) > MOST_NAMED else ""
    raise CacheError(
        f"{other.path}: cannot be read together with {first.path}, which was made with other "
        f"options: {'; '.join(differing[:MOST_NAMED])}{more}. Give one of them, or extract again "
        f"with the same options"
    )


class JoinedCache:
    """Several caches as one, read-only. It offers what training reads of a `Cache`.

    It can be pickled, and works in forked and spawned workers.

    Attributes:
        parts: the caches, in the order given.
        path: the folder of the first one.
        config: all that determined the stored values, which is the same for all; of the fields,
            those that all have, and of the numbers of views, the largest.
        fingerprint: that of the caches where it is the same, else a checksum of theirs in order.
    """

    def __init__(self, caches: Sequence[Cache]):
        """Join caches.

        Args:
            caches: two or more.

        Raises:
            CacheError: their options differ, or a clip is in two of them.
        """
        for cache in caches[1:]:
            require_same_values(caches[0], cache)
        self.parts = tuple(caches)
        self.path, self.config = caches[0].path, _joined_config(caches)
        self.fingerprint = _joined_fingerprint([cache.fingerprint for cache in caches])
        self._groups: dict[str, JoinedGroup] = {}
        self._refuse_shared_clips()

    def _refuse_shared_clips(self) -> None:
        owner: dict[str, Path] = {}
        for part in self.parts:
            shared = [clip.clip for clip in part.manifest.clips if clip.clip in owner]
            if shared:
                first = owner[shared[0]]
                rest = len(shared) - 1
                more = f", as {agree(rest, 'is', 'are')} {rest:,} more" if rest else ""
                raise CacheError(
                    f"{part.path}: clip {shared[0]} is in {first}, too{more}; caches that are read "
                    f"together must have different clips: leave one of the caches out, or give "
                    f"its clips other ids and extract again"
                )
            owner.update((clip.clip, part.path) for clip in part.manifest.clips)

    @cached_property
    def manifest(self) -> Manifest:
        """The clips of all caches, one after the other.

        Its path names every file, joined by "+"; no such file exists.
        """
        clips: list[Clip] = []
        columns: dict[str, None] = {}
        digest = hashlib.sha256()
        for part in self.parts:
            for clip in part.manifest.clips:
                clips.append(replace(clip, position=len(clips)))
            columns.update(dict.fromkeys(part.manifest.columns))
            digest.update(part.manifest.sha256.encode())
        path = Path("+".join([str(part.manifest.path.absolute()) for part in self.parts]))
        root = self.parts[0].manifest.root
        return Manifest(path, root, tuple(clips), digest.hexdigest(), tuple(columns))

    def part_of(self, clip: str) -> Cache:
        """Return the cache that has a clip.

        Args:
            clip: its id.

        Raises:
            CacheError: none has it.
        """
        for part in self.parts:
            if any(one.clip == clip for one in part.manifest.clips):
                return part
        raise CacheError(f"{self}: no clip {clip!r} in their manifests")

    @property
    def box_classes(self) -> tuple[str, ...]:
        """The names of the boxes' classes, which all caches have in common; see `Cache`."""
        return self.parts[0].box_classes

    @property
    def failures(self) -> list[dict]:
        """The records of all failed clips."""
        found: list[dict] = []
        for part in self.parts:
            found += part.failures
        return found

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that any cache holds."""
        stored = set().union(*[part.groups for part in self.parts])
        return tuple(name for name in GROUPS if name in stored)

    def __getitem__(self, group: str) -> "JoinedGroup":
        """Return a group; see `Cache.__getitem__`."""
        if group not in self._groups:
            # A cache without this group has none of its views, for example where every clip of it
            # is for training.
            parts = [part[group] for part in self.parts if group in part.groups]
            if not parts:
                # Raises the error of a single cache.
                parts = [self.parts[0][group]]
            self._groups[group] = JoinedGroup(self, group, parts)
        return self._groups[group]

    def __str__(self) -> str:
        return " and ".join([str(part.path) for part in self.parts])


class JoinedGroup:
    """The views of one group of several caches. It offers what a `Group` does.

    Attributes:
        cache: the joined cache.
        name: "train" or "test".
        parts: the group of each cache that has it.
        per_clip: the most views that a clip has.
        clips, views, present, ok, fields: as in `Group`; `fields` are those that all caches hold.
    """

    def __init__(self, cache: JoinedCache, name: str, parts: Sequence[Group]):
        """Join groups of the same name.

        Args:
            cache: the joined cache.
            name: of the groups.
            parts: one or more.

        Raises:
            CacheError: a field has different sizes or dtypes, so that no batch could hold both.
        """
        self.cache, self.name, self.parts = cache, name, tuple(parts)
        self.per_clip = max([part.per_clip for part in parts])
        self.clips: list[str] = []
        for part in parts:
            self.clips += part.clips
        self.views = np.concatenate([part.views for part in parts])
        self.present = np.concatenate([part.present for part in parts])
        self.ok = np.concatenate([part.ok for part in parts])
        # The first row of each part.
        self._starts = np.cumsum([0, *[len(part) for part in parts[:-1]]])
        shared = set(parts[0].fields).intersection(*[part.fields for part in parts[1:]])
        self.fields = tuple(name for name in parts[0].fields if name in shared)
        self._shapes = {name: self._shape(name) for name in self.fields}

    def _shape(self, field: str) -> tuple[int, ...]:
        """The shape of a field; maps have the size of the widest cache."""
        shapes = [part.shape(field) for part in self.parts]
        dtypes = {part.dtype(field) for part in self.parts}
        fixed = set(shapes)
        if is_cut(field):
            # A map [T,C,h,w] is padded; everything else must agree.
            fixed = {shape[:2] for shape in shapes}
        if len(fixed) > 1 or len(dtypes) > 1:
            listed = ", ".join([f"{part.cache.path} {part.shape(field)}" for part in self.parts])
            raise CacheError(
                f"{self.name}: the caches differ in the size of {field} ({listed}); give one of "
                f"them, or extract again with the same options"
            )
        return tuple(map(max, zip(*shapes, strict=True)))

    def __len__(self) -> int:
        return len(self.clips)

    def shape(self, field: str) -> tuple[int, ...]:
        """Return the shape of one view's tensor.

        Args:
            field: one of `fields`. CacheError for another, as of `Group.shape`.
        """
        self._require(field)
        return self._shapes[field]

    def dtype(self, field: str) -> np.dtype:
        """Return the dtype of a field as it is stored.

        Args:
            field: one of `fields`. CacheError for another, as of `Group.shape`.
        """
        self._require(field)
        return self.parts[0].dtype(field)

    def _require(self, field: str) -> None:
        if field in self._shapes:
            return
        for part in self.parts:
            # Raises CacheError with the command that adds the field.
            part.shape(field)

    def rows_of(self, clip: str) -> range:
        """Return the rows of a clip's views.

        Args:
            clip: the clip's id. CacheError if no cache has it.
        """
        for start, part in zip(self._starts.tolist(), self.parts, strict=True):
            try:
                rows = part.rows_of(clip)
            except CacheError:
                continue
            return range(start + rows.start, start + rows.stop)
        raise CacheError(f"{self.cache}: no clip {clip!r} in their manifests")

    def clip(self, row: int) -> Clip:
        """Return the clip of a row; see `Group.clip`."""
        number = int(np.searchsorted(self._starts, row, side="right")) - 1
        return self.parts[number].clip(row - int(self._starts[number]))

    def view(self, row: int) -> dict[str, np.ndarray]:
        """Read all fields of one view.

        Args:
            row: a row where `ok` is true.

        Returns:
            Field -> array of the shape that `shape(field)` gives.
        """
        return {name: values[0] for name, values in self.batch([row]).items()}

    def batch(
        self, rows: Sequence[int], fields: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Read fields of several views, those of each cache in one pass.

        Args:
            rows: B rows where `ok` is true, in any order.
            fields: the names of the fields; None reads all.

        Returns:
            Field -> [B, *shape(field)], in the order of `rows`.

        Raises:
            IndexError, CacheError, Damaged, OSError: as of `Group.batch`.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"{self.cache} {self.name}: rows {rows.min()} to {rows.max()}, expected 0 to "
                f"{len(self) - 1}"
            )
        names = self.fields if fields is None else fields
        out = {name: np.zeros((len(rows), *self.shape(name)), self.dtype(name)) for name in names}
        owner = np.searchsorted(self._starts, rows, side="right") - 1
        for number in np.unique(owner).tolist():
            places = np.flatnonzero(owner == number)
            read = self.parts[number].batch(rows[places] - self._starts[number], names)
            for name, values in read.items():
                # Maps of another cache may be wider: these keep zeros around them.
                inside = tuple(map(slice, values.shape[1:]))
                out[name][(places, *inside)] = values
        return out


def _joined_config(caches: Sequence[Cache]) -> dict:
    """The config of the first cache, with what caches of one fingerprint may have each."""
    config = dict(caches[0].config)
    if "keep" in config:
        for cache in caches[1:]:
            config["keep"] = [name for name in config["keep"] if name in cache.config["keep"]]
    if isinstance(config.get("sampling"), dict):
        config["sampling"] = dict(config["sampling"])
        for key in CONTENT_OF_SAMPLING:
            counts = [cache.config["sampling"].get(key, 0) for cache in caches]
            config["sampling"][key] = max(counts)
    return config


def _joined_fingerprint(fingerprints: Sequence[str]) -> str:
    """The common fingerprint, else a checksum of all of them in order."""
    if len(set(fingerprints)) == 1:
        return fingerprints[0]
    return hashlib.sha256(" ".join(fingerprints).encode()).hexdigest()
