"""Which clip and which frame a picture's name means."""

import re
from pathlib import PurePosixPath

_WORD = r"(?:frame|image|img|pic|f)"
# 000012, frame_12, img-12: the folder is the clip.
_BARE = re.compile(rf"(?:{_WORD}[_-]?)?(\d+)", re.IGNORECASE)
# clip7_000012, clip7-frame_12: the clip stands before the number.
_BEHIND = re.compile(rf"(.+?)[_-](?:{_WORD}[_-]?)?(\d+)", re.IGNORECASE)
# Endings that a clip's name may have.
VIDEOS = (".mp4", ".webm", ".avi", ".mkv", ".mov")


def clip_and_frame(picture: str) -> tuple[str, int]:
    """Return the clip and the frame number that a picture's name means.

    Args:
        picture: such as "clip7/000012.jpg", "clip7.mp4/frame_12.png" or "clip7_000012.txt"; also
            without an ending.

    Returns:
        The clip, with the folders before it, and the number as it stands in the name.

    Raises:
        ValueError: the name has no number at its end, or no clip before it.
    """
    path = PurePosixPath(picture.replace("\\", "/"))
    stem = path.stem if not path.suffix[1:].isdigit() else path.name
    folder = path.parent.as_posix()
    folder = "" if folder == "." else folder
    bare = _BARE.fullmatch(stem)
    if bare and folder:
        return folder, int(bare[1])
    behind = _BEHIND.fullmatch(stem)
    if behind:
        return (f"{folder}/{behind[1]}" if folder else behind[1]), int(behind[2])
    raise ValueError(
        f"the name {picture!r} says no clip and frame; expected such as clip/000012.jpg or "
        f"clip_000012.jpg"
    )


def short_name(clip: str) -> str:
    """Return the last part of a clip's name, without the ending of a video."""
    name = clip.rstrip("/").rsplit("/", 1)[-1]
    for ending in VIDEOS:
        if name.lower().endswith(ending):
            return name[: -len(ending)]
    return name
