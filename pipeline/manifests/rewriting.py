"""Write a manifest from the rows of another one, or again, without losing what a person edited."""

import csv
import filecmp
import io
import os
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path

from pipeline.files.regular_files import open_regular
from pipeline.manifests.manifest import (
    ROOT,
    Clip,
    Manifest,
    ManifestError,
    read_manifest,
    write_manifest,
)
from pipeline.text import text_files
from pipeline.text.counted import counted


def read_cells(manifest: Manifest) -> list[dict[str, str]]:
    """Return the cells of a manifest's rows as they are written.

    Args:
        manifest: a manifest that was read from its file, which has not changed since.

    Returns:
        Column -> text, by row.
    """
    with os.fdopen(open_regular(manifest.path), "rb") as file:
        text = text_files.without_mark(file.read()).decode()
    records = [cells for cells in csv.reader(io.StringIO(text, newline="")) if cells]
    return [dict(zip(manifest.columns, cells, strict=True)) for cells in records[1:]]


def clips_of(rows: Iterable[Mapping[str, str]], videos: str | Path) -> list[Clip]:
    """Return the clips of rows that are in no manifest yet.

    Args:
        rows: the cells `clip`, `path`, `split` and `label`, as `scan_folder` makes them.
        videos: the folder that paths start from.
    """
    clips = []
    for position, row in enumerate(rows):
        place = os.path.join(os.path.abspath(videos), row["path"])
        labels = (row["label"],) if row["label"] else ()
        clips.append(Clip(row["clip"], place, row["split"], labels, position=position))
    return clips


def root_for(videos: str | Path, out: str | Path) -> str:
    """Return what the column `root` of a manifest says.

    Args:
        videos: the folder that its paths start from.
        out: the manifest's file.

    Returns:
        The folder's absolute path; "" if it is the manifest's own folder, which is the default.
    """
    if Path(videos).resolve() == Path(out).resolve().parent:
        return ""
    return os.path.abspath(videos)


def with_root(
    rows: Iterable[Mapping[str, object]], videos: str | Path, out: str | Path
) -> Iterator[dict[str, object]]:
    """Yield rows with the column `root`, if a manifest in this place needs it.

    Args:
        rows: cells by column, with paths that start from `videos`.
        videos: the folder.
        out: the manifest's file.
    """
    root = root_for(videos, out)
    for row in rows:
        cells = {name: value for name, value in row.items() if name != ROOT}
        yield {**cells, ROOT: root} if root else cells


def spelled_root(manifest: Manifest) -> str:
    """Return a manifest's root, through the same links as its file where that is its folder."""
    beside = manifest.path.parent
    if beside.resolve() == manifest.root:
        return os.path.abspath(beside)
    return str(manifest.root)


def write_unless_edited(
    path: str | Path,
    rows: Iterable[Mapping[str, object]],
    force: bool = False,
    may_add: bool = False,
) -> Manifest:
    """Write a manifest, but keep a file that says something else.

    Args:
        path: the CSV file.
        rows: as for `write_manifest`.
        force: replace any file.
        may_add: whether the command has --add, for the message.

    Returns:
        The manifest as read back.

    Raises:
        ManifestError: a file is there and is not what would be written; or as `write_manifest`.
    """
    path = Path(path)
    if force or not path.exists():
        return write_manifest(path, rows)

    draft = path.with_name(f".{path.name}.draft")
    try:
        write_manifest(draft, rows)
        if not filecmp.cmp(draft, path, shallow=False):
            add = "--add keeps its rows and adds new clips; " if may_add else ""
            raise ManifestError(
                f"{path}: {_difference(path, draft)}; it may have been edited. {add}--force "
                f"replaces it; or choose another --out"
            )
    finally:
        draft.unlink(missing_ok=True)
    return read_manifest(path)


def _lines(path: Path) -> list[bytes]:
    with os.fdopen(open_regular(path), "rb") as file:
        return file.read().splitlines()


def _difference(path: Path, draft: Path) -> str:
    """Say in how many rows a file differs from what would be written."""
    was, new = _lines(path), _lines(draft)
    gone, more = len(set(was) - set(new)), len(set(new) - set(was))
    if not (gone or more):
        return "the file has the same rows, but in another order or form"
    return (
        f"the file has {counted(gone, 'row')} that this command would not write, and lacks "
        f"{more:,} that it would"
    )


def added_rows(
    manifest: Manifest, rows: Iterable[Mapping[str, object]], out: str | Path
) -> list[dict[str, object]]:
    """Return the rows of a manifest as they are, and after them those of clips that it lacks.

    Args:
        manifest: the manifest that is there.
        rows: of all clips, with the column `root` if a manifest in this place needs it.
        out: the manifest's file, for the error.

    Raises:
        ManifestError: its paths start from another folder.
    """
    known = {clip.clip for clip in manifest.clips}
    kept: list[dict[str, object]] = list(read_cells(manifest))
    columns = list(manifest.columns)
    for row in rows:
        if row["clip"] in known:
            continue
        if row.get(ROOT, "") != kept[0].get(ROOT, ""):
            raise ManifestError(
                f"{out}: its paths start from {manifest.root}, those of new clips do not; give the "
                f"folder that it was made from"
            )
        kept.append({name: row.get(name, "") for name in columns})
    return kept
