"""What a clip's video was when it was extracted, so that a later run notices one that has changed
since.

A shard's statistics have a mark for each of its clips: "SIZE MODIFIED DIGEST", bytes, nanoseconds
since 1970, and the first 16 digits of the sha256 of the file's first and last ENDS bytes, which
hold a container's index; "" where nobody knows. Of a folder of frames: 0, and the sha256 of the
names. A copy of another date has the same digest: it has not changed.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.manifests.manifest import Clip

ENDS = 64 << 10


def mark_video(path: Path) -> str:
    """The mark of a video as it is now; "" if it cannot be read."""
    try:
        size, modified = _size_and_date(path)
        return f"{size} {modified} {_digest(path)}"
    except OSError:
        return ""


def changed_videos(record: Mapping, clips: Sequence[Clip]) -> list[int]:
    """The clips, by place in their shard, whose videos are others than its statistics say.

    Not those whose videos are gone, or that have no mark: nothing can be said of them. Costs an
    `os.stat` per clip, and where size and date do not tell, a look into the file.
    """
    marks = record.get("videos", ())
    return [
        place
        for place, (mark, clip) in enumerate(zip(marks, clips, strict=False))
        if mark and _changed(clip.place, mark)
    ]


def _changed(path: str, mark: str) -> bool:
    size, modified, digest = mark.split()
    try:
        now = _size_and_date(path)
        return now != (int(size), int(modified)) and (
            now[0] != int(size) or _digest(Path(path)) != digest
        )
    except OSError:
        return False


def _size_and_date(path: str | Path) -> tuple[int, int]:
    found = os.stat(path)
    return 0 if stat.S_ISDIR(found.st_mode) else found.st_size, found.st_mtime_ns


def _digest(path: Path) -> str:
    if path.is_dir():
        data = "\n".join(sorted(os.listdir(path))).encode()
    else:
        with open(path, "rb", buffering=0) as file:
            data = file.read(ENDS)
            file.seek(max(file.tell(), os.fstat(file.fileno()).st_size - ENDS))
            data += file.read(ENDS)
    return hashlib.sha256(data).hexdigest()[:16]
