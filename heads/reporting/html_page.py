"""Write a document as one HTML file. Style, script, drawings and pictures are inside.

page.html is its template. The page's security policy lets it load nothing else.
"""

import base64
import hashlib
import re
from pathlib import Path
from typing import Any

import jinja2
from markupsafe import Markup, escape

from heads.reporting.document import Cell, Document, Spread
from heads.reporting.escaping import cell_text, one_line, sort_key
from heads.reporting.plots import colour_class

HERE = Path(__file__).parent


def to_html(document: Document) -> str:
    """Write the document as one HTML file.

    Args:
        document: the report; its texts are escaped here.

    Returns:
        The text of the file.
    """
    script = _read("page.js")
    # The page's policy runs this script and no other.
    digest = hashlib.sha256(script.encode()).digest()
    return (
        _environment()
        .get_template("page.html")
        .render(
            document=document,
            # Our own files: escaping would break them.
            style=Markup(_read("plots.css") + _read("page.css")),
            script=Markup(script),
            script_hash=base64.b64encode(digest).decode(),
        )
    )


def _environment() -> jinja2.Environment:
    """The environment of page.html: it escapes every value that is not `Markup`."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(HERE),
        autoescape=True,
        finalize=_finalize,
        # A misspelt name in the template raises, and does not print nothing.
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    environment.globals.update(kind_of=lambda block: type(block).__name__)
    environment.filters.update(
        base64=lambda data: base64.b64encode(data).decode(),
        code=_code,
        colour_class=colour_class,
        keep_unit=_keep_unit,
        parts=_cell_parts,
    )
    return environment


def _finalize(value: Any) -> Any:
    """Called with every value that the template prints."""
    if isinstance(value, str) and not isinstance(value, Markup):
        return one_line(value)
    return value


def _read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def _code(text: str) -> Markup:
    """Text of several lines, escaped."""
    lines = text.rstrip("\n").split("\n")
    return Markup("\n").join([escape(one_line(line)) for line in lines])


def _keep_unit(name: str) -> str:
    """A column's name, with a no-break space before its unit."""
    return re.sub(" (%|s)$", "\N{NO-BREAK SPACE}\\1", name)


def _cell_parts(cell: Cell, form: str) -> tuple[str | None, str, str]:
    """What a cell is sorted by, its text, and its deviation.

    A text is sorted as it is (None); an empty cell has no number ("").
    """
    key = sort_key(cell)
    if isinstance(key, str):
        number = None
    elif key is None:
        number = ""
    else:
        number = format(key, ".12g")

    if isinstance(cell, Spread) and cell.deviation is not None:
        return number, cell_text(cell.mean, form), cell_text(cell.deviation, form)
    return number, cell_text(cell, form), ""
