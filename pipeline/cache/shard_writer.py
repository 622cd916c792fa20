"""Writes one shard: an HDF5 file that appears whole or not at all, and the JSON file beside it that
marks it as done.

Groups `train` and `test`; every dataset has R (rows, one view each) first; a chunk is one view, so
that a view is one read; HDF5's fletcher32 checksum on every chunk; NaN where a float was never
written. Clip ids are UTF-8 of a fixed length, because checksums do not cover HDF5's heap of
variable-length strings.
"""

import errno
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np

from pipeline.cache.fields import FORMAT, GROUPS, MAX_VIEW, field_of
from pipeline.cache.part_file import PartFile
from pipeline.files.atomic_files import (
    done_marker,
    fletcher32,
    json_part,
    move_into_place,
    sync_and_hash,
    sync_folder,
)
from pipeline.files.owners import new_claim_name, part_path, remove_abandoned_of

COMPRESSIONS = ("none", "lzf", "zstd")
FEATURE_DTYPES = ("float16", "float32")
CHECKSUM_BYTES = 4  # fletcher32, which HDF5 appends to a chunk
SMALL = 4096  # bytes of a view below which compression costs more than it saves
# What HDF5 1.10 (2016) and later read: all of its metadata has checksums, which that of older
# formats lacks.
LIBVER = ("v110", "v110")
PER_DATASET = 4096  # bytes that describe a dataset, at most
# Bytes: what starts on a page is copied out of memory a fifth faster; views so large that it costs
# little space.
ALIGNED = {"alignment_threshold": 64 << 10, "alignment_interval": 4096}


class NotFinite(ValueError):
    """A tensor holds NaN, infinity, or a value too large for the dtype it is stored in."""


@dataclass(frozen=True)
class GroupPlan:
    """The rows of a group and what each stores.

    `clips` and `views` give each row's clip id and view number; `fields` maps names to (shape
    without R, dtype). ValueError for a field that `FIELDS` does not know, a shape that does not fit
    its dims or has an empty axis, or another dtype than its own.
    """

    clips: Sequence[str]
    views: Sequence[int]
    fields: Mapping[str, tuple[tuple[int, ...], str]]

    def __post_init__(self) -> None:
        rows = len(self.clips)
        if not rows or rows != len(self.views):
            raise ValueError(
                f"a group with {rows} clip ids and {len(self.views)} view numbers: expected one "
                f"of each per row, and a row"
            )
        for name, (shape, dtype) in self.fields.items():
            row = field_of(name)
            if len(shape) != len(row.dims) or min(shape, default=1) < 1:
                dims = " ".join(row.dims) or "one value"
                raise ValueError(
                    f"field {name}: expected lengths from 1 for {dims}, got {tuple(shape)}"
                )
            known = FEATURE_DTYPES if row.dtype == "feature" else (row.dtype,)
            if np.dtype(dtype).name not in known:
                raise ValueError(
                    f"field {name}: expected dtype {' or '.join(known)}, got {np.dtype(dtype).name}"
                )
            if (size := _bytes_of(shape, dtype)) > MAX_VIEW:
                raise ValueError(
                    f"field {name}: a view has {size:,} bytes, expected at most {MAX_VIEW:,}; "
                    f"keep a smaller cut"
                )


class ShardWriter:
    """Streams views into `NAME.<claim>.part`; `finish` makes it the file `path` and writes its
    statistics, the done marker.

    path: `…/NNNNN.h5`. plans: group -> GroupPlan. attrs: what identifies the shard (`Shards.attrs`,
    and what it was computed from), kept in both files. compression: none, lzf or zstd, whose
    readers outside need hdf5plugin. claim: a name that no other writer has; made from host and
    process unless given. Left without `finish`, nothing remains of it. Memory does not grow with
    the number of rows. `finish` may run in another thread than `write` did.
    """

    def __init__(
        self,
        path: str | Path,
        plans: Mapping[str, GroupPlan],
        *,
        attrs: Mapping[str, str | int],
        compression: str = "none",
        claim: str | None = None,
    ):
        if compression not in COMPRESSIONS:
            raise ValueError(
                f"compression: expected one of {', '.join(COMPRESSIONS)}, got {compression!r}"
            )
        if not plans or not set(plans) <= set(GROUPS):
            raise ValueError(
                f"groups of a shard: expected {' and/or '.join(GROUPS)}, got "
                f"{', '.join(plans) or 'none'}"
            )
        self.path, self.plans, self.compression = Path(path), dict(plans), compression
        self.attrs = {"format": FORMAT, **attrs}
        self.claim = claim or new_claim_name()
        self.ok = {group: np.zeros(len(plan.clips), bool) for group, plan in plans.items()}
        self.path.parent.mkdir(
            exist_ok=True
        )  # not the cache itself: one that was moved away is not made anew
        self._part = part_path(self.path, self.claim)
        self._file: h5py.File | None = None
        for file in (self.path, done_marker(self.path)):
            remove_abandoned_of(file)
        self._refuse_without_room()
        self._out = PartFile(self._part)
        try:
            # No locks: network file systems without a lock daemon refuse them, and nobody else
            # knows this name.
            self._file = h5py.File(self._out, "w", libver=LIBVER, locking=False, **ALIGNED)
            self._file.attrs.update(self.attrs)
            self._columns = {group: self._create(group, plan) for group, plan in plans.items()}
            self._out.check()
        except BaseException:
            self._abandon()
            raise

    def _refuse_without_room(self) -> None:
        """OSError if the disk has not the room for this shard: better now than after most of its
        work.
        """
        columns = [
            (len(plan.clips), shape, dtype)
            for plan in self.plans.values()
            for shape, dtype in plan.fields.values()
        ]
        stored = (
            sum(rows * _bytes_of(shape, dtype) for rows, shape, dtype in columns)
            if self.compression == "none"
            else 0
        )
        needed = stored + PER_DATASET * (len(columns) + 3 * len(self.plans))
        disk = os.statvfs(self.path.parent)
        if (
            disk.f_blocks and disk.f_bavail * disk.f_frsize < needed
        ):  # some file systems tell nothing
            free = (
                f"{needed:,} bytes for the next shard, {disk.f_bavail * disk.f_frsize:,} are free"
            )
            raise OSError(
                errno.ENOSPC,
                f"No space left on device: expected {free}; make room",
                str(self.path.parent),
            )

    def _create(self, name: str, plan: GroupPlan) -> dict[str, "_Column"]:
        group = self._file.create_group(name)
        length = max(len(clip.encode()) for clip in plan.clips)
        ids = np.array([clip.encode() for clip in plan.clips], h5py.string_dtype("utf-8", length))
        for key, values in (
            ("clip", ids),
            ("view", np.array(plan.views, np.int32)),
            ("ok", self.ok[name]),
        ):
            group.create_dataset(
                key, data=values, chunks=values.shape, fletcher32=True, track_times=False
            )
            # it has its place now, and not when its handle goes, which whoever looks at frames may
            # hold
            self._file.flush()
        return {
            field: _Column(group, field, len(ids), *plan.fields[field], self.compression)
            for field in plan.fields
        }

    def write(self, group: str, row: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Stores one view and marks its row ok: every field of the plan, without the R axis, cast
        to its stored dtype.

        NotFinite if a float is NaN or infinite once cast (nothing of the row is stored then);
        OSError if the disk is full, for example; ValueError for a row outside the plan or written
        before, a missing or unplanned field, or another shape. Cast large tensors beforehand, on
        their device: numpy's float16 is slow.
        """
        columns, plan = self._columns[group], self.plans[group]
        if not 0 <= row < len(plan.clips):
            raise ValueError(f"{self.path} {group}: row {row}, expected 0 to {len(plan.clips) - 1}")
        where = f"{self.path} {group} row {row} (clip {plan.clips[row]}, view {plan.views[row]})"
        if self.ok[group][row]:
            raise ValueError(f"{where}: written twice")
        if tensors.keys() != columns.keys():
            raise ValueError(
                f"{where}: expected the fields {', '.join(columns)}, got {', '.join(tensors)}"
            )
        for name, column in columns.items():
            column.take(np.asarray(tensors[name]), where)
        for column in columns.values():
            column.store(row)
        self._out.check()
        self.ok[group][row] = True

    def finish(self, stats: Mapping[str, object], replace: bool = True) -> dict:
        """Completes the shard and returns its statistics: `stats` and what describes the file.

        `stats["failures"]` (rows of clip, error, message, seconds) says why rows are not ok. A
        shard that is there is replaced, and counts as not done while it is; without `replace` it
        stays: FileExistsError. OSError if the disk is full, for example. Nothing is left behind in
        any of these cases.
        """
        record = {
            **stats,
            "attrs": self.attrs,
            "compression": self.compression,
            "groups": {group: self._describe(group) for group in self.plans},
        }
        try:
            for group, ok in self.ok.items():
                self._file[group]["ok"][...] = ok
            self._file.close()
            self._out.check_name()
            self._out.close()
            self._out.check()
            record |= {"bytes": self._part.stat().st_size, "sha256": sync_and_hash(self._part)}
            with json_part(done_marker(self.path), record, self.claim) as statistics:
                self._publish(statistics, replace)
        except BaseException:
            self._abandon()
            raise
        return record

    def _publish(self, statistics: Path, replace: bool) -> None:
        """Gives both files their names; without `replace`, if they are free.

        A writer that is stopped between the two and taken for dead may find another shard there
        when it goes on, or leave statistics for the one that is being written now: so the
        statistics follow the file whose name was given last.
        """
        marker, mine = done_marker(self.path), self._part.stat().st_ino
        if replace and marker.exists():
            marker.unlink()
            sync_folder(
                marker.parent
            )  # after a power loss no marker stands for the file that comes now
        move_into_place(self._part, self.path, replace)
        try:
            move_into_place(statistics, marker, replace)
        except FileExistsError:
            if self.path.stat().st_ino != mine:
                raise
            move_into_place(statistics, marker)

    def _describe(self, group: str) -> dict:
        fields = self.plans[group].fields.items()
        return {
            "rows": len(self.ok[group]),
            "absent": np.flatnonzero(~self.ok[group]).tolist(),
            "fields": {
                name: {"shape": list(shape), "dtype": np.dtype(dtype).name}
                for name, (shape, dtype) in fields
            },
        }

    def _abandon(self) -> None:
        self._out.drop()
        with suppress(OSError, RuntimeError, ValueError):
            if self._file:
                self._file.close()
        self._out.close()
        self._part.unlink(missing_ok=True)

    def __enter__(self) -> "ShardWriter":
        return self

    def __exit__(self, *error: object) -> None:
        self._abandon()


class _Column:
    """One dataset being written: a view's tensor is cast into a buffer, checked there, and stored
    as one chunk.
    """

    def __init__(
        self,
        group: h5py.Group,
        name: str,
        rows: int,
        shape: tuple[int, ...],
        dtype: str,
        compression: str,
    ):
        self.name, self.size = name, _bytes_of(shape, dtype)
        self.dtype = np.dtype(dtype).newbyteorder("<")
        self.packed = compression != "none" and self.size >= SMALL
        packing = {"compression": _filter(compression), "shuffle": True} if self.packed else {}
        self.dataset = group.create_dataset(
            name,
            shape=(rows, *shape),
            dtype=self.dtype,
            chunks=(1, *shape),
            fillvalue=np.nan if self.dtype.kind == "f" else None,
            fletcher32=True,
            track_times=False,
            **packing,
        )
        row = field_of(name)
        self.dataset.attrs.update({"dims": " ".join(("R", *row.dims)), "unit": row.unit})
        self.chunk = np.empty(self.size + CHECKSUM_BYTES, np.uint8)
        self.values = self.chunk[: self.size].view(self.dtype).reshape(shape)

    def take(self, array: np.ndarray, where: str) -> None:
        """Casts a tensor into the buffer; ValueError if its shape or kind is another, NotFinite as
        `write` says.
        """
        if array.shape != self.values.shape or not np.can_cast(
            array.dtype, self.dtype, "same_kind"
        ):
            came, want = (f"{a.dtype.name} {a.shape}" for a in (array, self.values))
            raise ValueError(f"{where}: {self.name} is {came}, expected {want}")
        with np.errstate(over="ignore"):  # what does not fit becomes infinite, and is refused below
            np.copyto(self.values, array, casting="same_kind")
        if self.dtype.kind == "f" and not all_finite(self.values):
            raise NotFinite(f"{where}: {self._complaint(array)}")

    def _complaint(self, array: np.ndarray) -> str:
        wrong, came = (
            np.count_nonzero(~np.isfinite(self.values)),
            np.count_nonzero(~np.isfinite(array)),
        )
        said = f"{self.name} has {wrong:,} of {array.size:,} values"
        if wrong > came:
            most = np.finfo(self.dtype).max
            return f"{said} that {self.dtype.name} cannot hold (its largest is {most:g}); extract with --dtype float32"
        narrow = (
            " (infinite: perhaps too large for float16; then --dtype float32)"
            if array.dtype == np.float16
            else ""
        )
        return f"{said} that are NaN or infinite{narrow}; look at the weights, and try --precision fp32"

    def store(self, row: int) -> None:
        """Stores the buffer as the chunk of a row.

        HDF5 computes the same checksum several times slower and copies twice, so it is handed the
        chunk as it lies on disk.
        """
        if self.packed:
            self.dataset[row] = self.values
            return
        self.chunk[self.size :] = np.frombuffer(
            fletcher32(self.chunk[: self.size]).to_bytes(CHECKSUM_BYTES, "little"), np.uint8
        )
        self.dataset.id.write_direct_chunk((row,) + (0,) * self.values.ndim, self.chunk)


def _bytes_of(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _filter(compression: str) -> object:
    if compression == "lzf":
        return "lzf"
    import hdf5plugin

    return hdf5plugin.Zstd(clevel=1)


def all_finite(values: np.ndarray) -> bool:
    """numpy's isfinite is slow on float16, where +inf and NaN are the largest bits with a sign,
    -inf and -NaN without.
    """
    if values.dtype.itemsize != 2:
        return bool(np.isfinite(values).all())
    return not values.size or bool(
        values.view(np.int16).max() < 0x7C00 and values.view(np.uint16).max() < 0xFC00
    )
