"""Where the videos of a dataset lie: one listing of their folder, no look at any file."""

import os
from collections.abc import Collection, Iterator
from pathlib import Path

from pipeline.manifests.datasets.dataset import DatasetClip
from pipeline.manifests.folder_scan import VIDEOS
from pipeline.manifests.manifest import ManifestError


def find_media(
    folder: str | Path, wanted: Collection[str], depth: int
) -> dict[str, list[tuple[str, bool]]]:
    """name -> [(path below `folder`, whether it is a folder of frames)] for the names of `wanted`
    that are there.

    A video's name is its file's without the ending. Folders called otherwise are searched, `depth`
    levels deep; hidden ones are not. A million files are one pass over their folders, and none of
    them is opened.
    """
    top = Path(folder)
    if not top.is_dir():
        raise ManifestError(f"{top}: expected the folder of the videos (--videos); found no folder")
    found: dict[str, list[tuple[str, bool]]] = {}
    for name, path, frames in _walk(str(top), "", frozenset(wanted), depth):
        found.setdefault(name, []).append((path, frames))
    return found


def _walk(
    top: str, base: str, wanted: frozenset[str], depth: int
) -> Iterator[tuple[str, str, bool]]:
    """(name, path, whether a folder) of what is called like one of `wanted` in top/base ("" or
    ending in "/") and below.
    """
    deeper = []
    with os.scandir(top + "/" + base) as entries:
        for entry in entries:
            stem, ending = os.path.splitext(entry.name)
            if stem in wanted and ending.lower() in VIDEOS:
                yield stem, base + entry.name, False
            elif entry.name in wanted and entry.is_dir():
                yield entry.name, base + entry.name, True
            elif depth and not entry.name.startswith(".") and entry.is_dir():
                deeper.append(base + entry.name + "/")
    for below in sorted(deeper):
        yield from _walk(top, below, wanted, depth - 1)


def choose(
    entry: DatasetClip, found: dict[str, list[tuple[str, bool]]], folder: str | Path
) -> tuple[str, str, bool] | None:
    """(name, path, whether a folder of frames) of the entry's media, None if it is not there.

    Of several of one name, the one whose folders the entry's hints name; ManifestError if that
    leaves more than one.
    """
    for name in entry.names:
        places = found.get(name, ())
        for hint in entry.hints if len(places) > 1 else ():
            places = [place for place in places if hint in place[0].split("/")[:-1]] or places
        if len(places) > 1:
            both = " and ".join(path for path, _ in sorted(places)[:2])
            raise ManifestError(
                f"{folder}: clip {entry.clip} is there {len(places)} times ({both}); leave one of "
                f"them in the folder"
            )
        if places:
            return name, *places[0]
    return None
