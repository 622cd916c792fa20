"""Checks of the options that several backbones share."""


def require_allowed(allowed: dict[str, tuple[object, tuple]]) -> None:
    """Raise ValueError for an option whose value is not among the allowed ones.

    Args:
        allowed: option -> (value, allowed values).
    """
    for option, (value, values) in allowed.items():
        if value not in values:
            raise ValueError(f"{option}={value!r}: expected one of {', '.join(map(str, values))}")


def require_widths(reduce: int, width: int) -> None:
    """Raise ValueError for numbers of channels that no ResNet can have."""
    if reduce < 0 or width < 1:
        raise ValueError(
            f"reduce={reduce}, width={width}: expected reduce at least 0 (no reduction) and width "
            f"at least 1"
        )
