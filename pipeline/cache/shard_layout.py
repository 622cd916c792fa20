"""The datasets of a shard as HDF5 describes them: their shapes, and the places of their rows.

Only this module reads through HDF5, and it reads from a descriptor that the caller has opened. It
accepts only datasets of plain numbers that lie in the file itself: no links, no virtual or external
storage. Nothing is allocated for rows that the file cannot hold. For one flipped bit HDF5 may raise
KeyError, RuntimeError, OSError, ValueError and more: all become `Unreadable`.
"""

import os
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from shlex import quote
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.cache.fields import GROUPS, MAX_VIEW, ROW_KEYS
from pipeline.cache.part_file import ReadOnlyFile
from pipeline.cache.shard_writer import CHECKSUM_BYTES
from pipeline.files.atomic_files import Damaged

LZF, ZSTD = 32000, 32015  # HDF5's numbers of the filters that h5py and hdf5plugin bring
KNOWN = {h5py.h5z.FILTER_SHUFFLE, h5py.h5z.FILTER_FLETCHER32, LZF, ZSTD}
KEY_KINDS = {"clip": "S", "view": "i", "ok": "b"}  # numpy's kinds of ROW_KEYS
ATTRS = ("format", "fingerprint", "shard", "source_sha256")  # the attributes of a shard's file
LONG_ATTR = 4096  # bytes


class Unreadable(Damaged):
    """A shard's file is damaged or is no shard; `why` says it in a few words."""

    def __init__(self, path: Path, why: str):
        self.path, self.why = path, why
        cache = quote(str(path.parent.parent))
        super().__init__(
            f"{path}: {why}; run `vidgraph verify --cache {cache}`, then `vidgraph repair --cache "
            f"{cache}`"
        )

    def __reduce__(self):
        return Unreadable, (self.path, self.why)


class RowLayout(NamedTuple):
    """Where the rows of a dataset lie.

    offsets: int64 [R] bytes from the start of the file, -1 for a row that was never written; size:
    bytes of a view in memory; packed: whether views are compressed in the file.
    """

    offsets: np.ndarray
    size: int
    packed: bool


class StoredDataset(NamedTuple):
    """A dataset as HDF5 describes it: shape without R, dtype, rows, rows per chunk, and whether it
    has checksums.
    """

    shape: tuple[int, ...]
    dtype: str
    rows: int
    chunk_rows: int
    checked: bool


class ShardTables:
    """A shard's open HDF5 file. The caller keeps its descriptor `number` and closes it. Any method
    may raise Unreadable.
    """

    def __init__(self, path: Path, number: int):
        self.path, self.bytes = path, ReadOnlyFile(number)
        with self._reading():
            # A finished file never changes, and some file systems refuse locks.
            self._file = h5py.File(self.bytes, "r", locking=False)

    @contextmanager
    def _reading(self) -> Iterator[None]:
        """OSError if the system could not read the file; Unreadable for any other error of HDF5 or
        numpy.
        """
        said = ""
        try:
            yield
        except Damaged:
            raise
        except Exception as error:  # h5py knows no class of its own for damage
            said = (
                " ".join((str(error.args[0]) if error.args else "").split())[:200]
                or type(error).__name__
            )
        if self.bytes.error is not None:
            raise OSError(self.bytes.error.errno, self.bytes.error.strerror, str(self.path))
        if self.bytes.short:
            raise Unreadable(self.path, "it became shorter while it was read")
        if said:
            raise Unreadable(self.path, f"HDF5 cannot read it ({said})")

    def close(self) -> None:
        """Closes the tables, but not the descriptor."""
        try:
            self._file.close()
        except Exception:  # a damaged file may fail to close; it was only read
            return

    def attrs(self) -> dict[str, str | int]:
        """The file's attributes that say where it belongs."""
        with self._reading():
            return {name: self._attr(name) for name in ATTRS if name in self._file.attrs}

    def _attr(self, name: str) -> str | int:
        attribute = self._file.attrs.get_id(name)
        if attribute.shape != () or attribute.get_storage_size() > LONG_ATTR:
            raise Unreadable(self.path, f"its attribute {name} is no single value")
        value = self._file.attrs[name]
        return value if isinstance(value, str) else int(value)

    def groups(self) -> list[str]:
        """The names of its groups, which are some of GROUPS."""
        with self._reading():
            names = list(self._file)
            if not names or not set(names) <= set(GROUPS):
                shown = ", ".join(map(repr, names[:4])) or "none"
                raise Unreadable(
                    self.path, f"holds the groups {shown}, expected {' and/or '.join(GROUPS)}"
                )
            return names

    def describe(self) -> dict[str, dict[str, StoredDataset]]:
        """Every dataset, as HDF5 sees it."""
        with self._reading():
            return {
                name: {key: self._stored(name, key) for key in self._group(name)}
                for name in self.groups()
            }

    def keys(self, group: str, rows: int | None) -> tuple[list[str], list[int], np.ndarray]:
        """Clip ids, view numbers and ok [R] of a group's rows; `rows`: how many are expected, None
        for any number.
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
        where, kind = f"{key} of {group}", dataset.dtype.kind
        if dataset.ndim != 1 or kind != KEY_KINDS[key]:
            raise Unreadable(
                self.path, f"{where} has the shape {dataset.shape} and the dtype {dataset.dtype}"
            )
        if rows is not None and len(dataset) != rows:
            raise Unreadable(self.path, f"{where} has {len(dataset):,} rows, expected {rows:,}")
        if len(dataset) * dataset.dtype.itemsize > self.bytes.size or _filters(dataset) != [
            h5py.h5z.FILTER_FLETCHER32
        ]:
            raise Unreadable(
                self.path, f"{where} claims {len(dataset):,} rows, more than its file can hold"
            )
        return dataset[...]

    def layout(self, group: str, field: str, want: StoredDataset | None = None) -> RowLayout:
        """Where the rows of a field lie. Unreadable if it is not as the statistics say (`want`,
        without `checked`).
        """
        with self._reading():
            dataset, came = self._dataset(group, field), self._stored(group, field)
            if want is not None and came[:4] != want[:4]:
                raise Unreadable(
                    self.path, f"{field} of {group} is {came}, its statistics say {want}"
                )
            return self._layout(dataset, f"{field} of {group}")

    def _layout(self, dataset: h5py.Dataset, where: str) -> RowLayout:
        size = (
            int(np.prod([int(n) for n in dataset.shape[1:]], dtype=object)) * dataset.dtype.itemsize
        )
        filters, space = _filters(dataset), self.bytes.size
        packed = filters != [h5py.h5z.FILTER_FLETCHER32]
        if (
            set(filters) - KNOWN
            or h5py.h5z.FILTER_FLETCHER32 not in filters
            or dataset.chunks != (1, *dataset.shape[1:])
        ):
            raise Unreadable(
                self.path, f"{where} is stored in another way than ours, or without checksums"
            )
        # Each row has an id of at least one byte, so a file cannot hold more rows than bytes.
        if size > MAX_VIEW or len(dataset) > space:
            raise Unreadable(
                self.path,
                f"{where} claims {len(dataset):,} views of {size:,} bytes, in a file of {space:,}",
            )
        offsets, wrong = np.full(len(dataset), -1, np.int64), []
        unchecked = 1 << filters.index(
            h5py.h5z.FILTER_FLETCHER32
        )  # in the mask of filters that a chunk left out, as lzf may

        def note(chunk: h5py.h5d.StoreInfo) -> None:
            fits = chunk.byte_offset is not None and 0 <= chunk.byte_offset <= space - chunk.size
            full = packed or chunk.size == size + CHECKSUM_BYTES
            if (
                not fits
                or not full
                or chunk.filter_mask & unchecked
                or not 0 <= chunk.chunk_offset[0] < len(offsets)
            ):
                wrong.append(chunk)
            else:
                offsets[chunk.chunk_offset[0]] = chunk.byte_offset

        dataset.id.chunk_iter(note)
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
        """Reads rows of a compressed field, each into its array; HDF5 tests their checksums before
        it decompresses them.
        """
        with self._reading():
            dataset = self._dataset(group, field)
            zstd = ZSTD in _filters(dataset)
            for row, out in zip(rows, outs, strict=True):
                if zstd:
                    self._refuse_bomb(
                        int(layout.offsets[row]), layout.size, f"{field} of {group} row {row}"
                    )
                out[...] = dataset[row]

    def _refuse_bomb(self, offset: int, size: int, where: str) -> None:
        """Unreadable unless a view's zstd frame says that it becomes as large as the view is."""
        claimed = zstd_content_size(os.pread(self.bytes.number, 18, offset))
        if claimed != size:
            raise Unreadable(
                self.path, f"{where} claims {claimed} bytes when decompressed, expected {size:,}"
            )

    def compressed(self) -> str:
        """zstd where any field is compressed by it, else none."""
        with self._reading():
            groups = {
                name: [key for key in self._group(name) if key not in ROW_KEYS]
                for name in self.groups()
            }
            every = [
                _filters(self._dataset(name, key)) for name, keys in groups.items() for key in keys
            ]
            return "zstd" if any(ZSTD in filters for filters in every) else "none"

    def _group(self, name: str) -> h5py.Group:
        found = self._hard(self._file, name)
        if not isinstance(found, h5py.Group):
            raise Unreadable(self.path, f"{name} is no group")
        return found

    def _dataset(self, group: str, name: str) -> h5py.Dataset:
        """A dataset that lies in this file, with a plain dtype."""
        dataset, where = self._hard(self._group(group), name), f"{name} of {group}"
        if not isinstance(dataset, h5py.Dataset):
            raise Unreadable(self.path, f"{where} is no dataset")
        made = dataset.id.get_create_plist()
        if made.get_layout() != h5py.h5d.CHUNKED or made.get_external_count():
            raise Unreadable(self.path, f"{where} lies outside its file, or not in chunks: refused")
        if dataset.dtype.kind not in "biufS" or not dataset.ndim or not dataset.dtype.itemsize:
            raise Unreadable(
                self.path, f"{where} has the dtype {dataset.dtype}, expected plain numbers: refused"
            )
        return dataset

    def _hard(self, group: h5py.Group, name: str) -> h5py.Group | h5py.Dataset:
        """What a group holds under a name, unless it is a link to somewhere else."""
        if not isinstance(group.get(name, getlink=True), h5py.HardLink):
            raise Unreadable(self.path, f"{name} is a link to another place or file: refused")
        found = group[name]
        if h5py.h5o.get_info(found.id).rc != 1:  # test views under the name of train's, say
            raise Unreadable(self.path, f"{name} has two names in its file: refused")
        return found

    def _stored(self, group: str, name: str) -> StoredDataset:
        found = self._dataset(group, name)
        plain = np.dtype(found.dtype).newbyteorder("=") if found.dtype.kind != "S" else found.dtype
        little = found.dtype == plain.newbyteorder("<")
        chunk = (found.chunks or (0,))[0]
        return StoredDataset(
            found.shape[1:],
            plain.name if little else found.dtype.str,
            len(found),
            chunk,
            bool(found.fletcher32),
        )


def _filters(dataset: h5py.Dataset) -> list[int]:
    """HDF5's numbers of the filters that a chunk passes when it is written, in their order."""
    steps = dataset.id.get_create_plist()
    return [steps.get_filter(k)[0] for k in range(steps.get_nfilters())]


def zstd_content_size(head: bytes) -> int | None:
    """The size that a zstd frame (RFC 8878, section 3.1.1.1) says it has when decompressed, from
    its first 18 bytes; None if it is no frame, or says nothing."""
    if len(head) < 18 or head[:4] != b"\x28\xb5\x2f\xfd":
        return None
    descriptor = head[4]
    single, flag = descriptor >> 5 & 1, descriptor >> 6
    length = (single, 2, 4, 8)[flag]
    start = 5 + (not single) + (0, 1, 2, 4)[descriptor & 3]
    return (
        int.from_bytes(head[start : start + length], "little") + (256 if length == 2 else 0)
        if length
        else None
    )


def expected_dataset(table: Mapping, field: str) -> StoredDataset:
    """A field as its group's statistics describe it."""
    stored = table["fields"][field]
    return StoredDataset(tuple(stored["shape"]), stored["dtype"], table["rows"], 1, True)
