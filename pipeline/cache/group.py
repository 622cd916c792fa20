"""One group of a cache: its rows over all shards, and the reading of views and batches."""

from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Protocol

import numpy as np

from pipeline.cache.fields import FIELDS
from pipeline.cache.folder import CacheError
from pipeline.cache.shard_reader import ShardFile
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import Clip, Manifest


class ShardFiles(Protocol):
    """The shard files of a cache that this process has open."""

    def get(self, path: Path, record: dict) -> ShardFile: ...


class OpenCache(Protocol):
    """What a group needs of its `pipeline.cache.reader.Cache`."""

    path: Path
    files: ShardFiles
    stored: Manifest
    shards: Shards
    records: dict[str, dict[int, dict]]

    def how_to_add(self, fields: Sequence[str]) -> str: ...


class Group:
    """The views of one group, over all shards.

    Row r is the same view in every stage, and the views of a clip are neighbours. Get a group from
    `cache["train"]` or `cache["test"]`; `len(group)` is its number of rows R.

    Attributes:
        cache: the cache that the group belongs to.
        name: "train" or "test".
        per_clip: views per clip; the largest number, where clips differ.
        clips: R clip ids.
        views: int32 [R], the view's number within its clip, from 0.
        present: bool [R], whether the row's shard is complete.
        ok: bool [R], whether the view was extracted. Only these rows can be read.
        fields: the names of the fields that every complete shard holds.
        positions: int32 [R], the position of the row's clip in `cache.stored`.
        places: int32 [R], the row's place in its shard.
    """

    def __init__(self, cache: OpenCache, name: str):
        """Collect what the statistics say about a group.

        Args:
            cache: a cache that has the group.
            name: "train" or "test".

        Raises:
            Damaged: the shards do not agree on the number or the shapes of views.
        """
        self.cache, self.name = cache, name
        self._records = {}
        for shard, record in cache.records["features"].items():
            if name in record["groups"]:
                self._records[shard] = record
        self._plan_rows()

        self.present, self.ok = np.zeros(len(self), bool), np.zeros(len(self), bool)
        for shard, record in self._records.items():
            rows = self._rows_of_shard[shard]
            absent = np.zeros(len(rows), bool)
            absent[record["groups"][name]["absent"]] = True
            self.present[rows[rows >= 0]] = True
            self.ok[rows[(rows >= 0) & ~absent]] = True

        self._stage_of: dict[str, dict[int, str]] = {}
        self._described = self._describe()
        self.fields = in_order(self._described)
        self._leave_out_failures_of_added_fields()

    def _plan_rows(self) -> None:
        """Find which row is which view, and where it is.

        Rows follow from the plan, not from what is complete: no row moves when shards are added.
        """
        shards = self.cache.shards
        unplanned = self._unplanned_views()
        columns: list[np.ndarray] = []
        for shard, positions in enumerate(shards.ranges):
            clips, numbers = shards.rows(shard, self.name, unplanned * len(positions))
            self._check_count(shard, len(clips))
            part = shards.part_of[shard]
            read = {number: part.read_number(self.name, number) for number in set(numbers)}
            columns.append(
                np.array(
                    [
                        np.asarray(positions, np.int64)[np.array(clips, int)],
                        [read[number] for number in numbers],
                        np.full(len(clips), shard),
                        np.arange(len(clips)),
                    ],
                    np.int64,
                ).reshape(4, -1)
            )
        positions, views, owners, places = np.concatenate(columns, axis=1)

        # Views that are no longer read have no row.
        order = np.lexsort((views, positions))
        order = order[views[order] >= 0]
        self.positions = positions[order].astype(np.int32)
        self.views = views[order].astype(np.int32)
        self.places = places[order].astype(np.int32)
        self._shard_of = owners[order].astype(np.int32)
        clips = self.cache.stored.clips
        self.clips: list[str] = [clips[position].clip for position in self.positions.tolist()]
        self.per_clip = int(np.bincount(self.positions).max()) if len(self.positions) else 0

        # For each shard, the row of each of its places; -1 for a view that is not read.
        rows = np.full(len(owners), -1)
        rows[order] = np.arange(len(order))
        ends = np.cumsum([column.shape[1] for column in columns])
        self._rows_of_shard = np.split(rows, ends[:-1])

    def _unplanned_views(self) -> int:
        """Views per clip, by the statistics of shards whose cache does not say what was planned."""
        shards, counts = self.cache.shards, set()
        for shard, record in self.cache.records["features"].items():
            if shards.part_of[shard].views is None:
                rows = 0
                if self.name in record["groups"]:
                    rows = record["groups"][self.name]["rows"]
                counts.add(rows / len(shards.ranges[shard]))
        if not counts:
            return 0
        per_clip = counts.pop()
        if counts or not per_clip.is_integer():
            raise Damaged(
                f"{self.cache.path} {self.name}: shards differ in views per clip; run `vidgraph "
                f"verify`"
            )
        return int(per_clip)

    def _check_count(self, shard: int, planned: int) -> None:
        """Damaged unless a complete shard has as many rows as were planned."""
        record = self.cache.records["features"].get(shard)
        if record is None:
            return
        rows = record["groups"].get(self.name, {"rows": 0})["rows"]
        if rows != planned:
            raise Damaged(
                f"{self.cache.shards.path(shard)} {self.name}: {rows} rows, planned were "
                f"{planned}; run `vidgraph verify`"
            )

    def _describe(self) -> dict[str, tuple[tuple[int, ...], np.dtype]]:
        """Field -> (shape of a view, dtype), of the fields that every complete shard holds.

        Maps have the height and width of the widest shard.
        """
        tables: dict[str, dict[int, dict]] = {}
        for stage, records in self.cache.records.items():
            for shard, record in records.items():
                if shard not in self._records or self.name not in record["groups"]:
                    continue
                for name, table in record["groups"][self.name]["fields"].items():
                    tables.setdefault(name, {}).setdefault(shard, table)
                    self._stage_of.setdefault(name, {}).setdefault(shard, stage)

        described = {}
        for name, of_shards in tables.items():
            # Some shards may lack graphs; a field counts only if all rows have it.
            if len(of_shards) < len(self._records):
                continue
            shapes = {tuple(table["shape"]) for table in of_shards.values()}
            dtypes = {table["dtype"] for table in of_shards.values()}
            if len(dtypes) > 1 or not _differ_in_map_size_only(shapes):
                # Graphs differ where a run with other options was stopped half way.
                if name in FIELDS and FIELDS[name].stage == "graphs":
                    continue
                raise Damaged(
                    f"{self.cache.path} {self.name}: shards differ in the size of {name}; run "
                    f"`vidgraph verify`"
                )
            widest = tuple(map(max, zip(*shapes, strict=True)))
            described[name] = widest, np.dtype(dtypes.pop()).newbyteorder("<")
        return described

    def _leave_out_failures_of_added_fields(self) -> None:
        """A clip that failed when a field was added cannot be read as a whole."""
        used = {stage for name in self.fields for stage in self._stage_of[name].values()}
        for stage in used - {"features", "graphs"}:
            for shard, record in self.cache.records[stage].items():
                if shard in self._records and self.name in record["groups"]:
                    rows = self._rows_of_shard[shard][record["groups"][self.name]["absent"]]
                    self.ok[rows[rows >= 0]] = False

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
        return self._field(field)[0]

    def dtype(self, field: str) -> np.dtype:
        """Return the dtype of a field as it is stored, little-endian.

        Args:
            field: one of `fields`. CacheError as for `shape`.
        """
        return self._field(field)[1]

    def rows_of(self, clip: str) -> range:
        """Return the rows of a clip's views.

        Args:
            clip: the clip's id.

        Returns:
            Consecutive rows: `per_clip`, or fewer, or none where the clip has no view here.

        Raises:
            CacheError: the cache's manifest does not have this clip.
        """
        if clip not in self._positions:
            raise CacheError(f"{self.cache.path}: no clip {clip!r} in its manifest")
        position = self._positions[clip]
        first, end = np.searchsorted(self.positions, (position, position + 1)).tolist()
        return range(first, end)

    def rows_in(self, shard: int) -> Sequence[int]:
        """Return the rows that a shard holds, in the shard's order.

        Args:
            shard: the shard's number; it need not be complete.

        Returns:
            A range, where they follow each other.
        """
        rows = self._rows_of_shard[shard]
        rows = rows[rows >= 0].tolist()
        if rows and rows == list(range(rows[0], rows[0] + len(rows))):
            return range(rows[0], rows[-1] + 1)
        return rows

    def keys_in(self, shard: int) -> tuple[list[str], list[int]]:
        """Return what a complete shard stores, row by row of the shard.

        Args:
            shard: the shard's number.

        Returns:
            The clip ids, and the numbers of the views as they are stored.
        """
        rows = self._records[shard]["groups"][self.name]["rows"]
        clips, numbers = self.cache.shards.rows(shard, self.name, rows)
        stored = self.cache.stored.clips
        positions = self.cache.shards.ranges[shard]
        return [stored[positions[clip]].clip for clip in clips], numbers

    def stage_of(self, field: str, shard: int) -> str:
        """Return the stage in which a shard holds a field.

        Args:
            field: one of `fields`.
            shard: a complete shard with rows of this group.
        """
        return self._stage_of[field][shard]

    def clip(self, row: int) -> Clip:
        """Return the clip of a row, as the cache's manifest has it.

        Args:
            row: a row of the group.
        """
        return self.cache.stored.clips[self.positions[row]]

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {clip.clip: clip.position for clip in self.cache.stored.clips}

    def _field(self, name: str) -> tuple[tuple[int, ...], np.dtype]:
        if name in self._described:
            return self._described[name]
        where = f"{self.cache.path} {self.name}: no {name} (it holds {', '.join(self.fields)})"
        if name in FIELDS and FIELDS[name].stage == "graphs":
            raise CacheError(
                f"{where} for all its shards as they are now; run `vidgraph graphs --cache "
                f"{self.cache.path}`"
            )
        raise CacheError(f"{where}; run `{self.cache.how_to_add([name])}`")

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
        shards, places = self._shard_of[distinct], self.places[distinct]
        order = np.lexsort((places, shards))
        for shard in np.unique(shards).tolist():
            start, stop = np.searchsorted(shards, (shard, shard + 1), sorter=order)
            chosen = order[start:stop]
            for name, values in out.items():
                self._read(shard, name, places[chosen], firsts[chosen], values)

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
        stage = self._stage_of[name][shard]
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


def in_order(names: Iterable[str]) -> tuple[str, ...]:
    """Return names in the order of FIELDS, then those of cuts by name.

    Args:
        names: names of fields.
    """
    order = {name: number for number, name in enumerate(FIELDS)}
    return tuple(sorted(names, key=lambda name: (order.get(name, len(order)), name)))
