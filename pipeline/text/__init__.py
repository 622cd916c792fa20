"""Text that goes out to people and text that comes in from them.

`counted` has nouns agree with numbers, `printable` makes names safe for terminals and spreadsheets,
`suggestions` finds the nearest name to a wrong one, `text_files` reads text that people wrote,
`typed_options` spells settings as the command line takes them. The room uses `pipeline.files` only.
"""

from pipeline.text.counted import agree, counted
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
from pipeline.text.typed_options import as_typed, short

__all__ = [
    "agree",
    "as_cell",
    "as_typed",
    "counted",
    "decoded",
    "first_line",
    "guard_output",
    "nearest",
    "other_separator",
    "read_names",
    "read_text",
    "short",
    "visible",
    "visible_json",
    "visible_lines",
    "write_table",
]
