"""Recognise a video that changed after its features were extracted.

The record of a shard has a mark for each of its clips, "SIZE MODIFIED DIGEST":

- SIZE: bytes of the file; 0 for a folder of pictures;
- MODIFIED: its modification time, nanoseconds since 1970;
- DIGEST: the first 16 hex digits of a sha256. Of a file, it covers the first and last ENDS bytes,
  which hold a container's index. Of a folder, it covers the names in it.

The mark is "" where it is unknown. A copy with another date has the same digest: it counts as
unchanged.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.manifests.manifest import Clip

# Bytes at each end of a file that its digest covers.
ENDS = 64 << 10


def mark_video(path: Path) -> str:
    """Return the mark of a video as it is now, "" if it cannot be read.

    Args:
        path: a video file, or a folder of pictures.
    """
    try:
        size, modified = _size_and_date(path)
        return f"{size} {modified} {_digest(path)}"
    except OSError:
        return ""


def changed_videos(record: Mapping, clips: Sequence[Clip]) -> list[int]:
    """Find the clips of a shard whose videos changed after extraction.

    Videos that are gone, or that have no mark, are left out. Costs one `os.stat` per clip, and a
    look into the file where size or date differ.

    Args:
        record: the record of the shard; "videos" has a mark per clip.
        clips: the clips of the shard.

    Returns:
        Positions in `clips`.
    """
    changed = []
    marks = record.get("videos", ())
    for position, (mark, clip) in enumerate(zip(marks, clips, strict=False)):
        if mark and _changed(clip.place, mark):
            changed.append(position)
    return changed


def same_video(mark: str, other: str) -> bool:
    """Return whether two marks may be those of one video.

    Args:
        mark: a mark; "" if it is unknown.
        other: another.

    Returns:
        Whether size and digest agree, whatever the dates, or one of them is unknown.
    """
    if not mark or not other:
        return True
    size, _, digest = mark.split()
    return [size, digest] == [other.split()[0], other.split()[2]]


def _changed(path: str, mark: str) -> bool:
    size, modified, digest = mark.split()
    try:
        size_now, modified_now = _size_and_date(path)
        if (size_now, modified_now) == (int(size), int(modified)):
            return False
        return size_now != int(size) or _digest(Path(path)) != digest
    except OSError:
        return False


def _size_and_date(path: str | Path) -> tuple[int, int]:
    status = os.stat(path)
    size = 0 if stat.S_ISDIR(status.st_mode) else status.st_size
    return size, status.st_mtime_ns


def _digest(path: Path) -> str:
    if path.is_dir():
        data = "\n".join(sorted(os.listdir(path))).encode()
    else:
        with open(path, "rb", buffering=0) as file:
            data = file.read(ENDS)
            # A file shorter than both ends together has no byte twice.
            file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - ENDS))
            data += file.read(ENDS)
    return hashlib.sha256(data).hexdigest()[:16]
