"""Open a cache, join the files of its stages, and read single views and batches.

What exists, and in which shape, comes from the statistics of the shards. A shard's HDF5 file is
opened when a row of it is read, once per process.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache.fields import FIELDS, GROUPS
from pipeline.cache.folder import (
    CacheError,
    check_manifest_copy,
    create_cache,
    read_cache_json,
    relabelled_clips,
)
from pipeline.cache.shard_reader import ShardFile
from pipeline.cache.shards import Shards, made_from
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import Manifest, read_manifest

__all__ = [
    "Cache",
    "CacheError",
    "Damaged",
    "Group",
    "create_cache",
    "relabelled_clips",
]

STAGES = ("features", "graphs")


class _Files:
    """The shard files that this process has read; none after a fork, or in a pickled copy.

    `pipeline.cache.open_files` decides how many of them stay open.
    """

    def __init__(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._known: dict[Path, ShardFile] = {}

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()

    def get(self, path: Path, record: dict) -> ShardFile:
        if self._pid != os.getpid():
            self.__init__()
        with self._lock:
            if path not in self._known:
                self._known[path] = ShardFile(path, record)
            return self._known[path]

    def __iter__(self) -> Iterator[ShardFile]:
        """Yield the files that are open."""
        return (file for file in list(self._known.values()) if file.is_open)


class Cache:
    """A cache folder, read-only.

    A cache is cheap to open, can be pickled, and works in forked and spawned workers.
    `cache["train"]` and `cache["test"]` are its groups. A cache object knows the shards that were
    complete when it first looked for them: open it anew to see later ones.

    Attributes:
        path: the folder.
        record: cache.json.
        config: all that determined the stored values.
        fingerprint: the sha256 of format, config and clips, in hexadecimal digits.
    """

    def __init__(self, path: str | Path):
        """Open a cache.

        Args:
            path: a folder that `vidgraph extract --cache` or `create_cache` made.

        Raises:
            CacheError: there is no cache, its format is another, or its manifest is missing.
            Damaged: cache.json or the copy of the manifest has changed.
        """
        self.path = Path(path)
        self.record = read_cache_json(self.path)
        check_manifest_copy(self.path, self.record)
        self.config: dict = self.record["config"]
        self.fingerprint: str = self.record["fingerprint"]
        self.files = _Files()
        self._groups: dict[str, Group] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest as it was when the cache was made.

        Labels and splits of another manifest may be newer (`relabelled_clips`).
        """
        return read_manifest(self.path / "manifest.csv", self.record["manifest"]["root"])

    @property
    def box_classes(self) -> tuple[str, ...]:
        """The names of the boxes' classes by their numbers in `box_class`; () without classes."""
        return tuple(self.config.get("box_classes", ()))

    @cached_property
    def shards(self) -> Shards:
        """Which shard holds which clips, and where its files are."""
        return Shards(self.path, self.fingerprint, self.manifest, self.record["per_shard"])

    @cached_property
    def records(self) -> dict[str, dict[int, dict]]:
        """Stage -> shard -> statistics, of the complete shards.

        Graphs whose features were written again later are left out: they are stale.
        """
        features, graphs = self._read_records("features"), self._read_records("graphs")
        for shard, record in list(graphs.items()):
            if shard not in features or not made_from(record, features[shard]):
                del graphs[shard]
        return {"features": features, "graphs": graphs}

    def _read_records(self, stage: str) -> dict[int, dict]:
        records = {}
        for shard in range(len(self.shards)):
            if self.shards.done(shard, stage):
                records[shard] = self.shards.record(shard, stage)
        return records

    @property
    def missing(self) -> list[int]:
        """The numbers of the shards whose features are not complete."""
        return [shard for shard in range(len(self.shards)) if shard not in self.records["features"]]

    @property
    def failures(self) -> list[dict]:
        """The records (clip, error, message, seconds) of all failed clips in complete shards."""
        failures = []
        for record in self.records["features"].values():
            failures += record.get("failures", ())
        return failures

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the complete shards hold: "train", "test", or both."""
        stored = set()
        for record in self.records["features"].values():
            stored.update(record["groups"])
        return tuple(group for group in GROUPS if group in stored)

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Stage -> the fields that any group of any shard holds."""
        fields = {}
        for stage, records in self.records.items():
            names = set()
            for record in records.values():
                for group in record["groups"].values():
                    names.update(group["fields"])
            fields[stage] = _in_order(names)
        return fields

    def __getitem__(self, group: str) -> "Group":
        """Return a group.

        Args:
            group: "train" or "test".

        Returns:
            The group; the same object each time.

        Raises:
            CacheError: no complete shard has this group.
        """
        if group not in self.groups:
            stored = ", ".join(self.groups) or "nothing yet"
            raise CacheError(
                f"{self.path}: no group {group!r} (it holds {stored}); extract with --train-views "
                f"or --test-clips from 1"
            )
        if group not in self._groups:
            self._groups[group] = Group(self, group)
        return self._groups[group]


class Group:
    """The views of one group, over all shards.

    Row r is the same view in every stage, and the views of a clip are neighbours. Get a group from
    `cache["train"]` or `cache["test"]`; `len(group)` is its number of rows R.

    Attributes:
        cache: the cache that the group belongs to.
        name: "train" or "test".
        per_clip: views per clip.
        clips: R clip ids.
        views: int32 [R], the view's number within its clip, from 0.
        present: bool [R], whether the row's shard is complete.
        ok: bool [R], whether the view was extracted. Only these rows can be read.
        fields: the names of the fields that every complete shard holds.
    """

    def __init__(self, cache: Cache, name: str):
        """Collect what the statistics say about a group.

        Args:
            cache: a cache that has the group.
            name: "train" or "test".

        Raises:
            Damaged: the shards do not agree on the number or the shapes of views.
        """
        self.cache, self.name = cache, name
        self.per_clip = self._views_per_clip()

        # Rows follow from the plan, not from what is complete: no row moves when shards are added.
        clips = cache.manifest.clips
        self.clips: list[str] = []
        for clip in clips:
            self.clips += [clip.clip] * self.per_clip
        self.views = np.tile(np.arange(self.per_clip, dtype=np.int32), len(clips))
        self._starts = np.array([r.start * self.per_clip for r in cache.shards.ranges], np.int64)

        self.present, self.ok = np.zeros(len(self), bool), np.zeros(len(self), bool)
        for shard, record in cache.records["features"].items():
            rows = np.array(self.rows_in(shard))
            self.present[rows] = self.ok[rows] = True
            self.ok[rows[record["groups"][name]["absent"]]] = False

        self._described = self._describe()
        self.fields = _in_order(self._described)

    def _views_per_clip(self) -> int:
        counts = set()
        for shard, record in self.cache.records["features"].items():
            rows = 0
            if self.name in record["groups"]:
                rows = record["groups"][self.name]["rows"]
            counts.add(rows / len(self.cache.shards.ranges[shard]))

        per_clip = counts.pop()
        if counts or not per_clip.is_integer():
            raise Damaged(
                f"{self.cache.path} {self.name}: shards differ in views per clip; run `vidgraph "
                f"verify`"
            )
        return int(per_clip)

    def _describe(self) -> dict[str, tuple[str, tuple[int, ...], np.dtype]]:
        """Field -> (stage, shape of a view, dtype), of the fields that every complete shard holds.

        Maps have the height and width of the widest shard.
        """
        described = {}
        for stage, records in self.cache.records.items():
            tables = [record["groups"][self.name]["fields"] for record in records.values()]
            # Some shards may lack graphs; a field counts only if all rows have it.
            if len(tables) < len(self.cache.records["features"]):
                continue
            for name in set(tables[0]).intersection(*tables[1:]):
                shapes = {tuple(table[name]["shape"]) for table in tables}
                dtypes = {table[name]["dtype"] for table in tables}
                if len(dtypes) > 1 or not _differ_in_map_size_only(shapes):
                    # Graphs differ where a run with other options was stopped half way.
                    if stage == "graphs":
                        continue
                    raise Damaged(
                        f"{self.cache.path} {self.name}: shards differ in the size of {name}; run "
                        f"`vidgraph verify`"
                    )
                widest = tuple(map(max, zip(*shapes, strict=True)))
                described[name] = stage, widest, np.dtype(dtypes.pop()).newbyteorder("<")
        return described

    def __len__(self) -> int:
        return len(self.clips)

    def shape(self, field: str) -> tuple[int, ...]:
        """Return the shape of one view's tensor.

        Args:
            field: one of `fields`.

        Returns:
            The shape without the axis R. Maps have the size of the widest shard and are padded
            with zeros; the field `grid` has the true size.

        Raises:
            CacheError: not every complete shard has the field.
        """
        return self._field(field)[1]

    def dtype(self, field: str) -> np.dtype:
        """Return the dtype of a field as it is stored, little-endian.

        Args:
            field: one of `fields`. CacheError as for `shape`.
        """
        return self._field(field)[2]

    def rows_of(self, clip: str) -> range:
        """Return the rows of a clip's views.

        Args:
            clip: the clip's id.

        Returns:
            `per_clip` consecutive rows.

        Raises:
            CacheError: the cache's manifest does not have this clip.
        """
        if clip not in self._positions:
            raise CacheError(f"{self.cache.path}: no clip {clip!r} in its manifest")
        first = self._positions[clip] * self.per_clip
        return range(first, first + self.per_clip)

    def rows_in(self, shard: int) -> range:
        """Return the rows that a shard holds.

        Args:
            shard: the shard's number; it need not be complete.
        """
        first = int(self._starts[shard])
        return range(first, first + len(self.cache.shards.ranges[shard]) * self.per_clip)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {clip.clip: clip.position for clip in self.cache.manifest.clips}

    def _field(self, name: str) -> tuple[str, tuple[int, ...], np.dtype]:
        if name in self._described:
            return self._described[name]
        where = f"{self.cache.path} {self.name}: no {name} (it holds {', '.join(self.fields)})"
        if name in FIELDS and FIELDS[name].stage == "graphs":
            raise CacheError(
                f"{where} for all its shards as they are now; run `vidgraph graphs --cache "
                f"{self.cache.path}`"
            )
        raise CacheError(f"{where}; extract into another folder with --keep {name}")

    def view(self, row: int) -> dict[str, np.ndarray]:
        """Read all fields of one view.

        Args:
            row: a row where `ok` is true.

        Returns:
            Field -> array of the shape that `shape(field)` gives.

        Raises:
            IndexError, CacheError, Damaged, OSError: as for `batch`.
        """
        return {name: values[0] for name, values in self.batch([row]).items()}

    def batch(
        self, rows: Sequence[int], fields: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """Read fields of several views. The files are read from front to back.

        Args:
            rows: B rows where `ok` is true, in any order; a row may occur more than once.
            fields: the names of the fields; None reads all.

        Returns:
            Field -> [B, *shape(field)], in the order of `rows`.

        Raises:
            IndexError: a row is out of range.
            CacheError: there is no such field, or a row was not extracted.
            Damaged: a file was changed or replaced, or a view does not fit its checksum.
            OSError: a file cannot be read.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        self._require_ok(rows)
        names = self.fields if fields is None else fields
        out = {name: np.empty((len(rows), *self.shape(name)), self.dtype(name)) for name in names}

        # Each row is read once, into the first position of the batch that asks for it.
        distinct, firsts, inverse = np.unique(rows, return_index=True, return_inverse=True)
        shards = np.searchsorted(self._starts, distinct, side="right") - 1
        for shard in dict.fromkeys(shards.tolist()):
            start, stop = np.searchsorted(shards, (shard, shard + 1))
            shard_rows = distinct[start:stop] - self._starts[shard]
            for name, values in out.items():
                self._read(shard, name, shard_rows, firsts[start:stop], values)

        repeated = np.flatnonzero(firsts[inverse] != np.arange(len(rows)))
        for values in out.values():
            values[repeated] = values[firsts[inverse[repeated]]]
        return out

    def _read(
        self, shard: int, name: str, rows: np.ndarray, positions: np.ndarray, out: np.ndarray
    ) -> None:
        """Read rows of a shard into out[positions].

        The rows count within the shard, ascend and do not repeat.
        """
        stage = self._described[name][0]
        record = self.cache.records[stage][shard]
        file = self.cache.files.get(self.cache.shards.path(shard, stage), record)
        stored = tuple(record["groups"][self.name]["fields"][name]["shape"])
        if stored == out.shape[1:]:
            # Slices, because an index would give a copy where a view has one value.
            targets = [out[position : position + 1] for position in positions.tolist()]
            file.read(self.name, name, rows, targets)
            return

        # Another shard has wider maps: these get zeros around them.
        narrow = np.empty((len(rows), *stored), out.dtype)
        file.read(self.name, name, rows, narrow)
        out[positions] = 0
        out[(positions, *map(slice, stored))] = narrow

    def _require_ok(self, rows: np.ndarray) -> None:
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"{self.cache.path} {self.name}: rows {rows.min()} to {rows.max()}, expected 0 to "
                f"{len(self) - 1}"
            )
        if self.ok[rows].all():
            return

        row = rows[~self.ok[rows]][0]
        verb, why = "extract", "lies in a shard that is not there"
        if self.present[row]:
            verb, why = "repair", "failed in extraction"
        raise CacheError(
            f"{self.cache.path} {self.name}: row {row} (clip {self.clips[row]}, view "
            f"{self.views[row]}) {why}; ask for rows where `ok`, or run `vidgraph {verb} --cache "
            f"{self.cache.path}`"
        )


def _differ_in_map_size_only(shapes: Iterable[tuple[int, ...]]) -> bool:
    """Whether the shapes [T,C,h,w] of a map share T and C; shapes of another rank must agree."""
    fixed = set()
    for shape in shapes:
        fixed.add(shape[:2] if len(shape) == 4 else shape)
    return len(fixed) == 1


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Names in the order of FIELDS, then those of cuts by name."""
    order = {name: number for number, name in enumerate(FIELDS)}
    return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))
