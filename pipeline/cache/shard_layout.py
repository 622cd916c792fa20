"""The datasets of a shard, as HDF5 describes them: their shapes, and where their rows are.

Only this module reads through HDF5, from a descriptor that the caller opened. It trusts no file:

- It accepts only datasets of plain numbers in the file itself: no links, no virtual or external
  storage.
- It allocates nothing for rows that the file cannot hold.
- For one flipped bit HDF5 may raise KeyError, RuntimeError, OSError, ValueError and more. All of
  them become `Unreadable`.
"""

import atexit
import ctypes
import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.cache.fields import GROUPS, MAX_VIEW, ROW_KEYS
from pipeline.cache.part_file import ReadOnlyFile
from pipeline.cache.records import cache_of
from pipeline.cache.shard_writer import CHECKSUM_BYTES
from pipeline.files.atomic_files import Damaged

# HDF5's numbers of the filters that h5py and hdf5plugin bring.
LZF, ZSTD = 32000, 32015
KNOWN = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, LZF, ZSTD}
CHECKSUM_ONLY = [h5py.h5z.FILTER_FLETCHER32]

# numpy's kinds of dtypes: those of ROW_KEYS, and plain numbers.
KEY_KINDS = {"clip": "S", "view": "i", "ok": "b"}
PLAIN_KINDS = "biufS"

# The attributes of a shard's file, and the bytes that one of them may have.
ATTRS = ("format", "fingerprint", "shard", "clips_sha256", "source_sha256")
LONG_ATTR = 4096


@cache
def _close_library_at_exit() -> None:
    """Have HDF5 closed while Python still runs.

    HDF5 keeps a file that it failed to open or to close until the process ends. Then it lets go of
    the Python object that it read from, when Python is gone already: the process would crash after
    its work.
    """
    # h5py has no name for this function. A library's handle finds those of its dependencies, too.
    atexit.register(ctypes.CDLL(h5py.h5.__file__).H5close)


class Unreadable(Damaged):
    """A shard's file is damaged, or is no shard.

    Attributes:
        path: the file.
        why: what is wrong, in a few words.
    """

    def __init__(self, path: Path, why: str):
        """Compose the message.

        Args:
            path: the file, `CACHE/STAGE/NNNNN.h5`.
            why: what is wrong, in a few words.
        """
        self.path, self.why = path, why
        cache = quote(str(cache_of(path)))
        super().__init__(
            f"{path}: {why}; run `vidgraph verify --cache {cache}`, then `vidgraph repair --cache "
            f"{cache}`"
        )

    def __reduce__(self):
        return Unreadable, (self.path, self.why)


class RowLayout(NamedTuple):
    """Where the rows of a dataset are.

    Attributes:
        offsets: int64 [R] bytes from the start of the file; -1 for a row that was never written.
        size: bytes of a view in memory.
        packed: whether views are compressed in the file.
    """

    offsets: np.ndarray
    size: int
    packed: bool


class StoredDataset(NamedTuple):
    """A dataset, as HDF5 describes it.

    Attributes:
        shape: the shape of a view, without R.
        dtype: numpy's name of the dtype.
        rows: R.
        chunk_rows: rows per chunk.
        checked: whether its chunks have checksums.
    """

    shape: tuple[int, ...]
    dtype: str
    rows: int
    chunk_rows: int
    checked: bool


class ShardTables:
    """A shard's HDF5 file, opened for questions about its groups and datasets.

    Every method raises Unreadable if the file is damaged or is no shard, and OSError if the
    system cannot read it.

    Attributes:
        path: the file, for messages.
        bytes: the file object that HDF5 reads from.
    """

    def __init__(self, path: Path, number: int):
        """Open the file in HDF5.

        Args:
            path: the file, for messages.
            number: a descriptor that is open for reading. The caller closes it.

        Raises:
            Unreadable: HDF5 cannot open the file.
            OSError: the system cannot read it.
        """
        self.path, self.bytes = path, ReadOnlyFile(number)
        with self._reading():
            try:
                # A finished file never changes, and some file systems refuse locks.
                self._file = h5py.File(self.bytes, "r", locking=False)
            except Exception:
                _close_library_at_exit()
                raise

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """Turn errors of HDF5 and numpy into Unreadable, and those of the system into OSError."""
        reason = ""
        try:
            yield
        except Damaged:
            raise
        # h5py has no class of its own for damage.
        except Exception as error:
            text = str(error.args[0]) if error.args else ""
            reason = " ".join(text.split())[:200] or type(error).__name__

        # HDF5 does not see a failed read of the system: `ReadOnlyFile` keeps it.
        if self.bytes.error is not None:
            raise OSError(self.bytes.error.errno, self.bytes.error.strerror, str(self.path))
        if self.bytes.short:
            raise Unreadable(self.path, "it became shorter while it was read")
        if reason:
            raise Unreadable(self.path, f"HDF5 cannot read it ({reason})")

    def close(self) -> None:
        """Close the file in HDF5, but not the descriptor."""
        # A damaged file may fail to close. Nothing is lost: it was only read.
        try:
            self._file.close()
        except Exception:
            _close_library_at_exit()

    def attrs(self) -> dict[str, str | int]:
        """Return the attributes that say where the shard belongs.

        Returns:
            Those of ATTRS that the file has.
        """
        with self._reading():
            return {name: self._attr(name) for name in ATTRS if name in self._file.attrs}

    def _attr(self, name: str) -> str | int:
        attribute = self._file.attrs.get_id(name)
        if attribute.shape != () or attribute.get_storage_size() > LONG_ATTR:
            raise Unreadable(self.path, f"its attribute {name} is not a single value")
        value = self._file.attrs[name]
        return value if isinstance(value, str) else int(value)

    def groups(self) -> list[str]:
        """Return the names of the file's groups.

        Returns:
            "train", "test", or both.
        """
        with self._reading():
            names = list(self._file)
            if not names or not set(names) <= set(GROUPS):
                found = ", ".join(map(repr, names[:4])) or "none"
                raise Unreadable(
                    self.path, f"holds the groups {found}, expected {' and/or '.join(GROUPS)}"
                )
            return names

    def describe(self) -> dict[str, dict[str, StoredDataset]]:
        """Describe every dataset.

        Returns:
            Group -> dataset -> description.
        """
        described = {}
        with self._reading():
            for name in self.groups():
                described[name] = {key: self._stored(name, key) for key in self._group(name)}
        return described

    def keys(self, group: str, rows: int | None) -> tuple[list[str], list[int], np.ndarray]:
        """Read which rows a group has.

        Args:
            group: "train" or "test".
            rows: the expected number R of rows; None for any.

        Returns:
            R clip ids, R view numbers, and `ok`: bool [R].
        """
        with self._reading():
            clips, views, ok = (self._column(group, key, rows) for key in ROW_KEYS)
            if not len(clips) == len(views) == len(ok):
                raise Unreadable(
                    self.path,
                    f"{group} has {len(clips):,} clips, {len(views):,} views, {len(ok):,} in ok",
                )
            return [clip.decode() for clip in clips.tolist()], views.tolist(), ok

    def _column(self, group: str, key: str, rows: int | None) -> np.ndarray:
        """All rows of one of ROW_KEYS."""
        dataset = self._dataset(group, key)
        where = f"{key} of {group}"
        if dataset.ndim != 1 or dataset.dtype.kind != KEY_KINDS[key]:
            raise Unreadable(
                self.path, f"{where} has the shape {dataset.shape} and the dtype {dataset.dtype}"
            )
        if rows is not None and len(dataset) != rows:
            raise Unreadable(self.path, f"{where} has {len(dataset):,} rows, expected {rows:,}")

        # A compressed column could be larger than the file.
        too_large = len(dataset) * dataset.dtype.itemsize > self.bytes.size
        if too_large or _filters(dataset) != CHECKSUM_ONLY:
            raise Unreadable(
                self.path, f"{where} claims {len(dataset):,} rows, more than its file can hold"
            )
        return dataset[...]

    def layout(self, group: str, field: str, expected: StoredDataset | None = None) -> RowLayout:
        """Find the rows of a field.

        Args:
            group: "train" or "test".
            field: the dataset's name.
            expected: what the statistics say of it (`checked` is not compared); None compares
                nothing.

        Returns:
            The offsets of the rows.
        """
        with self._reading():
            dataset, found = self._dataset(group, field), self._stored(group, field)
            if expected is not None and found[:4] != expected[:4]:
                raise Unreadable(
                    self.path, f"{field} of {group} is {found}, its statistics say {expected}"
                )
            return self._layout(dataset, f"{field} of {group}")

    def _layout(self, dataset: h5py.Dataset, where: str) -> RowLayout:
        # Python's integers do not overflow, whatever the file claims.
        values = int(np.prod([int(n) for n in dataset.shape[1:]], dtype=object))
        size = values * dataset.dtype.itemsize
        filters, file_size = _filters(dataset), self.bytes.size
        packed = filters != CHECKSUM_ONLY
        known = set(filters) <= KNOWN and h5py.h5z.FILTER_FLETCHER32 in filters
        if not known or dataset.chunks != (1, *dataset.shape[1:]):
            raise Unreadable(
                self.path, f"{where} is not stored as vidgraph stores it, or has no checksums"
            )
        # Each row has an id of at least one byte, so a file cannot hold more rows than bytes.
        if size > MAX_VIEW or len(dataset) > file_size:
            raise Unreadable(
                self.path,
                f"{where} claims {len(dataset):,} views of {size:,} bytes, in a file of "
                f"{file_size:,}",
            )

        offsets = np.full(len(dataset), -1, np.int64)
        wrong = []
        # A chunk may leave filters out, as lzf does where it saves nothing; its mask names them.
        no_checksum = 1 << filters.index(h5py.h5z.FILTER_FLETCHER32)

        def add(chunk: h5py.h5d.StoreInfo) -> None:
            start, row = chunk.byte_offset, chunk.chunk_offset[0]
            inside = start is not None and 0 <= start <= file_size - chunk.size
            whole = packed or chunk.size == size + CHECKSUM_BYTES
            has_checksum = not chunk.filter_mask & no_checksum
            if inside and whole and has_checksum and 0 <= row < len(offsets):
                offsets[row] = start
            else:
                wrong.append(chunk)

        dataset.id.chunk_iter(add)
        if wrong:
            raise Unreadable(
                self.path,
                f"{where} has {len(wrong):,} views outside their file, or of another size",
            )
        return RowLayout(offsets, size, packed)

    def unpack(
        self,
        group: str,
        field: str,
        rows: Sequence[int],
        outs: Sequence[np.ndarray],
        layout: RowLayout,
    ) -> None:
        """Read rows of a compressed field. HDF5 tests their checksums before it decompresses.

        Args:
            group: "train" or "test".
            field: the dataset's name.
            rows: B rows.
            outs: B arrays of a view's shape, which receive the rows.
            layout: the field's layout.
        """
        with self._reading():
            dataset = self._dataset(group, field)
            zstd = ZSTD in _filters(dataset)
            for row, out in zip(rows, outs, strict=True):
                if zstd:
                    where = f"{field} of {group} row {row}"
                    self._refuse_bomb(int(layout.offsets[row]), layout.size, where)
                out[...] = dataset[row]

    def _refuse_bomb(self, offset: int, size: int, where: str) -> None:
        """Unreadable unless a view's zstd frame says that it decompresses to a view's size."""
        claimed = zstd_content_size(os.pread(self.bytes.number, 18, offset))
        if claimed != size:
            raise Unreadable(
                self.path, f"{where} claims {claimed} bytes when decompressed, expected {size:,}"
            )

    def compressed(self) -> str:
        """Return how the file is compressed, as far as a reader must know.

        Returns:
            "zstd" if any field is, because reading it needs `hdf5plugin`; else "none".
        """
        with self._reading():
            for group in self.groups():
                for name in self._group(group):
                    if name not in ROW_KEYS and ZSTD in _filters(self._dataset(group, name)):
                        return "zstd"
        return "none"

    def _group(self, name: str) -> h5py.Group:
        found = self._hard(self._file, name)
        if not isinstance(found, h5py.Group):
            raise Unreadable(self.path, f"{name} is not a group")
        return found

    def _dataset(self, group: str, name: str) -> h5py.Dataset:
        """A dataset of plain numbers that lies in this file."""
        dataset, where = self._hard(self._group(group), name), f"{name} of {group}"
        if not isinstance(dataset, h5py.Dataset):
            raise Unreadable(self.path, f"{where} is not a dataset")
        created = dataset.id.get_create_plist()
        if created.get_layout() != h5py.h5d.CHUNKED or created.get_external_count():
            raise Unreadable(self.path, f"{where} lies outside its file, or not in chunks: refused")
        dtype = dataset.dtype
        if dtype.kind not in PLAIN_KINDS or not dataset.ndim or not dtype.itemsize:
            raise Unreadable(
                self.path, f"{where} has the dtype {dtype}, expected plain numbers: refused"
            )
        return dataset

    def _hard(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        """The member of a group with a name, if it is not a link to another place."""
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise Unreadable(self.path, f"{name} is a link to another place or file: refused")
        found = group[name]
        # With a second name, test views could also appear as training views.
        if h5py.h5o.get_info(found.id).rc != 1:
            raise Unreadable(self.path, f"{name} has two names in its file: refused")
        return found

    def _stored(self, group: str, name: str) -> StoredDataset:
        found = self._dataset(group, name)
        # A big-endian dtype keeps its prefix ">", so that it differs from what is expected.
        dtype = found.dtype.str
        plain = found.dtype
        if plain.kind != "S":
            plain = np.dtype(plain).newbyteorder("=")
        if found.dtype == plain.newbyteorder("<"):
            dtype = plain.name
        chunk_rows = (found.chunks or (0,))[0]
        return StoredDataset(found.shape[1:], dtype, len(found), chunk_rows, bool(found.fletcher32))


def _filters(dataset: h5py.Dataset) -> list[int]:
    """HDF5's numbers of a dataset's filters, in the order in which writing applies them."""
    created = dataset.id.get_create_plist()
    return [created.get_filter(k)[0] for k in range(created.get_nfilters())]


def zstd_content_size(head: bytes) -> int | None:
    """Read from the start of a zstd frame how large its content is (RFC 8878, sec. 3.1.1.1).

    Args:
        head: the first 18 bytes.

    Returns:
        Bytes after decompression; None if this is no frame, or it does not say.
    """
    if len(head) < 18 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = head[4]
    single_segment, size_flag = descriptor >> 5 & 1, descriptor >> 6
    length = (single_segment, 2, 4, 8)[size_flag]
    if not length:
        return None

    # After the descriptor: the window (not in a single segment), then the dictionary's id.
    start = 5 + (not single_segment) + (0, 1, 2, 4)[descriptor & 3]
    size = int.from_bytes(head[start : start + length], "little")
    # The format stores a size of two bytes less 256.
    return size + 256 if length == 2 else size


def expected_dataset(table: Mapping, field: str) -> StoredDataset:
    """Return how the statistics describe a field.

    Args:
        table: a group of the statistics.
        field: one of its fields.

    Returns:
        The description that HDF5 should give.
    """
    stored = table["fields"][field]
    return StoredDataset(tuple(stored["shape"]), stored["dtype"], table["rows"], 1, True)
