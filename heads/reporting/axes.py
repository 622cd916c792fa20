"""Axes of a drawing: where a value lies, which values are written beside it, and the frame."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heads.reporting.escaping import as_html, short_number


@dataclass(frozen=True)
class Axis:
    """One axis.

    Attributes:
        low, high: the values at its ends.
        start, stop: the pixels of its ends.
        log: whether it is logarithmic.
        whole: whether ticks are whole numbers.
    """

    low: float
    high: float
    start: float
    stop: float
    log: bool = False
    whole: bool = False

    @classmethod
    def over(
        cls,
        low: float,
        high: float,
        start: float,
        stop: float,
        log: bool = False,
        margin: float = 0.0,
    ) -> "Axis":
        """Make an axis that holds some values; it is never empty.

        Args:
            low: the smallest value.
            high: the largest value.
            start: the pixel of the axis's low end.
            stop: the pixel of its high end.
            log: whether it is logarithmic; it is linear where `low` is not positive.
            margin: added at both ends, relative to the range of values.

        Returns:
            The axis.
        """
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = 0.0, 1.0
        if log and low > 0:
            a, b = math.log10(low), math.log10(high)
            extra = max(b - a, 0.3) * margin
            if b - a < 1e-9:
                extra += 0.15
            return cls(10 ** (a - extra), 10 ** (b + extra), start, stop, True)

        # One value alone gets an axis around it.
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - max(0.5, 0.1 * abs(low)), high + max(0.5, 0.1 * abs(high))
        extra = (high - low) * margin
        # An axis from zero keeps its zero at the end.
        return cls(low - extra if low != 0 else low, high + extra, start, stop)

    def at(self, value: float) -> float:
        """Return the pixel of a value."""
        low, high = self.low, self.high
        if self.log:
            value, low, high = math.log10(value), math.log10(low), math.log10(high)
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """Return round values on the axis, at most about `most` of them."""
        if self.log:
            return self._log_ticks(most)
        rough = (self.high - self.low) / most
        power = 10.0 ** math.floor(math.log10(rough))
        steps = [factor * power for factor in (1, 2, 2.5, 5, 10)]
        # Without the tolerance, rounding could choose the next larger step.
        step = next(size for size in steps if size >= rough * 0.999)
        if self.whole:
            step = max(1, round(step))
        # A value at an end of the axis counts in spite of rounding.
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [k * step for k in range(first, last + 1)]

    def _log_ticks(self, most: int) -> list[float]:
        """Multiples of powers of ten, fewer per power where there would be too many."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        found: list[float] = []
        for factors in ((1, 2, 5), (1, 3), (1,)):
            found = []
            for power in powers:
                values = [factor * 10.0**power for factor in factors]
                found += [value for value in values if self.low <= value <= self.high]
            if len(found) <= most:
                break
        return found or [self.low, self.high]


@dataclass(frozen=True)
class AxisFrame:
    """Two axes with their names.

    Attributes:
        x, y: the axes.
        x_name, y_name: what they show.
        width, height: of the drawing, pixels.
    """

    x: Axis
    y: Axis
    x_name: str
    y_name: str
    width: int
    height: int

    def parts(self) -> list[str]:
        """Return the grid, the numbers and the names, as SVG elements."""
        left, right, bottom = self.x.start, self.x.stop, self.y.start
        parts = [f'<text x="4" y="9">{as_html(self.y_name)}</text>']
        for value in self.y.ticks(6 if self.y.log else 5):
            at, number = self.y.at(value), _number(value)
            parts.append(f'<path class="grid" d="M{left:g} {at:.1f}H{right:g}"/>')
            parts.append(f'<text class="end" x="{left - 6:g}" y="{at + 4:.1f}">{number}</text>')
        for value in self.x.ticks(6):
            at, number = self.x.at(value), _number(value)
            parts.append(f'<path class="axis" d="M{at:.1f} {bottom:g}v4"/>')
            parts.append(f'<text class="mid" x="{at:.1f}" y="{bottom + 16:g}">{number}</text>')
        parts.append(f'<path class="axis" d="M{left:g} {bottom:g}H{right:g}"/>')
        name, y = as_html(self.x_name), self.height - 6
        parts.append(f'<text class="end" x="{right:g}" y="{y}">{name}</text>')
        return parts

    def points(self, x: Sequence[float], y: Sequence[float]) -> list[str]:
        """Return "x,y" in pixels of every finite point."""
        found = []
        for a, b in zip(np.asarray(x, float), np.asarray(y, float), strict=True):
            if math.isfinite(a) and math.isfinite(b):
                found.append(f"{self.x.at(a):.1f},{self.y.at(b):.1f}")
        return found


def _number(value: float) -> str:
    return short_number(value) if abs(value) >= 1000 else f"{value:.4g}"
