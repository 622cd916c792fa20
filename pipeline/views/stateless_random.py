"""Random numbers without state: a key gives the same numbers on any machine, in any order."""

import hashlib
import json

import numpy as np


class Draws:
    """A stream of uniform random numbers that depends only on its key.

    Equal keys give equal streams, in any process and after any resume. The stream uses Philox's
    raw bits, which numpy promises never to change; the distributions of numpy's Generator may
    change.

    Args:
        *key: texts and whole numbers, such as (seed, clip id, "train", view number, "crop").
    """

    def __init__(self, *key: str | int):
        # JSON tells ("1", 2) from (1, "2"), whatever a clip id contains. Python's own hash()
        # differs from process to process.
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    def uniform(self) -> float:
        """Return the next number in [0, 1)."""
        # A float64 holds 53 bits exactly, so the same bits give the same number everywhere.
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """Return the next whole number in 0 .. n-1."""
        return int(self.uniform() * n)
