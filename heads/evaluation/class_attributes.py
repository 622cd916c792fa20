"""Attributes of classes, from a CSV file: a row per class and attribute.

    class,attribute,value
    Holding a book,object,yes
    Running somewhere,object,no

Figures by such attributes are those of STRG's error analysis (ECCV 2018, Figure 5).
"""

import csv
import math
from collections.abc import Collection
from dataclasses import dataclass
from pathlib import Path

from pipeline.text.suggestions import nearest
from pipeline.text.text_files import other_separator, read_text, separator_advice

COLUMNS = ("class", "attribute", "value")
EXPECTED = "a CSV table with the columns class, attribute and value"


@dataclass(frozen=True)
class ClassAttributes:
    """What a file says of classes.

    Attributes:
        path: the file.
        values: attribute -> class -> value, in the order of the file.
        lines: (class, attribute) -> the line that says it, counted from 1.
    """

    path: Path
    values: dict[str, dict[str, str]]
    lines: dict[tuple[str, str], int]

    def check(self, classes: Collection[str]) -> None:
        """Raise ValueError if the file names a class that is not among `classes`."""
        for (name, _), line in self.lines.items():
            if name not in classes:
                raise ValueError(
                    f"{self.path}, line {line}: class {name!r} is none of the report's "
                    f"{len(classes)} classes; {nearest(name, classes)}"
                )

    def values_of(self, attribute: str) -> list[str]:
        """Return the values of an attribute: numbers ascending, words in the file's order."""
        found = list(dict.fromkeys(self.values[attribute].values()))
        if all(_is_number(value) for value in found):
            found.sort(key=float)
        return found


def read_class_attributes(path: str | Path) -> ClassAttributes:
    """Read a file of class attributes.

    Args:
        path: the file.

    Raises:
        ValueError: it cannot be read, a column is missing, a cell is empty, or a class has an
            attribute twice. The message names the line.
    """
    path = Path(path)
    text = read_text(path, EXPECTED)
    reader = csv.reader(text.splitlines(keepends=True), skipinitialspace=True)
    try:
        rows = [(reader.line_num, row) for row in reader]
    except csv.Error as error:
        raise ValueError(f"{path}, line {reader.line_num}: {error}; expected {EXPECTED}") from None
    if not rows:
        raise ValueError(f"{path}: empty; expected {EXPECTED}")

    header = [cell.strip().lower() for cell in rows[0][1]]
    for name in COLUMNS:
        if name not in header:
            words = other_separator(text.splitlines()[0], COLUMNS)
            advice = f"expected {EXPECTED}"
            if words:
                advice = separator_advice(words)
            raise ValueError(f"{path}: no column {name}; {advice}")
    places = [header.index(name) for name in COLUMNS]

    values: dict[str, dict[str, str]] = {}
    lines: dict[tuple[str, str], int] = {}
    for line, row in rows[1:]:
        if not any(cell.strip() for cell in row):
            continue
        # A row may be shorter than the header.
        padded = [*row, *[""] * len(header)]
        cells = [padded[place].strip() for place in places]
        if "" in cells:
            empty = COLUMNS[cells.index("")]
            raise ValueError(f"{path}, line {line}: no {empty}; expected {EXPECTED}")
        name, attribute, value = cells
        if (name, attribute) in lines:
            raise ValueError(
                f"{path}, line {line}: class {name!r} has {attribute!r} twice, before in line "
                f"{lines[name, attribute]}; keep one of the two rows"
            )
        lines[name, attribute] = line
        values.setdefault(attribute, {})[name] = value
    if not lines:
        raise ValueError(f"{path}: no rows below the header; expected {EXPECTED}")
    return ClassAttributes(path, values, lines)


def _is_number(text: str) -> bool:
    try:
        return math.isfinite(float(text))
    except ValueError:
        return False
