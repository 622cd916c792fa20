"""Advice for an error about an unknown name."""

import difflib
from collections.abc import Iterable

# Longer lists of names are cut here.
MOST_NAMES = 40


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the second half of an error about an unknown name.

    Args:
        word: the unknown name.
        known: the names that exist.

    Returns:
        "did you mean …?" with up to three similar names, else "expected one of …" with all names
        or the first 40, or "there are none".
    """
    known = sorted(known)
    similar = difflib.get_close_matches(word, known, n=3)
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    if not known:
        return "there are none"

    more = f", … ({len(known):,} in all)" if len(known) > MOST_NAMES else ""
    return f"expected one of {', '.join(known[:MOST_NAMES])}{more}"
