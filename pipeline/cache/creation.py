"""Create a cache's folder, or check that an existing one is the cache that was asked for.

`create_cache` makes a cache of one kind of shards. `pipeline.cache.growth` also lets caches grow.
"""

import os
import shlex
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path

from pipeline.cache.fields import FORMAT
from pipeline.cache.folder import (
    MANIFEST,
    READING,
    CacheError,
    check_manifest_copy,
    read_cache_json,
    read_folder,
    require_folder_path,
)
from pipeline.cache.identity import (
    as_json,
    differing_keys,
    fingerprint_of,
    fingerprint_of_format_1,
    flat,
    identity,
)
from pipeline.cache.parts import Part, run_lengths
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import (
    make_folder,
    move_into_place,
    sha256_of,
    sync_file,
    write_json,
)
from pipeline.files.owners import part_path, remove_abandoned
from pipeline.manifests.manifest import Manifest, shard_ranges
from pipeline.plugins import mentioned_in
from pipeline.text import as_typed
from pipeline.workers.claims import Claim, ClaimWatch, take_claim
from pipeline.workers.waiting import PrintLine, WaitMessages


def create_cache(
    path: str | Path, config: dict, manifest: Manifest, per_shard: int, say: PrintLine | None = None
) -> Shards:
    """Create a cache folder, or check that an existing one has the same config and clips.

    Its shards have equally many clips, and its clips have equally many views.

    Args:
        path: the folder. Missing parents are created too.
        config: all that determines the stored values, as JSON can hold it.
        manifest: the clips. Where the cache exists, labels, splits and the videos' folder may
            differ from its own copy of the manifest.
        per_shard: clips per shard. An existing cache keeps its own shards.
        say: prints one line where another run holds the lock on `cache.json`.

    Returns:
        The shards of the cache.

    Raises:
        CacheError: the cache was made with another config or other clips. The message names
            the keys that differ, or the first clip.
        Damaged: `cache.json` or the manifest's copy has changed since the cache was made.
        OSError: the folder cannot be written.
    """
    folder, config = Path(path), as_json(config)
    clips = len(manifest.clips)
    lengths = run_lengths([len(clips) for clips in shard_ranges(clips, per_shard)])
    part = Part(((0, clips),), lengths, fingerprint_of(config))

    def create(claim: Claim) -> None:
        create_files(folder, first_record(config, manifest, [part]), manifest, claim.name)

    lock_or_create(folder, create, say)
    require_same(folder, config, manifest)
    return Shards(folder, read_cache_json(folder), manifest)


def lock_or_create(
    folder: Path, create: Callable[[Claim], None], say: PrintLine | None = None
) -> None:
    """Have a cache created, unless there is one. Runs that start together agree on one plan.

    Args:
        folder: the cache's folder.
        create: writes the files, under the claim on cache.json.
        say: prints one line where another run holds the claim.

    Raises:
        CacheError: a file has the folder's name.
    """
    require_folder_path(folder)
    make_folder(folder)
    record_path = folder / "cache.json"
    if not record_path.exists():
        with claim_of(folder, say, until=record_path.exists) as claim:
            if claim and not record_path.exists():
                create(claim)
                return
    # A cache that may only be read works as well with what a killed run left in it.
    with suppress(OSError):
        ClaimWatch().free(record_path)
        remove_abandoned(folder, r"cache\.json", r"cache\.claim", r"manifest(\.next)?\.csv")


def claim_of(
    folder: Path, say: PrintLine | None = None, until: Callable[[], bool] = lambda: False
) -> Claim | nullcontext:
    """Take the claim on a cache's cache.json, and wait for whoever holds it.

    Args:
        folder: the cache's folder.
        say: prints one line where another run holds the claim.
        until: returns whether the claim is no longer wanted.

    Returns:
        The claim, as a context manager; an empty one if it is no longer wanted.
    """
    record_path, watch = folder / "cache.json", ClaimWatch()
    waits = WaitMessages(watch, say)
    while not until():
        waits.say_of({record_path: str(record_path)})
        claim = take_claim(record_path, watch)
        if claim:
            return claim
        time.sleep(0.1)
    return nullcontext()


def create_files(
    folder: Path, record: dict, manifest: Manifest, claim: str, name: str = MANIFEST
) -> None:
    """Write the manifest's copy, then cache.json, which makes the folder a cache.

    Args:
        folder: the cache's folder.
        record: what cache.json will hold.
        manifest: the manifest to copy.
        claim: the name of the claim on cache.json.
        name: the copy's name until cache.json is in place.

    Raises:
        CacheError: the manifest has changed since it was read.
        OSError: the folder cannot be written.
    """
    part = part_path(folder / name, claim)
    try:
        shutil.copyfile(manifest.path, part)
        # Without this, a power loss could keep the file's name and lose its rows.
        sync_file(part)
        if sha256_of(part) != manifest.sha256:
            raise CacheError(f"{manifest.path}: changed since it was read; start again")
        move_into_place(part, folder / name)
    finally:
        part.unlink(missing_ok=True)
    write_json(folder / "cache.json", record, claim)


def first_record(config: dict, manifest: Manifest, parts: Sequence[Part]) -> dict:
    """Return what cache.json holds of a new cache.

    Args:
        config: all that determines the stored values, as it comes back from JSON.
        manifest: the clips.
        parts: what its shards will hold.
    """
    record = {
        "format": FORMAT,
        "config": config,
        "fingerprint": fingerprint_of(config),
        "manifest": {"sha256": manifest.sha256, "root": root_as_spelled(manifest)},
        "parts": [part.as_json() for part in parts],
        "reading": READING,
    }
    plugins = mentioned_in(config)
    if plugins:
        record["plugins"] = plugins
    return record


def require_same(folder: Path, config: dict, manifest: Manifest) -> None:
    """Check that a cache has this config and these clips.

    Args:
        folder: the cache.
        config: the whole config, as it comes back from JSON.
        manifest: the clips.

    Raises:
        CacheError: it was made with another config or other clips.
        Damaged: cache.json or the manifest's copy has changed.
    """
    record = read_cache_json(folder)
    if record["format"] == 1:
        same = record["fingerprint"] == fingerprint_of_format_1(config, manifest)
        if same:
            check_manifest_copy(folder, record)
            return
    require_same_config(folder, record["config"], config)

    # The configs agree, so the clips differ.
    record, copy = read_folder(folder, manifest)
    copied, given = identity(copy.clips), identity(manifest.clips)
    if copied == given:
        return
    row = 0
    while row < min(len(copied), len(given)) and copied[row] == given[row]:
        row += 1
    raise CacheError(
        f"{folder}: row {row + 1} of its manifest is {_clip_at(copied, row)}; of {manifest.path} "
        f"it is {_clip_at(given, row)}. Point --cache at another folder, or pass the same manifest"
    )


def require_same_config(folder: Path, stored: dict, wanted: dict) -> None:
    """Check that two configs are equal.

    Args:
        folder: the cache, for the message.
        stored: the cache's config, or the part of it that matters.
        wanted: that of the command.

    Raises:
        CacheError: they differ. The message names the keys.
    """
    stored, wanted = flat(stored), flat(wanted)
    differing = differing_keys(stored, wanted)
    if differing == ["backbone_version"]:
        raise CacheError(
            f"{folder}: with these options the backbone now computes something else than when the "
            f"cache was made ({as_typed(wanted, differing)}). Point --cache at another folder"
        )
    if differing:
        raise CacheError(
            f"{folder}: the cache was made with other options: {as_typed(stored, differing)}; this "
            f"command asks for: {as_typed(wanted, differing)}. Point --cache at another folder, or "
            f"pass the same options (--like {shlex.quote(str(folder))} takes them from it)"
        )


def root_as_spelled(manifest: Manifest) -> str:
    """Return a manifest's root, with symbolic links where absolute paths in it may use them.

    Args:
        manifest: the manifest.
    """
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
