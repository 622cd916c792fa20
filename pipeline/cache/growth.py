"""A cache grows: new parts, added fields and a newer manifest, in one step that cannot tear.

cache.json is what counts. The newer copy of the manifest is written beside the old one, cache.json
is replaced, then the copy gets its name. A reader takes the copy whose sha256 cache.json names. A
run that is killed between two of these steps leaves a cache that is whole, grown or not.

Shards that exist are never touched, and no row of them moves.
"""

import os
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from pipeline.cache.creation import claim_of, create_files, lock_or_create, root_as_spelled
from pipeline.cache.folder import (
    EARLIER_MANIFEST,
    MANIFEST,
    NEXT_MANIFEST,
    CacheError,
    read_folder,
)
from pipeline.files.atomic_files import move_into_place, sha256_of, write_json
from pipeline.files.owners import part_path
from pipeline.manifests.manifest import Clip, Manifest, read_manifest, write_clips
from pipeline.text.counted import counted
from pipeline.workers.waiting import PrintLine


@dataclass(frozen=True)
class Grown:
    """What a cache becomes.

    Attributes:
        record: cache.json, in which `manifest` is filled in later.
        clips: the rows of the manifest's copy; None where it stays as it is.
        root: the folder that paths in the copy start from.
    """

    record: dict
    clips: Sequence[Clip] | None
    root: Path


def open_or_grow(
    folder: Path,
    manifest: Manifest,
    first: Callable[[], dict],
    grown: Callable[[dict, Manifest], Grown | None],
    say: PrintLine | None = None,
) -> tuple[dict, Manifest]:
    """Open a cache for writing; create it, or let it grow, where that is needed.

    Runs that do this at the same time agree: each decides anew once it holds the claim on
    cache.json.

    Args:
        folder: the cache's folder.
        manifest: the clips that were asked for.
        first: returns cache.json of a new cache.
        grown: is called with cache.json and the copy of the manifest. It returns what the cache
            becomes, None where it holds all that is asked for, or raises CacheError.
        say: prints one line where another run holds the claim.

    Returns:
        cache.json, and the copy of the manifest.

    Raises:
        CacheError: the cache is another one than was asked for.
        Damaged: cache.json or the manifest's copy has changed.
        OSError: the folder cannot be written.
    """
    lock_or_create(folder, lambda claim: create_files(folder, first(), manifest, claim.name), say)
    record, copy = read_folder(folder, manifest)
    if grown(record, copy) is None:
        return record, copy

    with claim_of(folder, say) as claim:
        _finish_step(folder)
        record, copy = read_folder(folder, manifest)
        new = grown(record, copy)
        if new is not None:
            _replace(folder, record, copy, new, claim.name)
    return read_folder(folder, manifest)


def _finish_step(folder: Path) -> None:
    """Do, or undo, what a killed run had begun. The caller holds the claim on cache.json."""
    record, _ = read_folder(folder)
    path = folder / NEXT_MANIFEST
    with suppress(FileNotFoundError):
        if sha256_of(path) == record["manifest"]["sha256"]:
            move_into_place(path, folder / MANIFEST)
        else:
            path.unlink()


def _replace(folder: Path, record: dict, earlier: Manifest, new: Grown, claim: str) -> None:
    """Write what a cache becomes. The caller holds the claim on cache.json."""
    # The seal is that of the file as it was.
    grown = {key: value for key, value in new.record.items() if key != "seal"}
    if new.clips is None:
        write_json(folder / "cache.json", {**grown, "manifest": record["manifest"]}, claim)
        return
    path = folder / NEXT_MANIFEST
    part = part_path(path, claim)
    try:
        write_clips(part, new.clips, new.root)
        # What cannot be read back must not replace what can.
        copy = read_manifest(part, new.root)
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)
    _keep_earlier(folder, record, earlier, claim)
    about = {"sha256": copy.sha256, "root": str(new.root)}
    write_json(folder / "cache.json", {**grown, "manifest": about}, claim)
    move_into_place(path, folder / MANIFEST)


def _keep_earlier(folder: Path, record: dict, earlier: Manifest, claim: str) -> None:
    """Keep a copy of the manifest that a newer one replaces, without clips that were removed.

    A run that was trained before is evaluated with the labels and splits of that time.
    """
    path = folder / EARLIER_MANIFEST.format(earlier.sha256[:8])
    removed = set(record.get("removed", ()))
    part = part_path(path, claim)
    try:
        write_clips(part, [one for one in earlier.clips if one.clip not in removed], earlier.root)
        move_into_place(part, path)
    finally:
        part.unlink(missing_ok=True)


def merged_clips(copy: Manifest, manifest: Manifest, where: Path) -> list[Clip]:
    """Return the rows of a cache's manifest after it has seen a newer one.

    Args:
        copy: the cache's copy.
        manifest: the newer one.
        where: the cache, for messages.

    Returns:
        The clips of the copy in its order, each as the newer manifest has it if it does, then
        those that are new.

    Raises:
        CacheError: a clip has another start or end, or the two share no clip.
    """
    newer = {clip.clip: clip for clip in manifest.clips}
    clips: list[Clip] = []
    shared = 0
    for old in copy.clips:
        new = newer.pop(old.clip, None)
        shared += new is not None
        if new is not None and (new.start, new.end) != (old.start, old.end):
            raise CacheError(
                f"{where}: clip {old.clip} goes {_span(old)} in its manifest, {_span(new)} in "
                f"{manifest.path}. Point --cache at another folder, or give the clip another id"
            )
        clips.append(old if new is None else new)
    if not shared:
        raise CacheError(
            f"{where}: holds none of the {counted(len(manifest.clips), 'clip')} of "
            f"{manifest.path}; its "
            f"first is {copy.clips[0].clip}, that of the manifest {manifest.clips[0].clip}. Point "
            f"--cache at another folder"
        )
    return clips + list(newer.values())


def _span(clip: Clip) -> str:
    until = "the end" if clip.end is None else f"{clip.end:g} s"
    return f"from {clip.start or 0:g} s to {until}"


def common_root(manifest: Manifest, clips: Sequence[Clip]) -> Path:
    """Return a folder that no path of some clips leaves: a manifest's root, or one above it.

    Args:
        manifest: the manifest whose root is preferred.
        clips: the clips; some may come from an older manifest with another root.
    """
    prefix = os.path.join(manifest.root, "")
    outside = [clip.place for clip in clips if not clip.place.startswith(prefix)]
    if not outside:
        return Path(root_as_spelled(manifest))
    return Path(os.path.commonpath([str(manifest.root), *outside]))
