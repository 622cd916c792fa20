"""Videos, folders and manifests become one list of clips, whatever their names are.

A manifest cannot name every file: control characters and bytes that are not UTF-8 have no place in
it. Such a file is reached through a link.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.manifests.folder_scan import is_folder_of_frames, scan_folder
from pipeline.manifests.manifest import Clip, Manifest, read_manifest, write_manifest, wrong_id
from pipeline.text.printable import visible


@dataclass(frozen=True)
class AskedVideo:
    """A video that a head is asked about.

    Attributes:
        name: for a person: the path as it was given, or the clip's id in a manifest.
        place: its absolute path.
        labels: its classes, where a manifest gives them.
        start, end: seconds in the file; None for its beginning and its end.
        extra: further cells of its row in a manifest.
    """

    name: str
    place: str
    labels: tuple[str, ...] = ()
    start: float | None = None
    end: float | None = None
    extra: dict[str, str] = field(default_factory=dict)


@dataclass
class AskedVideos:
    """All videos that a head is asked about.

    Attributes:
        manifest: their clips, of split test, without labels.
        of_clip: clip id -> the video.
        remarks: what was left out, one line each.
    """

    manifest: Manifest
    of_clip: dict[str, AskedVideo]
    remarks: list[str]


def find_videos(
    paths: Sequence[str | Path], folder: Path, root: str | Path | None = None
) -> AskedVideos:
    """List the videos that paths stand for.

    Args:
        paths: videos, folders of videos, folders of frames, and manifests (.csv).
        folder: where a manifest of them is written, and links to files of odd names.
        root: the folder that the paths in manifests start from; None: each manifest's own.

    Returns:
        The videos. One that is named twice is listed once.

    Raises:
        ValueError: no path, or one that leads to nothing.
    """
    remarks: list[str] = []
    found: dict[tuple, AskedVideo] = {}
    for path in paths:
        for video in _videos_of(Path(path), root, remarks):
            found.setdefault((video.place, video.start, video.end), video)
    if not found:
        raise ValueError("expected at least one video, folder or manifest, got none")
    return list_videos(list(found.values()), folder, remarks)


def list_videos(
    videos: Sequence[AskedVideo], folder: Path, remarks: Sequence[str] = ()
) -> AskedVideos:
    """Write a manifest of videos, wherever they lie.

    Args:
        videos: at least one.
        folder: where the manifest is written, and links to files of odd names.
        remarks: for the result.

    Returns:
        The videos. A clip has the video's name as its id, if it can be one and no other has it.
    """
    columns: set[str] = set()
    for video in videos:
        columns.update(video.extra)
    of_clip: dict[str, AskedVideo] = {}
    rows = []
    for video in videos:
        clip = _free_id(video.name, of_clip)
        of_clip[clip] = video
        rows.append(
            {
                "clip": clip,
                "path": _nameable(video.place, folder, len(rows)),
                "split": "test",
                "label": "",
                "start": video.start,
                "end": video.end,
                **{name: video.extra.get(name, "") for name in sorted(columns)},
            }
        )
    # Below "/" lies every file, so that no path leaves the root.
    manifest = write_manifest(folder / "videos.csv", rows, root="/")
    return AskedVideos(manifest, of_clip, list(remarks))


def _videos_of(path: Path, root: str | Path | None, remarks: list[str]) -> Iterator[AskedVideo]:
    """Yield the videos that one path stands for."""
    if not path.exists():
        raise ValueError(
            f"{path}: there is no such file; expected a video, a folder, or a manifest (.csv)"
        )
    if path.is_dir() and not is_folder_of_frames(path):
        scan = scan_folder(path, "hash", 0, 0)
        remarks += [f"{path}: {line}" for line in scan.about_ignored().splitlines()]
        for row in scan.rows:
            yield _video_at(path / row["path"])
    elif path.is_file() and path.suffix.lower() == ".csv":
        for clip in read_manifest(path, root).clips:
            yield video_of(clip)
    else:
        yield _video_at(path)


def _video_at(path: Path) -> AskedVideo:
    # The file's own name may be a link to one without an ending.
    place = os.path.join(os.path.realpath(path.parent), path.name)
    return AskedVideo(visible(str(path)), place)


def video_of(clip: Clip) -> AskedVideo:
    """Return the video of a clip of a manifest."""
    return AskedVideo(clip.clip, clip.place, clip.labels, clip.start, clip.end, dict(clip.extra))


def _free_id(name: str, taken: dict[str, AskedVideo]) -> str:
    """A clip id: the name, if it can be one and is free."""
    if not wrong_id(name) and name not in taken:
        return name
    number = len(taken) + 1
    while f"video {number}" in taken:
        number += 1
    return f"video {number}"


def _nameable(place: str, folder: Path, number: int) -> str:
    """The path itself, or that of a link to it if a manifest cannot hold it."""
    # Bytes that are not UTF-8 are not printable either.
    if place.isprintable():
        return place
    ending = os.path.splitext(place)[1]
    link = folder / "links" / f"{number}{ending if ending.isprintable() else ''}"
    link.parent.mkdir(exist_ok=True)
    link.symlink_to(place)
    return str(link)
