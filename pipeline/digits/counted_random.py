"""Random numbers by counting: number k of video i is a hash of (key, i, k).

So the numbers of any batch of videos are one computation.
"""

import hashlib
import json

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)


def _mix(z: np.ndarray) -> np.ndarray:
    """Apply the output function of SplitMix64 (Steele et al. 2014), uint64 -> uint64."""
    z = (z ^ (z >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    z = (z ^ (z >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return z ^ (z >> np.uint64(31))


class CountedRandom:
    """One stream of random numbers (SplitMix64) for each of B videos.

    The stream of a video depends on the key and its index alone. Every call takes the same
    number of random numbers from each stream.

    Args:
        key: what all videos have in common, such as the seed and the split.
        indices: int [B], the videos, from 0.

    Raises:
        ValueError: an index is below 0.
    """

    def __init__(self, key: tuple[str | int, ...], indices: np.ndarray):
        indices = np.asarray(indices, np.int64)
        if (indices < 0).any():
            raise ValueError(f"video {indices.min()}: expected indices from 0")
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=8).digest()
        base = np.uint64(int.from_bytes(digest, "little"))
        self._starts = _mix(base + (indices.astype(np.uint64) + np.uint64(1)) * _STEP)
        self._taken = 0

    def bits(self, *shape: int) -> np.ndarray:
        """Return the next numbers, uint64 [B,*shape]."""
        count = int(np.prod(shape))
        steps = np.arange(self._taken + 1, self._taken + count + 1, dtype=np.uint64) * _STEP
        self._taken += count
        return _mix(self._starts[:, None] + steps).reshape(-1, *shape)

    def below(self, n: int | np.ndarray, *shape: int) -> np.ndarray:
        """Return random integers in 0 .. n-1.

        Args:
            n: 1 to 2^31; one for all, or an array that broadcasts to [B,*shape].
            *shape: how many numbers each video gets.

        Returns:
            int64 [B,*shape].
        """
        high = self.bits(*shape) >> np.uint64(32)
        # 32 random bits times n, divided by 2^32, is below n; the product fits 64 bits.
        return (high * np.asarray(n).astype(np.uint64) >> np.uint64(32)).astype(np.int64)
