"""Numbers with nouns and verbs that agree with them: "1 clip is", "3,000 clips are"."""


def counted(count: int, noun: str, many: str = "") -> str:
    """Return a number with its noun.

    Args:
        count: the number.
        noun: what there is one of.
        many: what there are several of; "" adds an s to `noun`.
    """
    return f"{count:,} {agree(count, noun, many or f'{noun}s')}"


def agree(count: int, one: str, many: str) -> str:
    """Return the word that agrees with a number, such as "is" with 1 and "are" with 0 and 2.

    Args:
        count: the number.
        one: the word for 1.
        many: the word for every other number.
    """
    return one if count == 1 else many
