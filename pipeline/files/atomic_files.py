"""Files that appear whole or not at all, and checksums by which a change of one bit is found."""

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

# What a file system without hard links says: FAT, some that run in user space.
_NO_LINKS = {errno.EPERM, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}


class Damaged(ValueError):
    """A file of the cache does not hold what was written to it."""


class Changed(Damaged):
    """A sealed file has changed since it was written."""


def done_marker(path: Path) -> Path:
    """The statistics file of a shard's HDF5 file; that it exists says that the shard is
    complete.
    """
    return path.with_suffix(".json")


def move_into_place(part: Path, path: Path, replace: bool = True) -> None:
    """Gives a complete, synced file its name, durably: the name is in the folder's own data.

    Without `replace`, FileExistsError if the name is taken.
    """
    if replace:
        os.replace(part, path)
    else:
        publish(part, path)
    sync_folder(path.parent)


def sync_file(path: Path) -> None:
    """Makes a file's content durable."""
    with open(path, "rb") as file:
        os.fsync(file.fileno())


def sync_folder(path: Path) -> None:
    """Makes changes to the names in a folder durable."""
    folder = os.open(path, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def make_folder(path: Path) -> None:
    """Makes a folder and its parents, durably. OSError if it cannot, or if a file has one of these
    names.
    """
    if path.is_dir():
        return
    if path.parent != path:
        make_folder(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(OSError):  # the parent may be unreadable
        sync_folder(path.parent)


def publish(part: Path, path: Path) -> None:
    """Gives a complete file its name unless that is taken: FileExistsError then.

    A link that a network file system reports as failed may have been made, where the answer was
    lost: the number of the file's names tells.
    """
    try:
        os.link(part, path)
    except OSError as error:
        if error.errno in _NO_LINKS:  # not atomic then, yet never over a file that is there
            if path.exists():
                raise FileExistsError(errno.EEXIST, "there already", str(path)) from None
            os.rename(part, path)
            return
        if os.stat(part).st_nlink < 2:
            raise
    os.unlink(part)


def sha256_of(path: Path, passed: Callable[[int], object] = lambda count: None) -> str:
    """sha256 of a file's bytes, as `sha256sum` prints it. `passed` is told how many have been read,
    again and again.
    """
    digest, buffer, total = hashlib.sha256(), memoryview(bytearray(4 << 20)), 0
    with opened(path) as file:
        while count := file.readinto(buffer):
            total += count
            passed(total)
            digest.update(buffer[:count])
    return digest.hexdigest()


def sync_and_hash(path: Path) -> str:
    """Makes a file's content durable and returns its sha256: the hash reads from memory what the
    disk is still writing.
    """
    with open(path, "rb") as file, ThreadPoolExecutor(1) as other:
        synced = other.submit(os.fsync, file.fileno())
        digest = sha256_of(path)
        synced.result()
    return digest


@contextmanager
def naming_errors(path: Path) -> Iterator[None]:
    """Adds the file's name to an OSError without one, such as that of a write to a full disk or a
    read from a failing one.
    """
    try:
        yield
    except OSError as error:
        if error.errno is None or error.filename is not None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from None


def write_text(path: Path, text: str) -> None:
    """Writes a text file that appears whole or not at all, and removes part files that killed
    writers of it left.
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


_SEAL = b'"seal": "%s"\n}\n'
_ZEROS = _SEAL % (b"0" * 64)


def write_json(
    path: Path, record: Mapping[str, object], claim: str, allow_nan: bool = False
) -> None:
    """Writes a JSON file that appears whole or not at all. ValueError as for `json_part`."""
    with json_part(path, record, claim, allow_nan) as part:
        move_into_place(part, path)


@contextmanager
def json_part(
    path: Path, record: Mapping[str, object], claim: str, allow_nan: bool = False
) -> Iterator[Path]:
    """The part file of a JSON file, synced, so that no full disk keeps it from its name
    (`move_into_place`); removed in the end.

    Its last key, `seal`, is the sha256 of the file as it is with 64 zeros in that place. ValueError
    for a NaN or infinity, for which JSON has no word, unless `allow_nan`: then Python's.
    """
    if "seal" in record:
        raise ValueError(f"{path}: 'seal' is the file's own checksum; name that value otherwise")
    text = (
        json.dumps(
            {**record, "seal": "0" * 64}, indent=1, ensure_ascii=False, allow_nan=allow_nan
        ).encode()
        + b"\n"
    )
    text = text.replace(_ZEROS, _SEAL % hashlib.sha256(text).hexdigest().encode())
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
    """Reads a file of `write_json`.

    Changed if a single bit of it has changed; Damaged if it is sealed and yet no JSON object;
    OSError if it cannot be read.
    """
    with naming_errors(path):
        text = read_small(path)
    body, end = text[: -len(_ZEROS)], text[-len(_ZEROS) :]
    if end != _SEAL % hashlib.sha256(body + _ZEROS).hexdigest().encode():
        raise Changed(
            f"{path}: changed since it was written (its seal does not fit); run `vidgraph verify`"
        )
    return parse_json(text, path)


def parse_json(text: bytes | str, path: Path) -> dict:
    """The JSON object in the text of a file. Damaged for anything else."""
    try:
        record = json.loads(text)
    except (
        ValueError,
        RecursionError,
    ) as error:  # a JSONDecodeError, bytes that are no UTF-8, a number of 5,000 digits
        said = (
            "lists without end in one another"
            if isinstance(error, RecursionError)
            else str(error).split("\n")[0][:120]
        )
        raise Damaged(f"{path}: no JSON ({said})") from None
    if not isinstance(record, dict):
        raise Damaged(f"{path}: holds a JSON {type(record).__name__}, expected an object")
    return record


PIECE = 64 << 20  # bytes summed at once: 32 Ki rows of 1024 words, whose column sums fit 32 bits


def fletcher32(data: np.ndarray) -> int:
    """HDF5's checksum of bytes (uint8, one axis): sums modulo 65535 of big-endian 16-bit words w_i,
    sum2 << 16 | sum1.

    sum1 = Σ w_i and sum2 = Σ (n-i) w_i. Modulo 65535 a word's bytes swap by multiplying it by 256,
    and a 32-bit word counts as the sum of its halves: so little-endian words are summed along the
    rows and columns of a table, without a loop over words.
    """
    columns = 1024
    words, place, total, weighted = (data.size + 1) // 2, 0, 0, 0
    for start in range(0, data.size, PIECE):
        part = data[start : start + PIECE]
        if part.size % (2 * columns):
            part = np.concatenate([part, np.zeros(-part.size % (2 * columns), np.uint8)])
        rows = part.view("<u4").reshape(-1, columns // 2).sum(1, dtype=np.uint64)
        down = part.view("<u2").reshape(-1, columns).sum(0, dtype=np.uint32)
        weights = (words - place - np.arange(len(rows)) * columns) % 65535
        weighted += int((weights * (rows % 65535).astype(np.int64)).sum())
        weighted -= int((np.arange(columns) * (down % 65535).astype(np.int64)).sum())
        total += int(rows.sum())
        place += part.size // 2
    if total == 0:
        return 0
    # A multiple of 65535 that is not 0 ends as 65535 where carries are folded back in, as HDF5
    # does.
    return (weighted * 256 % 65535 or 65535) << 16 | (total * 256 % 65535 or 65535)


def fletcher32_of_rows(table: np.ndarray) -> np.ndarray:
    """`fletcher32` of every row of a table of bytes (uint8 [R,n]); uint32 [R]. For rows of a few
    kilobytes: numpy sums many at once faster than one by one."""
    if table.shape[1] % 2:
        table = np.pad(table, ((0, 0), (0, 1)))
    words = table.view(">u2").astype(np.int64)
    first, second = words.sum(1), words @ np.arange(words.shape[1], 0, -1)
    folded = [np.where(total % 65535, total % 65535, 65535) for total in (first, second)]
    return np.where(first == 0, 0, folded[1] << 16 | folded[0]).astype(np.uint32)
