"""Write fields of a cache in the format of another program.

export(Cache("caches/mine"), "npy", "out", fields=["pooled"], splits=["train"])
"""

import json
import shutil
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from shlex import quote

from pipeline.cache.joined import JoinedCache, paths_of
from pipeline.cache.reader import Cache
from pipeline.export.arrays import needed, write_npy, write_parquet, write_safetensors
from pipeline.export.export_rows import SplitRows, rows_of_split
from pipeline.export.localisation import FindRate, write_localisation
from pipeline.export.video_labels import write_video_labels
from pipeline.files.owners import new_claim_name, part_path
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.text.counted import counted

ARRAYS = {"npy": write_npy, "safetensors": write_safetensors, "parquet": write_parquet}
FORMATS = (*ARRAYS, "tad", "fiftyone")
PACKAGES = {"safetensors": ("safetensors",), "parquet": ("pyarrow",)}


@dataclass(frozen=True)
class Written:
    """What an export wrote.

    Attributes:
        folder: where.
        views: how many views, or videos for tad and fiftyone.
    """

    folder: Path
    views: int


def export(
    cache: Cache | JoinedCache,
    to: str,
    out: str | Path,
    *,
    fields: Sequence[str] | None = None,
    splits: Sequence[str] = (),
    views: str = "",
    manifest: Manifest | None = None,
    fps: float = 0.0,
    say: Callable[[str], None] = print,
) -> Written:
    """Write fields of a cache in another format.

    Args:
        cache: the cache, or several as one.
        to: a name of `FORMATS`.
        out: the folder to make; it must not exist, or be empty.
        fields: what to export; None for all fields, or `pooled` for tad.
        splits: names of splits; () for all of the manifest.
        views: "train" or "test"; "" for training views of the train split and test views of the
            others, and test views of all splits for tad and fiftyone.
        manifest: labels and splits; None for the cache's own copy.
        fps: for tad, the frame rate of all videos; 0 for that of each file.
        say: prints a line.

    Returns:
        What was written. export.json in the folder says of what cache it is.

    Raises:
        ValueError: an unknown format or split, a folder that holds something, no view to export,
            or a field that the cache lacks.
        ImportError: a package that the format needs is not installed.
        OSError: the folder cannot be written.
    """
    if to not in FORMATS:
        raise ValueError(f"format {to!r}: expected one of {', '.join(FORMATS)}")
    for package in PACKAGES.get(to, ()):
        needed(package)
    out, manifest = Path(out), manifest or cache.manifest
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        raise ValueError(f"{out}: holds something; expected a new folder, or an empty one")

    if to == "tad" and fields is None:
        fields = ["pooled"]
    if to in ("tad", "fiftyone"):
        views = views or "test"
    parts = _chosen(cache, manifest, splits, fields, views, say)
    part = part_path(out.absolute(), new_claim_name())
    part.mkdir(parents=True)
    try:
        count = _write(to, parts, part, cache, fps, say)
        record = {
            "format": to,
            "caches": [str(path) for path in paths_of(cache)],
            "fingerprint": cache.fingerprint,
            "manifest": str(manifest.path),
            "splits": {one.split: len(one.rows) for one in parts},
            "fields": list(parts[0].fields),
            "views": {one.split: one.group.name for one in parts},
        }
        text = json.dumps(record, indent=1, ensure_ascii=False)
        (part / "export.json").write_text(text + "\n", encoding="utf-8")
        # The folder has its name once it is complete.
        with suppress(FileNotFoundError):
            out.rmdir()
        part.rename(out)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return Written(out, count)


def _chosen(
    cache: Cache | JoinedCache,
    manifest: Manifest,
    splits: Sequence[str],
    fields: Sequence[str] | None,
    views: str,
    say: Callable[[str], None],
) -> list[SplitRows]:
    """The rows of each split that has some."""
    known = list(dict.fromkeys(clip.split for clip in manifest.clips))
    for split in splits:
        if split not in known:
            raise ValueError(
                f"{manifest.path}: no clip in split {split!r}; its splits: {', '.join(known)}"
            )
    parts = []
    for split in splits or known:
        found = rows_of_split(cache, split, manifest, fields, views)
        for reason, clips in found.left_out.items():
            more = ", …" if len(clips) > 5 else ""
            if reason.endswith(" views"):
                more += f"; `vidgraph extract --cache {quote(str(cache.path))} --add views "
                more += "--views-for-all` adds them"
            say(
                f"split {split}: {counted(len(clips), 'clip')} left out ({reason}): "
                f"{', '.join(clips[:5])}{more}"
            )
        if found.rows:
            parts.append(found)
    if not parts:
        raise ValueError(f"{cache.path}: no view to export of split {', '.join(splits or known)}")
    return parts


def _write(
    to: str,
    parts: Sequence[SplitRows],
    folder: Path,
    cache: Cache | JoinedCache,
    fps: float,
    say: Callable[[str], None],
) -> int:
    """Write the files; return how many views or videos they hold."""
    if to == "tad":
        return write_localisation(parts, folder, _rate_finder(cache, fps), say)
    if to == "fiftyone":
        return write_video_labels(parts, folder, cache.config.get("box_classes", ()), say)
    for one in parts:
        ARRAYS[to](one, folder)
    return sum([len(one.rows) for one in parts])


def _rate_finder(cache: Cache | JoinedCache, fps: float) -> FindRate:
    """What gives the frame rate and length of a clip's file."""

    def rate_of(clip: Clip) -> tuple[float, float]:
        from dataclasses import replace

        from pipeline.video.frame_reader import DecodeError
        from pipeline.video.view_pixels import ClipOpener

        part = cache.part_of(clip.clip) if isinstance(cache, JoinedCache) else cache
        # The whole file, of which the clip may be a window.
        whole = replace(clip, start=None, end=None)
        try:
            with ClipOpener(part.manifest.root, "pyav", True).open(whole) as reader:
                info = reader.info
        except DecodeError as error:
            if fps:
                return fps, 0.0
            raise ValueError(
                f"{clip.path}: its frame rate is not known ({error.reason}); give --fps"
            ) from None
        rate = fps or info.fps
        if not rate:
            raise ValueError(f"{clip.path}: it tells no frame rate; give --fps")
        return rate, info.until or info.frames / rate

    return rate_of
