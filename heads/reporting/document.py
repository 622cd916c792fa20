"""The content of a report, independent of its format.

Every text is plain, as it came from a manifest or a run. Only the writers (html_page.py,
markdown.py) escape. The drawings of plots.py are the only markup in here; they
escape their own labels.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

# A table of so many rows can be filtered.
LONG = 8


@dataclass(frozen=True)
class Spread:
    """A mean over runs.

    Attributes:
        mean: of the runs' values.
        deviation: their sample standard deviation; None for one run.
        count: how many runs.
    """

    mean: float
    deviation: float | None = None
    count: int = 1


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        name: its heading.
        form: how its numbers are written: "text", "count" (1,234), "short" (1.2 M), "percent",
            "fixed" (three decimals) or "seconds".
    """

    name: str
    form: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells.

    Attributes:
        name: of its CSV file.
        caption: what it shows.
        columns: one per cell of a row.
        rows: the cells.
        long: whether it gets a field that filters its rows.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    long: bool = False


def long_table(
    name: str, caption: str, columns: Sequence[Column], rows: Sequence[tuple[Cell, ...]]
) -> Table:
    """Make a table whose rows can be filtered where there are LONG of them or more.

    Args:
        name: of its CSV file.
        caption: what it shows.
        columns: one per cell of a row.
        rows: the cells.

    Returns:
        The table.
    """
    return Table(name, caption, tuple(columns), tuple(rows), long=len(rows) >= LONG)


@dataclass(frozen=True)
class Heading:
    """A heading inside a section."""

    text: str


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notice:
    """A warning, one paragraph per line."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Commands or the text of a file, printed as they are."""

    text: str


@dataclass(frozen=True)
class Panel:
    """One drawing.

    Attributes:
        name: of its file.
        svg: one <svg> element.
        alt: what it shows, for readers who cannot see it.
        wide: whether it may be wider than the other panels.
    """

    name: str
    svg: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Figure:
    """Drawings side by side.

    Attributes:
        caption: what they show.
        panels: the drawings.
        legend: (number of the line style in plots.py, name).
    """

    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Card:
    """A clip with its frames.

    Attributes:
        title: the clip's name.
        lines: about the clip.
        pictures: a JPEG for each frame; () where there is none.
        alt: what the pictures show, or why there are none.
    """

    title: str
    lines: tuple[str, ...]
    pictures: tuple[bytes, ...]
    alt: str


@dataclass(frozen=True)
class Cards:
    """Clips side by side; `name` begins the names of their pictures' files."""

    name: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Fold:
    """Blocks that a reader opens with a click."""

    title: str
    blocks: "tuple[Block, ...]"


Block = Heading | Text | Notice | Code | Table | Figure | Cards | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading.

    Attributes:
        title: its heading.
        anchor: its address in the page.
        blocks: in order.
    """

    title: str
    anchor: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report.

    Attributes:
        title: of the page.
        blocks: before the first section.
        sections: in order.
    """

    title: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...]


def tables_of(document: Document) -> Iterator[Table]:
    """Yield every table of the document, in order."""

    def inside(blocks: tuple[Block, ...]) -> Iterator[Table]:
        for block in blocks:
            if isinstance(block, Table):
                yield block
            elif isinstance(block, Fold):
                yield from inside(block.blocks)

    yield from inside(document.blocks)
    for section in document.sections:
        yield from inside(section.blocks)
