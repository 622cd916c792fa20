"""Report section by attributes of classes (STRG, ECCV 2018, Figure 5)."""

from collections.abc import Sequence

import numpy as np

from heads.evaluation.class_attributes import ClassAttributes
from heads.reporting.class_sections import predicting
from heads.reporting.document import (
    Block,
    Cell,
    Column,
    Figure,
    Panel,
    Section,
    Spread,
    Text,
    long_table,
)
from heads.reporting.groups import RunGroup, spread_of
from heads.reporting.plots import bars

# Rows of the study that are drawn, and that have a column.
MOST_DRAWN, MOST_COLUMNS = 4, 8


def by_attribute(
    groups: Sequence[RunGroup],
    pair: tuple[RunGroup, RunGroup] | None,
    split: str,
    attributes: ClassAttributes | None,
) -> Section | None:
    """Make the section of figures by attributes of classes.

    The figure of a value is the mean, over the classes that have it, of the class's recall, or of
    its average precision with several labels per video.

    Args:
        groups: the best first.
        pair: the two groups that are compared.
        split: of the predictions.
        attributes: of the classes; None for no section.

    Returns:
        The section; None without attributes or predictions.
    """
    drawn = predicting(groups, split)
    if attributes is None or not drawn:
        return None
    if pair and not all(group in drawn for group in pair):
        pair = None

    blocks: list[Block] = [Text(_about(drawn[0], attributes))]
    rows: list[tuple[Cell, ...]] = []
    for number, attribute in enumerate(attributes.values):
        found = _rows_of(attribute, drawn, pair, attributes)
        rows += found
        blocks.append(_figure(attribute, number, drawn[:MOST_DRAWN], found))

    columns = [Column("attribute"), Column("value"), Column("classes", "count")]
    columns += [Column(f"{group.name} %", "percent") for group in drawn[:MOST_COLUMNS]]
    caption = f"Mean over the classes of each value, split {split}."
    if pair:
        columns.append(Column("gain", "percent"))
        caption += f" Gain: {pair[0].name} minus {pair[1].name}, in points."
    if len(drawn) > MOST_COLUMNS:
        caption += f" The {MOST_COLUMNS} best of {len(drawn)} rows of the study."
    blocks.append(long_table("attributes", caption, columns, rows))
    return Section("By attribute of the classes", "attributes", tuple(blocks))


def _about(group: RunGroup, attributes: ClassAttributes) -> str:
    """What is averaged, and which classes have no value."""
    first = group.predicted[0]
    what = "average precision" if first.targets.ndim == 2 else "recall"
    without = []
    for attribute, values in attributes.values.items():
        count = sum([name not in values for name in first.classes])
        if count:
            without.append(f"{attribute} {count}")
    text = f"Mean {what} of the classes with each value of {attributes.path.name}."
    if without:
        text += f" Classes without a value: {', '.join(without)}, of {len(first.classes)}."
    return text


def _rows_of(
    attribute: str,
    groups: Sequence[RunGroup],
    pair: tuple[RunGroup, RunGroup] | None,
    attributes: ClassAttributes,
) -> list[tuple[Cell, ...]]:
    """A row of the table for each value of an attribute."""
    classes = groups[0].predicted[0].classes
    value_of = attributes.values[attribute]
    # A class without a video has no figure.
    has_video = np.isfinite(groups[0].predicted[0].per_class)

    rows = []
    for value in attributes.values_of(attribute):
        chosen = np.array([value_of.get(name) == value for name in classes]) & has_video
        cells: list[Cell] = [attribute, value, int(chosen.sum())]
        for group in groups[:MOST_COLUMNS]:
            cells.append(_mean_of(group, chosen))
        if pair:
            one, other = (_mean_of(group, chosen) for group in pair)
            cells.append(one.mean - other.mean if one and other else None)
        rows.append(tuple(cells))
    return rows


def _mean_of(group: RunGroup, chosen: np.ndarray) -> Spread | None:
    """The mean figure of the chosen classes [K] in percent, with its spread over the runs."""
    if not chosen.any():
        return None
    return spread_of([100 * float(one.per_class[chosen].mean()) for one in group.predicted])


def _figure(
    attribute: str, number: int, groups: Sequence[RunGroup], rows: Sequence[tuple[Cell, ...]]
) -> Figure:
    """Bars of an attribute's values, one for each of the groups."""
    named, colours = [], []
    for _, value, _, *figures in rows:
        # The table has more columns than are drawn.
        for group, figure in zip(groups, figures, strict=False):
            if isinstance(figure, Spread):
                named.append((f"{value}: {group.name}", figure.mean))
                colours.append(group.colour)
    caption = f"By {attribute}."
    if not named:
        return Figure(f"{caption} No class with a value has a video.", ())
    alt = f"Mean figure of the classes by {attribute}, in percent"
    panel = Panel(f"attribute-{number}", bars(named, alt, colours), alt)
    legend = tuple([(group.colour, group.name) for group in groups])
    return Figure(caption, (panel,), legend)
