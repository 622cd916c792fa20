"""Memory that a pool and its workers share, so that large answers cross no pipe.

The parent makes one anonymous file and maps it; every worker maps the same file. A worker gets a
block for its answer with its task, or asks for one if the block is missing or too small. It writes
its arrays there, and sends where they are. The arrays that the parent gets lie in the block itself.
The block is free again once the last of them is gone.

The file has no name. So nothing is left behind however parent and workers die, and the size of
/dev/shm, 64 MB in many containers, does not matter.
"""

import errno
import mmap
import os
import tempfile
import weakref
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from multiprocessing.reduction import DupFd
from typing import Any, NamedTuple

ALIGNED = 64  # bytes: the start of every array, a cache line
PAGE = mmap.PAGESIZE


class Block(NamedTuple):
    """A part of an arena: `size` bytes from `start`, both in whole pages."""

    start: int
    size: int


def spread(sizes: Sequence[int]) -> tuple[list[int], int]:
    """Place arrays one behind the other, each aligned.

    Args:
        sizes: bytes of each.

    Returns:
        Where each starts, and the bytes of all.
    """
    starts, total = [], 0
    for size in sizes:
        starts.append(total)
        total += -(-size // ALIGNED) * ALIGNED
    return starts, total


class SharedFile:
    """An anonymous file of a fixed size, which can be given to a process that is being spawned."""

    def __init__(self, size: int, number: int | None = None):
        """Make the file, or adopt an open one.

        Args:
            size: bytes.
            number: the descriptor of a file that another process made.

        Raises:
            OSError: the system has no memory or no place for it.
        """
        self.size = size
        self.number = _anonymous_file(size) if number is None else number
        # Not at the end of the program: a worker that starts then may still need it.
        weakref.finalize(self, os.close, self.number).atexit = False

    def map(self) -> mmap.mmap:
        """Return the file as memory, for reading and writing."""
        return mmap.mmap(self.number, self.size)

    def __reduce__(self):
        return _adopt, (self.size, DupFd(self.number))


def _adopt(size: int, number: Any) -> SharedFile:
    return SharedFile(size, number.detach())


def _anonymous_file(size: int) -> int:
    # A container may forbid what the system has.
    with suppress(AttributeError, OSError):
        number = os.memfd_create("vidgraph", os.MFD_CLOEXEC)
        try:
            os.ftruncate(number, size)
        except OSError:
            os.close(number)
            raise
        return number
    # macOS: a file that has lost its name. All of it must be on the disk before it is mapped, since
    # a full disk would otherwise end the process that writes to it.
    number, path = tempfile.mkstemp(prefix="vidgraph-")
    try:
        os.unlink(path)
        zeros = bytes(1 << 20)
        for start in range(0, size, len(zeros)):
            os.pwrite(number, zeros[: size - start], start)
        if os.fstat(number).st_size < size:  # the last piece was cut off
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    except BaseException:
        os.close(number)
        raise
    return number


class Arena:
    """The parent's side: which blocks are free, and arrays in those that are not.

    One thread takes blocks. Any thread may drop arrays.

    Attributes:
        file: what workers map.
        size: bytes, in whole pages.
    """

    def __init__(self, size: int, freed: Callable[[], None] | None = None):
        """Make the shared memory. Pages that nobody has written take no memory.

        Args:
            size: bytes; rounded up to whole pages.
            freed: called, in any thread, after a block has become free.

        Raises:
            OSError: the system has no memory or no place for it.
        """
        self.size = -(-size // PAGE) * PAGE
        self.file = SharedFile(self.size)
        self._memory = self.file.map()
        self._freed = freed
        self._free = [Block(0, self.size)]  # by start; no two touch
        # Filled by finalizers, which may run inside any other call: appending needs no lock.
        self._returned: deque[Block] = deque()

    @property
    def address(self) -> int:
        """Where the memory starts in this process."""
        import numpy

        return numpy.frombuffer(self._memory, numpy.uint8).ctypes.data

    @property
    def free_bytes(self) -> int:
        """How many bytes are free, in one piece or several."""
        self._collect()
        return sum(block.size for block in self._free)

    def take(self, size: int) -> Block | None:
        """Take a block.

        Args:
            size: bytes.

        Returns:
            The first free block that is large enough; None if there is none now.
        """
        self._collect()
        for place, block in enumerate(self._free):
            if block.size < size:
                continue
            # From the front, so that the pages behind stay untouched as long as they can.
            taken, rest = _cut(block, size)
            self._free[place : place + 1] = [rest] if rest is not None else []
            return taken
        return None

    def give_back(self, block: Block) -> None:
        """Free a block. Nothing may read it any more."""
        self._returned.append(block)
        if self._freed is not None:
            self._freed()

    def arrays(self, block: Block, sizes: Sequence[int]) -> list[memoryview]:
        """Return the arrays of an answer, as bytes. The block is free once all of them are gone.

        What the block has beyond them is free at once.

        Args:
            block: a block that was taken.
            sizes: bytes of each array, as the worker placed them (see `spread`).
        """
        # Imported here, and not in the workers: it would delay those that do not need it.
        import numpy

        starts, total = spread(sizes)
        block, rest = _cut(block, total)
        if rest is not None:
            self.give_back(rest)
        whole = numpy.frombuffer(self._memory, numpy.uint8, block.size, block.start)
        # Views refer to this array, and it lives as long as they do.
        weakref.finalize(whole, self.give_back, block).atexit = False
        view = memoryview(whole)
        pairs = zip(starts, sizes, strict=True)
        return [view[start : start + size] for start, size in pairs]

    def _collect(self) -> None:
        """Add the blocks that were given back to the free ones, and join neighbours."""
        while self._returned:
            self._free.append(self._returned.popleft())
        self._free.sort()
        joined: list[Block] = []
        for block in self._free:
            if joined and joined[-1].start + joined[-1].size == block.start:
                joined[-1] = Block(joined[-1].start, joined[-1].size + block.size)
            else:
                joined.append(block)
        self._free = joined


def _cut(block: Block, size: int) -> tuple[Block, Block | None]:
    """The first pages of a block, for so many bytes, and the rest; None if there is no rest."""
    needed = max(PAGE, -(-size // PAGE) * PAGE)
    if needed >= block.size:
        return block, None
    return Block(block.start, needed), Block(block.start + needed, block.size - needed)


class StartMarks:
    """What the parent must know of a worker that has died: whether it had started its task.

    A byte of shared memory for each worker. A message would wake the parent for every task.
    """

    def __init__(self, workers: int):
        """Make the memory.

        Args:
            workers: how many there are.

        Raises:
            OSError: the system has no memory or no place for it.
        """
        self.file = SharedFile(workers)
        self._marks = self.file.map()

    def take_off(self, place: int) -> None:
        """Take a worker's mark off, before it gets a task."""
        self._marks[place] = 0

    def is_set(self, place: int) -> bool:
        """Whether the worker has set its mark."""
        return self._marks[place] == 1


class Bell:
    """Wakes a thread that waits for a pipe. It may be rung in any thread and at any time.

    Attributes:
        number: the descriptor to wait for.
    """

    def __init__(self) -> None:
        self.number, self._rope = os.pipe()
        os.set_blocking(self.number, False)
        os.set_blocking(self._rope, False)
        # Not earlier: a descriptor that is closed may be another file's by the time it is rung.
        weakref.finalize(self, _close_both, self.number, self._rope).atexit = False

    def ring(self) -> None:
        """Wake the thread."""
        # Full: it has not answered earlier calls yet, so it will wake anyway.
        with suppress(BlockingIOError):
            os.write(self._rope, b"r")

    def heard(self) -> None:
        """Take back all calls so far."""
        with suppress(BlockingIOError):
            while os.read(self.number, 4096):
                pass


def _close_both(first: int, second: int) -> None:
    os.close(first)
    os.close(second)
