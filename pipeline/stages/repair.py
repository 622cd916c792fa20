"""Repair a cache: extract bad shards again, with the options that they were extracted with."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.cache.reader import Cache, CacheError
from pipeline.cache.records import read_statistics
from pipeline.cache.shards import Shards
from pipeline.encoder_names import is_encoder, library_and_model, with_absolute_folder
from pipeline.files.atomic_files import Damaged, done_marker
from pipeline.manifests.manifest import Manifest, read_manifest
from pipeline.stages.config import ExtractConfig
from pipeline.stages.graphs import build_graphs
from pipeline.stages.jobs import RunOptions
from pipeline.video.video_identity import changed_videos
from pipeline.workers.waiting import PrintLine

# The options of `vidgraph repair` that say where a file of the source of boxes is now.
FLAGS = {"file": "--annotations", "weights": "--proposal-weights"}


@dataclass(frozen=True)
class MovedFiles:
    """Where files are now that the first run found elsewhere. None: where they were.

    The content of the last three must be the same: the cache's fingerprint covers it.

    Attributes:
        root: the folder of the videos.
        weights: the backbone's weights.
        annotations: the file of annotated boxes.
        proposal_weights: the weights of the source of boxes.
    """

    root: str | Path | None = None
    weights: str | Path | None = None
    annotations: str | Path | None = None
    proposal_weights: str | Path | None = None


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
    record = next(_records(cache.path, "features"), None)
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
    config = _with_moved(ExtractConfig.from_dict(record["asked"]), moved)

    manifest = cache.manifest
    if moved.root is not None:
        manifest = read_manifest(cache.path / "manifest.csv", moved.root)
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
    manifest = cache.manifest if root is None else read_manifest(cache.path / "manifest.csv", root)
    plan = Shards(cache.path, cache.fingerprint, manifest, cache.record["per_shard"])
    changed = []
    for shard in range(len(plan)):
        # A shard that is missing or damaged is redone anyway.
        with suppress(Damaged, OSError):
            if changed_videos(plan.record(shard), plan.clips(shard)):
                changed.append(shard)
    return changed


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
    for record in _records(cache.path, "graphs"):
        if "options" in record:
            options = record["options"]
            made[tuple(options["which"]), options["neighbours"], record["compression"]] += 1
    if not made:
        raise CacheError(
            f"{cache.path}/graphs: no statistics can be read; delete that folder and run "
            f"`vidgraph graphs`"
        )

    # Without its marker a shard counts as missing, and `build_graphs` makes it again.
    for shard in shards:
        done_marker(cache.shards.path(shard, "graphs")).unlink(missing_ok=True)
    (which, neighbours, compression), _ = made.most_common(1)[0]
    return build_graphs(path, which, neighbours or 1, workers, device, compression, say=say)


def _with_moved(config: ExtractConfig, moved: MovedFiles) -> ExtractConfig:
    """The config with its files where they are now."""
    options = dict(config.proposal_options)
    for key, path in (("file", moved.annotations), ("weights", moved.proposal_weights)):
        if path is None:
            continue
        if key not in options:
            raise ValueError(
                f"{FLAGS[key]}: the boxes of this cache ({config.proposals}) came from no such "
                f"file; leave it out"
            )
        options[key] = os.path.abspath(path)

    weights = config.weights if moved.weights is None else str(moved.weights)
    backbone, folder = config.backbone, library_and_model(config.backbone)[1]
    if is_encoder(backbone) and os.path.isabs(folder) and not os.path.isdir(folder):
        # The folder of an encoder holds its weights, too.
        if moved.weights is None or not os.path.isdir(weights):
            _require_where_it_was("--weights", folder)
        backbone = with_absolute_folder(f"hf:{weights}")
    _require_where_it_was("--weights", weights)
    for key, flag in FLAGS.items():
        if key in options:
            _require_where_it_was(flag, str(options[key]))
    return replace(config, backbone=backbone, weights=weights, proposal_options=options)


def _require_where_it_was(flag: str, path: str) -> None:
    if os.path.isabs(path) and not os.path.exists(path):
        raise ValueError(
            f"{path}: no such file, expected it where the first run found it; pass {flag} with "
            f"where it is now"
        )


def _records(cache: Path, stage: str) -> Iterator[dict]:
    """The statistics of a stage's shards, as far as they can be read."""
    for path in sorted((cache / stage).glob("*.json")):
        # Damaged ones are about to be redone. Those of another shard say the same.
        with suppress(Damaged, OSError):
            yield read_statistics(path.with_suffix(".h5"))
