"""Random numbers without state: the same key gives the same numbers on any machine, in any order,
after any resume.
"""

import hashlib
import json

import numpy as np


class Draws:
    """Uniform random numbers that depend only on the key: two equal keys give equal streams,
    anywhere.

    Built on Philox's raw bits, which numpy promises never to change; the distributions of its
    Generator may change.
    """

    def __init__(self, *key: str | int):
        # JSON tells ("1", 2) from (1, "2"), whatever a clip id holds; Python's own hash() differs
        # from process to process.
        digest = hashlib.blake2b(json.dumps(key).encode(), digest_size=16).digest()
        self._bits = np.random.Philox(key=int.from_bytes(digest, "little"))

    def uniform(self) -> float:
        """The next number in [0, 1)."""
        return (int(self._bits.random_raw()) >> 11) * 2.0**-53

    def below(self, n: int) -> int:
        """The next whole number in 0 .. n-1."""
        return int(self.uniform() * n)
