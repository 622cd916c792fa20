"""Axes of a drawing: where a value lies, which values are written beside it, and the frame that
they make.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from heads.reporting.escaping import as_html, short_number


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, drawn from `start` to `stop` (pixels); `log`: by the logarithm;
    `whole`: ticks at whole numbers.
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
        """An axis that holds the values low to high with some margin; never an empty one."""
        if not (math.isfinite(low) and math.isfinite(high)):
            low, high = 0.0, 1.0
        if log and low > 0:
            a, b = math.log10(low), math.log10(high)
            room = max(b - a, 0.3) * margin + (0.15 if b - a < 1e-9 else 0.0)
            return cls(10 ** (a - room), 10 ** (b + room), start, stop, True)
        if high - low < 1e-12 * max(1.0, abs(high)):
            low, high = low - max(0.5, 0.1 * abs(low)), high + max(0.5, 0.1 * abs(high))
        room = (high - low) * margin
        return cls(low - room if low != 0 else low, high + room, start, stop)

    def at(self, value: float) -> float:
        """The pixel of a value."""
        value, low, high = (math.log10(v) if self.log else v for v in (value, self.low, self.high))
        return self.start + (value - low) / (high - low) * (self.stop - self.start)

    def ticks(self, most: int) -> list[float]:
        """Round values on the axis, at most about so many."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1, 2, 5), (1, 3), (1,)):
                found = [
                    m * 10.0**p
                    for p in powers
                    for m in steps
                    if self.low <= m * 10.0**p <= self.high
                ]
                if len(found) <= most:
                    break
            return found or [self.low, self.high]
        rough = (self.high - self.low) / most
        size = 10.0 ** math.floor(math.log10(rough))
        step = next(m * size for m in (1, 2, 2.5, 5, 10) if m * size >= rough * 0.999)
        step = max(1, round(step)) if self.whole else step
        first = math.ceil(self.low / step - 1e-9)
        return [k * step for k in range(first, math.floor(self.high / step + 1e-9) + 1)]


@dataclass(frozen=True)
class AxisFrame:
    """Two axes with their names."""

    x: Axis
    y: Axis
    x_name: str
    y_name: str
    width: int
    height: int

    def parts(self) -> list[str]:
        """The grid, the numbers and the names, as SVG."""
        left, right, bottom = self.x.start, self.x.stop, self.y.start
        parts = [f'<text x="4" y="9">{as_html(self.y_name)}</text>']
        for value in self.y.ticks(6 if self.y.log else 5):
            at = self.y.at(value)
            parts.append(f'<path class="grid" d="M{left:g} {at:.1f}H{right:g}"/>')
            parts.append(
                f'<text class="end" x="{left - 6:g}" y="{at + 4:.1f}">{_number(value)}</text>'
            )
        for value in self.x.ticks(6):
            at = self.x.at(value)
            parts.append(f'<path class="axis" d="M{at:.1f} {bottom:g}v4"/>')
            parts.append(
                f'<text class="mid" x="{at:.1f}" y="{bottom + 16:g}">{_number(value)}</text>'
            )
        parts.append(f'<path class="axis" d="M{left:g} {bottom:g}H{right:g}"/>')
        parts.append(
            f'<text class="end" x="{right:g}" y="{self.height - 6}">{as_html(self.x_name)}</text>'
        )
        return parts

    def points(self, x: Sequence[float], y: Sequence[float]) -> list[str]:
        """ "x,y" in pixels of every finite point."""
        pairs = zip(np.asarray(x, float), np.asarray(y, float), strict=True)
        return [
            f"{self.x.at(a):.1f},{self.y.at(b):.1f}"
            for a, b in pairs
            if math.isfinite(a) and math.isfinite(b)
        ]


def _number(value: float) -> str:
    return short_number(value) if abs(value) >= 1000 else f"{value:.4g}"
