"""Write the manifest of a data set, its class list, and the lists for mirrored views."""

import json
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from pipeline.files.atomic_files import write_text
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip, mirrored_pairs, protected
from pipeline.manifests.datasets.video_folders import Media, choose, find_media
from pipeline.manifests.manifest import Manifest, ManifestError, write_manifest
from pipeline.manifests.rewriting import with_root
from pipeline.text.counted import agree, counted


@dataclass(frozen=True)
class WrittenManifest:
    """What was written.

    Attributes:
        manifest: the manifest as read back.
        missing: ids of clips without a video, which the manifest leaves out.
        classes: the file of the class list (`data.class_list` of a recipe).
        protect: the file for `extract --flip-protect`; None if no class names a side.
        swap: the file for `train --set data.swap_on_flip`; None if no class names a side.
    """

    manifest: Manifest
    missing: tuple[str, ...]
    classes: Path
    protect: Path | None
    swap: Path | None


@dataclass(frozen=True)
class _Row:
    """A clip whose video was found."""

    entry: DatasetClip
    media: Media
    start: float | None
    end: float | None


def write_dataset(
    data: Dataset,
    videos: str | Path,
    out: str | Path,
    order: str = "official",
    allow_missing: bool = False,
) -> WrittenManifest:
    """Write a manifest with a row for every clip whose video is found, and the lists beside it.

    Args:
        data: what the official files say.
        videos: the folder of the videos.
        out: the manifest's file; the lists get its name with other endings.
        order: "official" or "alphabetical" order of the classes in the list.
        allow_missing: leave clips without a video out.

    Raises:
        ManifestError: a video is missing (without `allow_missing`), or all are. Nothing is
            written.
    """
    classes, out, videos = data.in_order(order), Path(out), Path(videos)
    sides = protected(classes)
    # --flip-protect takes names separated by commas.
    for name in sides:
        if "," in name:
            raise ManifestError(
                f"class {name!r}: expected no comma in the name of a class that has a left and a "
                "right"
            )

    rows, missing = _find_videos(data, videos)
    if missing and not rows:
        raise ManifestError(
            f"{videos}: none of the {counted(len(missing), 'clip')} is there; expected each "
            f"{data.layout} ({missing[0]})"
        )
    if missing and not allow_missing:
        about = about_missing(missing, len(data.entries), videos)
        raise ManifestError(f"{about}; pass --allow-missing to go on without")

    # The manifest comes first: it is the only step that can still refuse something.
    cells = _cells(data, rows)
    inner, beside = videos.resolve(), out.resolve().parent
    # Paths are relative to the manifest's folder, if the videos lie below it.
    if inner.is_relative_to(beside):
        start = inner.relative_to(beside).as_posix() + "/"
        cells = ({**row, "path": start.removeprefix("./") + row["path"]} for row in cells)
        inner = beside
    manifest = write_manifest(out, with_root(cells, inner, out))

    class_list = out.with_suffix(".classes.txt")
    write_text(class_list, "".join(f"{name}\n" for name in classes))
    protect, swap = None, None
    if sides:
        protect, swap = out.with_suffix(".flip-protect.txt"), out.with_suffix(".swap-on-flip.txt")
        write_text(protect, ",".join(sides) + "\n")
        write_text(swap, json.dumps(mirrored_pairs(classes)) + "\n")
    return WrittenManifest(manifest, tuple(missing), class_list, protect, swap)


def about_missing(missing: Collection[str], total: int, where: Path, what: str = "video") -> str:
    """Say how many clips lack a file, and the first few of them.

    Args:
        missing: ids of the clips.
        total: how many clips there are.
        where: the folder or file that was searched.
        what: what was searched for.
    """
    first = ", ".join(list(missing)[:3])
    more = f" and {len(missing) - 3:,} more" if len(missing) > 3 else ""
    return (
        f"{where}: {len(missing):,} of {counted(total, 'clip')} "
        f"{agree(len(missing), 'has', 'have')} no {what} there: {first}{more}"
    )


def _find_videos(data: Dataset, videos: Path) -> tuple[list[_Row], list[str]]:
    """Return (clips with a video, ids of clips without)."""
    wanted = set()
    for entry in data.entries:
        wanted.update(entry.names)
    found = find_media(videos, wanted, data.depth)

    rows, missing = [], []
    for entry in data.entries:
        chosen = choose(entry, found, videos)
        if chosen is None:
            missing.append(entry.clip)
            continue
        name, media = chosen
        # A file with the first of several names was cut to the clip already (Kinetics).
        is_cut_out = len(entry.names) > 1 and name == entry.names[0]
        start, end = (None, None) if is_cut_out else (entry.start, entry.end)
        rows.append(_Row(entry, media, start, end))
    return rows, missing


def _cells(data: Dataset, rows: list[_Row]) -> Iterator[dict[str, object]]:
    """Yield rows with the same columns.

    Times, and the frame rate of folders of frames, are columns only if some row has them.
    """
    has_times = any(row.start is not None or row.end is not None for row in rows)
    has_fps = bool(data.fps) and any(row.media.is_folder for row in rows)
    for row in rows:
        entry = row.entry
        cells = {
            "clip": entry.clip,
            "path": row.media.path,
            "split": entry.split,
            "label": list(entry.labels),
        }
        if has_times:
            cells |= {"start": row.start, "end": row.end}
        if has_fps:
            cells["fps"] = f"{data.fps:g}" if row.media.is_folder else ""
        yield {**cells, **entry.extra}
