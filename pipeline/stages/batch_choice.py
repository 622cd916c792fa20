"""How many views the networks take at a time: chosen where nobody has said it, and recorded.

The number changes the rounding of stored values, so all shards of a cache should share it. The
first process that writes to a new cache records it in `batch.json`, and all others read it.

On a GPU a short trial decides: larger batches are tried until they no longer pay, or until the
memory of the device is used up to a part. On a CPU it is CPU_BATCH.
"""

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.records import require
from pipeline.files.atomic_files import json_part, publish, read_json
from pipeline.files.owners import new_claim_name

if TYPE_CHECKING:
    from pipeline.stages.frozen_networks import FrozenNetworks

NAME = "batch.json"
CPU_BATCH = 4
# What the trial tries, in this order.
TRIED = (4, 8, 16, 32, 64, 128)
# A batch of twice the size must bring this many times the views per second.
PAYS = 1.03
# A part of the device's free memory. The rest is for whole frames, whose size is not known yet, and
# for batches that wait.
MEMORY_PART = 1 / 3
# Bytes of a batch's pixels. Several batches have to fit into the memory that decode workers share.
PIXEL_BYTES = 512 << 20
# Short side and long side of a view that is a whole frame, where no video has been opened.
WIDEST = 16 / 9


class OutOfMemory(Exception):
    """The device's memory does not suffice for a batch."""


def choose_batch(models: "FrozenNetworks") -> int:
    """Choose a batch for networks on their device.

    Args:
        models: the networks.

    Returns:
        Views per forward pass.
    """
    if models.device.type != "cuda":
        return CPU_BATCH
    size = _size_of_views(models)
    view_bytes = int(np.prod((models.config.sampling.frames, *size, 3)))
    most = max(TRIED[0], PIXEL_BYTES // view_bytes)
    return fastest(lambda batch: _seconds(models, batch, size), most)


def fastest(seconds: Callable[[int], float], most: int) -> int:
    """Return the smallest batch beyond which larger ones bring little.

    Args:
        seconds: measures a forward pass of so many views. It raises OutOfMemory for a batch that
            should not be used.
        most: no larger batch is tried.

    Returns:
        One of TRIED; the first one if the device has no room for any.
    """
    best, best_rate = TRIED[0], 0.0
    for batch in TRIED:
        if batch > most:
            break
        try:
            rate = batch / max(seconds(batch), 1e-9)
        except OutOfMemory:
            break
        if rate < PAYS * best_rate:
            break
        best, best_rate = batch, rate
    return best


def _size_of_views(models: "FrozenNetworks") -> tuple[int, int]:
    """(height, width) of the largest views that the config asks for."""
    from pipeline.views.sampling import count_views

    sampling, sizes = models.config.sampling, []
    for group, count in count_views(sampling).items():
        if count:
            whole = sampling.resized, round(sampling.resized * WIDEST)
            sizes.append(sampling.size_of(group) or whole)
    return max(sizes, key=lambda size: size[0] * size[1])


def _seconds(models: "FrozenNetworks", batch: int, size: tuple[int, int]) -> float:
    """The seconds of the backbone for a batch of black views, once it has warmed up."""
    import torch

    from pipeline.stages.frozen_networks import BatchRow

    rows = [BatchRow() for _ in range(batch)]
    allowed = MEMORY_PART * torch.cuda.mem_get_info(models.device)[0]
    torch.cuda.reset_peak_memory_stats(models.device)
    held = torch.cuda.memory_allocated(models.device)
    try:
        # The first pass chooses kernels, and takes memory.
        models.launch(rows, size).wait()
        if torch.cuda.max_memory_allocated(models.device) - held > allowed:
            raise OutOfMemory
        models.seconds.clear()
        models.launch(rows, size).wait()
    except torch.OutOfMemoryError as error:
        raise OutOfMemory from error
    finally:
        torch.cuda.empty_cache()
    return models.seconds["backbone"]


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
