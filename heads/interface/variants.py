"""Checks of a head's options, and the options that its `variant` decides.

A published head has the variants "paper" and "released". An option whose value is "" takes the
value of the variant.
"""

from collections.abc import Iterable, Mapping

# The variants of a head whose release does not differ from its paper.
SAME = ("paper", "released")


def resolve(
    head: str,
    variants: Mapping[str, Mapping[str, str]],
    variant: str,
    given: Mapping[str, str],
    further: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, str]:
    """Replace every "" by the value of the variant.

    Args:
        head: the head's name, for messages.
        variants: by variant, the value of each option.
        variant: the one to use.
        given: the options as the user gave them; "" leaves the choice to the variant.
        further: by option, values that no variant takes but a user may.

    Returns:
        The options of `given` with a value each.

    Raises:
        ValueError: unknown variant or value.
    """
    one_of(head, "variant", variant, variants)
    further = further or {}

    values = {}
    for option, value in given.items():
        known = [table[option] for table in variants.values()]
        known += further.get(option, ())
        values[option] = value or variants[variant][option]
        # Variants may share a value, which the message then names once.
        one_of(head, option, values[option], dict.fromkeys(known))
    return values


def one_of(head: str, option: str, value: str, known: Iterable[str]) -> None:
    """Check that an option has one of its values.

    Args:
        head: the head's name, for the message.
        option: the option's name.
        value: the value that was given.
        known: all values that it may have.

    Raises:
        ValueError: `value` is not among `known`.
    """
    if value not in known:
        raise ValueError(
            f"head {head}, option {option}: expected one of {', '.join(known)}, got {value!r}"
        )


def at_least(head: str, least: int, **options: float) -> None:
    """Check that numbers are not too small.

    Args:
        head: the head's name, for the message.
        least: the smallest value allowed.
        **options: the options to check, by name.

    Raises:
        ValueError: an option is smaller.
    """
    for option, value in options.items():
        if value < least:
            raise ValueError(
                f"head {head}, option {option}: expected at least {least}, got {value}"
            )
