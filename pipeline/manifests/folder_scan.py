"""A folder of videos becomes rows of a manifest.

Classes come from sub-folders. Splits come from sub-folders, are drawn class by class, or follow
from a hash of the path.
"""

import hashlib
import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from pipeline.manifests.manifest import (
    ID_BYTES,
    SPLIT_ALIASES,
    SPLITS,
    ManifestError,
    foreign_path,
    wrong_id,
)
from pipeline.manifests.splits import draw_parts
from pipeline.text.counted import counted
from pipeline.views.stateless_random import Draws

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = frozenset(
    {
        *(".3gp", ".asf", ".avi", ".flv", ".gif", ".m2ts", ".m4v", ".mkv", ".mov", ".mp4"),
        *(".mpeg", ".mpg", ".mts", ".ogv", ".ts", ".vob", ".webm", ".wmv"),
    }
)
SPLIT_BY = ("auto", "folders", "class", "hash")

_LINKS_ADVICE = (
    "links that lead out of the folder, to a folder or to nothing are not followed; copy the "
    "files or link them hard (cp -rL, cp -rlL), or give a folder that holds the files themselves"
)


@dataclass
class FolderScan:
    """What lies in a folder.

    Attributes:
        rows: rows for `write_manifest`, with paths relative to the folder, in the order of names.
        ignored: what is neither a video nor a folder of frames, or cannot be named in a manifest.
        links: links that are not followed.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def about_ignored(self) -> str:
        """Return one line about ignored files and one about links; "" if there are none."""
        lines = []
        if self.ignored:
            what = "ignored, neither a video nor a folder of frames"
            lines.append(f"{len(self.ignored):,} {what}: {_some(self.ignored)}")
        if self.links:
            what = f"links ignored ({_some(self.links)})"
            lines.append(f"{len(self.links):,} {what}: {_LINKS_ADVICE}")
        return "\n".join(lines)


def scan_folder(
    folder: str | Path, split_by: str = "auto", val: float = 0.1, test: float = 0.1, seed: int = 0
) -> FolderScan:
    """Make rows for every video and every folder of images below a folder.

    The layout is FOLDER/CLASS/... or FOLDER/SPLIT/CLASS/...: the class is the first folder, below
    the split's. A video beside the classes has none. The clip id is the path with the file's
    ending, so it does not depend on other files. A path too long for an id is cut, and a digest
    follows.

    Args:
        folder: the folder.
        split_by: where splits come from. "folders": folders named train, val, test (or training,
            validation, ...), which must be there. "class": drawn so that every class has its
            shares of val and test. "hash": a hash of (seed, path without the ending), so clips that
            are added later move no other. "auto": folders if there are any, else "class".
        val: share of the clips that "class" and "hash" put into val, from 0 to 1.
        test: share of the clips that "class" and "hash" put into test, from 0 to 1.
        seed: seed of "class" and "hash".

    Returns:
        The rows, and what was left out.

    Raises:
        ManifestError: nothing is found, or only some of the folders are named after splits.
        ValueError: an option has another value.
    """
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by: expected one of {', '.join(SPLIT_BY)}, got {split_by!r}")
    # Written this way round, the condition refuses NaN too.
    if not (val >= 0 and test >= 0 and val + test <= 1):
        raise ValueError(
            f"expected shares val and test from 0, together at most 1; got {val} and {test}"
        )

    folder = Path(folder).resolve()
    scan = FolderScan()
    paths = _find_clips(folder, scan)
    by_folder = False
    if split_by in ("auto", "folders"):
        by_folder = _has_split_folders(folder, paths, required=split_by == "folders")

    ids: set[str] = set()
    for path in paths:
        clip = id_of(path)
        # Such as "%20a.mp4" beside " a.mp4".
        if clip in ids:
            scan.ignored.append(f"{path} (its id {clip!r} is that of another file)")
            continue
        split, class_folders = "", path.split("/")[:-1]
        if by_folder:
            split = _split_of(path)
            class_folders = class_folders[1:]
        elif split_by == "hash":
            split = _hashed_split(_without_ending(path), val, test, seed)
        label = class_folders[0] if class_folders else ""
        if ";" in label:
            advice = f"';' separates classes in a manifest: rename the folder {label!r}"
            scan.ignored.append(f"{path} ({advice})")
            continue
        ids.add(clip)
        scan.rows.append({"clip": clip, "path": path, "split": split, "label": label})

    if not scan.rows:
        raise ManifestError(f"{folder}: no video that a manifest can name: {_some(scan.ignored)}")
    if not by_folder and split_by != "hash":
        _draw_splits(scan.rows, val, test, seed)
    return scan


def is_folder_of_frames(folder: str | Path) -> bool:
    """Return whether a folder is itself one clip: it has pictures, and no video below it.

    Args:
        folder: the folder.
    """
    first = next(_walk(Path(folder).resolve(), "", FolderScan()), None)
    return first == ""


def _find_clips(folder: Path, scan: FolderScan) -> list[str]:
    """Return the paths of all clips that a manifest can name. ManifestError if there is none."""
    if not folder.is_dir():
        raise ManifestError(f"{folder}: expected a folder of videos; there is none of this name")
    paths = []
    for path in _walk(folder, "", scan):
        if _fits(path, scan.ignored):
            paths.append(path)

    if not paths and scan.links:
        links = f"{counted(len(scan.links), 'link')} ({_some(scan.links)})"
        raise ManifestError(f"{folder}: no video below it but {links}: {_LINKS_ADVICE}")
    if not paths:
        content = f"which holds {_some(scan.ignored)}" if scan.ignored else "which is empty"
        raise ManifestError(
            f"{folder}: no video and no folder of images below it, {content}; expected "
            "FOLDER/CLASS/VIDEO"
        )
    if paths == [""]:
        raise ManifestError(f"{folder} is itself one folder of frames; give the folder above it")
    return paths


def _walk(top: Path, base: str, scan: FolderScan) -> Iterator[str]:
    """Yield paths, relative to `top`, of the clips in its sub-folder `base`.

    base: "" or a path that ends in "/".
    """
    try:
        # In the order of names, so that the same folder gives the same manifest everywhere.
        entries = sorted(os.scandir(top / base), key=lambda entry: entry.name)
    except OSError as error:
        # Without the top folder there is nothing to list; without another, the rest remains.
        if not base:
            raise
        scan.ignored.append(f"{base} (cannot be read: {error.strerror})")
        return

    has_clips, images = False, []
    for entry in entries:
        path = base + entry.name
        suffix = os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            scan.ignored.append(path)
        elif entry.is_symlink() and not _link_stays(top, entry):
            scan.links.append(f"{path} -> {os.readlink(entry.path)}")
        elif entry.is_dir():
            for clip in _walk(top, path + "/", scan):
                has_clips = True
                yield clip
        elif suffix in VIDEOS:
            has_clips = True
            yield path
        elif suffix in PICTURES:
            images.append(path)
        else:
            scan.ignored.append(path)

    # Images beside videos are thumbnails; images alone are frames.
    if has_clips:
        scan.ignored += images
    elif images:
        yield base.rstrip("/")


def _link_stays(top: Path, entry: os.DirEntry) -> bool:
    """Return whether a link leads to a file below `top`.

    A file elsewhere could not be opened later. A link to a folder could lead in a circle.
    """
    # Path.resolve raises where a link leads to itself.
    target = Path(os.path.realpath(entry.path))
    return target.is_file() and target.is_relative_to(top)


def _fits(path: str, ignored: list[str]) -> bool:
    """Return whether a manifest can name the path; if not, report it in `ignored`."""
    try:
        path.encode()
    except UnicodeEncodeError:
        ignored.append(f"{path!a} ({_not_utf8(path)})")
        return False
    if path and wrong_id(id_of(path)):
        ignored.append(ascii(path[:60]) + " (its name has control characters)")
        return False
    foreign = foreign_path(path)
    if foreign:
        ignored.append(f"{path[:60]} (its name reads like {foreign.partition(';')[0]})")
        return False
    return True


def id_of(path: str) -> str:
    """Return the clip id of a path: the path itself, with %20 for blanks at its ends.

    A path that is too long for an id is cut, and a digest of the whole follows.

    Args:
        path: relative to the folder of the videos.
    """
    inner = path.strip()
    clip = path
    if inner != path:
        before = path[: len(path) - len(path.lstrip())]
        after = path[len(path.rstrip()) :]
        clip = quote(before) + inner + quote(after)

    # Surrogates stand for bytes that are not UTF-8; such a path is refused later, by name.
    data = clip.encode(errors="surrogateescape")
    if len(data) <= ID_BYTES:
        return clip
    # The digest keeps two long paths with the same beginning apart.
    mark = "~" + hashlib.blake2b(data, digest_size=8).hexdigest()
    return data[: ID_BYTES - len(mark)].decode(errors="ignore") + mark


def _not_utf8(path: str) -> str:
    """Say why a path cannot be decoded: its own bytes, or the encoding of Python's locale."""
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    return f"its name is UTF-8, but the locale says {sys.getfilesystemencoding()}: set PYTHONUTF8=1"


def _without_ending(path: str) -> str:
    """Return the path of a video without its ending; of a folder of frames, the path itself."""
    stem, ending = os.path.splitext(path)
    return stem if ending.lower() in VIDEOS else path


def _split_of(path: str) -> str:
    """Return the split that the path's first folder is named after; "" if it is none."""
    first, below, _ = path.partition("/")
    name = SPLIT_ALIASES.get(first.lower(), first.lower())
    return name if below and name in SPLITS else ""


def _has_split_folders(folder: Path, paths: list[str], required: bool) -> bool:
    """Return whether every clip lies in a folder named after a split.

    Only some of them is an error, because a class may be called "train" too.
    """
    named, others = set(), set()
    for path in paths:
        first = path.partition("/")[0]
        if _split_of(path):
            named.add(first)
        else:
            others.add(first)
    others -= named
    if others and (named or required):
        raise ManifestError(
            f"{folder}: expected every clip in a folder named {', '.join(SPLITS)}; "
            f"{min(others)!r} is beside them. Move it, or draw the splits with --split-by hash"
        )
    return not others


def _draw_splits(rows: list[dict[str, str]], val: float, test: float, seed: int) -> None:
    """Set the split of rows, so that every class has its shares."""
    # Where a class has two clips, one of them is for the test.
    wanted = {"train": 1 - val - test, "test": test, "val": val}
    shares = {split: share for split, share in wanted.items() if share > 1e-9}
    labels = [tuple(filter(None, [row["label"]])) for row in rows]
    names = [_without_ending(row["path"]) for row in rows]
    for row, split in zip(rows, draw_parts(labels, names, shares, seed), strict=True):
        row["split"] = split


def _hashed_split(clip: str, val: float, test: float, seed: int) -> str:
    # Each clip has a stream of its own, so its split does not depend on the other clips.
    number = Draws(seed, clip, "split").uniform()
    if number < test:
        return "test"
    if number < test + val:
        return "val"
    return "train"


def _some(names: list[str], shown: int = 3) -> str:
    """Return the first few names, and how many more there are."""
    listed = []
    for name in names[:shown]:
        listed.append(name if name.isprintable() else ascii(name))
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(listed) + more
