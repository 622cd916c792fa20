"""Options that take a number with a fraction."""

import math

import click


def _finite(kind: click.ParamType, value, param, ctx, number: float, infinite: bool) -> float:
    if math.isnan(number) or (math.isinf(number) and not infinite):
        kind.fail(f"expected a finite number, got {value}", param, ctx)
    return number


class AnyNumber(click.types.FloatParamType):
    """A finite number, whose range something else checks."""

    def convert(self, value, param, ctx):
        """Return the number, or fail as click's own types do."""
        return _finite(self, value, param, ctx, super().convert(value, param, ctx), False)


class RealNumber(click.FloatRange):
    """A number in a range. "nan" is none, and passes every comparison with a limit.

    Args:
        min: the least number, or None.
        max: the largest number, or None.
        min_open: whether `min` itself is refused.
        max_open: whether `max` itself is refused.
        infinite: whether "inf" is taken.
    """

    def __init__(
        self,
        min: float | None = None,
        max: float | None = None,
        min_open: bool = False,
        max_open: bool = False,
        infinite: bool = False,
    ):
        super().__init__(min, max, min_open, max_open)
        self.infinite = infinite

    def convert(self, value, param, ctx):
        """Return the number, or fail as click's own types do."""
        number = super().convert(value, param, ctx)
        return _finite(self, value, param, ctx, number, self.infinite)
