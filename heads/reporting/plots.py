"""Drawings as SVG: curves, points, bars, shares, matrices.

Every function returns one <svg> element whose labels are escaped here. Colours are variables of
plots.css, which has light and dark ones. There are COLOURS of them; a style number beyond them has
the same colours with dashed lines, and REST is grey. A drawing is about as wide as a phone, so that
its text has the same size there as on a wide screen. Several drawings stand side by side.
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
REST = -1
# Patterns of lines: solid, then three dashed ones (plots.css).
DASHES = 4
WIDTH, HEIGHT = 350, 240
STYLE = Path(__file__).with_name("plots.css")

# A matrix of more classes is a picture without numbers.
MOST_CELLS = 24

# Pixels of a character in a label that stands beside a matrix.
CHARACTER = 6.1

# Pixels of a direct label, and the room to the right of lines that have some.
LABEL, LABEL_ROOM = 10, 26


@dataclass(frozen=True)
class Series:
    """A line or a set of points.

    Attributes:
        name: what it is of.
        colour: the number of its style.
        x, y: [n].
        spread: [n], half the height of its band or error bars; None for none.
        label: a short text at the end of the line, or beside the point; "" for none.
    """

    name: str
    colour: int
    x: Sequence[float]
    y: Sequence[float]
    spread: Sequence[float] | None = None
    label: str = ""

    def shifted(self, sign: int) -> np.ndarray:
        """Return y plus `sign` times the spread."""
        spread = 0 if self.spread is None else self.spread
        return np.asarray(self.y, float) + sign * np.asarray(spread)


def colour_class(number: int) -> str:
    """Return the number of the colour in plots.css for a style number."""
    return str(COLOURS if number == REST else number % COLOURS)


def _line_class(number: int) -> str:
    """The classes of a line: its colour and its pattern."""
    return f"s{colour_class(number)} d{max(number, 0) // COLOURS % DASHES}"


def _svg(width: float, height: float, label: str, parts: Sequence[str]) -> str:
    size = f'viewBox="0 0 {width:g} {height:g}" width="{width:g}" height="{height:g}"'
    start = f'<svg class="plot" xmlns="http://www.w3.org/2000/svg" {size} role="img"'
    return "\n".join([f'{start} aria-label="{as_html(label)}">', *parts, "</svg>"])


def _title(text: str) -> str:
    """What a browser shows when the mouse is over an element."""
    return f"<title>{as_html(text)}</title>"


def curves(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    label: str,
    form: str = "plain",
    marks: bool = False,
) -> str:
    """Draw lines, each with the band of its spread.

    Args:
        series: the lines, the most important first.
        x_name: of the x axis.
        y_name: of the y axis.
        label: what the drawing shows, for readers who cannot see it.
        form: of the y axis: "plain", "percent" or "log".
        marks: whether every point gets a dot.

    Returns:
        One <svg> element.
    """
    frame = _frame(series, x_name, y_name, form)
    parts = frame.parts()
    for line in series:
        if line.spread is not None and np.any(np.asarray(line.spread) > 0):
            # A band ends with the axis: no share is above 100 %, and no logarithm is of zero.
            low = np.clip(line.shifted(-1), frame.y.low, frame.y.high)
            high = np.clip(line.shifted(1), frame.y.low, frame.y.high)
            upper, lower = frame.points(line.x, high), frame.points(line.x, low)
            corners = " ".join([*upper, *reversed(lower)])
            colour = colour_class(line.colour)
            parts.append(f'<polygon class="band f{colour}" points="{corners}"/>')

    # In reverse, so that the most important line is on top.
    for line in reversed(series):
        points = frame.points(line.x, line.y)
        parts.append(
            f'<polyline class="curve {_line_class(line.colour)}" points="{" ".join(points)}">'
            f"{_title(line.name)}</polyline>"
        )
        # A single point makes no line.
        if not marks and len(points) != 1:
            continue
        for point, y in zip(points, line.y, strict=False):
            cx, _, cy = point.partition(",")
            title = _title(f"{line.name}: {y:.4g}")
            colour = colour_class(line.colour)
            parts.append(f'<circle class="f{colour}" cx="{cx}" cy="{cy}" r="3">{title}</circle>')
    parts += _end_labels(series, frame)
    return _svg(WIDTH, HEIGHT, label, parts)


def _end_labels(series: Sequence[Series], frame: AxisFrame) -> list[str]:
    """The label of each line beside its last point, moved apart where they would overlap."""
    ends = []
    for line in series:
        finite = np.flatnonzero(np.isfinite(np.asarray(line.y, float)))
        if line.label and len(finite):
            last = finite[-1]
            ends.append((frame.y.at(line.y[last]), frame.x.at(line.x[last]), line))
    ends.sort(key=lambda end: end[0])
    lowest = frame.y.start
    tops: list[float] = []
    for y, _, _ in ends:
        tops.append(max(y, tops[-1] + LABEL if tops else 0.0))
    # Labels that this moved below the axis come back up.
    for k in reversed(range(len(tops))):
        tops[k] = lowest = min(tops[k], lowest)
        lowest -= LABEL

    parts, left = [], frame.x.stop + 9
    for top, (y, x, line) in zip(tops, ends, strict=True):
        colour, title = colour_class(line.colour), _title(line.name)
        parts += [
            f'<path class="leader s{colour}" d="M{x:.1f} {y:.1f}L{left - 2:.1f} {top:.1f}"/>',
            f'<text class="f{colour} label" x="{left:.1f}" y="{top + 3.5:.1f}">'
            f"{as_html(line.label)}{title}</text>",
        ]
    return parts


def points(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    label: str,
    form: str = "percent",
    log: bool = False,
) -> str:
    """Draw points with error bars.

    Args:
        series: the points; later ones are on top.
        x_name: of the x axis.
        y_name: of the y axis.
        label: what the drawing shows, for readers who cannot see it.
        form: of the y axis: "plain", "percent" or "log".
        log: whether the x axis is logarithmic.

    Returns:
        One <svg> element.
    """
    frame = _frame(series, x_name, y_name, form, log, margin=True)
    parts, taken = frame.parts(), []
    for dots in series:
        colour = colour_class(dots.colour)
        for k, (x, y) in enumerate(zip(dots.x, dots.y, strict=True)):
            cx, cy = frame.x.at(x), frame.y.at(y)
            if dots.spread is not None and dots.spread[k] > 0:
                high = min(y + dots.spread[k], frame.y.high)
                low = max(y - dots.spread[k], frame.y.low)
                line = f"M{cx:.1f} {frame.y.at(high):.1f}V{frame.y.at(low):.1f}"
                parts.append(f'<path class="error s{colour}" d="{line}"/>')
            title = _title(f"{dots.name}: {x:.4g}, {y:.4g}")
            parts.append(
                f'<circle class="f{colour}" cx="{cx:.1f}" cy="{cy:.1f}" r="4.5">{title}</circle>'
            )
            taken.append((cx - 4.5, cy - 4.5, cx + 4.5, cy + 4.5))
    for dots in series:
        for x, y in zip(dots.x, dots.y, strict=True):
            if dots.label:
                parts.append(_point_label(dots, frame.x.at(x), frame.y.at(y), taken))
    return _svg(WIDTH, HEIGHT, label, parts)


def _point_label(
    dots: Series, x: float, y: float, taken: list[tuple[float, float, float, float]]
) -> str:
    """The label of a point, where it hides no other point or label; it is added to `taken`."""
    width = CHARACTER * len(dots.label)
    places = [(x + 7, y), (x - 7 - width, y), (x - width / 2, y - 11), (x - width / 2, y + 11)]
    places += [(x + 12, y - 9), (x + 12, y + 9), (x - 12 - width, y - 9), (x - 12 - width, y + 9)]
    chosen = places[0]
    for left, middle in places:
        box = (left, middle - LABEL / 2, left + width, middle + LABEL / 2)
        inside = box[0] >= 0 and box[2] <= WIDTH and box[1] >= 10
        if inside and not any(_overlap(box, other) for other in taken):
            chosen = (left, middle)
            break
    left, middle = chosen
    taken.append((left, middle - LABEL / 2, left + width, middle + LABEL / 2))
    return (
        f'<text class="f{colour_class(dots.colour)} label" x="{left:.1f}" y="{middle + 3.5:.1f}">'
        f"{as_html(dots.label)}{_title(dots.name)}</text>"
    )


def _overlap(
    one: tuple[float, float, float, float], other: tuple[float, float, float, float]
) -> bool:
    """Whether two rectangles x1 y1 x2 y2 overlap."""
    return one[0] < other[2] and other[0] < one[2] and one[1] < other[3] and other[1] < one[3]


def _frame(
    series: Sequence[Series],
    x_name: str,
    y_name: str,
    form: str,
    log: bool = False,
    margin: bool = False,
) -> AxisFrame:
    """The axes of these series; `margin` keeps points away from the ends of the x axis."""
    xs = np.concatenate([np.asarray(line.x, float) for line in series])
    low = np.concatenate([line.shifted(-1) for line in series])
    high = np.concatenate([line.shifted(1) for line in series])
    low, high = low[np.isfinite(low)], high[np.isfinite(high)]
    bottom, top = (low.min(), high.max()) if len(low) else (0.0, 1.0)
    # A logarithmic axis begins at the lowest value, not at the band below it.
    if form == "log":
        bottom = min([np.nanmin(np.asarray(line.y, float)) for line in series])

    x_margin = 0.06 if margin else 0.0
    room = LABEL_ROOM if not margin and any(line.label for line in series) else 14
    x = Axis.over(xs.min(), xs.max(), 46, WIDTH - room, log, margin=x_margin)
    # Epochs and numbers of views have no halves.
    x = replace(x, whole=not margin and bool((xs == xs.round()).all()))
    if form == "percent":
        # The whole range: a part of it would make small differences look large.
        y = Axis(0.0, 100.0, HEIGHT - 40, 20)
    else:
        y = Axis.over(float(bottom), float(top), HEIGHT - 40, 20, form == "log", margin=0.04)
    return AxisFrame(x, y, x_name, y_name, WIDTH, HEIGHT)


def bars(
    rows: Sequence[tuple[str, float]], label: str, colours: Sequence[int] | None = None
) -> str:
    """Draw horizontal bars from a common zero, the name above each.

    Args:
        rows: (name, value).
        label: what the drawing shows, for readers who cannot see it.
        colours: of the bars. None: values are differences, written with their sign; positive bars
            have the first colour, negative ones the second.

    Returns:
        One <svg> element.
    """
    values = [value for _, value in rows]
    lowest, highest = min(0.0, *values), max(0.0, *values)
    # Negative bars have their number to the left.
    left, right = (46 if lowest < 0 else 4), WIDTH - 46
    # All values may be 0.
    scale = (right - left) / ((highest - lowest) or 1.0)
    zero = left - lowest * scale

    parts = []
    for k, (name, value) in enumerate(rows):
        y, length = 30 * k + 4, abs(value) * scale
        if value >= 0:
            colour, start, number_x, anchor = 0, zero, zero + length + 4, ""
        else:
            start = zero - length
            colour, number_x, anchor = 1, start - 4, ' class="end"'
        number = f"{value:+.1f}"
        if colours is not None:
            colour, number = colours[k] % COLOURS, f"{value:.1f}"
        title = _title(f"{name}: {number}")
        parts += [
            f'<rect class="f{colour}" x="{start:.1f}" y="{y + 13}" width="{length:.1f}" '
            'height="9" rx="1.5"/>',
            f'<text class="ink" x="4" y="{y + 9}">{as_html(shorten(name, 58))}{title}</text>',
            f'<path class="axis" d="M{zero:.1f} {y + 11}v13"/>',
            f'<text{anchor} x="{number_x:.1f}" y="{y + 21}">{number}</text>',
        ]
    return _svg(WIDTH, 30 * len(rows) + 6, label, parts)


def shares(rows: Sequence[tuple[str, Sequence[float]]], label: str) -> str:
    """Draw one stacked bar for each row, the name above it.

    Args:
        rows: (name, shares in [0,1]); the k-th share has colour k, those beyond the colours
            are grey.
        label: what the drawing shows, for readers who cannot see it.

    Returns:
        One <svg> element.
    """
    parts = []
    for k, (name, values) in enumerate(rows):
        y, x = 28 * k + 4, 4.0
        parts.append(f'<text class="ink" x="4" y="{y + 9}">{as_html(shorten(name, 58))}</text>')
        for number, value in enumerate(values):
            width = value * (WIDTH - 8)
            colour = colour_class(number if number < COLOURS else REST)
            if value > 0:
                title = _title(f"{100 * value:.0f} %")
                parts.append(
                    f'<rect class="f{colour}" x="{x:.1f}" y="{y + 13}" width="{width:.1f}" '
                    f'height="9">{title}</rect>'
                )
            x += width
    return _svg(WIDTH, 28 * len(rows) + 6, label, parts)


def matrix(counts: np.ndarray, names: Sequence[str], label: str) -> str:
    """Draw a confusion matrix, shaded by the share of the row.

    Args:
        counts: [K,K], rows labels, columns predictions.
        names: of the K classes. With more than MOST_CELLS classes the matrix is one picture.
        label: what the drawing shows, for readers who cannot see it.

    Returns:
        One <svg> element.
    """
    classes = len(names)
    share = counts / np.maximum(counts.sum(1, keepdims=True), 1)
    if classes > MOST_CELLS:
        return _matrix_picture(share, label)

    shortened = [shorten(name, 22) for name in names]
    longest = round(CHARACTER * max(map(len, shortened)))
    side, left, top = 30, 14 + longest, 20 + longest
    extent = side * classes
    parts = [f'<text class="mid" x="{left + extent / 2:.0f}" y="11">predicted</text>']
    for k, name in enumerate(names):
        text, middle = as_html(shortened[k]) + _title(name), side * k + side / 2 + 4
        turned = f"translate({left + middle:.0f} {top - 6}) rotate(-90)"
        parts += [
            f'<text class="end ink" x="{left - 6}" y="{top + middle:.0f}">{text}</text>',
            f'<text class="ink" transform="{turned}">{text}</text>',
        ]
    for row, column in np.argwhere(counts).tolist():
        x, y, value = left + side * column, top + side * row, share[row, column]
        # A dark cell has light text.
        colour = "over" if value > 0.5 else "ink"
        parts += [
            f'<rect class="cell" x="{x}" y="{y}" width="{side}" height="{side}" '
            f'opacity="{0.08 + 0.92 * value:.2f}"/>',
            f'<text class="mid {colour}" x="{x + side / 2:g}" y="{y + side / 2 + 4:g}">'
            f"{counts[row, column]:,.0f}</text>",
        ]
    parts.append(f'<rect class="frame" x="{left}" y="{top}" width="{extent}" height="{extent}"/>')
    return _svg(left + extent + 12, top + extent + 4, label, parts)


def _matrix_picture(share: np.ndarray, label: str) -> str:
    """A large matrix: a pixel for each cell, transparent where nothing is.

    So it suits light and dark pages.
    """
    from PIL import Image

    pixels = np.zeros((*share.shape, 4), np.uint8)
    # Between the two blues of plots.css.
    pixels[..., :3] = (74, 136, 208)
    # The square root keeps rare confusions visible.
    pixels[..., 3] = np.rint(255 * np.sqrt(share))
    data = io.BytesIO()
    Image.fromarray(pixels, "RGBA").save(data, "PNG", optimize=True)

    side, left, top = 512, 18, 20
    area = f'x="{left}" y="{top}" width="{side}" height="{side}"'
    href = f"data:image/png;base64,{base64.b64encode(data.getvalue()).decode()}"
    last = len(share) - 1
    parts = [
        f'<text class="mid" x="{left + side / 2:g}" y="12">predicted: class 0 to {last}</text>',
        f'<text class="mid" transform="translate(12 {top + side / 2:g}) rotate(-90)">label</text>',
        f'<image {area} preserveAspectRatio="none" image-rendering="pixelated" href="{href}"/>',
        f'<rect class="frame" {area}/>',
    ]
    return _svg(left + side + 6, top + side + 6, label, parts)


def standalone(svg: str, legend: Sequence[tuple[int, str]] = ()) -> str:
    """Make a drawing a file of its own.

    Args:
        svg: one <svg> element of this module.
        legend: (number of the colour, name); drawn below.

    Returns:
        The element with its colours, a background and the legend.
    """
    # The legend makes the drawing higher, so its size is written anew.
    start, _, content = svg.partition(">")
    width, height = (_attribute(start, name) for name in ("width", "height"))
    total = height + 18 * len(legend) + (8 if legend else 0)
    start = start.replace(f'0 0 {width:g} {height:g}"', f'0 0 {width:g} {total:g}"')
    start = start.replace(f' height="{height:g}"', f' height="{total:g}"')

    parts = []
    for k, (colour, name) in enumerate(legend):
        y = height + 16 + 18 * k
        parts += [
            f'<rect class="f{colour_class(colour)}" x="8" y="{y - 9:g}" width="10" height="10" '
            'rx="2"/>',
            f'<text class="ink" x="24" y="{y:g}">{as_html(shorten(name, 50))}</text>',
        ]
    style = f"<style>{STYLE.read_text(encoding='utf-8')}</style>"
    background = '<rect width="100%" height="100%" fill="var(--paper)"/>'
    content = content.removesuffix("</svg>")
    return f"{start}>{style}{background}{content}{''.join(parts)}</svg>\n"


def _attribute(start: str, name: str) -> float:
    """The number of an attribute in the start of an element."""
    return float(start.split(f' {name}="')[1].split('"')[0])
