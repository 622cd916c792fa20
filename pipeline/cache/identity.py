"""What tells caches and shards apart: the fingerprint of a config, and the hash of clips.

A fingerprint covers what decides a value, not what is there. Caches with the same fingerprint hold
the same values for the same view of the same video, whatever their clips, views and fields are.
"""

import hashlib
import json
from collections.abc import Sequence
from typing import Any

from pipeline.cache.fields import FORMAT
from pipeline.manifests.manifest import Clip, Manifest

# Clips that are hashed at a time.
PIECE = 10_000

_ENCODER = json.JSONEncoder(
    sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
)

# Keys of a config that say what is there: which fields, and how many views. No value depends on
# them, except for the frames of test views, which `pipeline.stages.growth` compares.
CONTENT = ("keep",)
CONTENT_OF_SAMPLING = ("train_views", "test_clips")


def canonical(value: object) -> bytes:
    """Return a value as JSON of one spelling, to compare or to hash it.

    Args:
        value: what JSON can hold, with tuples for lists.
    """
    return _ENCODER.encode(value).encode()


def as_json(config: dict) -> dict:
    """Return a config as it comes back from JSON: with lists for tuples.

    Args:
        config: the config.
    """
    return json.loads(canonical(config))


def deciding(config: dict) -> dict[str, Any]:
    """Return the part of a config that decides values.

    Args:
        config: a cache's config.

    Returns:
        The config without the keys that only say what is there.
    """
    kept = {key: value for key, value in config.items() if key not in CONTENT}
    sampling = kept.get("sampling")
    if isinstance(sampling, dict):
        kept["sampling"] = {
            key: value for key, value in sampling.items() if key not in CONTENT_OF_SAMPLING
        }
    return kept


def fingerprint_of(config: dict) -> str:
    """Return the fingerprint of a config: sha256 of the format and of what decides values.

    Args:
        config: a cache's config.

    Returns:
        Hexadecimal digits.
    """
    return hashlib.sha256(canonical({"config": deciding(config), "format": FORMAT})).hexdigest()


def fingerprint_of_format_1(config: dict, manifest: Manifest) -> str:
    """Return the fingerprint that a cache of format 1 has: it covers the clips, too.

    Args:
        config: the cache's whole config.
        manifest: its clips.

    Returns:
        sha256 of {"clips": [[id, start, end], …], "config": …, "format": 1} as canonical JSON.
    """
    digest = hashlib.sha256(b'{"clips":[')
    _add_clips(digest, manifest.clips)
    digest.update(b'],"config":' + canonical(config) + b',"format":1}')
    return digest.hexdigest()


def clips_sha256(clips: Sequence[Clip]) -> str:
    """Return the hash by which a shard knows its clips.

    Args:
        clips: the clips of the shard, in its order.

    Returns:
        sha256 of [[id, start, end], …] as canonical JSON, in hexadecimal digits.
    """
    digest = hashlib.sha256(b"[")
    _add_clips(digest, clips)
    digest.update(b"]")
    return digest.hexdigest()


def identity(clips: Sequence[Clip]) -> list[list]:
    """Return the columns of a manifest that decide which row is which view.

    Args:
        clips: the clips.

    Returns:
        [id, start, end] of each.
    """
    return [[clip.clip, clip.start, clip.end] for clip in clips]


def _add_clips(digest, clips: Sequence[Clip]) -> None:
    """Hash clips piece by piece: the text of a million clips is never in memory at once."""
    for first in range(0, len(clips), PIECE):
        rows = []
        for clip in clips[first : first + PIECE]:
            name = _ENCODER.encode(clip.clip)
            rows.append(f"[{name},{_seconds(clip.start)},{_seconds(clip.end)}]")
        comma = b"," if first else b""
        digest.update(comma + ",".join(rows).encode())


def _seconds(value: float | None) -> str:
    return "null" if value is None else repr(value)


def flat(config: dict, prefix: str = "") -> dict[str, object]:
    """Return a config with dotted keys: {"a": {"b": 1}} becomes {"a.b": 1}.

    Args:
        config: the config; dictionaries without keys stay values.
        prefix: stands before every key.
    """
    found: dict[str, object] = {}
    for key, value in config.items():
        if isinstance(value, dict) and value:
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[prefix + key] = value
    return found


def differing_keys(flat_first: dict, flat_other: dict) -> list[str]:
    """Return the dotted keys in which two configs differ, in alphabetical order.

    Args:
        flat_first: a config, `flat`.
        flat_other: another one, `flat`.
    """
    keys = []
    for key in sorted({*flat_first, *flat_other}):
        if flat_first.get(key) != flat_other.get(key):
            keys.append(key)
    # A table that is empty in one config has keys in the other, and these say what differs.
    telling = [key for key in keys if {} not in (flat_first.get(key), flat_other.get(key))]
    return telling or keys
