"""Repair a cache: extract bad shards again, with the options that they were extracted with."""

from collections import Counter
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

from pipeline.cache.asked import readable_statistics
from pipeline.cache.folder import open_folder
from pipeline.cache.reader import Cache, CacheError
from pipeline.cache.shards import Shards
from pipeline.files.atomic_files import Damaged, done_marker
from pipeline.manifests.manifest import Manifest, read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.graphs import build_graphs
from pipeline.stages.jobs import RunOptions
from pipeline.stages.recorded import MovedFiles, with_moved
from pipeline.video.video_identity import changed_videos
from pipeline.workers.waiting import PrintLine


def as_extracted(
    path: str | Path, options: RunOptions, moved: MovedFiles | None = None
) -> tuple[ExtractConfig, Manifest, RunOptions]:
    """Find what fills the shards of a cache again with the same bits.

    It comes from the statistics of any shard that can be read.

    Args:
        path: the cache.
        options: how to work.
        moved: where files are now; None means where they were.

    Returns:
        The config, the manifest, and the options with the cache's own batch size and compression.

    Raises:
        CacheError: no statistics can be read, or `vidgraph extract` did not make the cache.
        ValueError: a file is not where it was, or the cache was not made with such a file. The
            message names the option that says where it is.
    """
    cache, moved = Cache(path), moved or MovedFiles()
    record = next(readable_statistics(cache.path, "features"), None)
    if record is None:
        raise CacheError(
            f"{cache.path}: no shard's statistics can be read; run `vidgraph extract` with the "
            f"first run's options"
        )
    if "asked" not in record:
        raise CacheError(
            f"{cache.path}: expected a cache of `vidgraph extract`, this one was filled by "
            f"something else, such as `vidgraph reproduce`, which alone can fill it again"
        )
    config = with_moved(ExtractConfig.from_dict(record["asked"]), moved)

    manifest = _stored_manifest(cache, moved.root)
    if not manifest.root.is_dir():
        raise ValueError(
            f"{manifest.root}: no such folder, expected the videos there; pass --root with where "
            f"they are now"
        )
    # Another batch size would round differently.
    options = replace(options, batch=record["batch"], compression=record["compression"])
    return config, manifest, options


def changed_shards(path: str | Path, root: str | Path | None = None) -> list[int]:
    """Find the shards with videos that have changed since they were extracted.

    Args:
        path: the cache.
        root: the folder of the videos; None means where it was.

    Returns:
        Numbers of shards.
    """
    cache = Cache(path)
    manifest = _stored_manifest(cache, root)
    plan = Shards(cache.path, cache.record, cache.stored, manifest.clips)
    changed = []
    for shard in range(len(plan)):
        # A shard that is missing or damaged is redone anyway.
        with suppress(Damaged, OSError):
            if changed_videos(plan.record(shard), plan.clips(shard)):
                changed.append(shard)
    return changed


def _stored_manifest(cache: Cache, root: str | Path | None) -> Manifest:
    """All clips that have rows, and where their videos are."""
    if root is None:
        return cache.stored
    _, path = open_folder(cache.path)
    return read_manifest(path, root)


def redo_graphs(
    path: str | Path,
    shards: Iterable[int],
    workers: int = 0,
    device: str = "cpu",
    say: PrintLine | None = None,
) -> list[dict]:
    """Compute graphs again: those of some shards, and all that are missing or stale.

    The options are those that most of the existing graphs were made with.

    Args:
        path: the cache.
        shards: the numbers of the shards.
        workers: as for `build_graphs`.
        device: as for `build_graphs`.
        say: as for `build_graphs`.

    Returns:
        The statistics of the shards that were written.

    Raises:
        CacheError: no statistics of graphs can be read.
    """
    cache = Cache(path)
    made: Counter[tuple] = Counter()
    for record in readable_statistics(cache.path, "graphs"):
        if "options" in record:
            options = record["options"]
            tracks = options.get("tracks", False)
            made[tuple(options["which"]), options["neighbours"], tracks, record["compression"]] += 1
    if not made:
        raise CacheError(
            f"{cache.path}/graphs: no statistics can be read; delete that folder and run "
            f"`vidgraph graphs`"
        )

    # Without its marker a shard counts as missing, and `build_graphs` makes it again.
    for shard in shards:
        done_marker(cache.shards.path(shard, "graphs")).unlink(missing_ok=True)
    (which, neighbours, tracks, compression), _ = made.most_common(1)[0]
    return build_graphs(
        path, which, neighbours or 1, workers, device, compression, say=say, tracks=tracks
    )
