"""Escape text from manifests and runs for HTML and Markdown; format numbers for people."""

import html
import math
import re

from heads.reporting.document import Cell, Spread
from pipeline.text.printable import UNSEEN

_MARKS = re.compile(r"([\\`*\[\]~#$|!])")

# Inside a word an underscore is no emphasis.
_EDGE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")
_LINK = re.compile(r"(?i)(https?|ftp|mailto)(:)|(www)(\.)")
_FORMATS = {"count": ",.0f", "percent": ".1f", "fixed": ".3f", "seconds": ",.1f"}
_LINE_BREAKS = "\t\n\r\x0b\x0c\x85\u2028\u2029"


def one_line(text: str) -> str:
    """Return the text without control characters.

    Tabs and line breaks become spaces, other control characters U+FFFD.
    """
    return UNSEEN.sub(lambda found: " " if found[0] in _LINE_BREAKS else "\ufffd", text)


def shorten(text: str, most: int) -> str:
    """Return at most `most` characters, the end replaced by … where the text is longer."""
    text = one_line(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def as_html(text: str) -> str:
    """Escape a text for an element's content or a quoted attribute."""
    return html.escape(one_line(text))


def as_markdown(text: str) -> str:
    """Escape a text for a line or a table's cell: no markup, HTML, link, or end of the cell."""
    text = _MARKS.sub(r"\\\1", one_line(text))
    text = _EDGE.sub(r"\\_", text)
    # "&" first, or it would escape what the others put in.
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINK.sub(lambda found: f"{found[1]}&#58;" if found[1] else f"{found[3]}&#46;", text)


def cell_text(cell: Cell, form: str) -> str:
    """Format a table's cell for people.

    Args:
        cell: its value.
        form: of its column (see `heads.reporting.document.Column`).

    Returns:
        One line of plain text; "–" for an empty cell.
    """
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, str):
        return one_line(cell)
    if isinstance(cell, Spread):
        mean = cell_text(cell.mean, form)
        return mean if cell.deviation is None else f"{mean} ± {cell_text(cell.deviation, form)}"

    if form == "short":
        return short_number(cell)
    if form == "text":
        return str(cell)
    if form == "seconds" and abs(cell) >= 100:
        form = "count"
    return format(cell, _FORMATS[form])


def short_number(number: float) -> str:
    """Format a number with three digits and a unit: 12,345,678 -> 12.3 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def sort_key(cell: Cell) -> float | str | None:
    """Return what a cell is sorted by; None for an empty one, which comes last either way."""
    if isinstance(cell, Spread):
        return cell.mean
    if isinstance(cell, float) and math.isnan(cell):
        return None
    return cell
