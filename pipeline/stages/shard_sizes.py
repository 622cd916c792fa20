"""How many clips a shard holds. It follows from the manifest and the configuration alone.

All machines that work on a cache agree on its shards, however many workers they have. A shard is
what a stopped run loses and what runs share, so there are many:

- at most `shard_bytes` (2 GiB), counted by the views that each clip's split needs;
- at least SHARDS shards, where there are that many clips;
- of fewer clips, FEWEST in each. A batch never crosses a shard, because what is stored must not
  depend on when a run was stopped. Shards of single clips make batches of single views, and two
  files with their syncs for every clip. So a stopped run loses at most a few finished clips.
"""

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np

from pipeline.cache.fields import GROUPS
from pipeline.cache.parts import ViewKey
from pipeline.manifests.manifest import shard_ranges

if TYPE_CHECKING:
    from pipeline.stages.frozen_networks import StoredShapes

SHARDS = 64
FEWEST = 4

# The shape that whole-frame views are taken to have, because a shard's length is decided before
# any video is opened.
NOMINAL_ASPECT = 16 / 9


def view_bytes(stored: "StoredShapes") -> dict[str, int]:
    """Return how many bytes a view takes. Only shapes count, so all machines agree.

    Args:
        stored: the shapes of what is stored.

    Returns:
        Group -> bytes of a view.
    """
    sampling = stored.config.sampling
    feature_bytes = np.dtype(stored.config.dtype).itemsize
    sizes = {}
    for group in GROUPS:
        size = sampling.size_of(group)
        if not size:
            size = sampling.resized, round(sampling.resized * NOMINAL_ASPECT)
        sizes[group] = 0
        for shape in stored.shapes(size).values():
            sizes[group] += math.prod(shape) * (feature_bytes if len(shape) > 1 else 4)
    return sizes


def divide(
    views: Sequence[Sequence[ViewKey]],
    sizes: Mapping[str, int],
    shard_bytes: int,
    shard_size: int = 0,
) -> list[int]:
    """Divide clips into shards.

    Args:
        views: for each clip the (group, number) of its views.
        sizes: group -> bytes of a view.
        shard_bytes: bytes of a shard, at most, unless one clip alone has more.
        shard_size: clips per shard; 0 derives them.

    Returns:
        The number of clips of each shard. Shards take the clips in order.
    """
    if shard_size:
        return [len(clips) for clips in shard_ranges(len(views), shard_size)]

    most = len(views) // SHARDS or FEWEST
    # Clips with the same views share one tuple, so few sums are computed.
    bytes_of: dict[tuple, int] = {}
    lengths: list[int] = []
    clips = filled = 0
    for keys in views:
        if keys not in bytes_of:
            bytes_of[keys] = sum(sizes[group] for group, _ in keys)
        if clips and (clips == most or filled + bytes_of[keys] > shard_bytes):
            lengths.append(clips)
            clips = filled = 0
        clips += 1
        filled += bytes_of[keys]
    return [*lengths, clips] if clips else lengths
