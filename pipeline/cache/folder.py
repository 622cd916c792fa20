"""The folder of a cache: cache.json and the copy of the manifest, read and checked."""

from contextlib import suppress
from pathlib import Path

from pipeline.cache.fields import FORMATS
from pipeline.cache.records import CACHE, require
from pipeline.files.atomic_files import (
    Damaged,
    read_json,
    sha256_of,
    sync_folder,
)
from pipeline.files.watched_folder import WatchedFolder
from pipeline.manifests.manifest import Manifest, ManifestError, read_manifest
from pipeline.plugins import note_paths
from pipeline.workers.completion import Mark, version_of

# How videos are read. Version 1 trusted the rates of headers, kept stored pixels, and turned but
# did not mirror. Version 2 shows videos as a player does. Version 3 also stores seconds of steps.
READING = 3
AS_PLAYERS, WITH_TIMES = 2, 3

# The copy of the manifest. While a cache grows, the newer copy has the second name until
# cache.json, which has its sha256, is in place.
MANIFEST, NEXT_MANIFEST = "manifest.csv", "manifest.next.csv"

# What a newer manifest replaced, by the first digits of its sha256. Runs of that time read it.
EARLIER_MANIFEST = "manifest.{}.csv"


class CacheError(ValueError):
    """There is no cache, it is not the one that was asked for, or it lacks something."""


def watch_cache_folder(folder: Path, fingerprint: str, stage: str) -> WatchedFolder:
    """Return a watch on a cache for a run that writes to it, and create the stage's folder.

    Args:
        folder: the cache.
        fingerprint: what the cache's fingerprint must be and remain.
        stage: the folder in it: "features", "graphs", or that of added fields.

    Returns:
        The watch. It tells when the cache was moved, deleted or replaced.

    Raises:
        CacheError: there is no cache, or it has another fingerprint.
    """
    record_path = folder / "cache.json"
    begun = read_cache_json(folder)
    clips = begun["manifest"]["sha256"]
    # The version of cache.json that was compared last.
    checked: list[Mark] = [None]

    def unchanged() -> bool:
        mark = version_of(record_path)
        if mark is None:
            return False
        # Reading the file costs more than looking at its version.
        if mark != checked[0]:
            with suppress(Damaged, CacheError):
                record = read_cache_json(folder)
                # A cache that has grown keeps the manifest that it had.
                grown = (folder / EARLIER_MANIFEST.format(clips[:8])).exists()
                same_clips = record["manifest"]["sha256"] == clips or grown
                if fingerprint not in fingerprints(record) or not same_clips:
                    return False
                checked[0] = mark
        return True

    if fingerprint not in fingerprints(begun):
        raise CacheError(
            f"{folder}: this is not the cache that the run started with; all machines must see "
            f"the same files"
        )
    if not (folder / stage).is_dir():
        # Without parents: a cache that was moved away must not appear again.
        (folder / stage).mkdir(exist_ok=True)
        sync_folder((folder / stage).parent)
    return WatchedFolder(folder, folder / stage, unchanged=unchanged)


def require_folder_path(folder: Path) -> None:
    """Refuse a path for a cache if it, or a parent of it, is a file.

    Args:
        folder: the path; it need not exist.

    Raises:
        CacheError: a file has this name or a parent's.
    """
    for path in (folder, *folder.parents):
        if path.exists() and not path.is_dir():
            raise CacheError(
                f"{folder}: expected a folder for the cache, {path} is a file; give --cache "
                f"another name"
            )


def fingerprints(record: dict) -> set[str]:
    """Return the fingerprints that files of a cache may have.

    A cache whose boxes were added later has another one since.

    Args:
        record: its cache.json.
    """
    found = {record["fingerprint"]}
    for part in (*record.get("parts", ()), *record.get("added", ())):
        found.add(part["fingerprint"])
    return found


def read_cache_json(folder: Path) -> dict:
    """Read and check `cache.json`.

    Args:
        folder: the cache.

    Returns:
        The record (`pipeline.cache.records.CACHE`).

    Raises:
        CacheError: there is no cache, or its format number is another one.
        Damaged: the file has changed since it was written.
    """
    path = folder / "cache.json"
    if not path.is_file():
        raise CacheError(
            f"{folder}: no cache here (no cache.json); expected a folder that `vidgraph extract "
            f"--cache` made"
        )
    record = require_cache_record(read_json(path), path)
    note_paths(record.get("plugins", {}))
    return record


def require_cache_record(record: dict, path: Path) -> dict:
    """Check what was read from a `cache.json`.

    Args:
        record: its content.
        path: the file.

    Returns:
        The record.

    Raises:
        CacheError: its format number is another one.
        Damaged: a key is missing or has another type.
    """
    # The format comes first: another format may have other keys.
    if require(record, {"format": int}, path)["format"] not in FORMATS:
        raise CacheError(
            f"{path.parent}: format {record['format']}, this version reads "
            f"{' and '.join(map(str, FORMATS))}; extract again, or use that version"
        )
    require(record, CACHE, path)
    require(record, {"per_shard": int} if record["format"] == 1 else {"parts": list}, path)
    if record.get("per_shard", 1) < 1:
        raise Damaged(
            f"{path}: per_shard is {record['per_shard']}, expected at least 1 clip per shard"
        )
    return record


def decoding_warning(folder: Path) -> str:
    """Return a warning if an earlier version, which read some videos differently, made a cache.

    Args:
        folder: the cache, to which a run is about to add shards.

    Returns:
        The warning, or "" if this version made the cache.
    """
    if read_cache_json(folder).get("reading", 1) >= AS_PLAYERS:
        return ""
    return (
        f"{folder}: an earlier version began this cache. It read some videos differently: those "
        "with pixels that are not square, a mirrored display, several tracks, joined recordings, "
        "odd heights or more than 8 bits. If you have such videos, extract to a new folder, "
        "because their old and new views would differ"
    )


def stores_times(folder: Path) -> bool:
    """Return whether the shards of a cache hold the field `time`; older caches lack it.

    Args:
        folder: the cache.
    """
    return read_cache_json(folder).get("reading", 1) >= WITH_TIMES


def open_folder(folder: Path) -> tuple[dict, Path]:
    """Read cache.json, and find the copy of the manifest that belongs to it.

    Another run may let the cache grow at this moment. Then both are looked for again.

    Args:
        folder: the cache.

    Returns:
        cache.json, and the path of the copy.

    Raises:
        CacheError: there is no cache, or the copy is missing.
        Damaged: one of them has changed.
    """
    while True:
        record = read_cache_json(folder)
        try:
            return record, check_manifest_copy(folder, record)
        except (CacheError, Damaged):
            if read_cache_json(folder) == record:
                raise


def read_folder(folder: Path, same: Manifest | None = None) -> tuple[dict, Manifest]:
    """Read cache.json and the copy of the manifest that belongs to it.

    Args:
        folder: the cache.
        same: a manifest that may have the copy's very bytes: it is not read twice.

    Returns:
        cache.json, and the clips in the cache's order, removed ones included.

    Raises:
        CacheError: there is no cache, or the copy is missing.
        Damaged: one of them has changed.
        ManifestError: the copy breaks a rule.
    """
    while True:
        record, path = open_folder(folder)
        is_whole = not record.get("removed")
        if same is not None and is_whole and same.sha256 == record["manifest"]["sha256"]:
            return record, same
        try:
            copy = read_manifest(path, record["manifest"]["root"])
        except ManifestError:
            # The newer copy gets its name now, and this path is no more.
            if path.is_file():
                raise
            continue
        if copy.sha256 == record["manifest"]["sha256"]:
            return record, copy


def relabelled_clips(folder: Path, manifest: Manifest) -> list[str]:
    """Return the clips whose labels or split differ from the cache's copy of the manifest.

    Args:
        folder: the cache.
        manifest: a manifest of clips of the cache, in any order.

    Returns:
        The ids of those clips, in the order of `manifest`.

    Raises:
        CacheError: the copy is missing.
        Damaged: the copy has changed.
    """
    record, copy = read_folder(folder, manifest)
    if record["manifest"]["sha256"] == manifest.sha256:
        return []
    copied = {clip.clip: clip for clip in copy.clips}
    changed = []
    for new in manifest.clips:
        old = copied.get(new.clip)
        if old is not None and (old.split, old.labels) != (new.split, new.labels):
            changed.append(new.clip)
    return changed


def earlier_manifests(folder: Path) -> list[Path]:
    """Return the manifests that a cache had before it grew.

    Args:
        folder: the cache; any other folder gives none.
    """
    if not (folder / "cache.json").is_file():
        return []
    return sorted(folder.glob(EARLIER_MANIFEST.format("?" * 8)))


def check_manifest_copy(folder: Path, record: dict) -> Path:
    """Find the cache's copy of the manifest by its sha256, without reading its rows.

    Args:
        folder: the cache.
        record: its cache.json.

    Returns:
        The copy's path. It has the second of its two names where the cache has just grown.

    Raises:
        CacheError: the copy is missing.
        Damaged: the copy has changed.
    """
    path = folder / MANIFEST
    for candidate in (path, folder / NEXT_MANIFEST):
        with suppress(FileNotFoundError, IsADirectoryError):
            if sha256_of(candidate) == record["manifest"]["sha256"]:
                return candidate
    if not path.is_file():
        raise CacheError(f"{path}: missing; put the manifest there that the cache was made from")
    raise Damaged(
        f"{path}: changed since the cache was made; put the manifest there that it was made from"
    )
