"""Text that goes out to people and text that comes in from them.

`printable` makes names safe for terminals and spreadsheets, `suggestions` finds the nearest name
to a wrong one, `text_files` reads text that people wrote. The room uses `pipeline.files` only.
"""

from pipeline.text.printable import (
    as_cell,
    first_line,
    guard_output,
    visible,
    visible_json,
    visible_lines,
    write_table,
)
from pipeline.text.suggestions import nearest
from pipeline.text.text_files import decoded, other_separator, read_names, read_text

__all__ = [
    "as_cell",
    "decoded",
    "first_line",
    "guard_output",
    "nearest",
    "other_separator",
    "read_names",
    "read_text",
    "visible",
    "visible_json",
    "visible_lines",
    "write_table",
]
