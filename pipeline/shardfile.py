"""Reads one shard. A view that is not compressed is read straight from its place in the file, which HDF5 is asked for once.

Read through HDF5 a view would be copied twice and take its global lock; this way, it goes from the system into the batch.
"""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import h5py
import numpy as np

from pipeline.sealed import Damaged, fletcher32
from pipeline.shards import CHECKSUM_BYTES
from pipeline.tensors import ROW_KEYS


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

    def _open(self) -> h5py.File:
        return h5py.File(self.path, "r", locking=False)  # a finished file never changes, and some file systems refuse locks

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
        self._file = file = self._file or self._open()
        dataset = file[group][field]
        for row, out in zip(rows, outs, strict=True):
            out[...] = dataset[row]

    def read_checked(self, group: str, field: str, row: int) -> np.ndarray:
        """A view's tensor, its checksum tested. Damaged (a few words alone) if it does not fit, or nothing was written."""
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
        chunk = np.frombuffer(os.pread(self._opened().number, size + CHECKSUM_BYTES, int(offsets[row])), np.uint8)
        if chunk.size < size + CHECKSUM_BYTES or fletcher32(chunk[:size]) != int.from_bytes(chunk[size:].tobytes(), "little"):
            raise Damaged("damaged")
        return chunk[:size].view(stored["dtype"]).reshape(stored["shape"])

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


def _in_memory(number: int, offset: int) -> bool:
    """Whether a byte of a file can be read without waiting for a disk; some file systems cannot tell, and refuse."""
    try:
        return os.preadv(number, [bytearray(1)], offset, os.RWF_NOWAIT) == 1
    except OSError:
        return False


def _layout(dataset: h5py.Dataset) -> Layout:
    size = int(np.prod(dataset.shape[1:], dtype=np.int64)) * dataset.dtype.itemsize
    filters = dataset.id.get_create_plist()
    packed = [filters.get_filter(k)[0] for k in range(filters.get_nfilters())] != [h5py.h5z.FILTER_FLETCHER32]
    offsets = np.full(len(dataset), -1, np.int64)

    def note(chunk: h5py.h5d.StoreInfo) -> None:
        offsets[chunk.chunk_offset[0]] = chunk.byte_offset

    dataset.id.chunk_iter(note)
    return Layout(offsets, size, packed)


def _stored(dataset: h5py.Dataset) -> Stored:
    return Stored(dataset.shape[1:], dataset.dtype.name, len(dataset), (dataset.chunks or (0,))[0], bool(dataset.fletcher32))
