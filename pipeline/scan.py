"""A folder of videos -> rows of a manifest: classes and splits from the sub-folders, or splits from a hash of the clip id."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.draws import Draws
from pipeline.images import ENDINGS
from pipeline.manifest import SPLIT_ALIASES, SPLITS, ManifestError, wrong_id

VIDEOS = frozenset({".3gp", ".avi", ".flv", ".m4v", ".mkv", ".mov", ".mp4", ".mpeg", ".mpg", ".ogv", ".webm", ".wmv"})
SPLIT_BY = ("auto", "folders", "hash")


@dataclass
class Scan:
    """What lies in a folder.

    `rows` are for write_manifest, with paths relative to the folder, in the order of their names. `ignored` is what is neither
    a video nor a folder of frames, or cannot be named in a manifest.
    """

    rows: list[dict[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)

    def about_ignored(self) -> str:
        """One line about what gives no row; "" if everything does."""
        if not self.ignored:
            return ""
        return f"{len(self.ignored):,} ignored, neither a video nor a folder of frames: {_some(self.ignored)}"


def scan_folder(folder: str | Path, split_by: str = "auto", val: float = 0.1, test: float = 0.1, seed: int = 0) -> Scan:
    """Rows for every video and every folder of images below `folder`.

    FOLDER/CLASS/... or FOLDER/SPLIT/CLASS/...: the class is the first folder (below the split's), none for what lies beside the
    classes. The clip id is the path without its suffix (with it, where two would be the same). `split_by`: "folders" demands
    split folders (train, val, test and the usual other spellings), "hash" sends shares `val` and `test` of the clips there by a
    hash of (seed, clip id), so that clips added later move no other; "auto" takes folders where there are any.
    ManifestError if nothing is found, or if only some of the folders are named after splits.
    """
    if split_by not in SPLIT_BY:
        raise ValueError(f"split_by: expected one of {', '.join(SPLIT_BY)}, got {split_by!r}")
    if not (val >= 0 and test >= 0 and val + test <= 1):  # said so, NaN is refused too
        raise ValueError(f"expected shares val and test from 0, together at most 1; got {val} and {test}")
    folder, scan = Path(folder).resolve(), Scan()
    if not folder.is_dir():
        raise ManifestError(f"{folder}: expected a folder of videos; there is none of this name")
    paths = [path for path in _clips(folder, "", scan.ignored) if _fits(path, scan.ignored)]
    if not paths:
        held = f", which holds {_some(scan.ignored)}" if scan.ignored else ", which is empty"
        raise ManifestError(f"{folder}: no video and no folder of images below it{held}; expected FOLDER/CLASS/VIDEO")
    if paths == [""]:
        raise ManifestError(f"{folder} is itself one folder of frames; give the folder above it")
    by_folder = split_by != "hash" and _has_split_folders(folder, paths, required=split_by == "folders")
    short = Counter(os.path.splitext(path)[0] for path in paths)
    for path in paths:
        stem, suffix = os.path.splitext(path)
        clip = stem if suffix.lower() in VIDEOS and short[stem] == 1 else path
        split = _split_of(path) if by_folder else _drawn_split(clip, val, test, seed)
        classes = path.split("/")[1 if by_folder else 0 : -1]
        label = classes[0] if classes else ""
        if ";" in label:
            raise ManifestError(f"{folder}/{path}: ';' separates classes in a manifest; rename the folder {label!r}")
        scan.rows.append({"clip": clip, "path": path, "split": split, "label": label})
    return scan


def _clips(top: Path, base: str, ignored: list[str]) -> Iterator[str]:
    """Paths, relative to `top`, of the clips in its sub-folder `base` ("" or ending in "/")."""
    found, images = False, []
    for entry in sorted(os.scandir(top / base), key=lambda entry: entry.name):
        path, suffix = base + entry.name, os.path.splitext(entry.name)[1].lower()
        if entry.name.startswith(".") or (entry.is_symlink() and not _link_stays(top, entry)):
            ignored.append(path)
        elif entry.is_dir():
            for clip in _clips(top, path + "/", ignored):
                found = True
                yield clip
        elif suffix in VIDEOS:
            found = True
            yield path
        elif suffix in ENDINGS:
            images.append(path)
        else:
            ignored.append(path)
    if found:
        ignored += images
    elif images:
        yield base.rstrip("/")


def _link_stays(top: Path, entry: os.DirEntry) -> bool:
    """Whether a link leads to a file below `top`: one out of it could not be opened, one to a folder could lead in a circle."""
    target = Path(os.path.realpath(entry.path))  # Path.resolve raises where a link leads to itself
    return target.is_file() and target.is_relative_to(top)


def _fits(path: str, ignored: list[str]) -> bool:
    """Whether a manifest can name the path; a file that no text names is reported, not fatal."""
    try:
        path.encode()
    except UnicodeEncodeError:
        ignored.append(ascii(path) + " (its name is not UTF-8)")
        return False
    if path and wrong_id(path):
        ignored.append(ascii(path[:60]) + " (its name is too long, or has control characters or blanks at an end)")
        return False
    return True


def _split_of(path: str) -> str:
    """The split that the path's first folder is named after, "" if it is none."""
    first, below, _ = path.partition("/")
    name = SPLIT_ALIASES.get(first.lower(), first.lower())
    return name if below and name in SPLITS else ""


def _has_split_folders(folder: Path, paths: list[str], required: bool) -> bool:
    """Whether every clip lies in a folder named after a split. A class may be called "train" too: half of them is an error."""
    named = {path.partition("/")[0] for path in paths if _split_of(path)}
    others = sorted({path.partition("/")[0] for path in paths} - named)
    if others and (named or required):
        raise ManifestError(
            f"{folder}: expected every clip in a folder named {', '.join(SPLITS)}; {others[0]!r} is beside them. "
            f"Move it, or draw the splits with --split-by hash"
        )
    return not others


def _drawn_split(clip: str, val: float, test: float, seed: int) -> str:
    place = Draws(seed, clip, "split").uniform()
    return "test" if place < test else "val" if place < test + val else "train"


def _some(names: list[str], shown: int = 3) -> str:
    """The first few names and how many more there are."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown:,} more" if len(names) > shown else "")
