"""Reads one shard. HDF5 gives the places of the views once; then uncompressed views are read from
there without HDF5.

Reading a view through HDF5 would copy it twice and take HDF5's global lock; here the system reads
it straight into the batch. Its checksum is tested when a process reads it for the first time.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.cache.fields import ROW_KEYS
from pipeline.cache.open_files import OPEN_FILES
from pipeline.cache.shard_layout import (
    RowLayout,
    ShardTables,
    StoredDataset,
    Unreadable,
    expected_dataset,
)
from pipeline.cache.shard_writer import CHECKSUM_BYTES
from pipeline.files.atomic_files import Damaged, fletcher32, fletcher32_of_rows
from pipeline.files.regular_files import open_regular

# What reading a shard raises: errors of the system, and Damaged for content that makes no sense.
UNREADABLE = (OSError, Damaged)
SHORT = 4096  # bytes; the checksums of shorter views are computed together
CAN_ADVISE = hasattr(os, "posix_fadvise")  # not on macOS


class _Opened:
    """An open file's descriptor and, while HDF5 is in use, its tables; closed when the last
    reference to this object goes.
    """

    def __init__(self, path: Path, number: int):
        self.path, self.number = path, number
        self.tables: ShardTables | None = None
        status = os.fstat(number)
        self.identity = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def __del__(self) -> None:
        if self.tables is not None:
            self.tables.close()
        os.close(self.number)


class ShardFile:
    """One HDF5 file, read in one process.

    It is opened at the first read, and again after `release`, which another thread may call during
    a read. `pipeline.cache.open_files` limits how many files a process keeps open.

    Args:
        path: `.../NNNNN.h5`.
        record: the shard's statistics.

    Raises:
        OSError: from any method, if it cannot be opened or read.
        Damaged: from any method, if the file does not belong to the statistics, or is damaged.
    """

    def __init__(self, path: Path, record: Mapping):
        if record["compression"] == "zstd":
            import hdf5plugin  # noqa: F401  (registers the filter)
        self.path, self.record = path, record
        self._opened_now: _Opened | None = None
        self._identity: tuple[int, ...] | None = None
        self._kept = False
        self._layouts: dict[tuple[str, str], RowLayout] = {}
        self._tested: dict[tuple[str, str], np.ndarray] = {}

    @property
    def is_open(self) -> bool:
        """Whether it holds a descriptor."""
        return self._opened_now is not None

    def release(self) -> None:
        """Closes the file as soon as no thread reads from it; where its rows lie stays known."""
        OPEN_FILES.closed(
            self
        )  # first, so that a thread which opens it meanwhile is registered after this
        self._opened_now = None

    def opened(self) -> _Opened:
        """The open file, which stays open while the caller refers to it. Damaged if it does not
        belong to the statistics.
        """
        opened = self._opened_now
        if opened is None:
            opened = _Opened(self.path, OPEN_FILES.open(self, lambda: open_regular(self.path)))
            try:
                self._check_identity(opened)
            except BaseException:
                OPEN_FILES.closed(self)
                raise
            self._opened_now = opened
            if self not in OPEN_FILES:  # another thread has closed it meanwhile to make room
                self._opened_now = None
        return opened

    def _check_identity(self, opened: _Opened) -> None:
        """Damaged if the file does not belong to the statistics, or was replaced since this object
        read it.
        """
        size = opened.identity[-1]
        if size != self.record["bytes"] or self._identity not in (None, opened.identity):
            changed = (
                f"{size:,} bytes, expected {self.record['bytes']:,}"
                if size != self.record["bytes"]
                else "written again"
            )
            raise Damaged(
                f"{self.path}: {changed}; open the cache anew if it was repaired since, else run "
                f"`vidgraph verify`"
            )
        if self._identity is None:
            with self._asking(opened) as tables:
                self._check_place(tables.attrs())
            self._identity = opened.identity

    def _check_place(self, attrs: Mapping) -> None:
        """Unreadable if the file's attributes differ from its statistics, which were compared with
        the cache before.
        """
        want = self.record.get("attrs", attrs)
        for key in sorted(want.keys() | attrs.keys()):
            if attrs.get(key) != want.get(key):
                raise Unreadable(
                    self.path,
                    f"{key} is {attrs.get(key)} in the file, this cache's is {want.get(key)}",
                )

    @contextmanager
    def _asking(self, opened: _Opened) -> Iterator[ShardTables]:
        """The tables of an open file; HDF5 closes them at the end of the context, except within
        `kept_open`.
        """
        if opened.tables is not None:
            yield opened.tables
            return
        tables = ShardTables(self.path, opened.number)
        if self._kept:
            opened.tables = tables
        try:
            yield tables
        finally:
            if tables is not opened.tables:
                tables.close()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Within this context, HDF5 opens the file once and not for every question."""
        self._kept = True
        try:
            yield
        finally:
            self._kept = False
            self.release()

    def layout(self, group: str, field: str) -> RowLayout:
        """Where the rows of a field lie."""
        key = group, field
        if key not in self._layouts:
            table = self.record["groups"][group]
            want = expected_dataset(table, field) if "rows" in table else None
            with self._asking(self.opened()) as tables:
                found = tables.layout(group, field, want)
            self._tested[key] = np.zeros(len(found.offsets), bool)
            self._layouts[key] = found
        return self._layouts[key]

    def read(self, group: str, field: str, rows: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Reads each row into its array (C-contiguous, of the stored dtype and size).

        Damaged if a row was never written or does not fit its checksum. The checksum is tested when
        this object reads a row for the first time, and at every read of a compressed row.
        """
        layout, opened = self.layout(group, field), self.opened()
        OPEN_FILES.used(self)
        rows = np.asarray(rows)
        places = layout.offsets[rows]
        if len(places) and places.min() < 0:
            raise Unreadable(
                self.path, f"{field} of {group} row {rows[places.argmin()]} was never written"
            )
        if layout.packed:
            return self._unpack(opened, group, field, rows.tolist(), outs)
        fresh = ~self._tested[group, field][rows]
        views = [out.reshape(-1).view(np.uint8) for out in outs]
        if CAN_ADVISE:
            _fetch(opened.number, places.tolist(), layout.size)
        sums = np.zeros((len(views), CHECKSUM_BYTES), np.uint8)
        came = np.zeros(len(views), np.uint32)
        for k, (place, view, new) in enumerate(
            zip(places.tolist(), views, fresh.tolist(), strict=True)
        ):
            _read_whole(opened.number, [view, sums[k]] if new else [view], place, self.path)
            if new and layout.size > SHORT:
                came[k] = fletcher32(view)  # now, while it is in the processor's cache
        if not fresh.any():
            return
        if layout.size <= SHORT:
            came[fresh] = fletcher32_of_rows(np.stack([views[k] for k in np.flatnonzero(fresh)]))
        if (wrong := rows[fresh & (came != sums.view("<u4")[:, 0])]).size:
            raise Unreadable(
                self.path, f"{field} of {group} row {wrong[0]} is damaged (its checksum differs)"
            )
        self._tested[group, field][rows] = True

    def _unpack(
        self,
        opened: _Opened,
        group: str,
        field: str,
        rows: Sequence[int],
        outs: Sequence[np.ndarray],
    ) -> None:
        if opened.tables is None:
            opened.tables = ShardTables(self.path, opened.number)  # stays open for the next batches
        opened.tables.unpack(group, field, rows, outs, self._layouts[group, field])

    def read_checked(
        self, group: str, field: str, row: int, space: np.ndarray | None = None
    ) -> np.ndarray:
        """A view's tensor, its checksum tested. Damaged (a few words alone) if it does not fit, or
        nothing was written.

        space: uint8 [size + CHECKSUM_BYTES] into which it is read, and where the tensor then lies;
        new memory unless given.
        """
        stored = self.record["groups"][group]["fields"][field]
        layout, opened = self.layout(group, field), self.opened()
        if layout.offsets[row] < 0:
            raise Damaged("never written")
        if layout.packed:
            out = np.empty((1, *stored["shape"]), stored["dtype"])
            try:
                self._unpack(opened, group, field, [row], out)
            except (Damaged, OSError):
                raise Damaged("damaged") from None
            return out[0]
        chunk = self.space(group, field) if space is None else space
        try:
            _read_whole(opened.number, [chunk], int(layout.offsets[row]), self.path)
        except OSError as error:
            raise Damaged(f"unreadable ({error.strerror})") from None
        except Damaged:
            raise Damaged("damaged") from None
        size = layout.size
        if fletcher32(chunk[:size]) != int.from_bytes(chunk[size:].tobytes(), "little"):
            raise Damaged("damaged")
        return chunk[:size].view(stored["dtype"]).reshape(stored["shape"])

    def space(self, group: str, field: str) -> np.ndarray:
        """Memory for `read_checked`; its content is undefined."""
        return np.empty(self.layout(group, field).size + CHECKSUM_BYTES, np.uint8)

    def describe(self) -> dict[str, dict[str, StoredDataset]]:
        """Every dataset, as HDF5 sees it."""
        with self._asking(self.opened()) as tables:
            return tables.describe()

    def attrs(self) -> dict[str, str | int]:
        """The file's attributes that say where it belongs."""
        with self._asking(self.opened()) as tables:
            return tables.attrs()

    def keys(self, group: str) -> tuple[list[str], list[int], np.ndarray]:
        """Clip ids, view numbers and ok [R] of a group's rows."""
        with self._asking(self.opened()) as tables:
            return tables.keys(group, self.record["groups"][group].get("rows"))


def record_from_file(path: Path) -> dict:
    """As much of a shard's statistics as `ShardFile` needs, from its HDF5 file alone. One of
    UNREADABLE if that is damaged.
    """
    number = open_regular(path)
    try:
        tables = ShardTables(path, number)
        try:
            groups = {
                group: {
                    "fields": {
                        key: {"shape": list(t.shape), "dtype": t.dtype}
                        for key, t in tables_.items()
                    }
                }
                for group, tables_ in _fields(tables.describe()).items()
            }
            return {
                "groups": groups,
                "bytes": tables.bytes.size,
                "compression": tables.compressed(),
            }
        finally:
            tables.close()
    finally:
        os.close(number)


def _fields(
    described: Mapping[str, Mapping[str, StoredDataset]],
) -> dict[str, dict[str, StoredDataset]]:
    """The result of `describe` without ROW_KEYS."""
    return {
        group: {name: stored for name, stored in tables.items() if name not in ROW_KEYS}
        for group, tables in described.items()
    }


def _fetch(number: int, places: Sequence[int], size: int) -> None:
    """Asks the disk for all views at the same time, except those in memory."""
    for place in places:
        if not _in_memory(number, place + size - 1):
            os.posix_fadvise(number, place, size, os.POSIX_FADV_WILLNEED)


def _in_memory(number: int, offset: int) -> bool:
    """Whether a byte of a file can be read without waiting for a disk; some file systems cannot
    tell, and refuse.
    """
    try:
        return os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _read_whole(number: int, parts: Sequence[np.ndarray], place: int, path: Path) -> None:
    """Fills arrays of bytes in their order from a place in a file. Unreadable if the file ends
    early.
    """
    left, done = [memoryview(part) for part in parts], 0
    while left:  # once, but for views at the limit of one call
        got = os.preadv(number, left, place + done)
        if not got:
            raise Unreadable(path, "ends within a view")
        done += got
        while left and got >= left[0].nbytes:
            got -= left.pop(0).nbytes
        if left:
            left[0] = left[0][got:]
