"""Files that HDF5 reads and writes through Python. They report no error to HDF5: the caller of HDF5
finds it here.

HDF5 may crash the process (SIGSEGV) where it cannot write what describes a file: on a disk that
something else fills meanwhile, over a quota, on a network file system that goes away. So it is not
told.
"""

import errno
import os
from pathlib import Path
from types import FunctionType


class _Positioned:
    """The methods that h5py needs of a file object: `read`, `seek`, `tell`."""

    _place = 0
    size = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer from the present place on."""
        raise NotImplementedError

    def seek(self, place: int, whence: int = os.SEEK_SET) -> int:
        """Where the next read or write begins; only from the start or the end."""
        self._place = place + (self.size if whence == os.SEEK_END else 0)
        return self._place

    def tell(self) -> int:
        """Where the next read or write begins."""
        return self._place

    def read(self, count: int) -> bytes:
        """`count` bytes. h5py accepts an object with this method as a file."""
        data = bytearray(count)
        self.readinto(data)
        return bytes(data)


class PartFile(_Positioned):
    """A file for `h5py.File`, made anew: FileExistsError if there is one, another OSError if it
    cannot be made.

    From the first error on nothing is written to the disk any more; what HDF5 writes from then on
    goes into memory, where it finds it again, so that it can close the file. `check` raises that
    error.
    """

    def __init__(self, path: Path):
        self.path = path
        self._number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._place = self.size = 0
        self._dropped = False
        self._error: OSError | None = None
        self._lost: list[tuple[int, bytes]] = []  # what is not on the disk: place, bytes

    def check(self) -> None:
        """OSError if something could not be written."""
        if self._error:
            raise OSError(self._error.errno, self._error.strerror, str(self.path))

    def check_name(self) -> None:
        """FileNotFoundError unless the file still has its name: its folder may have been moved, and
        a copy taken its place.
        """
        if not os.path.samestat(os.stat(self.path), os.fstat(self._number)):
            raise FileNotFoundError(errno.ENOENT, "another file has its name now", str(self.path))

    def drop(self) -> None:
        """Nothing is written to the disk from now on: the file is about to be removed."""
        self._dropped = True

    def close(self) -> None:
        """After HDF5 has closed it; a network file system may only say now that a disk is full,
        which `check` tells.
        """
        number, self._number = self._number, -1
        if number >= 0:
            try:
                os.close(number)
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._error, self._dropped = self._error or error, True

    # What HDF5 asks for, by way of h5py.

    def __repr__(self) -> str:
        return str(self.path)

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer, with zeros where nothing was written yet."""
        view, begin, count = memoryview(buffer).cast("B"), self._place, 0
        while count < view.nbytes and (
            got := os.preadv(self._number, [view[count:]], begin + count)
        ):
            count += got
        view[count:] = bytes(view.nbytes - count)
        for place, data in self._lost:
            first, last = max(begin, place), min(begin + view.nbytes, place + len(data))
            if first < last:
                view[first - begin : last - begin] = data[first - place : last - place]
        self._place += view.nbytes
        return view.nbytes

    def write(self, data: memoryview) -> int:
        """All of it."""
        view, begin = memoryview(data).cast("B"), self._place
        self._place += view.nbytes
        self.size = max(self.size, self._place)
        count = 0
        try:
            while count < view.nbytes and not self._dropped:
                count += os.pwrite(self._number, view[count:], begin + count)
        except OSError as error:
            self._fail(error)
        if count < view.nbytes:
            self._lost.append((begin + count, bytes(view[count:])))
        return view.nbytes

    def truncate(self, size: int) -> int:
        """Cuts or lengthens it."""
        self.size = size
        try:
            if not self._dropped:
                os.ftruncate(self._number, size)
        except OSError as error:
            self._fail(error)
        return size

    def flush(self) -> None:
        """Nothing waits here."""


class ReadOnlyFile(_Positioned):
    """A file that is open already, for `h5py.File` to read: `number` is its descriptor, which stays
    the caller's.

    So a shard needs one descriptor, compressed or not. After a failed read, HDF5 gets zeros and the
    caller looks here: `error` is the system's error, `short` says whether the file became shorter
    since it was opened.
    """

    def __init__(self, number: int):
        self.number, self.size = number, os.fstat(number).st_size
        self.error: OSError | None = None
        self.short = False
        self._place = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fills the buffer, with zeros beyond the end of the file."""
        view, count = memoryview(buffer).cast("B"), 0
        try:
            while count < view.nbytes and (
                got := os.preadv(self.number, [view[count:]], self._place + count)
            ):
                count += got
        except OSError as error:
            self.error = error
        self.short |= count < min(view.nbytes, self.size - self._place)
        view[count:] = bytes(view.nbytes - count)
        self._place += view.nbytes
        return view.nbytes


# HDF5 waits for them: an exception that came up in one would be lost in it, or leave it with half a
# file.
CALLED = [method for kind in (_Positioned, PartFile, ReadOnlyFile) for method in vars(kind).values()]
STEPS = frozenset(method.__code__ for method in CALLED if isinstance(method, FunctionType))
