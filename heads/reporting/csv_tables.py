"""A document's tables as CSV: full precision, a column each for mean, standard deviation and number
of runs.
"""

import io
import math

from heads.reporting.document import Cell, Spread, Table
from pipeline.text.printable import write_table


def to_csv(table: Table) -> str:
    """The text of a CSV file."""
    spread = [
        any(isinstance(row[k], Spread) for row in table.rows) for k in range(len(table.columns))
    ]
    header: list[str] = []
    for column, wide in zip(table.columns, spread, strict=True):
        header += (
            [column.name, f"{column.name} sd", f"{column.name} runs"] if wide else [column.name]
        )
    text = io.StringIO()
    rows: list[list[object]] = [list(header)]
    for row in table.rows:
        cells: list[object] = []
        for cell, wide in zip(row, spread, strict=True):
            cells += _spread(cell) if wide else [_plain(cell)]
        rows.append(cells)
    write_table(text, rows)
    return text.getvalue()


def _spread(cell: Cell) -> list[object]:
    if not isinstance(cell, Spread):
        return [_plain(cell), "", ""]
    return [_plain(cell.mean), _plain(cell.deviation), cell.count]


def _plain(cell: Cell) -> object:
    if cell is None or (isinstance(cell, float) and math.isnan(cell)):
        return ""
    return f"{cell:.10g}" if isinstance(cell, float) else cell
