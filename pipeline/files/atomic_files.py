"""Files that appear whole or not at all, and checksums that find a change of one bit.

A file is written under another name (`owners.part_path`), synced, and renamed. A JSON file also
holds a seal: the checksum of its own bytes.
"""

import errno
import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import numpy as np

from pipeline.files.owners import new_claim_name, part_path, remove_abandoned_of
from pipeline.files.regular_files import opened, read_small

# Errors of a file system without hard links: FAT, and some that run in user space.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}

# The end of a sealed JSON file, and how it looks while its checksum is computed.
_SEAL = b'"seal": "%s"\n}\n'
_ZEROS = _SEAL % (b"0" * 64)

# Bytes that `fletcher32` sums at once: 32 Ki rows of 1024 words, whose column sums fit 32 bits.
PIECE = 64 << 20


class Damaged(ValueError):
    """A file of the cache does not contain what was written to it."""


class Changed(Damaged):
    """A sealed file has changed since it was written."""


def done_marker(path: Path) -> Path:
    """Return the statistics file of a shard; the shard is complete if this file exists.

    Args:
        path: the shard's HDF5 file, such as features/00000.h5.
    """
    return path.with_suffix(".json")


def move_into_place(part: Path, path: Path, replace: bool = True) -> None:
    """Give a complete, synced file its final name, and make the name durable.

    Args:
        part: the file under the name that it was written with.
        path: the final name, in the same folder.
        replace: replace a file of that name.

    Raises:
        FileExistsError: the name is taken and `replace` is false.
    """
    if replace:
        os.replace(part, path)
    else:
        publish(part, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Make the content of a file durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Make new, changed and removed names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(path: Path) -> None:
    """Make a folder and its parents, durably.

    Raises:
        OSError: it cannot be made, or a file has one of these names.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(exist_ok=True)

    # The parent may be unreadable, and so impossible to sync.
    with suppress(OSError):
        sync_folder(path.parent)


def publish(part: Path, path: Path) -> None:
    """Give a complete file its final name unless that name is taken.

    Raises:
        FileExistsError: the name is taken.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno in _NO_LINKS:
            # This is not atomic, but it never replaces a file that exists by now.
            if path.exists():
                raise FileExistsError(errno.EEXIST, "there already", str(path)) from None
            os.rename(part, path)
            return
        # A network file system may have made the link and lost the answer. Then the file has
        # two names.
        if os.stat(part).st_nlink < 2:
            raise
    os.unlink(part)


def sha256_of(path: Path, progress: Callable[[int], object] = lambda count: None) -> str:
    """Return the sha256 of a file, as `sha256sum` prints it.

    Args:
        path: the file.
        progress: called after each piece with the number of bytes read so far.
    """
    digest = hashlib.sha256()
    buffer = memoryview(bytearray(4 << 20))
    total = 0
    with opened(path) as file:
        while count := file.readinto(buffer):
            total += count
            progress(total)
            digest.update(buffer[:count])
    return digest.hexdigest()


def sync_and_hash(path: Path) -> str:
    """Make the content of a file durable and return its sha256.

    Both run at once: the hash reads from memory what the disk is still writing.
    """
    with open(path, "rb") as file, ThreadPoolExecutor(1) as executor:
        synced = executor.submit(os.fsync, file.fileno())
        digest = sha256_of(path)
        synced.result()
    return digest


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError without one, such as that of a write to a full disk."""
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Write a text file that appears whole or not at all.

    It also removes part files that killed writers of this file left.

    Args:
        path: the file; it is replaced if it exists.
        text: its content, written as UTF-8.
    """
    remove_abandoned_of(path)
    part = part_path(path, new_claim_name())
    try:
        with naming_errors(path), open(part, "w", encoding="utf-8", newline="") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def write_json(
    path: Path, record: Mapping[str, object], claim: str, allow_nan: bool = False
) -> None:
    """Write a sealed JSON file that appears whole or not at all.

    Args:
        path: the file; it is replaced if it exists.
        record: its content.
        claim: name of the writer's claim, for the part file (see `owners`).
        allow_nan: write NaN and infinity as Python does; JSON has no word for them.

    Raises:
        ValueError: see `json_part`.
    """
    with json_part(path, record, claim, allow_nan) as part:
        move_into_place(part, path)


@contextmanager
def json_part(
    path: Path, record: Mapping[str, object], claim: str, allow_nan: bool = False
) -> Iterator[Path]:
    """Write the part file of a sealed JSON file, and remove it in the end.

    The part file is complete and synced, so a full disk cannot prevent `move_into_place`. Its
    last key, `seal`, is the sha256 of the file with 64 zeros in place of the seal.

    Args:
        path: the file that the part file is for.
        record: its content.
        claim: name of the writer's claim.
        allow_nan: write NaN and infinity as Python does.

    Yields:
        The part file.

    Raises:
        ValueError: `record` has a key `seal`, or a NaN or infinity without `allow_nan`.
    """
    if "seal" in record:
        raise ValueError(f"{path}: 'seal' is the file's own checksum; name that value otherwise")

    sealed = {**record, "seal": "0" * 64}
    text = json.dumps(sealed, indent=1, ensure_ascii=False, allow_nan=allow_nan).encode() + b"\n"
    digest = hashlib.sha256(text).hexdigest()
    text = text.replace(_ZEROS, _SEAL % digest.encode())

    part = part_path(path, claim)
    try:
        with naming_errors(path), open(part, "wb") as file:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
        yield part
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict:
    """Read a file of `write_json`.

    Args:
        path: the file.

    Returns:
        The record, with its `seal`.

    Raises:
        Changed: one bit or more has changed since the file was written.
        Damaged: the seal fits, but the file is not a JSON object.
        OSError: the file cannot be read.
    """
    with naming_errors(path):
        text = read_small(path)
    body, end = text[: -len(_ZEROS)], text[-len(_ZEROS) :]
    digest = hashlib.sha256(body + _ZEROS).hexdigest()
    if end != _SEAL % digest.encode():
        raise Changed(
            f"{path}: changed since it was written (its seal does not fit); run `vidgraph verify`"
        )
    return parse_json(text, path)


def parse_json(text: bytes | str, path: Path) -> dict:
    """Parse the JSON object in the text of a file.

    Raises:
        Damaged: the text is not JSON, or no object.
    """
    try:
        record = json.loads(text)
    except RecursionError:
        raise Damaged(f"{path}: not JSON (nested too deeply)") from None
    except ValueError as error:
        # A JSONDecodeError, bytes that are not UTF-8, or a number of 5,000 digits.
        reason = str(error).split("\n")[0][:120]
        raise Damaged(f"{path}: not JSON ({reason})") from None
    if not isinstance(record, dict):
        raise Damaged(f"{path}: holds a JSON {type(record).__name__}, expected an object")
    return record


def fletcher32(data: np.ndarray) -> int:
    """Return HDF5's checksum of bytes.

    With the n big-endian 16-bit words w_i: sum1 = Σ w_i and sum2 = Σ (n-i) w_i, both modulo 65535;
    the checksum is sum2 << 16 | sum1.

    Modulo 65535, multiplying a word by 256 swaps its bytes, and a 32-bit word counts as the sum
    of its halves. So little-endian words are summed along the rows and columns of a table, and
    no loop runs over words.

    Args:
        data: uint8, one axis.
    """
    columns = 1024
    words = (data.size + 1) // 2
    place, total, weighted = 0, 0, 0
    for start in range(0, data.size, PIECE):
        part = data[start : start + PIECE]
        if part.size % (2 * columns):
            part = np.concatenate([part, np.zeros(-part.size % (2 * columns), np.uint8)])
        rows = part.view("<u4").reshape(-1, columns // 2).sum(1, dtype=np.uint64)
        down = part.view("<u2").reshape(-1, columns).sum(0, dtype=np.uint32)

        # A word in row r, column c has weight (words - place - r·columns) - c.
        weights = (words - place - np.arange(len(rows)) * columns) % 65535
        weighted += int((weights * (rows % 65535).astype(np.int64)).sum())
        weighted -= int((np.arange(columns) * (down % 65535).astype(np.int64)).sum())
        total += int(rows.sum())
        place += part.size // 2
    if total == 0:
        return 0

    # HDF5 folds carries back in, which turns a multiple of 65535 other than 0 into 65535.
    return (weighted * 256 % 65535 or 65535) << 16 | (total * 256 % 65535 or 65535)


def fletcher32_of_rows(table: np.ndarray) -> np.ndarray:
    """Return `fletcher32` of every row of a table.

    For rows of a few kilobytes numpy sums many at once faster than one by one.

    Args:
        table: uint8 [R,n].

    Returns:
        uint32 [R].
    """
    if table.shape[1] % 2:
        table = np.pad(table, ((0, 0), (0, 1)))
    words = table.view(">u2").astype(np.int64)
    first = words.sum(1)
    second = words @ np.arange(words.shape[1], 0, -1)

    folded = [np.where(total % 65535, total % 65535, 65535) for total in (first, second)]
    return np.where(first == 0, 0, folded[1] << 16 | folded[0]).astype(np.uint32)
