"""Advice for an error about an unknown name."""

import difflib
from collections.abc import Iterable

# Of a longer list, only the nearest names are shown.
MOST_NAMES = 40


def nearest_names(word: str, known: Iterable[str], count: int = 5) -> str:
    """Return the second half of an error about an unknown name among many, such as a clip's.

    Args:
        word: the unknown name.
        known: the names that exist.
        count: how many are shown.

    Returns:
        "the nearest are …" with the names that are like it, the best first; where none is, "none is
        like it; there are …" with the first of the alphabet.
    """
    known = sorted(known)
    if not known:
        return "there are none"
    # Names that hold the word come first: people leave out folders and endings.
    inside = []
    for name in known:
        if word and word.lower() in name.lower():
            inside.append(name)
    similar = difflib.get_close_matches(word, known, n=count, cutoff=0.4)
    near = list(dict.fromkeys([*inside, *similar]))[:count]
    if len(known) == 1:
        return f"there is only {known[0]}"
    if near:
        return f"the nearest {'are' if len(near) > 1 else 'is'} {', '.join(near)}"
    if len(known) > count:
        return f"none is like it; there are {', '.join(known[:count])}, ..."
    return f"there are {', '.join(known)}"


def nearest(word: str, known: Iterable[str]) -> str:
    """Return the second half of an error about an unknown name.

    Args:
        word: the unknown name.
        known: the names that exist.

    Returns:
        "did you mean …?" with up to three similar names, else "expected one of …" with all names,
        that of `nearest_names` where there are more than 40, or "there are none".
    """
    known = sorted(known)
    similar = difflib.get_close_matches(word, known, n=3)
    if similar:
        return f"did you mean {' or '.join(similar)}?"
    if not known:
        return "there are none"
    if len(known) > MOST_NAMES:
        return f"{nearest_names(word, known)} (of {len(known):,})"
    return f"expected one of {', '.join(known)}"
