"""File objects through which HDF5 reads and writes. HDF5 never sees an error; its caller does.

HDF5 may crash the process (SIGSEGV) if it cannot write its metadata. That happens on a disk that
another program fills, over a quota, or on a network file system that goes away. So these objects
report success to HDF5, and keep the error for the caller.
"""

import errno
import os
from pathlib import Path
from types import FunctionType


class _FileObject:
    """The methods that h5py needs of a file object: `read`, `seek` and `tell`."""

    _position = 0
    size = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill the buffer from the current position on."""
        raise NotImplementedError

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Set the position, from the start or the end of the file only."""
        self._position = offset + (self.size if whence == os.SEEK_END else 0)
        return self._position

    def tell(self) -> int:
        """Return the position of the next read or write."""
        return self._position

    def read(self, count: int) -> bytes:
        """Return `count` bytes. h5py takes an object for a file if it has this method."""
        data = bytearray(count)
        self.readinto(data)
        return bytes(data)


class PartFile(_FileObject):
    """A new file for `h5py.File` to write.

    After the first error nothing more goes to the disk. HDF5's later writes are kept in memory,
    where HDF5 can read them back, so that it can close the file. `check` raises that first error.

    Attributes:
        path: the file's name.
        size: its length in bytes, as HDF5 sees it.
    """

    def __init__(self, path: Path):
        """Create the file.

        Args:
            path: a name that is not taken.

        Raises:
            FileExistsError: the name is taken.
            OSError: the file cannot be created.
        """
        self.path = path
        self._number = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666)
        self._position = self.size = 0
        self._dropped = False
        self._error: OSError | None = None
        # What did not reach the disk: (offset, bytes).
        self._lost: list[tuple[int, bytes]] = []

    def check(self) -> None:
        """Raise the first error, if there was one.

        Raises:
            OSError: something could not be written.
        """
        if self._error:
            raise OSError(self._error.errno, self._error.strerror, str(self.path))

    def check_name(self) -> None:
        """Check that the name still belongs to this file.

        Raises:
            FileNotFoundError: the folder was moved, or another file has the name now.
        """
        if not os.path.samestat(os.stat(self.path), os.fstat(self._number)):
            raise FileNotFoundError(errno.ENOENT, "another file has its name now", str(self.path))

    def drop(self) -> None:
        """Stop writing to the disk, because the file is about to be removed."""
        self._dropped = True

    def close(self) -> None:
        """Close the descriptor, after HDF5 has closed the file.

        A network file system may report a full disk only now: call `check` afterwards.
        """
        # First: the number may soon be another file's, which a late write must not reach.
        number, self._number = self._number, -1
        if number >= 0:
            try:
                os.close(number)
            except OSError as error:
                self._fail(error)

    def _fail(self, error: OSError) -> None:
        self._error, self._dropped = self._error or error, True

    # ---- What h5py calls

    def __repr__(self) -> str:
        return str(self.path)

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer from the current position on.

        Args:
            buffer: what was never written becomes zeros.

        Returns:
            The length of the buffer.
        """
        view, begin = memoryview(buffer).cast("B"), self._position
        count = _read_up_to(self._number, view, begin)
        view[count:] = bytes(view.nbytes - count)

        for offset, data in self._lost:
            first, last = max(begin, offset), min(begin + view.nbytes, offset + len(data))
            if first < last:
                view[first - begin : last - begin] = data[first - offset : last - offset]
        self._position += view.nbytes
        return view.nbytes

    def write(self, data: memoryview) -> int:
        """Write all bytes at the current position, to the disk or, after an error, to memory.

        Args:
            data: the bytes.

        Returns:
            Their number.
        """
        view, begin = memoryview(data).cast("B"), self._position
        self._position += view.nbytes
        self.size = max(self.size, self._position)

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
        """Set the length of the file.

        Args:
            size: bytes.

        Returns:
            `size`.
        """
        self.size = size
        try:
            if not self._dropped:
                os.ftruncate(self._number, size)
        except OSError as error:
            self._fail(error)
        return size

    def flush(self) -> None:
        """Do nothing: this object buffers nothing."""


class ReadOnlyFile(_FileObject):
    """An open descriptor for `h5py.File` to read, so that a shard needs no second one.

    HDF5 gets zeros where a read fails. Its caller then looks at `error` and `short`.

    Attributes:
        number: the descriptor. The caller closes it.
        size: the file's length in bytes when this object was made.
        error: the system's error of the last failed read, else None.
        short: whether the file has become shorter since.
    """

    def __init__(self, number: int):
        """Wrap a descriptor.

        Args:
            number: a descriptor that is open for reading.
        """
        self.number, self.size = number, os.fstat(number).st_size
        self.error: OSError | None = None
        self.short = False
        self._position = 0

    def readinto(self, buffer: memoryview) -> int:
        """Fill a buffer from the current position on.

        Args:
            buffer: what cannot be read becomes zeros.

        Returns:
            The length of the buffer.
        """
        view, count = memoryview(buffer).cast("B"), 0
        try:
            count = _read_up_to(self.number, view, self._position)
        except OSError as error:
            self.error = error
        self.short |= count < min(view.nbytes, self.size - self._position)
        view[count:] = bytes(view.nbytes - count)
        self._position += view.nbytes
        return view.nbytes


def _read_up_to(number: int, view: memoryview, begin: int) -> int:
    """Read bytes at an offset until the buffer is full or the file ends; returns their number."""
    count = 0
    while count < view.nbytes:
        received = os.preadv(number, [view[count:]], begin + count)
        if not received:
            break
        count += received
    return count


def _code_of_methods() -> frozenset:
    codes = set()
    for kind in (_FileObject, PartFile, ReadOnlyFile):
        for method in vars(kind).values():
            if isinstance(method, FunctionType):
                codes.add(method.__code__)
    return frozenset(codes)


# The code that HDF5 waits for. `cli._shared.interrupt` raises no exception while one of these
# runs: the exception would be lost in HDF5, or leave it with half a file.
STEPS = _code_of_methods()
