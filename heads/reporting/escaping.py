"""Text from manifests and runs, made harmless for HTML and Markdown; numbers for people."""

import html
import math
import re

from heads.reporting.document import Cell, Spread
from pipeline.text.printable import UNSEEN

_MARKS = re.compile(r"([\\`*\[\]~#$|!])")
_EDGE = re.compile(r"(?<![^\W_])_|_(?![^\W_])")  # inside a word an underscore is no emphasis
_LINK = re.compile(r"(?i)(https?|ftp|mailto)(:)|(www)(\.)")


def one_line(text: str) -> str:
    """The text without control characters: line breaks become spaces, the others a mark that
    something was there.
    """
    return UNSEEN.sub(
        lambda found: " " if found[0] in "\t\n\r\x0b\x0c\x85\u2028\u2029" else "\ufffd", text
    )


def shortened(text: str, most: int) -> str:
    """At most so many characters, the end replaced by … where it is longer."""
    text = one_line(text)
    return text if len(text) <= most else text[: most - 1].rstrip() + "…"


def as_html(text: str) -> str:
    """For an element's content or a quoted attribute."""
    return html.escape(one_line(text))


def as_markdown(text: str) -> str:
    """For a line or a table's cell: no markup, no HTML, no link, no end of the cell."""
    text = _MARKS.sub(r"\\\1", one_line(text))
    text = _EDGE.sub(r"\\_", text)
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    return _LINK.sub(lambda found: f"{found[1]}&#58;" if found[1] else f"{found[3]}&#46;", text)


def shown(cell: Cell, form: str) -> str:
    """A cell for a person; an empty one is "–"."""
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return "–"
    if isinstance(cell, str):
        return one_line(cell)
    if isinstance(cell, Spread):
        mean = shown(cell.mean, form)
        return mean if cell.deviation is None else f"{mean} ± {shown(cell.deviation, form)}"
    return {
        "count": lambda: f"{cell:,.0f}",
        "short": lambda: short(cell),
        "percent": lambda: f"{cell:.1f}",
        "fixed": lambda: f"{cell:.3f}",
        "seconds": lambda: f"{cell:,.0f}" if abs(cell) >= 100 else f"{cell:,.1f}",
        "text": lambda: str(cell),
    }[form]()


def short(number: float) -> str:
    """12,345,678 -> 12.3 M."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= size:
            return f"{number / size:.3g} {unit}"
    return f"{number:.3g}"


def order(cell: Cell) -> float | str | None:
    """What a cell is sorted by; None, last whichever way, for an empty one."""
    if isinstance(cell, Spread):
        return cell.mean
    return None if isinstance(cell, float) and math.isnan(cell) else cell
