"""A dataset's entries and its videos -> the manifest, its class list, and the lists for mirrored
views.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.atomic_files import write_text
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip, mirrored_pairs, protected
from pipeline.manifests.datasets.video_folders import choose, find_media
from pipeline.manifests.manifest import Manifest, ManifestError, write_manifest


@dataclass(frozen=True)
class WrittenManifest:
    """What was written.

    `missing`: ids whose video is not there, left out of the manifest. `classes`: the class list
    (`data.class_list` of a recipe). `protect`, `swap`: files for `extract --flip-protect` and
    `train --set data.swap_on_flip`, None where no class names a side. `root`: the folder that paths
    start from, None where it is the manifest's own.
    """

    manifest: Manifest
    missing: tuple[str, ...]
    classes: Path
    protect: Path | None
    swap: Path | None
    root: Path | None


def write_dataset(
    data: Dataset,
    videos: str | Path,
    out: str | Path,
    order: str = "official",
    allow_missing: bool = False,
) -> WrittenManifest:
    """Writes `out` with a row for every entry whose video is below `videos`, and the lists beside
    it.

    Nothing is written, and ManifestError says which, if a video is missing (unless `allow_missing`)
    or all are.
    """
    classes, out, videos = data.in_order(order), Path(out), Path(videos)
    sides = protected(classes)
    if unfit := [name for name in sides if "," in name]:
        raise ManifestError(
            f"class {unfit[0]!r}: expected no comma in the name of a class that has a left and a "
            f"right"
        )
    found = find_media(videos, {name for entry in data.entries for name in entry.names}, data.depth)
    there, missing = [], []
    for entry in data.entries:
        place = choose(entry, found, videos)
        if place:
            there.append((entry, place))
        else:
            missing.append(entry.clip)
    if missing and not there:
        raise ManifestError(
            f"{videos}: none of the {len(missing):,} clips is there; expected each {data.layout} "
            f"({missing[0]})"
        )
    if missing and not allow_missing:
        raise ManifestError(
            f"{about_missing(missing, len(data.entries), videos)}; pass --allow-missing to leave "
            f"them out"
        )
    start, root = _start(videos, out)
    manifest = write_manifest(out, _rows(data, there, start))
    return WrittenManifest(
        manifest,
        tuple(missing),
        _write(out.with_suffix(".classes.txt"), "".join(f"{name}\n" for name in classes)),
        _write(out.with_suffix(".flip-protect.txt"), ",".join(sides) + "\n") if sides else None,
        _write(out.with_suffix(".swap-on-flip.txt"), json.dumps(mirrored_pairs(classes)) + "\n")
        if sides
        else None,
        root,
    )


def about_missing(
    missing: list[str] | tuple[str, ...], total: int, where: Path, what: str = "video"
) -> str:
    """How many clips have no video (or what else is looked for in `where`), and the first few of
    them.
    """
    more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
    return f"{where}: {len(missing):,} of {total:,} clips have no {what} there: {', '.join(missing[:3])}{more}"


def _start(videos: Path, out: Path) -> tuple[str, Path | None]:
    """What paths begin with, and the root to name where the videos do not lie below the manifest's
    folder.
    """
    inner, beside = videos.resolve(), out.resolve().parent
    if not inner.is_relative_to(beside):
        return "", inner
    start = inner.relative_to(beside).as_posix()
    return ("" if start == "." else start + "/"), None


def _rows(
    data: Dataset, there: list[tuple[DatasetClip, tuple[str, str, bool]]], start: str
) -> Iterator[dict[str, object]]:
    """Rows with the same columns: times and the frame rate of folders only where some row has
    them.
    """
    spans = [_span(entry, name) for entry, (name, _, _) in there]
    times, folders = (
        any(span != (None, None) for span in spans),
        any(frames for _, (_, _, frames) in there),
    )
    rate = f"{data.fps:g}" if data.fps else ""
    for (entry, (_, path, frames)), span in zip(there, spans, strict=True):
        row = {
            "clip": entry.clip,
            "path": start + path,
            "split": entry.split,
            "label": list(entry.labels),
        }
        if times:
            row |= {"start": span[0], "end": span[1]}
        if folders and rate:
            row["fps"] = rate if frames else ""
        yield {**row, **entry.extra}


def _span(entry: DatasetClip, name: str) -> tuple[float | None, float | None]:
    """Seconds of the clip in its file: none where the file is called like a clip that was cut out
    (Kinetics).
    """
    cut_out = len(entry.names) > 1 and name == entry.names[0]
    return (None, None) if cut_out else (entry.start, entry.end)


def _write(path: Path, text: str) -> Path:
    """Writes a text file that appears whole or not at all."""
    write_text(path, text)
    return path
