"""What an error about a name that is not known says."""

import difflib
from collections.abc import Iterable

MANY = 40  # names: more are not listed


def nearest(word: str, known: Iterable[str]) -> str:
    """The second half of such an error: the names that look like `word`, else all of them, or the
    first of many.
    """
    known = sorted(known)
    if close := difflib.get_close_matches(word, known, n=3):
        return f"did you mean {' or '.join(close)}?"
    if not known:
        return "there are none"
    more = f", … ({len(known):,} in all)" if len(known) > MANY else ""
    return f"expected one of {', '.join(known[:MANY])}{more}"
