"""A folder of videos -> rows of a manifest: classes and splits from the sub-folders, or splits from
a hash of the path.
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
from pipeline.views.stateless_random import Draws

PICTURES = (".jpg", ".jpeg", ".png", ".webp", ".bmp")
VIDEOS = frozenset(
    {
        ".3gp",
        ".avi",
        ".flv",
        ".m4v",
        ".mkv",
        ".mov",
        ".mp4",
        ".mpeg",
        ".mpg",
        ".ogv",
        ".webm",
        ".wmv",
    }
)
LINKS = (
    "links that lead out of the folder, to a folder or to nothing are not followed; copy the "
    "files or link them hard "
    "(cp -rL, cp -rlL), or give a folder that holds the files themselves"
)
SPLIT_BY = ("auto", "folders", "hash")


@dataclass
class FolderScan:
    """What lies in a folder.

    `rows` are for write_manifest, with paths relative to the folder, in the order of their names.
    `ignored` is what is neither a video nor a folder of frames, or cannot be named in a manifest;
    `links` are links that are not followed.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    links: list[str] = field(default_factory=list)

    def about_ignored(self) -> str:
        """One line about ignored files and one about links; "" if there are none."""
        said = []
        if self.ignored:
            said.append(
                f"{len(self.ignored):,} ignored, neither a video nor a folder of frames: "
                f"{_some(self.ignored)}"
            )
        if self.links:
            said.append(f"{len(self.links):,} links ignored ({_some(self.links)}): {LINKS}")
        return "\n".join(said)


def scan_folder(
    folder: str | Path, split_by: str = "auto", val: float = 0.1, test: float = 0.1, seed: int = 0
) -> FolderScan:
    """Rows for every video and every folder of images below `folder`.

    FOLDER/CLASS/... or FOLDER/SPLIT/CLASS/...: the class is the first folder (below the split's),
    none for what lies beside the classes. The clip id is the path with the file's ending, so it
    does not depend on other files (cut, with a digest, where it is too long for an id). `split_by`:
    "folders" demands split folders (train, val, test and the usual other spellings), "hash" sends
    shares `val` and `test` of the clips there by a hash of (seed, path without the ending), so that
    clips added later move no other; "auto" takes folders where there are any. ManifestError if
    nothing is found, or if only some of the folders are named after splits.
    """
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by: expected one of {', '.join(SPLIT_BY)}, got {split_by!r}")
    if not (val >= 0 and test >= 0 and val + test <= 1):  # said so, NaN is refused too
        raise ValueError(
            f"expected shares val and test from 0, together at most 1; got {val} and {test}"
        )
    folder, scan = Path(folder).resolve(), FolderScan()
    if not folder.is_dir():
        raise ManifestError(f"{folder}: expected a folder of videos; there is none of this name")
    paths = [path for path in _clips(folder, "", scan) if _fits(path, scan.ignored)]
    if not paths and scan.links:
        raise ManifestError(
            f"{folder}: no video below it but {len(scan.links):,} links ({_some(scan.links)}): "
            f"{LINKS}"
        )
    if not paths:
        held = f", which holds {_some(scan.ignored)}" if scan.ignored else ", which is empty"
        raise ManifestError(
            f"{folder}: no video and no folder of images below it{held}; expected "
            f"FOLDER/CLASS/VIDEO"
        )
    if paths == [""]:
        raise ManifestError(f"{folder} is itself one folder of frames; give the folder above it")
    by_folder = split_by != "hash" and _has_split_folders(
        folder, paths, required=split_by == "folders"
    )
    ids: set[str] = set()
    for path in paths:
        clip = _id_of(path)
        if clip in ids:  # "%20a.mp4" beside " a.mp4"
            scan.ignored.append(f"{path} (its id {clip!r} is that of another file)")
            continue
        split = (
            _split_of(path) if by_folder else _drawn_split(_without_ending(path), val, test, seed)
        )
        classes = path.split("/")[1 if by_folder else 0 : -1]
        label = classes[0] if classes else ""
        if ";" in label:
            scan.ignored.append(
                f"{path} (';' separates classes in a manifest: rename the folder {label!r})"
            )
            continue
        ids.add(clip)
        scan.rows.append({"clip": clip, "path": path, "split": split, "label": label})
    if not scan.rows:
        raise ManifestError(f"{folder}: no video that a manifest can name: {_some(scan.ignored)}")
    return scan


def _clips(top: Path, base: str, scan: FolderScan) -> Iterator[str]:
    """Paths, relative to `top`, of the clips in its sub-folder `base` ("" or ending in "/")."""
    found, images = False, []
    try:
        entries = sorted(os.scandir(top / base), key=lambda entry: entry.name)
    except OSError as error:
        if not base:
            raise
        scan.ignored.append(f"{base} (cannot be read: {error.strerror})")
        return
    for entry in entries:
        path, suffix = base + entry.name, os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith("."):
            scan.ignored.append(path)
        elif entry.is_symlink() and not _link_stays(top, entry):
            scan.links.append(f"{path} -> {os.readlink(entry.path)}")
        elif entry.is_dir():
            for clip in _clips(top, path + "/", scan):
                found = True
                yield clip
        elif suffix in VIDEOS:
            found = True
            yield path
        elif suffix in PICTURES:
            images.append(path)
        else:
            scan.ignored.append(path)
    if found:
        scan.ignored += images
    elif images:
        yield base.rstrip("/")


def _link_stays(top: Path, entry: os.DirEntry) -> bool:
    """Whether a link leads to a file below `top`: one out of it could not be opened, one to a
    folder could lead in a circle.
    """
    target = Path(os.path.realpath(entry.path))  # Path.resolve raises where a link leads to itself
    return target.is_file() and target.is_relative_to(top)


def _fits(path: str, ignored: list[str]) -> bool:
    """Whether a manifest can name the path; a file that no text names is reported, not fatal."""
    try:
        path.encode()
    except UnicodeEncodeError:
        ignored.append(f"{path!a} ({_not_utf8(path)})")
        return False
    if path and wrong_id(_id_of(path)):
        ignored.append(ascii(path[:60]) + " (its name has control characters)")
        return False
    if foreign_path(path):
        ignored.append(f"{path[:60]} (its name reads like {foreign_path(path).partition(';')[0]})")
        return False
    return True


def _id_of(path: str) -> str:
    """The clip id of a path: the path itself, with %20 for blanks at its ends, where ids may have
    none.

    A path that is too long for an id is cut, and a digest of the whole follows.
    """
    inner = path.strip()
    before, after = path[: len(path) - len(path.lstrip())], path[len(path.rstrip()) :]
    clip = quote(before) + inner + quote(after) if inner != path else path
    whole = clip.encode(errors="surrogateescape")
    if len(whole) <= ID_BYTES:
        return clip
    mark = "~" + hashlib.blake2b(whole, digest_size=8).hexdigest()
    return whole[: ID_BYTES - len(mark)].decode(errors="ignore") + mark


def _not_utf8(path: str) -> str:
    """Why a path cannot be decoded: its bytes are not UTF-8, or Python's locale has another
    encoding.
    """
    try:
        os.fsencode(path).decode()
    except UnicodeDecodeError:
        return "its name is not UTF-8"
    return f"its name is UTF-8, but the locale says {sys.getfilesystemencoding()}: set PYTHONUTF8=1"


def _without_ending(path: str) -> str:
    """The path of a video without its ending; of a folder of frames, the path itself."""
    stem, ending = os.path.splitext(path)
    return stem if ending.lower() in VIDEOS else path


def _split_of(path: str) -> str:
    """The split that the path's first folder is named after, "" if it is none."""
    first, below, _ = path.partition("/")
    name = SPLIT_ALIASES.get(first.lower(), first.lower())
    return name if below and name in SPLITS else ""


def _has_split_folders(folder: Path, paths: list[str], required: bool) -> bool:
    """Whether every clip lies in a folder named after a split. A class may be called "train" too:
    half of them is an error.
    """
    named = {path.partition("/")[0] for path in paths if _split_of(path)}
    others = sorted({path.partition("/")[0] for path in paths} - named)
    if others and (named or required):
        raise ManifestError(
            f"{folder}: expected every clip in a folder named {', '.join(SPLITS)}; {others[0]!r} "
            f"is beside them. "
            f"Move it, or draw the splits with --split-by hash"
        )
    return not others


def _drawn_split(clip: str, val: float, test: float, seed: int) -> str:
    place = Draws(seed, clip, "split").uniform()
    return "test" if place < test else "val" if place < test + val else "train"


def _some(names: list[str], shown: int = 3) -> str:
    """The first few names and how many more there are."""
    plain = (name if name.isprintable() else ascii(name) for name in names[:shown])
    return ", ".join(plain) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
