"""Write one shard: an HDF5 file that appears whole or not at all, and its statistics.

The statistics are a JSON file beside the HDF5 file. They are written last and mark the shard as
done.

The HDF5 file has the groups `train` and `test`. The first axis of every dataset is R: rows, one
view each. A chunk is one view, so that one read gets a view. Every chunk has HDF5's fletcher32
checksum. A float that was never written is NaN. Clip ids are UTF-8 of a fixed length, because
checksums do not cover the heap where HDF5 keeps strings of variable length.
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

# HDF5 appends a fletcher32 of this size to every chunk.
CHECKSUM_BYTES = 4

# Bytes of a view. Compressing smaller views costs more than it saves.
SMALL = 4096

# HDF5 1.10 (2016) and later read this. Older formats have no checksums on their metadata.
LIBVER = ("v110", "v110")

# Bytes of metadata per dataset, at most.
PER_DATASET = 4096

# In bytes. Data that starts on a page is copied out of memory a fifth faster. Only views that are
# much larger than a page are aligned, so that the gaps cost little space.
ALIGNED = {"alignment_threshold": 64 << 10, "alignment_interval": 4096}


class NotFinite(ValueError):
    """A tensor has NaN, infinity, or a value too large for the dtype it is stored in."""


@dataclass(frozen=True)
class GroupPlan:
    """The rows of one group of a shard, and the fields that each row stores.

    Attributes:
        clips: R clip ids.
        views: R view numbers.
        fields: name -> (shape without R, dtype).

    Raises:
        ValueError: there are no rows, `FIELDS` has no such field, or a shape or dtype does not
            fit the field.
    """

    clips: Sequence[str]
    views: Sequence[int]
    fields: Mapping[str, tuple[tuple[int, ...], str]]

    def __post_init__(self) -> None:
        rows = len(self.clips)
        if not rows or rows != len(self.views):
            raise ValueError(
                f"a group with {rows} clip ids and {len(self.views)} view numbers: expected one "
                f"of each per row, and at least one row"
            )
        for name, (shape, dtype) in self.fields.items():
            _check_planned_field(name, shape, dtype)


def _check_planned_field(name: str, shape: tuple[int, ...], dtype: str) -> None:
    field = field_of(name)
    if len(shape) != len(field.dims) or min(shape, default=1) < 1:
        dims = " ".join(field.dims) or "one value"
        raise ValueError(f"field {name}: expected lengths from 1 for {dims}, got {tuple(shape)}")

    allowed = FEATURE_DTYPES if field.dtype == "feature" else (field.dtype,)
    if np.dtype(dtype).name not in allowed:
        raise ValueError(
            f"field {name}: expected dtype {' or '.join(allowed)}, got {np.dtype(dtype).name}"
        )

    size = _bytes_of(shape, dtype)
    if size > MAX_VIEW:
        raise ValueError(
            f"field {name}: a view has {size:,} bytes, expected at most {MAX_VIEW:,}; keep a "
            f"smaller cut"
        )


class ShardWriter:
    """Writes the views of one shard to `NAME.<claim>.part`, then moves that file into place.

    Use it as a context manager: without `finish`, nothing of the shard remains. Memory does not
    grow with the number of rows. `finish` may run in another thread than `write`.

        with ShardWriter(shards.path(0), plans, attrs=shards.attrs(0)) as writer:
            writer.write("train", 0, tensors)
            writer.finish({"failures": []})

    Attributes:
        path: the shard's HDF5 file.
        plans: group -> its plan.
        ok: group -> bool [R], whether the row was written.
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
        """Create the part file with empty datasets.

        Args:
            path: `CACHE/STAGE/NNNNN.h5`. CACHE must exist; STAGE is created.
            plans: group ("train", "test", or both) -> its rows and fields.
            attrs: what identifies the shard (`Shards.attrs`, and what it was computed from). The
                HDF5 file and the statistics both keep it.
            compression: "none", "lzf" or "zstd". Reading zstd needs `hdf5plugin`.
            claim: a name that no other writer has; None makes one from host and process.

        Raises:
            ValueError: unknown groups or compression.
            OSError: the disk is full or has not enough room for the shard, or cannot be written.
        """
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

        # Not the cache itself: a cache that was moved away must not appear again.
        self.path.parent.mkdir(exist_ok=True)
        self._part = part_path(self.path, self.claim)
        self._file: h5py.File | None = None
        # With a claim, whoever took it has removed what dead writers left.
        if claim is None:
            for file in (self.path, done_marker(self.path)):
                remove_abandoned_of(file)

        self._require_room()
        self._out = PartFile(self._part)
        try:
            # No locks: network file systems without a lock daemon refuse them, and no other
            # process knows this name.
            self._file = h5py.File(self._out, "w", libver=LIBVER, locking=False, **ALIGNED)
            self._file.attrs.update(self.attrs)
            self._columns = {group: self._create(group, plan) for group, plan in plans.items()}
            self._out.check()
        except BaseException:
            self._abandon()
            raise

    def _require_room(self) -> None:
        """OSError if the disk cannot hold the shard: better now than after most of the work."""
        needed = 0
        for plan in self.plans.values():
            needed += PER_DATASET * (len(plan.fields) + 3)
            if self.compression == "none":
                for shape, dtype in plan.fields.values():
                    needed += len(plan.clips) * _bytes_of(shape, dtype)

        disk = os.statvfs(self.path.parent)
        free = disk.f_bavail * disk.f_frsize
        # Some file systems report 0 blocks: they do not say how much is free.
        if disk.f_blocks and free < needed:
            raise OSError(
                errno.ENOSPC,
                f"No space left on device: expected {needed:,} bytes for the next shard, {free:,} "
                f"are free; make room",
                str(self.path.parent),
            )

    def _create(self, name: str, plan: GroupPlan) -> dict[str, "_Column"]:
        """Write the clip ids, view numbers and `ok` of a group, and create its other datasets."""
        group = self._file.create_group(name)
        length = max(len(clip.encode()) for clip in plan.clips)
        ids = np.array([clip.encode() for clip in plan.clips], h5py.string_dtype("utf-8", length))
        row_keys = {"clip": ids, "view": np.array(plan.views, np.int32), "ok": self.ok[name]}
        for key, values in row_keys.items():
            group.create_dataset(
                key, data=values, chunks=values.shape, fletcher32=True, track_times=False
            )
            # Give the chunk its place in the file now. Else it gets one when its handle is
            # deleted, and a debugger or traceback may keep that handle: the bytes would differ.
            self._file.flush()
        return {
            field: _Column(group, field, len(ids), *plan.fields[field], self.compression)
            for field in plan.fields
        }

    def write(self, group: str, row: int, tensors: Mapping[str, np.ndarray]) -> None:
        """Store one view and mark its row as ok.

        Cast large tensors beforehand, on their device: numpy's float16 is slow.

        Args:
            group: "train" or "test".
            row: the row of the group's plan.
            tensors: every planned field -> array without the axis R. It is cast to the stored
                dtype.

        Raises:
            NotFinite: a float is NaN or infinite once it is cast. Nothing of the row is stored.
            ValueError: the row is not in the plan or was written before, a field is missing or
                not planned, or a shape or kind of dtype differs.
            OSError: the disk is full, for example.
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

        # All are checked before the first is stored.
        for name, column in columns.items():
            column.take(np.asarray(tensors[name]), where)
        for column in columns.values():
            column.store(row)
        self._out.check()
        self.ok[group][row] = True

    def finish(self, stats: Mapping[str, object], replace: bool = True) -> dict:
        """Complete the shard: write `ok`, sync and hash the file, and give both files their names.

        Args:
            stats: what else the statistics record. `stats["failures"]` is a list of records
                (clip, error, message, seconds) that say why rows are not ok.
            replace: whether to replace an existing shard, which counts as not done meanwhile.

        Returns:
            The statistics: `stats`, and what describes the file.

        Raises:
            FileExistsError: the shard exists and `replace` is false.
            OSError: the disk is full, for example. No file of this writer remains after an error.
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
            # Both groups, so that no reader of these files has to look which are there.
            none = {"rows": 0, "absent": [], "fields": {}}
            groups = {group: record["groups"].get(group, none) for group in GROUPS}
            written = {**record, "groups": groups}
            with json_part(done_marker(self.path), written, self.claim) as statistics:
                self._publish(statistics, replace)
        except BaseException:
            self._abandon()
            raise
        return record

    def _publish(self, statistics: Path, replace: bool) -> None:
        """Give both files their names; without `replace`, only if the names are free.

        This process may be stalled between the two moves, and another may take over the shard and
        write it. Then the statistics of whoever moved the HDF5 file last must win.
        """
        marker, inode = done_marker(self.path), self._part.stat().st_ino
        if replace and marker.exists():
            marker.unlink()
            # After a power loss, an old marker must not stand beside the new file.
            sync_folder(marker.parent)

        move_into_place(self._part, self.path, replace)
        try:
            move_into_place(statistics, marker, replace)
        except FileExistsError:
            if self.path.stat().st_ino != inode:
                raise
            move_into_place(statistics, marker)

    def _describe(self, group: str) -> dict:
        fields = {}
        for name, (shape, dtype) in self.plans[group].fields.items():
            fields[name] = {"shape": list(shape), "dtype": np.dtype(dtype).name}
        return {
            "rows": len(self.ok[group]),
            "absent": np.flatnonzero(~self.ok[group]).tolist(),
            "fields": fields,
        }

    def _abandon(self) -> None:
        """Close and remove the part file; does nothing after `finish`."""
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
    """One dataset that is being written.

    A view's tensor is cast into a buffer, checked there, and stored as one chunk.
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

        filters = {"fletcher32": True}
        if self.packed:
            filters |= {"compression": _filter(compression), "shuffle": True}
        self.dataset = group.create_dataset(
            name,
            shape=(rows, *shape),
            dtype=self.dtype,
            chunks=(1, *shape),
            fillvalue=np.nan if self.dtype.kind == "f" else None,
            track_times=False,
            **filters,
        )
        field = field_of(name)
        self.dataset.attrs.update({"dims": " ".join(("R", *field.dims)), "unit": field.unit})

        self.chunk = np.empty(self.size + CHECKSUM_BYTES, np.uint8)
        self.values = self.chunk[: self.size].view(self.dtype).reshape(shape)

    def take(self, array: np.ndarray, where: str) -> None:
        """Cast a tensor into the buffer and check it. Raises as `ShardWriter.write`."""
        same_kind = np.can_cast(array.dtype, self.dtype, "same_kind")
        if array.shape != self.values.shape or not same_kind:
            raise ValueError(
                f"{where}: {self.name} is {array.dtype.name} {array.shape}, expected "
                f"{self.values.dtype.name} {self.values.shape}"
            )
        # Values that do not fit become infinite, which is refused below.
        with np.errstate(over="ignore"):
            np.copyto(self.values, array, casting="same_kind")
        if self.dtype.kind == "f" and not all_finite(self.values):
            raise NotFinite(f"{where}: {self._why_not_finite(array)}")

    def _why_not_finite(self, array: np.ndarray) -> str:
        before = np.count_nonzero(~np.isfinite(array))
        after = np.count_nonzero(~np.isfinite(self.values))
        values = f"{self.name} has {after:,} of {array.size:,} values"
        if after > before:
            return (
                f"{values} that {self.dtype.name} cannot hold (its largest is "
                f"{np.finfo(self.dtype).max:g}); extract with --dtype float32"
            )
        hint = ""
        if array.dtype == np.float16:
            hint = " (infinite: perhaps too large for float16; then --dtype float32)"
        return (
            f"{values} that are NaN or infinite{hint}; look at the weights, and try --precision "
            f"fp32"
        )

    def store(self, row: int) -> None:
        """Store the buffer as the chunk of a row.

        HDF5 would compute the same checksum several times slower and copy the data twice. So it
        gets the chunk as it is on disk.
        """
        if self.packed:
            self.dataset[row] = self.values
            return
        checksum = fletcher32(self.chunk[: self.size]).to_bytes(CHECKSUM_BYTES, "little")
        self.chunk[self.size :] = np.frombuffer(checksum, np.uint8)
        self.dataset.id.write_direct_chunk((row,) + (0,) * self.values.ndim, self.chunk)


def _bytes_of(shape: Sequence[int], dtype: str) -> int:
    return int(np.prod(shape, dtype=np.int64)) * np.dtype(dtype).itemsize


def _filter(compression: str) -> object:
    if compression == "lzf":
        return "lzf"
    import hdf5plugin

    return hdf5plugin.Zstd(clevel=1)


def all_finite(values: np.ndarray) -> bool:
    """Return whether no value is NaN or infinite.

    Args:
        values: floats of any dtype and shape.

    Returns:
        As `np.isfinite(values).all()`, which is slow on float16.
    """
    if values.dtype.itemsize != 2:
        return bool(np.isfinite(values).all())
    if not values.size:
        return True
    # +inf and NaN have the largest bits of a signed number, -inf and -NaN those of an unsigned.
    return bool(values.view(np.int16).max() < 0x7C00 and values.view(np.uint16).max() < 0xFC00)
