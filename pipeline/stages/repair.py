"""Repair: extracts again, as they were extracted, the shards that are damaged, missing, or hold
failed clips.
"""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cache.reader import Cache, CacheError
from pipeline.cache.records import read_statistics
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import Damaged, done_marker
from pipeline.manifests.manifest import Manifest, read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.extract import RunOptions
from pipeline.stages.graphs import build_graphs
from pipeline.video.video_identity import changed_videos
from pipeline.workers.waiting import PrintLine


@dataclass(frozen=True)
class MovedFiles:
    """Where files are now that the first run found elsewhere; None: where they were.

    `root` of the videos; `weights` of the backbone; `annotations` and `proposal_weights` of the
    source of boxes. What is in the last three has to be the same: the cache's fingerprint says so.
    """

    root: str | Path | None = None
    weights: str | Path | None = None
    annotations: str | Path | None = None
    proposal_weights: str | Path | None = None


def as_extracted(
    path: str | Path, options: RunOptions, moved: MovedFiles | None = None
) -> tuple[ExtractConfig, Manifest, RunOptions]:
    """The configuration, the manifest and the options that fill the shards of a cache again with
    the same bits.

    They come from the statistics of any shard that can be read: CacheError if there is none.
    ValueError for a file that is not where it was, with the option that says where it is, and for
    one that this cache was not made with.
    """
    cache, moved = Cache(path), moved or MovedFiles()
    record = next(_records(cache.path, "features"), None)
    if record is None:
        raise CacheError(
            f"{cache.path}: no shard's statistics can be read; run `vidgraph extract` with the "
            f"first run's options"
        )
    if "asked" not in record:
        raise CacheError(
            f"{cache.path}: expected a cache of `vidgraph extract`, this one was filled by "
            f"something else, such as `vidgraph "
            "reproduce`, which alone can fill it again"
        )
    config = _with_moved(ExtractConfig.from_dict(record["asked"]), moved)
    manifest = (
        cache.manifest
        if moved.root is None
        else read_manifest(cache.path / "manifest.csv", moved.root)
    )
    if not manifest.root.is_dir():
        raise ValueError(
            f"{manifest.root}: no such folder, expected the videos there; pass --root with where "
            f"they are now"
        )
    return (
        config,
        manifest,
        replace(options, batch=record["batch"], compression=record["compression"]),
    )


def changed_shards(path: str | Path, root: str | Path | None = None) -> list[int]:
    """The shards some of whose videos have changed since they were extracted; `root` of the videos:
    None, where they were.
    """
    cache = Cache(path)
    manifest = cache.manifest if root is None else read_manifest(cache.path / "manifest.csv", root)
    plan = Shards(cache.path, cache.fingerprint, manifest, cache.record["per_shard"])
    found = []
    for shard in range(len(plan)):
        with suppress(Damaged, OSError):  # it is not complete, or about to be redone anyway
            if changed_videos(plan.record(shard), plan.clips(shard)):
                found.append(shard)
    return found


def redo_graphs(
    path: str | Path,
    shards: Iterable[int],
    workers: int = 0,
    device: str = "cpu",
    say: PrintLine | None = None,
) -> list[dict]:
    """Computes graphs again: those of `shards`, and what is missing or stale; returns the
    statistics of what was written.

    With the options that most of the graphs there were made with: CacheError if none of their
    statistics can be read.
    """
    cache = Cache(path)
    made = Counter(
        (tuple(record["options"]["which"]), record["options"]["neighbours"], record["compression"])
        for record in _records(cache.path, "graphs")
        if "options" in record
    )
    if not made:
        raise CacheError(
            f"{cache.path}/graphs: no statistics can be read; delete that folder and run "
            f"`vidgraph graphs`"
        )
    for shard in shards:
        done_marker(cache.shards.path(shard, "graphs")).unlink(missing_ok=True)
    (which, neighbours, compression), _ = made.most_common(1)[0]
    return build_graphs(path, which, neighbours or 1, workers, device, compression, say=say)


def _with_moved(config: ExtractConfig, moved: MovedFiles) -> ExtractConfig:
    """The configuration with its files where they are now."""
    options, now = (
        dict(config.proposal_options),
        {"file": moved.annotations, "weights": moved.proposal_weights},
    )
    flags = {"file": "--annotations", "weights": "--proposal-weights"}
    for key in (key for key in now if now[key] is not None):
        if key not in options:
            raise ValueError(
                f"{flags[key]}: the boxes of this cache ({config.proposals}) came from no such "
                f"file; leave it out"
            )
        options[key] = os.path.abspath(now[key])
    weights = config.weights if moved.weights is None else str(moved.weights)
    for flag, there in (
        ("--weights", weights),
        *((flags[key], str(options[key])) for key in flags if key in options),
    ):
        if os.path.isabs(there) and not os.path.exists(there):
            raise ValueError(
                f"{there}: no such file, expected it where the first run found it; pass {flag} "
                f"with where it is now"
            )
    return replace(config, weights=weights, proposal_options=options)


def _records(cache: Path, stage: str) -> Iterator[dict]:
    for path in sorted((cache / stage).glob("*.json")):
        try:
            yield read_statistics(path.with_suffix(".h5"))
        except (Damaged, OSError):  # what is damaged is about to be redone; another shard's will do
            continue
