"""A document as Markdown of the GitHub kind; drawings and pictures are files beside it."""

from collections.abc import Iterator

from heads.reporting.document import Block, Cards, Code, Document, Figure, Fold, Notice, Table, Text
from heads.reporting.escaping import as_markdown, cell_text
from heads.reporting.plots import standalone
from pipeline.text.printable import visible_lines

MOST_ROWS = 60  # of a table; the CSV file has the rest


def to_markdown(document: Document) -> tuple[str, dict[str, bytes]]:
    """The text, and the files that it shows, by path relative to it."""
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
    if isinstance(block, Text):
        yield from (as_markdown(block.text), "")
    elif isinstance(block, Notice):
        yield from (f"> - {as_markdown(line)}" for line in block.lines)
        yield ""
    elif isinstance(block, Code):
        yield from _fenced(block.text)
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


def _fenced(text: str) -> Iterator[str]:
    """A fence longer than any run of backticks inside; control characters, which a terminal obeys,
    as escapes.
    """
    text = visible_lines(text)
    fence = "```"
    while fence in text:
        fence += "`"
    yield from (fence, text.rstrip("\n"), fence, "")


def _table(table: Table) -> Iterator[str]:
    yield from (as_markdown(table.caption), "")
    yield f"| {' | '.join(as_markdown(column.name) for column in table.columns)} |"
    yield f"|{'|'.join('---' if column.form == 'text' else '--:' for column in table.columns)}|"
    for row in table.rows[:MOST_ROWS]:
        cells = (
            as_markdown(cell_text(cell, column.form))
            for cell, column in zip(row, table.columns, strict=True)
        )
        yield f"| {' | '.join(cells)} |"
    yield ""
    if len(table.rows) > MOST_ROWS:
        yield from (f"{len(table.rows) - MOST_ROWS:,} more rows are in {table.name}.csv.", "")


def _figure(figure: Figure, files: dict[str, bytes]) -> Iterator[str]:
    yield from (as_markdown(figure.caption), "")
    for panel in figure.panels:
        path = f"plots/{panel.name}.svg"
        files[path] = standalone(panel.svg, figure.legend).encode()
        yield from (f"![{as_markdown(panel.alt)}]({path})", "")


def _cards(cards: Cards, files: dict[str, bytes]) -> Iterator[str]:
    for k, card in enumerate(cards.cards):
        yield f"- **{as_markdown(card.title)}**: {as_markdown('; '.join(card.lines))}"
        if card.picture:
            path = f"pictures/{cards.name}-{k}.jpg"
            files[path] = card.picture
            yield f"  ![{as_markdown(card.alt)}]({path})"
    yield ""
