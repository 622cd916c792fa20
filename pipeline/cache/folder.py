"""The cache folder before any shard: cache.json, the copy of the manifest, and which shard holds
which clips.
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
from pipeline.cache.records import CACHE, read_statistics, require
from pipeline.files.atomic_files import (
    Damaged,
    done_marker,
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
from pipeline.manifests.manifest import Clip, Manifest, read_manifest, shard_ranges
from pipeline.plugins import mentioned_in, note_paths
from pipeline.workers.claims import ClaimWatch, Mark, take_claim, version_of
from pipeline.workers.waiting import PrintLine, WaitMessages

PIECE = 10_000  # clips that are hashed at a time
# How videos are read. 1: rates of headers, stored pixels, turned but not mirrored; 2: as a player
# shows them.
READING = 2
_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)


class CacheError(ValueError):
    """A cache is not there, is not what was asked for, or lacks what was asked of it."""


class Shards:
    """The shards of a cache: `len`, the clips of each, and where each stage's file lies."""

    def __init__(self, folder: Path, fingerprint: str, manifest: Manifest, per_shard: int):
        self.folder, self.fingerprint, self.manifest = folder, fingerprint, manifest
        self.ranges = shard_ranges(len(manifest.clips), per_shard)

    def __len__(self) -> int:
        return len(self.ranges)

    def clips(self, shard: int) -> tuple[Clip, ...]:
        """The clips of a shard, in the order of its rows."""
        return self.manifest.clips[self.ranges[shard].start : self.ranges[shard].stop]

    def path(self, shard: int, stage: str = "features") -> Path:
        """The HDF5 file of a shard."""
        return self.folder / stage / f"{shard:05d}.h5"

    def done(self, shard: int, stage: str = "features") -> bool:
        """Whether a shard is complete."""
        return done_marker(self.path(shard, stage)).exists()

    def record(self, shard: int, stage: str = "features") -> dict:
        """A complete shard's statistics. Damaged if they are damaged, or of another shard or cache;
        OSError without any.
        """
        return read_statistics(self.path(shard, stage), self.attrs(shard))

    def attrs(self, shard: int) -> dict[str, str | int]:
        """What every file of a shard carries to say where it belongs."""
        return {"fingerprint": self.fingerprint, "shard": shard}


def create_cache(
    path: str | Path, config: dict, manifest: Manifest, per_shard: int, say: PrintLine | None = None
) -> Shards:
    """Makes the cache folder, or checks that the one there was made with the same config and clips;
    returns its plan.

    config: all that determines the stored values, as JSON can hold it. A cache that is there keeps
    its `per_shard` and its copy of the manifest: labels, splits and the videos' folder may differ.
    CacheError names the keys that differ, or the first clip. `say` gets a line where another run's
    claim is waited for.
    """
    folder = Path(path)
    config = json.loads(_canonical(config))
    fingerprint = _fingerprint(config, manifest)
    check_place(folder)
    make_folder(folder)
    watch, made = ClaimWatch(), folder / "cache.json"
    waits = WaitMessages(watch, say)
    while not made.exists():
        waits.say_of({made: str(made)})
        with (
            take_claim(folder / "cache.json", watch) or nullcontext() as claim
        ):  # two runs that start at once agree on one plan
            if claim and not (folder / "cache.json").exists():
                _create(folder, config, manifest, fingerprint, per_shard, claim.name)
                return Shards(folder, fingerprint, manifest, per_shard)
        time.sleep(0 if claim else 0.1)
    with suppress(
        OSError
    ):  # a cache that may only be read is none the worse for what a killed run left in it
        watch.free(folder / "cache.json")
        remove_abandoned(folder, r"cache\.json", r"cache\.claim", r"manifest\.csv")
    _require_same(folder, config, manifest, fingerprint)
    return Shards(folder, fingerprint, manifest, read_cache_json(folder)["per_shard"])


def home_of(folder: Path, fingerprint: str, stage: str) -> WatchedFolder:
    """Watches the cache's folder and its folder for a stage, which is made if needed, for a run
    that writes there.

    CacheError if there is no cache, or one with another fingerprint.
    """
    made = folder / "cache.json"
    seen: list[Mark] = [None]

    def unchanged() -> bool:
        mark = version_of(made)
        if mark is None:
            return False
        if mark != seen[0]:
            with suppress(Damaged, CacheError):
                if read_cache_json(folder)["fingerprint"] != fingerprint:
                    return False
                seen[0] = mark
        return True

    if read_cache_json(folder)["fingerprint"] != fingerprint:
        raise CacheError(
            f"{folder}: another cache than the one that this run began with; all machines must "
            f"see the same files"
        )
    if not (folder / stage).is_dir():
        (folder / stage).mkdir(exist_ok=True)
        sync_folder(folder)
    return WatchedFolder(folder, folder / stage, unchanged=unchanged)


def check_place(folder: Path) -> None:
    """CacheError where a file is in the way of a folder for a cache."""
    for place in (folder, *folder.parents):
        if place.exists() and not place.is_dir():
            raise CacheError(
                f"{folder}: expected a folder for the cache, {place} is a file; give --cache "
                f"another name"
            )


def _create(
    folder: Path, config: dict, manifest: Manifest, fingerprint: str, per_shard: int, claim: str
) -> None:
    part = part_path(folder / "manifest.csv", claim)
    try:
        shutil.copyfile(manifest.path, part)
        sync_file(part)  # else a power loss could leave its name without its rows
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
    """cache.json as written by `create_cache`. CacheError if there is none, or its FORMAT is
    another; Damaged if it changed.
    """
    if not (folder / "cache.json").is_file():
        raise CacheError(
            f"{folder}: no cache here (no cache.json); expected a folder that `vidgraph extract "
            f"--cache` made"
        )
    record = read_json(folder / "cache.json")
    if require(record, {"format": int}, folder / "cache.json")["format"] != FORMAT:
        raise CacheError(
            f"{folder}: format {record['format']}, this version reads {FORMAT}; extract again, or "
            f"use that version"
        )
    require(record, CACHE, folder / "cache.json")
    note_paths(record.get("plugins", {}))
    if record["per_shard"] < 1:
        raise Damaged(
            f"{folder / 'cache.json'}: per_shard is {record['per_shard']}, expected clips per "
            f"shard from 1"
        )
    return record


def other_reading(folder: Path) -> str:
    """The warning for a run that adds shards to a cache of an earlier version, which read videos
    differently; else "".
    """
    if read_cache_json(folder).get("reading", 1) == READING:
        return ""
    return (
        f"{folder}: an earlier version began this cache and read some videos otherwise: those "
        f"with pixels that are not square, "
        "a mirrored display, several tracks, joined recordings, odd heights or more than 8 bits; "
        "if you have such videos, "
        "extract to a new folder, because their old and new views would differ"
    )


def read_manifest_copy(folder: Path, record: dict) -> Manifest:
    """The cache's own manifest; record: its cache.json. CacheError if it is not there, Damaged if
    it has changed.
    """
    path = folder / "manifest.csv"
    check_manifest_copy(folder, record)
    return read_manifest(path, record["manifest"]["root"])


def relabelled_clips(folder: Path, manifest: Manifest) -> list[str]:
    """The ids of clips whose labels or split in `manifest` differ from the cache's copy, which has
    the same clips.
    """
    record = read_cache_json(folder)
    if record["manifest"]["sha256"] == manifest.sha256:
        return []
    pairs = zip(read_manifest_copy(folder, record).clips, manifest.clips, strict=True)
    return [new.clip for old, new in pairs if (old.split, old.labels) != (new.split, new.labels)]


def check_manifest_copy(folder: Path, record: dict) -> None:
    """Compares the copy's sha256 alone, without reading its rows."""
    path = folder / "manifest.csv"
    if not path.is_file():
        raise CacheError(f"{path}: missing; put the manifest there that the cache was made from")
    if sha256_of(path) != record["manifest"]["sha256"]:
        raise Damaged(
            f"{path}: changed since the cache was made; put the manifest there that it was made "
            f"from"
        )


def _require_same(folder: Path, config: dict, manifest: Manifest, fingerprint: str) -> None:
    record = read_cache_json(folder)
    if record["fingerprint"] == fingerprint:
        return check_manifest_copy(folder, record)
    made, asked = _flat(record["config"]), _flat(config)
    if differ := [key for key in sorted({*made, *asked}) if made.get(key) != asked.get(key)]:
        was, now = (
            ", ".join(f"{key}={flat.get(key, 'none')}" for key in differ) for flat in (made, asked)
        )
        advice = "Point --cache at another folder, or pass the same options"
        raise CacheError(f"{folder}: written with {was}; asked for {now}. {advice}")
    rows = _identity(read_manifest_copy(folder, record).clips), _identity(manifest.clips)
    k = next(
        (k for k, (a, b) in enumerate(zip(*rows, strict=False)) if a != b), min(map(len, rows))
    )
    was, now = (_clip_in_words(*row[k]) if k < len(row) else "no clip" for row in rows)
    advice = "Point --cache at another folder, or pass the same manifest"
    raise CacheError(
        f"{folder}: row {k + 1} of its manifest is {was}; of {manifest.path} it is {now}. {advice}"
    )


def _root_as_spelled(manifest: Manifest) -> str:
    """The root with the links that absolute paths in the manifest may go through, where they can be
    known.
    """
    given = manifest.path.parent
    return os.path.abspath(given) if given.resolve() == manifest.root else str(manifest.root)


def _clip_in_words(clip: str, start: float | None, end: float | None) -> str:
    """A clip, with the part of its file that it is, where it is a part."""
    part = (
        ""
        if start is None and end is None
        else f", from {start or 0:g} s to {'the end' if end is None else f'{end:g} s'}"
    )
    return f"clip {clip}{part}"


def _identity(clips: Sequence[Clip]) -> list[list]:
    """What of a manifest decides which row is what."""
    return [[clip.clip, clip.start, clip.end] for clip in clips]


def _fingerprint(config: dict, manifest: Manifest) -> str:
    """sha256 of {"clips": [[id, start, end], …], "config": …, "format": …} as canonical JSON, of
    which a million clips never exist at once, nor as lists of their own.
    """
    digest, of = hashlib.sha256(b'{"clips":['), _ENCODER.encode
    for first in range(0, len(manifest.clips), PIECE):
        some = manifest.clips[first : first + PIECE]
        rows = ",".join(
            [f"[{of(clip.clip)},{_seconds(clip.start)},{_seconds(clip.end)}]" for clip in some]
        )
        digest.update((b"," if first else b"") + rows.encode())
    digest.update(b'],"config":' + _canonical(config) + b',"format":' + _canonical(FORMAT) + b"}")
    return digest.hexdigest()


def _seconds(value: float | None) -> str:
    return "null" if value is None else repr(value)


def _canonical(value: object) -> bytes:
    return _ENCODER.encode(value).encode()


def _flat(config: dict, prefix: str = "") -> dict[str, object]:
    """{"a": {"b": 1}} -> {"a.b": 1}."""
    flat: dict[str, object] = {}
    for key, value in config.items():
        flat |= (
            _flat(value, f"{prefix}{key}.")
            if isinstance(value, dict) and value
            else {prefix + key: value}
        )
    return flat
