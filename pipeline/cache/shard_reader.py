"""Read one shard: HDF5 says once where the views are, then they are read without HDF5.

Reading a view through HDF5 would copy it twice and take HDF5's global lock. Here the system reads
it straight into the batch, unless it is compressed. A view's checksum is tested when a process
reads it for the first time.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from pipeline.cache.fields import ROW_KEYS
from pipeline.cache.open_files import OPEN_FILES
from pipeline.cache.shard_layout import (
    ATTRS,
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

# Bytes. Checksums of shorter views are computed together: numpy is slow on many short arrays.
SHORT = 4096

# Not on macOS.
CAN_ADVISE = hasattr(os, "posix_fadvise")


class _OpenShard:
    """An open descriptor and, while HDF5 uses it, the file's tables.

    Both are closed when the last reference to this object goes.
    """

    def __init__(self, path: Path, number: int):
        self.path, self.number = path, number
        self.tables: ShardTables | None = None
        # If one of these differs, the path names another file than before.
        status = os.fstat(number)
        self.identity = status.st_dev, status.st_ino, status.st_mtime_ns, status.st_size

    def __del__(self) -> None:
        if self.tables is not None:
            self.tables.close()
        os.close(self.number)


class ShardFile:
    """One shard's HDF5 file, read in one process.

    The file is opened at the first read, and again after `release`, which another thread may call
    during a read. `pipeline.cache.open_files` limits how many files a process keeps open.

    Every method that reads raises OSError if the file cannot be opened or read, and Damaged if it
    is damaged or does not belong to the statistics.

    Attributes:
        path: the file.
        record: its statistics.
    """

    def __init__(self, path: Path, record: Mapping):
        """Remember a file; it is not opened yet.

        Args:
            path: `CACHE/STAGE/NNNNN.h5`.
            record: the shard's statistics, or what `record_from_file` makes of the file.
        """
        if record["compression"] == "zstd":
            import hdf5plugin  # noqa: F401  (registers the filter)
        self.path, self.record = path, record
        self._opened_now: _OpenShard | None = None
        self._identity: tuple[int, ...] | None = None
        self._keep_tables = False
        self._layouts: dict[tuple[str, str], RowLayout] = {}
        self._tested: dict[tuple[str, str], np.ndarray] = {}

    @property
    def is_open(self) -> bool:
        """Whether this object holds a descriptor."""
        return self._opened_now is not None

    def release(self) -> None:
        """Close the file as soon as no thread reads from it, and keep the layouts of its fields."""
        # In this order: a thread that opens the file in between is registered again after this.
        OPEN_FILES.closed(self)
        self._opened_now = None

    def opened(self) -> _OpenShard:
        """Open the file if it is not open.

        Returns:
            The open file. It stays open while the caller refers to it.

        Raises:
            Damaged: the file does not belong to the statistics, or was replaced since.
            OSError: it cannot be opened.
        """
        opened = self._opened_now
        if opened is not None:
            return opened

        opened = _OpenShard(self.path, OPEN_FILES.open(self, lambda: open_regular(self.path)))
        try:
            self._check_identity(opened)
        except BaseException:
            OPEN_FILES.closed(self)
            raise
        self._opened_now = opened
        # Another thread may have closed this file in the meantime to make room.
        if self not in OPEN_FILES:
            self._opened_now = None
        return opened

    def _check_identity(self, opened: _OpenShard) -> None:
        size, expected = opened.identity[-1], self.record["bytes"]
        changed = ""
        if size != expected:
            changed = f"{size:,} bytes, expected {expected:,}"
        elif self._identity not in (None, opened.identity):
            changed = "written again"
        if changed:
            raise Damaged(
                f"{self.path}: {changed}; open the cache anew if it was repaired since, else run "
                f"`vidgraph verify`"
            )
        if self._identity is None:
            with self._tables(opened) as tables:
                self._check_attrs(tables.attrs())
            self._identity = opened.identity

    def _check_attrs(self, attrs: Mapping) -> None:
        """Unreadable if the file's attributes differ from its statistics."""
        expected = self.record.get("attrs", attrs)
        for key in ATTRS:
            if attrs.get(key) != expected.get(key):
                raise Unreadable(
                    self.path,
                    f"{key} is {attrs.get(key)} in the file, this cache's is {expected.get(key)}",
                )

    @contextmanager
    def _tables(self, opened: _OpenShard) -> Iterator[ShardTables]:
        """The tables of an open file. They are closed afterwards, except within `kept_open`."""
        if opened.tables is not None:
            yield opened.tables
            return
        tables = ShardTables(self.path, opened.number)
        if self._keep_tables:
            opened.tables = tables
        try:
            yield tables
        finally:
            if tables is not opened.tables:
                tables.close()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """Within this context, HDF5 opens the file once, not for every question."""
        self._keep_tables = True
        try:
            yield
        finally:
            self._keep_tables = False
            self.release()

    def layout(self, group: str, field: str) -> RowLayout:
        """Find the rows of a field.

        Args:
            group: "train" or "test".
            field: a field of the group.

        Returns:
            The offsets of the rows. They are looked up once.
        """
        key = group, field
        if key not in self._layouts:
            table = self.record["groups"][group]
            expected = expected_dataset(table, field) if "rows" in table else None
            with self._tables(self.opened()) as tables:
                found = tables.layout(group, field, expected)
            self._tested[key] = np.zeros(len(found.offsets), bool)
            self._layouts[key] = found
        return self._layouts[key]

    def read(self, group: str, field: str, rows: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Read several rows of a field.

        A checksum is tested when this object reads a row for the first time, and at every read of
        a compressed row.

        Args:
            group: "train" or "test".
            field: a field of the group.
            rows: B rows.
            outs: B arrays that receive them: C-contiguous, of the stored dtype and a view's size.

        Raises:
            Damaged: a row was never written, or does not fit its checksum.
            OSError: the file cannot be read.
        """
        layout, opened = self.layout(group, field), self.opened()
        OPEN_FILES.used(self)
        rows = np.asarray(rows)
        offsets = layout.offsets[rows]
        if len(offsets) and offsets.min() < 0:
            raise Unreadable(
                self.path, f"{field} of {group} row {rows[offsets.argmin()]} was never written"
            )
        if layout.packed:
            self._unpack(opened, group, field, rows.tolist(), outs)
            return

        views = [out.reshape(-1).view(np.uint8) for out in outs]
        if CAN_ADVISE:
            _fetch(opened.number, offsets.tolist(), layout.size)

        untested = ~self._tested[group, field][rows]
        stored = np.zeros((len(views), CHECKSUM_BYTES), np.uint8)
        computed = np.zeros(len(views), np.uint32)
        # Lists, because reading one element of an array is slow.
        places = zip(views, offsets.tolist(), untested.tolist(), strict=True)
        for k, (view, offset, is_new) in enumerate(places):
            # The checksum follows the view in the file.
            parts = [view, stored[k]] if is_new else [view]
            _read_whole(opened.number, parts, offset, self.path)
            if is_new and layout.size > SHORT:
                # Now, while the view is in the processor's cache.
                computed[k] = fletcher32(view)
        if not untested.any():
            return

        if layout.size <= SHORT:
            short_views = [views[k] for k in np.flatnonzero(untested)]
            computed[untested] = fletcher32_of_rows(np.stack(short_views))
        wrong = rows[untested & (computed != stored.view("<u4")[:, 0])]
        if wrong.size:
            raise Unreadable(
                self.path, f"{field} of {group} row {wrong[0]} is damaged (its checksum differs)"
            )
        self._tested[group, field][rows] = True

    def _unpack(
        self,
        opened: _OpenShard,
        group: str,
        field: str,
        rows: Sequence[int],
        outs: Sequence[np.ndarray],
    ) -> None:
        if opened.tables is None:
            # The tables stay open for the next batches.
            opened.tables = ShardTables(self.path, opened.number)
        opened.tables.unpack(group, field, rows, outs, self._layouts[group, field])

    def read_checked(
        self, group: str, field: str, row: int, space: np.ndarray | None = None
    ) -> np.ndarray:
        """Read one view of a field, and test its checksum.

        Args:
            group: "train" or "test".
            field: a field of the group.
            row: the row.
            space: memory from `space` to read into; None allocates some. The result of an
                uncompressed field lies in it.

        Returns:
            The view's tensor.

        Raises:
            Damaged: the view was never written or is damaged. The message is a few words, without
                the file's name.
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
        """Allocate memory for `read_checked`.

        Args:
            group: "train" or "test".
            field: a field of the group.

        Returns:
            uint8 [bytes of a view + 4], uninitialised.
        """
        return np.empty(self.layout(group, field).size + CHECKSUM_BYTES, np.uint8)

    def describe(self) -> dict[str, dict[str, StoredDataset]]:
        """Describe every dataset, as HDF5 sees it.

        Returns:
            Group -> dataset -> description.
        """
        with self._tables(self.opened()) as tables:
            return tables.describe()

    def attrs(self) -> dict[str, str | int]:
        """Return the file's attributes that say where it belongs.

        Returns:
            "format", "fingerprint", "shard", and for graphs "source_sha256".
        """
        with self._tables(self.opened()) as tables:
            return tables.attrs()

    def keys(self, group: str) -> tuple[list[str], list[int], np.ndarray]:
        """Read which rows a group has.

        Args:
            group: "train" or "test".

        Returns:
            R clip ids, R view numbers, and `ok`: bool [R].
        """
        with self._tables(self.opened()) as tables:
            return tables.keys(group, self.record["groups"][group].get("rows"))


def record_from_file(path: Path) -> dict:
    """Make from an HDF5 file alone as much of its statistics as `ShardFile` needs.

    Args:
        path: the shard's HDF5 file.

    Returns:
        "groups", "bytes" and "compression" of the statistics. Groups have no "rows".

    Raises:
        Damaged: the file is damaged, or is no shard.
        OSError: it cannot be read.
    """
    number = open_regular(path)
    try:
        tables = ShardTables(path, number)
        try:
            groups = {}
            for group, datasets in tables.describe().items():
                fields = {}
                for name, stored in datasets.items():
                    if name not in ROW_KEYS:
                        fields[name] = {"shape": list(stored.shape), "dtype": stored.dtype}
                groups[group] = {"fields": fields}
            size, compression = tables.bytes.size, tables.compressed()
            return {"groups": groups, "bytes": size, "compression": compression}
        finally:
            tables.close()
    finally:
        os.close(number)


def _fetch(number: int, offsets: Sequence[int], size: int) -> None:
    """Ask the disk for all views at once, except for those that are in memory."""
    for offset in offsets:
        if not _in_memory(number, offset + size - 1):
            os.posix_fadvise(number, offset, size, os.POSIX_FADV_WILLNEED)


def _in_memory(number: int, offset: int) -> bool:
    """Whether reading a byte would not wait for the disk; False if the system does not say."""
    try:
        return os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _read_whole(number: int, parts: Sequence[np.ndarray], offset: int, path: Path) -> None:
    """Fill arrays of bytes, one after another, from an offset of a file.

    Unreadable if the file ends before.
    """
    left, done = [memoryview(part) for part in parts], 0
    # One call reads everything, except for views at the system's limit.
    while left:
        received = os.preadv(number, left, offset + done)
        if not received:
            raise Unreadable(path, "ends within a view")
        done += received
        while left and received >= left[0].nbytes:
            received -= left.pop(0).nbytes
        if left:
            left[0] = left[0][received:]
