"""How many views the networks of a cache take at a time, recorded in the cache as `batch.json`.

The number changes the rounding of stored values, so all shards of a cache should share it. The
first process that writes to a new cache records it, and all others read it.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path

from pipeline.cache.records import require
from pipeline.files.atomic_files import json_part, publish, read_json
from pipeline.files.owners import new_claim_name

NAME = "batch.json"


def recorded_batch(cache: Path, complete: Iterable[Mapping] = ()) -> int | None:
    """Return the batch of a cache.

    Args:
        cache: the cache's folder.
        complete: the statistics of its complete shards, if they are known. Caches that were made
            before `batch.json` have their batch there.

    Returns:
        Views per forward pass; None if nothing says it.

    Raises:
        Damaged: the record has changed since it was written.
    """
    path = cache / NAME
    try:
        return require(read_json(path), {"batch": int}, path)["batch"]
    except FileNotFoundError:
        batches = (record["batch"] for record in complete if "batch" in record)
        return next(batches, None)


def record_batch(cache: Path, batch: int) -> int:
    """Record the batch of a cache, unless another process has done so.

    Args:
        cache: the cache's folder.
        batch: views per forward pass.

    Returns:
        What is recorded now.
    """
    path = cache / NAME
    with json_part(path, {"batch": batch}, new_claim_name()) as part:
        try:
            publish(part, path)
        except FileExistsError:
            return recorded_batch(cache)
    return batch
