"""What a report says, free of how it is written: every text is plain, as it came from a manifest or
a run, escaped by no one.

The writers (page.py, markdown.py, sheets.py) escape; nothing else does, and nothing that holds
markup comes in here but the drawings of plots.py, which escape their own labels.
"""

from collections.abc import Iterator
from dataclasses import dataclass


@dataclass(frozen=True)
class Spread:
    """The mean over `count` runs and their standard deviation (that of a sample; None for one
    run).
    """

    mean: float
    deviation: float | None = None
    count: int = 1


Cell = str | int | float | Spread | None


@dataclass(frozen=True)
class Column:
    """A column of a table; `form` says how its numbers are shown: text, count, short (1.2 M),
    percent, fixed, or seconds.
    """

    name: str
    form: str = "text"


@dataclass(frozen=True)
class Table:
    """Rows of cells. `name`: of its CSV file. `caption`: what it shows. `long`: it has a field to
    filter its rows.
    """

    name: str
    caption: str
    columns: tuple[Column, ...]
    rows: tuple[tuple[Cell, ...], ...]
    long: bool = False


@dataclass(frozen=True)
class Text:
    """A paragraph."""

    text: str


@dataclass(frozen=True)
class Notice:
    """What must not be overlooked, one line each."""

    lines: tuple[str, ...]


@dataclass(frozen=True)
class Code:
    """Commands or a file's text, as they are."""

    text: str


@dataclass(frozen=True)
class Panel:
    """One drawing: its file's `name`, its SVG, and what it shows, for whoever cannot see it."""

    name: str
    svg: str
    alt: str
    wide: bool = False


@dataclass(frozen=True)
class Figure:
    """Drawings side by side. `legend`: number of the colour (plots.py), name."""

    caption: str
    panels: tuple[Panel, ...]
    legend: tuple[tuple[int, str], ...] = ()


@dataclass(frozen=True)
class Card:
    """A clip: its name, lines about it, and its picture, a JPEG, or why there is none."""

    title: str
    lines: tuple[str, ...]
    picture: bytes | None
    alt: str


@dataclass(frozen=True)
class Cards:
    """Clips side by side; `name`: what their pictures' files are called."""

    name: str
    cards: tuple[Card, ...]


@dataclass(frozen=True)
class Fold:
    """What is shown when it is asked for."""

    title: str
    blocks: "tuple[Block, ...]"


Block = Text | Notice | Code | Table | Figure | Cards | Fold


@dataclass(frozen=True)
class Section:
    """A part of the report with a heading; `anchor`: its address in the page."""

    title: str
    anchor: str
    blocks: tuple[Block, ...]


@dataclass(frozen=True)
class Document:
    """A whole report."""

    title: str
    blocks: tuple[Block, ...]
    sections: tuple[Section, ...]


def tables_of(document: Document) -> Iterator[Table]:
    """Every table, in order."""

    def inside(blocks: tuple[Block, ...]) -> Iterator[Table]:
        for block in blocks:
            if isinstance(block, Table):
                yield block
            elif isinstance(block, Fold):
                yield from inside(block.blocks)

    yield from inside(document.blocks)
    for section in document.sections:
        yield from inside(section.blocks)
