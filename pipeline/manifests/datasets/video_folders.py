"""Find the videos of a data set in one listing of their folder; no file is opened."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import NamedTuple

from pipeline.manifests.datasets.dataset import DatasetClip
from pipeline.manifests.folder_scan import VIDEOS
from pipeline.manifests.manifest import ManifestError


class Media(NamedTuple):
    """A video file or a folder of frames.

    Attributes:
        path: below the folder of the videos.
        is_folder: whether it is a folder of frames.
    """

    path: str
    is_folder: bool

    @property
    def folders(self) -> list[str]:
        """The names of the folders above it."""
        return self.path.split("/")[:-1]


def find_media(folder: str | Path, wanted: Collection[str], depth: int) -> dict[str, list[Media]]:
    """Find videos and folders of frames by their names.

    A million files are one pass over their folders.

    Args:
        folder: the folder of the videos.
        wanted: names of files without the ending, or of folders of frames.
        depth: how many levels of other folders to search; hidden ones are never searched.

    Returns:
        name -> what bears it, for the names that were found.

    Raises:
        ManifestError: there is no such folder.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ManifestError(f"{top}: expected the folder of the videos (--videos); found no folder")
    found: dict[str, list[Media]] = {}
    for name, media in _walk(str(top), "", frozenset(wanted), depth):
        found.setdefault(name, []).append(media)
    return found


def _walk(top: str, base: str, wanted: frozenset[str], depth: int) -> Iterator[tuple[str, Media]]:
    """Yield (name, media) of the wanted names in top/base and below.

    base: "" or a path that ends in "/".
    """
    deeper = []
    with os.scandir(top + "/" + base) as entries:
        for entry in entries:
            stem, ending = os.path.splitext(entry.name)
            if stem in wanted and ending.lower() in VIDEOS:
                yield stem, Media(base + entry.name, False)
            elif entry.name in wanted and entry.is_dir():
                yield entry.name, Media(base + entry.name, True)
            elif depth and not entry.name.startswith(".") and entry.is_dir():
                deeper.append(base + entry.name + "/")
    # The listing is closed by now: a deep tree holds one folder open at a time.
    for below in sorted(deeper):
        yield from _walk(top, below, wanted, depth - 1)


def choose(
    entry: DatasetClip, found: dict[str, list[Media]], folder: str | Path
) -> tuple[str, Media] | None:
    """Choose the video of a clip.

    Args:
        entry: the clip. Its first name that was found counts. Of several videos of that name, the
            one counts whose folders the clip's hints name.
        found: what `find_media` returned.
        folder: the folder of the videos, for messages.

    Returns:
        (name, media), or None if there is no video.

    Raises:
        ManifestError: several videos are left.
    """
    for name in entry.names:
        places = found.get(name, [])
        for hint in entry.hints:
            if len(places) < 2:
                break
            # A hint that none of the folders fits says nothing.
            places = [media for media in places if hint in media.folders] or places
        if len(places) > 1:
            both = " and ".join(sorted(media.path for media in places)[:2])
            raise ManifestError(
                f"{folder}: clip {entry.clip} has {len(places)} videos ({both}); leave one of "
                "them in the folder"
            )
        if places:
            return name, places[0]
    return None
