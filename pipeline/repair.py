"""Repair: extracts again, as they were extracted, the shards that are damaged, missing, or hold failed clips."""

from dataclasses import replace
from pathlib import Path

from pipeline.cache import Cache, CacheError
from pipeline.config import ExtractConfig
from pipeline.extract import RunOptions
from pipeline.manifest import Manifest, read_manifest
from pipeline.sealed import Damaged, read_json


def as_extracted(
    path: str | Path, options: RunOptions, root: str | Path | None = None, weights: str | None = None
) -> tuple[ExtractConfig, Manifest, RunOptions]:
    """The configuration, the manifest and the options that fill the shards of a cache again with the same bits.

    `root` and `weights` say where the videos and the checkpoint are now, if they moved. They come from the statistics of any
    shard that can be read: CacheError if there is none.
    """
    cache = Cache(path)
    record = next(_records(cache.path), None)
    if record is None:
        raise CacheError(
            f"{cache.path}: no shard's statistics can be read; run `vidgraph extract` with the first run's options"
        )
    config = ExtractConfig.from_dict(record["asked"])
    if weights is not None:
        config = replace(config, weights=weights)
    manifest = cache.manifest if root is None else read_manifest(cache.path / "manifest.csv", root)
    if not manifest.root.is_dir():
        raise ValueError(f"{manifest.root}: no such folder, expected the videos there; pass --root with where they are now")
    return config, manifest, replace(options, batch=record["batch"], compression=record["compression"])


def _records(cache: Path):
    for path in sorted((cache / "features").glob("*.json")):
        try:
            yield read_json(path)
        except (Damaged, OSError):  # what is damaged is about to be redone; another shard's will do
            continue
