"""A document as one HTML file: style, script, drawings and pictures are inside, and a policy lets
it load nothing else.
"""

import base64
import hashlib
import html
import re
from collections.abc import Iterator
from pathlib import Path

from heads.reporting.document import (
    Block,
    Cards,
    Cell,
    Code,
    Column,
    Document,
    Figure,
    Fold,
    Notice,
    Spread,
    Table,
    Text,
)
from heads.reporting.escaping import as_html, one_line, order, shown
from heads.reporting.plots import REST

HERE = Path(__file__).parent


def to_html(document: Document) -> str:
    """The text of the file."""
    style = "".join((HERE / name).read_text(encoding="utf-8") for name in ("plots.css", "page.css"))
    script = (HERE / "page.js").read_text(encoding="utf-8")
    script_hash = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{script_hash}'"
    links = "".join(
        f'<a href="#{as_html(s.anchor)}">{as_html(s.title)}</a>' for s in document.sections
    )
    parts = [
        '<!doctype html>\n<html lang="en">\n<head>\n<meta charset="utf-8">',
        f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
        '<meta name="viewport" content="width=device-width, initial-scale=1">',
        '<meta name="referrer" content="no-referrer">\n<meta name="color-scheme" content="light '
        'dark">',
        '<link rel="icon" href="data:,">',  # or a browser would ask the server for one
        f"<title>{as_html(document.title)}</title>\n<style>\n{style}</style>\n</head>\n<body>",
        f"<header>\n<h1>{as_html(document.title)}</h1>",
        *(line for block in document.blocks for line in _block(block)),
        f"<nav>{links}</nav>\n</header>\n<main>",
    ]
    for section in document.sections:
        parts.append(f'<section id="{as_html(section.anchor)}">\n<h2>{as_html(section.title)}</h2>')
        parts += [line for block in section.blocks for line in _block(block)]
        parts.append("</section>")
    parts.append(f"</main>\n<script>{script}</script>\n</body>\n</html>\n")
    return "\n".join(parts)


def _block(block: Block) -> Iterator[str]:
    if isinstance(block, Text):
        yield f"<p>{as_html(block.text)}</p>"
    elif isinstance(block, Notice):
        yield f'<div class="notice">{"".join(f"<p>{as_html(line)}</p>" for line in block.lines)}</div>'
    elif isinstance(block, Code):
        yield f"<pre>{_code(block.text)}</pre>"
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Figure):
        yield from _figure(block)
    elif isinstance(block, Cards):
        yield from _cards(block)
    elif isinstance(block, Fold):
        yield f"<details><summary>{as_html(block.title)}</summary>"
        for inner in block.blocks:
            yield from _block(inner)
        yield "</details>"


def _code(text: str) -> str:
    return "\n".join(html.escape(one_line(line)) for line in text.rstrip("\n").split("\n"))


def _table(table: Table) -> Iterator[str]:
    yield f'<p class="caption">{as_html(table.caption)}</p>'
    name = as_html(f"table-{table.name}")
    if table.long:
        yield (
            f'<div class="filter" data-table="{name}"><input type="search" placeholder="Filter '
            f'rows" '
            f'aria-label="Filter rows of: {as_html(table.caption)}"><output></output></div>'
        )
    heads = "".join(
        f'<th scope="col"{_kind(column)}>{_head(column.name)}</th>' for column in table.columns
    )
    yield f'<div class="scroll" tabindex="0"><table id="{name}"><thead><tr>{heads}</tr></thead><tbody>'
    for row in table.rows:
        yield f"<tr>{''.join(_cell(cell, column) for cell, column in zip(row, table.columns, strict=True))}</tr>"
    yield "</tbody></table></div>"


def _head(name: str) -> str:
    """A column's name, its unit never alone on a line."""
    return re.sub(" (%|s)$", r"&nbsp;\1", as_html(name))


def _kind(column: Column) -> str:
    return "" if column.form == "text" else ' class="number"'


def _cell(cell: Cell, column: Column) -> str:
    by = order(cell)
    sort = (
        f' data-by="{"" if by is None else format(by, ".12g")}"'
        if by is None or not isinstance(by, str)
        else ""
    )
    if isinstance(cell, Spread) and cell.deviation is not None:
        around = f'<span class="pm"> ± {as_html(shown(cell.deviation, column.form))}</span>'
        return f"<td{_kind(column)}{sort}>{as_html(shown(cell.mean, column.form))}{around}</td>"
    return f"<td{_kind(column)}{sort}>{as_html(shown(cell, column.form))}</td>"


def _figure(figure: Figure) -> Iterator[str]:
    yield f'<p class="caption">{as_html(figure.caption)}</p>\n<div class="panels">'
    for panel in figure.panels:
        yield f"<div{' class=wide' if panel.wide else ''}>{panel.svg}</div>"
    yield "</div>"
    if figure.legend:
        marks = "".join(_mark(colour, name) for colour, name in figure.legend)
        yield f'<ul class="legend">{marks}</ul>'


def _mark(colour: int, name: str) -> str:
    square = f'<svg viewBox="0 0 10 10" aria-hidden="true"><rect class="f{min(colour, REST)}" width="10" height="10" rx="2"/></svg>'
    return f"<li>{square}{as_html(name)}</li>"


def _cards(cards: Cards) -> Iterator[str]:
    yield '<div class="cards">'
    for card in cards.cards:
        lines = "".join(f"<span>{as_html(line)}</span>" for line in card.lines)
        if card.picture:
            data = base64.b64encode(card.picture).decode()
            top = f'<img alt="{as_html(card.alt)}" src="data:image/jpeg;base64,{data}">'
        else:
            top = f'<div class="none">{as_html(card.alt)}</div>'
        yield f'<figure class="card">{top}<figcaption><b>{as_html(card.title)}</b>{lines}</figcaption></figure>'
    yield "</div>"
