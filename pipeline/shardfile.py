"""Reads one shard. A view that is not compressed is read straight from its place in the file, which HDF5 is asked for once.

Read through HDF5 a view would be copied twice and take its global lock; this way, it goes from the system into the batch.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.sealed import Damaged, fletcher32
from pipeline.shards import CHECKSUM_BYTES
from pipeline.tensors import ROW_KEYS

# What HDF5 raises over a damaged table; a ValueError, Damaged among them, over what cannot be made sense of.
UNREADABLE = (OSError, KeyError, RuntimeError, ValueError)
ZSTD = 32015  # HDF5's number of the filter that hdf5plugin brings


class Layout(NamedTuple):
    """Where the rows of a dataset lie.

    offsets: int64 [R] bytes from the start of the file, -1 for a row that was never written; size: bytes of a view as an array;
    packed: whether a compression filter stands between the two.
    """

    offsets: np.ndarray
    size: int
    packed: bool


class Stored(NamedTuple):
    """What HDF5 says of a dataset: shape without R, dtype, rows, rows in a chunk, and whether it has the checksum filter."""

    shape: tuple[int, ...]
    dtype: str
    rows: int
    chunk_rows: int
    checked: bool


class _Descriptor:
    """A file's descriptor, closed when nobody holds this object any more."""

    def __init__(self, path: Path):
        self.number = os.open(path, os.O_RDONLY)

    def __del__(self) -> None:
        if hasattr(self, "number"):
            os.close(self.number)


class ShardFile:
    """One HDF5 file, read in one process; record: its statistics. OSError from any method if it cannot be opened.

    It is opened when it is first read, and again after `release`, which may happen while another thread reads.
    """

    def __init__(self, path: Path, record: dict):
        if record["compression"] == "zstd":
            import hdf5plugin  # noqa: F401  (registers the filter)
        self.path, self.record = path, record
        self._held: h5py.File | None = None
        self._layouts: dict[tuple[str, str], Layout] = {}
        self.release()

    def release(self) -> None:
        """Closes the file as soon as no thread reads from it; where its rows lie stays known."""
        self._descriptor: _Descriptor | None = None
        self._file: h5py.File | None = None  # open only where HDF5 has to decompress

    def _opened(self) -> _Descriptor:
        """The descriptor; whoever reads from it holds on to it. Damaged if the file is not the one of the statistics."""
        if (descriptor := self._descriptor) is None:
            descriptor = _Descriptor(self.path)
            if (size := os.fstat(descriptor.number).st_size) != self.record["bytes"]:
                came = f"{size:,} bytes, expected {self.record['bytes']:,}"
                raise Damaged(f"{self.path}: {came}; open the cache anew if it was repaired since, else run `vidgraph verify`")
            self._descriptor = descriptor
        return descriptor

    def _open_anew(self) -> h5py.File:
        return h5py.File(self.path, "r", locking=False)  # a finished file never changes, and some file systems refuse locks

    def _open(self) -> AbstractContextManager[h5py.File]:
        return nullcontext(self._held) if self._held else self._open_anew()

    @contextmanager
    def kept_open(self) -> Iterator[None]:
        """For one that asks for most of the tables: HDF5 opens the file once, not for every answer. OSError if it cannot."""
        with self._open_anew() as self._held:
            try:
                yield
            finally:
                self._held = None

    def layout(self, group: str, field: str) -> Layout:
        """Where the rows of a field lie."""
        key = group, field
        if key not in self._layouts:
            with self._open() as file:
                self._layouts[key] = _layout(file[group][field])
        return self._layouts[key]

    def read(self, group: str, field: str, rows: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        """Reads each row into its array (C-contiguous, of the stored dtype and size); NaN or 0 if it was never written.

        Damaged if the file ends early; the checksum is looked at only where a compression filter runs (`verify` checks all).
        """
        offsets, size, packed = self.layout(group, field)
        if packed:
            return self._unpack(group, field, rows, outs)
        opened, views = self._opened(), []
        for offset, out in zip(offsets[rows].tolist(), outs, strict=True):
            if offset < 0:
                out[...] = np.nan if out.dtype.kind == "f" else 0
            else:
                views.append((offset, out.reshape(-1).view(np.uint8)))
        for offset, _ in views:  # so that the disk works on all of them at the same time
            if not _in_memory(opened.number, offset + size - 1):
                os.posix_fadvise(opened.number, offset, size, os.POSIX_FADV_WILLNEED)
        for offset, data in views:
            if os.preadv(opened.number, [data], offset) != size:
                raise Damaged(f"{self.path}: ends within {field} of {group}; run `vidgraph verify`")

    def _unpack(self, group: str, field: str, rows: Sequence[int], outs: Sequence[np.ndarray]) -> None:
        self._file = self._file or self._open_anew()
        dataset = self._file[group][field]
        for row, out in zip(rows, outs, strict=True):
            out[...] = dataset[row]

    def read_checked(self, group: str, field: str, row: int, space: np.ndarray | None = None) -> np.ndarray:
        """A view's tensor, its checksum tested. Damaged (a few words alone) if it does not fit, or nothing was written.

        space: uint8 [size + CHECKSUM_BYTES] into which it is read, and where the tensor then lies; new memory unless given.
        """
        stored = self.record["groups"][group]["fields"][field]
        offsets, size, packed = self.layout(group, field)
        if offsets[row] < 0:
            raise Damaged("never written")
        if packed:
            out = np.empty((1, *stored["shape"]), stored["dtype"])
            try:
                self._unpack(group, field, [row], out)
            except OSError:  # HDF5 tests the checksum before it decompresses
                raise Damaged("damaged") from None
            return out[0]
        chunk = self.space(group, field) if space is None else space
        try:
            count = os.preadv(self._opened().number, [chunk], int(offsets[row]))
        except OSError as error:
            raise Damaged(f"unreadable ({error.strerror})") from None
        if count < chunk.size or fletcher32(chunk[:size]) != int.from_bytes(chunk[size:].tobytes(), "little"):
            raise Damaged("damaged")
        return chunk[:size].view(stored["dtype"]).reshape(stored["shape"])

    def space(self, group: str, field: str) -> np.ndarray:
        """Memory for `read_checked`; its content is undefined."""
        return np.empty(self.layout(group, field).size + CHECKSUM_BYTES, np.uint8)

    def describe(self) -> dict[str, dict[str, Stored]]:
        """Every dataset, as HDF5 sees it. OSError, KeyError, RuntimeError or ValueError if the file is damaged."""
        with self._open() as file:
            return {name: {key: _stored(file[name][key]) for key in file[name]} for name in file}

    def attrs(self) -> dict[str, str | int]:
        """The file's attributes. Errors as for `describe`."""
        with self._open() as file:
            return {key: value if isinstance(value, str) else int(value) for key, value in file.attrs.items()}

    def keys(self, group: str) -> tuple[list[str], list[int], np.ndarray]:
        """Clip ids, view numbers and ok [R] of a group's rows. Errors as for `describe`."""
        with self._open() as file:
            clips, views, ok = (file[group][key][...] for key in ROW_KEYS)
        return [clip.decode() for clip in clips.tolist()], views.tolist(), ok


def record_of(path: Path) -> dict:
    """As much of a shard's statistics as `ShardFile` needs, from its HDF5 file alone. One of UNREADABLE if that is damaged."""
    groups, zstd = {}, False
    with h5py.File(path, "r", locking=False) as file:
        for name, group in file.items():
            tables = {key: _stored(group[key]) for key in group if key not in ROW_KEYS}
            groups[name] = {
                "fields": {key: {"shape": list(table.shape), "dtype": table.dtype} for key, table in tables.items()}
            }
            zstd |= any(ZSTD in _filters(group[key]) for key in tables)
    return {"groups": groups, "bytes": path.stat().st_size, "compression": "zstd" if zstd else "none"}


def _in_memory(number: int, offset: int) -> bool:
    """Whether a byte of a file can be read without waiting for a disk; some file systems cannot tell, and refuse."""
    try:
        return os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _layout(dataset: h5py.Dataset) -> Layout:
    size = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    packed = _filters(dataset) != [h5py.h5z.FILTER_FLETCHER32]
    offsets = np.full(len(dataset), -1, np.int64)

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    return Layout(offsets, size, packed)


def _filters(dataset: h5py.Dataset) -> list[int]:
    """HDF5's numbers of the filters that a chunk passes when it is written, in their order."""
    steps = dataset.id.get_create_plist()
    return [steps.get_filter(k)[0] for k in range(steps.get_nfilters())]


def _stored(dataset: h5py.Dataset) -> Stored:
    return Stored(dataset.shape[1:], dataset.dtype.name, len(dataset), (dataset.chunks or (0,))[0], bool(dataset.fletcher32))
