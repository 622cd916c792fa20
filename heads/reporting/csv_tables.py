"""Write a document's tables as CSV, in full precision.

A column of means has three: mean, standard deviation, number of runs.
"""

import io
import math

from heads.reporting.document import Cell, Spread, Table
from pipeline.text.printable import write_table


def to_csv(table: Table) -> str:
    """Write a table as CSV.

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
