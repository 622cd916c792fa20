"""The folder of a cache: cache.json, the copy of the manifest, and which shard holds which clips.

A cache is identified by its fingerprint: the sha256 of the format, the config and the clips.
"""

import hashlib
import json
import os
import shutil
import time
from collections.abc import Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from pipeline.cache.fields import FORMAT
from pipeline.cache.records import CACHE, require
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import (
    Damaged,
    make_folder,
    move_into_place,
    read_json,
    sha256_of,
    sync_file,
    sync_folder,
    write_json,
)
from pipeline.files.owners import part_path, remove_abandoned
from pipeline.files.watched_folder import WatchedFolder
from pipeline.manifests.manifest import Clip, Manifest, read_manifest
from pipeline.plugins import mentioned_in, note_paths
from pipeline.workers.claims import ClaimWatch, take_claim
from pipeline.workers.completion import Mark, version_of
from pipeline.workers.waiting import PrintLine, WaitMessages

# Clips that are hashed at a time.
PIECE = 10_000

# How videos are read. Version 1 trusted the rates of headers, kept stored pixels, and turned but
# did not mirror. Version 2 shows videos as a player does. Version 3 also stores seconds of steps.
READING = 3
AS_PLAYERS, WITH_TIMES = 2, 3

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


class CacheError(ValueError):
    """There is no cache, it is not the one that was asked for, or it lacks something."""


def create_cache(
    path: str | Path, config: dict, manifest: Manifest, per_shard: int, say: PrintLine | None = None
) -> Shards:
    """Create a cache folder, or check that an existing one has the same config and clips.

    Args:
        path: the folder. Missing parents are created too.
        config: all that determines the stored values, as JSON can hold it.
        manifest: the clips. Where the cache exists, labels, splits and the videos' folder may
            differ from its own copy of the manifest.
        per_shard: clips per shard. An existing cache keeps its own number.
        say: prints one line where another run holds the lock on `cache.json`.

    Returns:
        The shards of the cache.

    Raises:
        CacheError: the cache was made with another config or other clips. The message names
            the keys that differ, or the first clip.
        Damaged: `cache.json` or the manifest's copy has changed since the cache was made.
        OSError: the folder cannot be written.
    """
    folder = Path(path)
    # As it comes back from cache.json: lists for tuples, so that configs can be compared.
    config = json.loads(_canonical(config))
    fingerprint = _fingerprint(config, manifest)
    require_folder_path(folder)
    make_folder(folder)

    record_path = folder / "cache.json"
    watch = ClaimWatch()
    waits = WaitMessages(watch, say)
    while not record_path.exists():
        waits.say_of({record_path: str(record_path)})
        # The claim makes two runs that start at the same time agree on one plan.
        with take_claim(record_path, watch) or nullcontext() as claim:
            if claim and not record_path.exists():
                _create(folder, config, manifest, fingerprint, per_shard, claim.name)
                return Shards(folder, fingerprint, manifest, per_shard)
        time.sleep(0 if claim else 0.1)

    # A cache that may only be read works as well with what a killed run left in it.
    with suppress(OSError):
        watch.free(record_path)
        remove_abandoned(folder, r"cache\.json", r"cache\.claim", r"manifest\.csv")
    _require_same(folder, config, manifest, fingerprint)
    return Shards(folder, fingerprint, manifest, read_cache_json(folder)["per_shard"])


def watch_cache_folder(folder: Path, fingerprint: str, stage: str) -> WatchedFolder:
    """Return a watch on a cache for a run that writes to it, and create the stage's folder.

    Args:
        folder: the cache.
        fingerprint: what the cache's fingerprint must be and remain.
        stage: "features" or "graphs".

    Returns:
        The watch. It tells when the cache was moved, deleted or replaced.

    Raises:
        CacheError: there is no cache, or it has another fingerprint.
    """
    record_path = folder / "cache.json"
    # The version of cache.json whose fingerprint was compared last.
    checked: list[Mark] = [None]

    def unchanged() -> bool:
        mark = version_of(record_path)
        if mark is None:
            return False
        # Reading the file costs more than looking at its version.
        if mark != checked[0]:
            with suppress(Damaged, CacheError):
                if read_cache_json(folder)["fingerprint"] != fingerprint:
                    return False
                checked[0] = mark
        return True

    if read_cache_json(folder)["fingerprint"] != fingerprint:
        raise CacheError(
            f"{folder}: this is not the cache that the run started with; all machines must see "
            f"the same files"
        )
    if not (folder / stage).is_dir():
        (folder / stage).mkdir(exist_ok=True)
        sync_folder(folder)
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


def _create(
    folder: Path, config: dict, manifest: Manifest, fingerprint: str, per_shard: int, claim: str
) -> None:
    """Write the manifest's copy, then cache.json, which makes the folder a cache."""
    part = part_path(folder / "manifest.csv", claim)
    try:
        shutil.copyfile(manifest.path, part)
        # Without this, a power loss could keep the file's name and lose its rows.
        sync_file(part)
        if sha256_of(part) != manifest.sha256:
            raise CacheError(f"{manifest.path}: changed since it was read; start again")
        move_into_place(part, folder / "manifest.csv")
    finally:
        part.unlink(missing_ok=True)

    record = {
        "format": FORMAT,
        "config": config,
        "fingerprint": fingerprint,
        "manifest": {"sha256": manifest.sha256, "root": _root_as_spelled(manifest)},
        "per_shard": per_shard,
        "reading": READING,
    }
    plugins = mentioned_in(config)
    if plugins:
        record["plugins"] = plugins
    write_json(folder / "cache.json", record, claim)


def read_cache_json(folder: Path) -> dict:
    """Read and check `cache.json`.

    Args:
        folder: the cache.

    Returns:
        The record that `create_cache` wrote (`pipeline.cache.records.CACHE`).

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
    record = read_json(path)
    # The format comes first: another format may have other keys.
    if require(record, {"format": int}, path)["format"] != FORMAT:
        raise CacheError(
            f"{folder}: format {record['format']}, this version reads {FORMAT}; extract again, or "
            f"use that version"
        )
    require(record, CACHE, path)
    note_paths(record.get("plugins", {}))
    if record["per_shard"] < 1:
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


def read_manifest_copy(folder: Path, record: dict) -> Manifest:
    """Read the cache's own copy of the manifest.

    Args:
        folder: the cache.
        record: its cache.json.

    Returns:
        The manifest as it was when the cache was made.

    Raises:
        CacheError: the copy is missing.
        Damaged: the copy has changed.
    """
    check_manifest_copy(folder, record)
    return read_manifest(folder / "manifest.csv", record["manifest"]["root"])


def relabelled_clips(folder: Path, manifest: Manifest) -> list[str]:
    """Return the clips whose labels or split differ from the cache's copy of the manifest.

    Args:
        folder: the cache.
        manifest: a manifest with the same clips in the same order.

    Returns:
        The ids of those clips.

    Raises:
        CacheError: the copy is missing.
        Damaged: the copy has changed.
    """
    record = read_cache_json(folder)
    if record["manifest"]["sha256"] == manifest.sha256:
        return []
    pairs = zip(read_manifest_copy(folder, record).clips, manifest.clips, strict=True)
    return [new.clip for old, new in pairs if (old.split, old.labels) != (new.split, new.labels)]


def check_manifest_copy(folder: Path, record: dict) -> None:
    """Check the sha256 of the cache's copy of the manifest, without reading its rows.

    Args:
        folder: the cache.
        record: its cache.json.

    Raises:
        CacheError: the copy is missing.
        Damaged: the copy has changed.
    """
    path = folder / "manifest.csv"
    if not path.is_file():
        raise CacheError(f"{path}: missing; put the manifest there that the cache was made from")
    if sha256_of(path) != record["manifest"]["sha256"]:
        raise Damaged(
            f"{path}: changed since the cache was made; put the manifest there that it was made "
            f"from"
        )


def _require_same(folder: Path, config: dict, manifest: Manifest, fingerprint: str) -> None:
    """CacheError unless the cache in `folder` has the same config and clips."""
    record = read_cache_json(folder)
    if record["fingerprint"] == fingerprint:
        check_manifest_copy(folder, record)
        return

    stored, wanted = _flatten(record["config"]), _flatten(config)
    differing = []
    for key in sorted({*stored, *wanted}):
        if stored.get(key) != wanted.get(key):
            differing.append(key)
    if differing == ["backbone_version"]:
        raise CacheError(
            f"{folder}: with these options the backbone now computes something else than when the "
            f"cache was made ({_settings(wanted, differing)}). Point --cache at another folder"
        )
    if differing:
        raise CacheError(
            f"{folder}: the cache was made with {_settings(stored, differing)}; this command asks "
            f"for {_settings(wanted, differing)}. "
            "Point --cache at another folder, or pass the same options"
        )

    # The configs agree, so the clips differ.
    copied = _identity(read_manifest_copy(folder, record).clips)
    given = _identity(manifest.clips)
    row = 0
    while row < min(len(copied), len(given)) and copied[row] == given[row]:
        row += 1
    raise CacheError(
        f"{folder}: row {row + 1} of its manifest is {_clip_at(copied, row)}; of {manifest.path} "
        f"it is {_clip_at(given, row)}. Point --cache at another folder, or pass the same manifest"
    )


def _settings(flat: dict[str, object], keys: Sequence[str]) -> str:
    """Some settings for a message, such as "seed=1, dtype=float16"."""
    return ", ".join(f"{key}={flat.get(key, 'none')}" for key in keys)


def _root_as_spelled(manifest: Manifest) -> str:
    """The root, spelled with symbolic links where absolute paths in the manifest may use them."""
    given = manifest.path.parent
    if given.resolve() == manifest.root:
        return os.path.abspath(given)
    return str(manifest.root)


def _clip_at(rows: Sequence[Sequence], row: int) -> str:
    """A row of `_identity` for a message, with the part of the file that the clip is."""
    if row >= len(rows):
        return "no clip"
    clip, start, end = rows[row]
    if start is None and end is None:
        return f"clip {clip}"
    until = "the end" if end is None else f"{end:g} s"
    return f"clip {clip}, from {start or 0:g} s to {until}"


def _identity(clips: Sequence[Clip]) -> list[list]:
    """The columns of a manifest that decide which row is which view."""
    return [[clip.clip, clip.start, clip.end] for clip in clips]


def _fingerprint(config: dict, manifest: Manifest) -> str:
    """sha256 of {"clips": [[id, start, end], …], "config": …, "format": …} as canonical JSON.

    The clips are encoded piece by piece: the text of a million clips is never in memory at once.
    """
    digest = hashlib.sha256(b'{"clips":[')
    for first in range(0, len(manifest.clips), PIECE):
        rows = []
        for clip in manifest.clips[first : first + PIECE]:
            name = _ENCODER.encode(clip.clip)
            rows.append(f"[{name},{_seconds(clip.start)},{_seconds(clip.end)}]")
        comma = b"," if first else b""
        digest.update(comma + ",".join(rows).encode())
    digest.update(b'],"config":' + _canonical(config) + b',"format":' + _canonical(FORMAT) + b"}")
    return digest.hexdigest()


def _seconds(value: float | None) -> str:
    return "null" if value is None else repr(value)


def _canonical(value: object) -> bytes:
    return _ENCODER.encode(value).encode()


def _flatten(config: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            flat |= _flatten(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = value
    return flat
