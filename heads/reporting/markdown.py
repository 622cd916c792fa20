"""Write a document as GitHub Markdown, and its tables as CSV.

Drawings and pictures are files beside the text.
"""

import io
import math
from collections.abc import Iterator

from heads.reporting.document import (
    Block,
    Cards,
    Cell,
    Code,
    Document,
    Figure,
    Fold,
    Heading,
    Notice,
    Spread,
    Table,
    Text,
)
from heads.reporting.escaping import as_markdown, cell_text
from heads.reporting.plots import standalone
from pipeline.text.counted import agree, counted
from pipeline.text.printable import visible_lines, write_table

# Rows of a table; the CSV file has all of them.
MOST_ROWS = 60


def to_markdown(document: Document) -> tuple[str, dict[str, bytes]]:
    """Write the document as Markdown.

    Args:
        document: the report.

    Returns:
        (the text, the files that it shows by path relative to it).
    """
    files: dict[str, bytes] = {}
    lines = [f"# {as_markdown(document.title)}", ""]
    for block in document.blocks:
        lines += _block(block, files)
    for section in document.sections:
        lines += [f"## {as_markdown(section.title)}", ""]
        for block in section.blocks:
            lines += _block(block, files)
    return "\n".join(lines).rstrip() + "\n", files


def _block(block: Block, files: dict[str, bytes]) -> Iterator[str]:
    """The lines of a block; its drawings and pictures are added to `files`."""
    if isinstance(block, Heading):
        yield from (f"### {as_markdown(block.text)}", "")
    elif isinstance(block, Text):
        yield from (as_markdown(block.text), "")
    elif isinstance(block, Notice):
        for line in block.lines:
            yield f"> - {as_markdown(line)}"
        yield ""
    elif isinstance(block, Code):
        yield from _code(block.text)
    elif isinstance(block, Table):
        yield from _table(block)
    elif isinstance(block, Figure):
        yield from _figure(block, files)
    elif isinstance(block, Cards):
        yield from _cards(block, files)
    elif isinstance(block, Fold):
        yield from (f"### {as_markdown(block.title)}", "")
        for inner in block.blocks:
            yield from _block(inner, files)


def _code(text: str) -> Iterator[str]:
    # A terminal obeys control characters, so they become escapes.
    text = visible_lines(text)
    # The fence must be longer than any run of backticks inside.
    fence = "```"
    while fence in text:
        fence += "`"
    yield from (fence, text.rstrip("\n"), fence, "")


def _table(table: Table) -> Iterator[str]:
    yield from (as_markdown(table.caption), "")
    names, rules = [], []
    for column in table.columns:
        names.append(as_markdown(column.name))
        # "--:" aligns numbers to the right.
        rules.append("---" if column.form == "text" else "--:")
    yield f"| {' | '.join(names)} |"
    yield f"|{'|'.join(rules)}|"
    for row in table.rows[:MOST_ROWS]:
        cells = []
        for cell, column in zip(row, table.columns, strict=True):
            cells.append(as_markdown(cell_text(cell, column.form)))
        yield f"| {' | '.join(cells)} |"
    yield ""
    if len(table.rows) > MOST_ROWS:
        more = len(table.rows) - MOST_ROWS
        rows = f"{counted(more, 'more row')} {agree(more, 'is', 'are')}"
        yield from (f"{rows} in {table.name}.csv.", "")


def _figure(figure: Figure, files: dict[str, bytes]) -> Iterator[str]:
    yield from (as_markdown(figure.caption), "")
    for panel in figure.panels:
        path = f"plots/{panel.name}.svg"
        files[path] = standalone(panel.svg, figure.legend).encode()
        yield from (f"![{as_markdown(panel.alt)}]({path})", "")


def _cards(cards: Cards, files: dict[str, bytes]) -> Iterator[str]:
    for k, card in enumerate(cards.cards):
        yield f"- **{as_markdown(card.title)}**: {as_markdown('; '.join(card.lines))}"
        for number, picture in enumerate(card.pictures):
            path = f"pictures/{cards.name}-{k}-{number}.jpg"
            files[path] = picture
            yield f"  ![{as_markdown(card.alt)}]({path})"
    yield ""


def to_csv(table: Table) -> str:
    """Write a table as CSV, in full precision.

    A column of means has three: mean, standard deviation, number of runs.

    Args:
        table: of a document.

    Returns:
        The text of the file, with a header.
    """
    has_spread = []
    for k in range(len(table.columns)):
        has_spread.append(any(isinstance(row[k], Spread) for row in table.rows))

    header: list[object] = []
    for column, wide in zip(table.columns, has_spread, strict=True):
        header.append(column.name)
        if wide:
            header += [f"{column.name} sd", f"{column.name} runs"]

    rows = [header]
    for row in table.rows:
        cells: list[object] = []
        for cell, wide in zip(row, has_spread, strict=True):
            if isinstance(cell, Spread):
                cells += [_value(cell.mean), _value(cell.deviation), cell.count]
            elif wide:
                cells += [_value(cell), "", ""]
            else:
                cells.append(_value(cell))
        rows.append(cells)

    text = io.StringIO()
    write_table(text, rows)
    return text.getvalue()


def _value(cell: Cell) -> object:
    if not isinstance(cell, float):
        return "" if cell is None else cell
    return "" if math.isnan(cell) else f"{cell:.10g}"
