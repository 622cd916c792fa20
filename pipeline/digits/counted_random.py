"""Random numbers by counting: number k of video i is a hash of (key, i, k), so that any batch is
one computation.
"""

import hashlib
import json

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mixed(z: np.ndarray) -> np.ndarray:
    """The output function of SplitMix64 (Steele et al. 2014), uint64 -> uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class Counter:
    """For each of B videos its own stream of random numbers, that of SplitMix64, which depends on
    (key, its index) alone.

    Every call takes the same number of draws from each stream. ValueError for an index below 0.
    """

    def __init__(self, key: tuple[str | int, ...], indices: np.ndarray):
        indices = np.asarray(indices, np.int64)
        if (indices < 0).any():
            raise ValueError(f"video {indices.min()}: expected indices from 0")
        base = int.from_bytes(
            hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest(), "little"
        )
        self._starts = _mixed(np.uint64(base) + (indices.astype(np.uint64) + np.uint64(1)) * _STEP)
        self._taken = 0

    def bits(self, *shape: int) -> np.ndarray:
        """The next numbers, uint64 [B,*shape]."""
        count = int(np.prod(shape))
        steps = np.arange(self._taken + 1, self._taken + count + 1, dtype=np.uint64) * _STEP
        self._taken += count
        return _mixed(self._starts[:, None] + steps).reshape(-1, *shape)

    def below(self, n: int | np.ndarray, *shape: int) -> np.ndarray:
        """Whole numbers in 0 .. n-1, int64 [B,*shape]; n from 1 to 2^31, one for all or of that
        shape.
        """
        return (
            (self.bits(*shape) >> np.uint64(32)) * np.asarray(n).astype(np.uint64) >> np.uint64(32)
        ).astype(np.int64)
