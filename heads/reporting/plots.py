"""Drawings as SVG: curves, points, bars, shares, matrices. Colours are variables of plots.css,
which knows light and dark.

Every function returns one <svg> whose labels are escaped here. A drawing is about as wide as a
phone, so that its text is as large there as on a wide screen; several stand side by side. Colours
are numbered 0 to 7 as in the legend, REST is grey.
"""

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from heads.reporting.axes import Axis, AxisFrame
from heads.reporting.escaping import as_html, shorten

COLOURS = 8
REST = 8
WIDTH, HEIGHT = 350, 240
STYLE = Path(__file__).with_name("plots.css")
SMALL = 24  # classes of a matrix whose cells are drawn one by one, with their numbers


@dataclass(frozen=True)
class Series:
    """A line or a set of points: x and y [n], and the half height of its band or error bars (None:
    none).
    """

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    inside = "\n".join(parts)
    return (
        f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width:g} {height:g}" '
        f'width="{width:g}" '
        f'height="{height:g}" role="img" aria-label="{as_html(label)}">\n{inside}\n</svg>'
    )


def curves(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    label: str,
    form: str = "plain",
    marks: bool = False,
) -> str:
    """Lines, each with the band of its spread; `marks`: a dot at every point. `form`: of the y
    axis, plain, percent or log.
    """
    frame = _frame(series, x_name, y_name, form)
    parts = frame.parts()
    for line in series:
        if line.spread is not None and np.any(np.asarray(line.spread) > 0):
            low, high = (np.asarray(line.y) + sign * np.asarray(line.spread) for sign in (-1, 1))
            low = np.clip(low, frame.y.low, None)
            around = [*frame.points(line.x, high), *reversed(frame.points(line.x, low))]
            parts.append(f'<polygon class="band f{line.colour}" points="{" ".join(around)}"/>')
    for line in reversed(series):
        places = frame.points(line.x, line.y)
        title = f"<title>{as_html(line.name)}</title>"
        parts.append(
            f'<polyline class="curve s{line.colour}" points="{" ".join(places)}">{title}</polyline>'
        )
        for place, y in zip(places if marks or len(places) == 1 else (), line.y, strict=False):
            x, _, height = place.partition(",")
            said = f"<title>{as_html(line.name)}: {y:.4g}</title>"
            parts.append(
                f'<circle class="f{line.colour}" cx="{x}" cy="{height}" r="3">{said}</circle>'
            )
    return _svg(WIDTH, HEIGHT, label, parts)


def points(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    label: str,
    form: str = "percent",
    log: bool = False,
) -> str:
    """Points with error bars; `log`: x by its logarithm."""
    frame = _frame(series, x_name, y_name, form, log, roomy=True)
    parts = frame.parts()
    for dot in series:
        for k, (x, y) in enumerate(zip(dot.x, dot.y, strict=True)):
            px, py = frame.x.at(x), frame.y.at(y)
            if dot.spread is not None and dot.spread[k] > 0:
                top, bottom = frame.y.at(y + dot.spread[k]), frame.y.at(y - dot.spread[k])
                parts.append(
                    f'<path class="error s{dot.colour}" d="M{px:.1f} {top:.1f}V{bottom:.1f}"/>'
                )
            said = f"<title>{as_html(dot.name)}: {x:.4g}, {y:.4g}</title>"
            parts.append(
                f'<circle class="f{dot.colour}" cx="{px:.1f}" cy="{py:.1f}" r="4.5">{said}</circle>'
            )
    return _svg(WIDTH, HEIGHT, label, parts)


def _frame(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    form: str,
    log: bool = False,
    roomy: bool = False,
) -> AxisFrame:
    """The axes of these series."""
    xs = np.concatenate([np.asarray(line.x, float) for line in series])
    low, high = (
        np.concatenate(
            [
                np.asarray(s.y, float) + sign * np.asarray(0 if s.spread is None else s.spread)
                for s in series
            ]
        )
        for sign in (-1, 1)
    )
    low, high = low[np.isfinite(low)], high[np.isfinite(high)]
    bottom, top = (low.min(), high.max()) if len(low) else (0.0, 1.0)
    if form == "percent":
        bottom, top = max(bottom, 0.0), min(top, 100.0)
    if form == "log":
        bottom = min(np.nanmin(np.asarray(line.y, float)) for line in series)
    x = Axis.over(xs.min(), xs.max(), 46, WIDTH - 14, log, margin=0.06 if roomy else 0.0)
    x = replace(x, whole=not roomy and bool((xs == xs.round()).all()))
    y = Axis.over(float(bottom), float(top), HEIGHT - 40, 20, form == "log", margin=0.04)
    return AxisFrame(x, y, x_name, y_name, WIDTH, HEIGHT)


def bars(rows: Sequence[tuple[str, float]], label: str) -> str:
    """Horizontal bars from a common zero, the name above each: positive ones in the first colour,
    negative in the second.
    """
    lowest, highest = (pick(0.0, *(value for _, value in rows)) for pick in (min, max))
    left, right, height = (46 if lowest < 0 else 4), WIDTH - 46, 30 * len(rows) + 6
    scale = (right - left) / ((highest - lowest) or 1.0)
    zero = left - lowest * scale
    parts = []
    for k, (name, value) in enumerate(rows):
        y, length = 30 * k + 4, abs(value) * scale
        start = zero if value >= 0 else zero - length
        said = f"<title>{as_html(name)}: {value:+.1f}</title>"
        parts.append(
            f'<rect class="f{int(value < 0)}" x="{start:.1f}" y="{y + 13}" width="{length:.1f}" '
            f'height="9" rx="1.5"/>'
        )
        parts.append(
            f'<text class="ink" x="4" y="{y + 9}">{as_html(shorten(name, 58))}{said}</text>'
        )
        parts.append(f'<path class="axis" d="M{zero:.1f} {y + 11}v13"/>')
        edge, side = (zero + length + 4, "") if value >= 0 else (zero - length - 4, ' class="end"')
        parts.append(f'<text{side} x="{edge:.1f}" y="{y + 21}">{value:+.1f}</text>')
    return _svg(WIDTH, height, label, parts)


def shares(rows: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
    """One stacked bar for each row, the name above it; shares in [0,1], the k-th in colour k, those
    beyond the colours grey.
    """
    parts = []
    for k, (name, values) in enumerate(rows):
        y, x = 28 * k + 4, 4.0
        parts.append(f'<text class="ink" x="4" y="{y + 9}">{as_html(shorten(name, 58))}</text>')
        for colour, value in enumerate(values):
            width = value * (WIDTH - 8)
            said = f"<title>{100 * value:.0f} %</title>"
            kind = min(colour, REST)
            if value > 0:
                parts.append(
                    f'<rect class="f{kind}" x="{x:.1f}" y="{y + 13}" width="{width:.1f}" '
                    f'height="9">{said}</rect>'
                )
            x += width
    return _svg(WIDTH, 28 * len(rows) + 6, label, parts)


def matrix(counts: np.ndarray, names: Sequence[str], label: str) -> str:
    """counts [K,K], rows labels, columns predictions; shaded by the share of the row. From SMALL
    classes on, one picture.
    """
    classes = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if classes > SMALL:
        return _picture_of(share, label)
    longest = max(len(shorten(name, 22)) for name in names)
    side, left = 30, 14 + round(6.1 * longest)
    width, top = left + side * classes + 12, 20 + round(6.1 * longest)
    parts = [f'<text class="mid" x="{left + side * classes / 2:.0f}" y="11">predicted</text>']
    for k, name in enumerate(names):
        said, middle = as_html(shorten(name, 22)), side * k + side / 2 + 4
        parts.append(
            f'<text class="end ink" x="{left - 6}" '
            f'y="{top + middle:.0f}">{said}<title>{as_html(name)}</title></text>'
        )
        turned = f"translate({left + middle:.0f} {top - 6}) rotate(-90)"
        parts.append(
            f'<text class="ink" transform="{turned}">{said}<title>{as_html(name)}</title></text>'
        )
    for row in range(classes):
        for column in np.flatnonzero(counts[row]):
            x, y, value = left + side * column, top + side * row, share[row, column]
            parts.append(
                f'<rect class="cell" x="{x}" y="{y}" width="{side}" height="{side}" '
                f'opacity="{0.08 + 0.92 * value:.2f}"/>'
            )
            kind = "over" if value > 0.5 else "ink"
            number = f"{counts[row, column]:,.0f}"
            parts.append(
                f'<text class="mid {kind}" x="{x + side / 2:g}" '
                f'y="{y + side / 2 + 4:g}">{number}</text>'
            )
    parts.append(
        f'<rect class="frame" x="{left}" y="{top}" width="{side * classes}" '
        f'height="{side * classes}"/>'
    )
    return _svg(width, top + side * classes + 4, label, parts)


def _picture_of(share: np.ndarray, label: str) -> str:
    """A large matrix: a pixel for each cell, transparent where nothing is, so that it suits light
    and dark.
    """
    from PIL import Image

    pixels = np.zeros((*share.shape, 4), np.uint8)
    pixels[..., :3] = (74, 136, 208)  # between the two blues of plots.css
    pixels[..., 3] = np.rint(255 * np.sqrt(share))  # a square root: rare confusions are to be seen
    data = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(data, "PNG", optimize=True)
    side, left, top = 512, 18, 20
    place = f'x="{left}" y="{top}" width="{side}" height="{side}"'
    address = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    parts = [
        f'<text class="mid" x="{left + side / 2:g}" y="12">predicted: class 0 to '
        f"{len(share) - 1}</text>",
        f'<text class="mid" transform="translate(12 {top + side / 2:g}) rotate(-90)">label</text>',
        f'<image {place} preserveAspectRatio="none" image-rendering="pixelated" href="{address}"/>',
        f'<rect class="frame" {place}/>',
    ]
    return _svg(left + side + 6, top + side + 6, label, parts)


def standalone(svg: str, legend: Sequence[tuple[int, str]] = ()) -> str:
    """A drawing as a file of its own: with its colours, its paper, and the legend below it."""
    head, _, rest = svg.partition(">")
    width, height = (
        float(head.split(f' {name}="')[1].split('"')[0]) for name in ("width", "height")
    )
    parts, whole = [], height + 18 * len(legend) + (8 if legend else 0)
    for k, (colour, name) in enumerate(legend):
        y = height + 16 + 18 * k
        parts.append(
            f'<rect class="f{min(colour, REST)}" x="8" y="{y - 9:g}" width="10" height="10" '
            f'rx="2"/>'
        )
        parts.append(f'<text class="ink" x="24" y="{y:g}">{as_html(shorten(name, 50))}</text>')
    head = head.replace(f'0 0 {width:g} {height:g}"', f'0 0 {width:g} {whole:g}"')
    head = head.replace(f' height="{height:g}"', f' height="{whole:g}"')
    style = f'<style>{STYLE.read_text(encoding="utf-8")}</style><rect width="100%" height="100%" fill="var(--paper)"/>'
    return f"{head}>{style}{rest.removesuffix('</svg>')}{''.join(parts)}</svg>\n"
