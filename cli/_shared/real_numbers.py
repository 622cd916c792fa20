"""Options that take a number with a fraction."""

import math

import click


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
        if min is None and max is None:
            self.name = "float"

    def _describe_range(self) -> str:
        """What the help says of the limits; click has "x<=None" where there are none."""
        return "" if self.min is None and self.max is None else super()._describe_range()

    def convert(self, value, param, ctx):
        """Return the number, or fail as click's own types do."""
        number = super().convert(value, param, ctx)
        if math.isnan(number) or (math.isinf(number) and not self.infinite):
            self.fail(f"expected a finite number, got {value}", param, ctx)
        return number
