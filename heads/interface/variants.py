"""`variant="paper"` or `"released"`: options that are not given take the value of the variant."""

from collections.abc import Iterable, Mapping

SAME = ("paper", "released")  # the variants of a head of which no release differs from the paper


def resolve(
    head: str,
    variants: Mapping[str, Mapping[str, str]],
    variant: str,
    given: Mapping[str, str],
    further: Mapping[str, Iterable[str]] | None = None,
) -> dict[str, str]:
    """`given` options with every "" replaced by the value that `variants[variant]` has for it.

    `further` lists, by option, the values that no variant takes but a person may. ValueError for a
    variant or value unknown.
    """
    one_of(head, "variant", variant, variants)
    values = {}
    for option, value in given.items():
        known = [table[option] for table in variants.values()] + list(
            (further or {}).get(option, ())
        )
        values[option] = value or variants[variant][option]
        one_of(head, option, values[option], dict.fromkeys(known))
    return values


def one_of(head: str, option: str, value: str, known: Iterable[str]) -> None:
    """ValueError unless `value` is among `known`."""
    if value not in known:
        raise ValueError(
            f"head {head}, option {option}: expected one of {', '.join(known)}, got {value!r}"
        )


def at_least(head: str, least: int, **options: float) -> None:
    """ValueError unless each of these options is at least `least`."""
    for option, value in options.items():
        if value < least:
            raise ValueError(
                f"head {head}, option {option}: expected at least {least}, got {value}"
            )
