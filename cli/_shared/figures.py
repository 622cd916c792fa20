"""The table of figures that `train`, `evaluate` and `finetune` print at the end."""

import math
from collections.abc import Iterable, Mapping, Sequence

from cli._shared.say import console
from pipeline.text.counted import counted

NAMES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "map": "mAP %",
    "class_mean": "class mean %",
    "loss": "loss",
    "dist": "Dist",
    "dist_start": "Dist, start",
    "dist_regions": "of regions",
    "dist_regions_start": "of regions, start",
}
# The table of single classes is printed for so many of them.
FEW = 30
# Figures that are no fractions of videos, and are printed as they are.
PLAIN = ("loss", "dist")


def print_figures(
    title: str, metrics: Mapping[str, Mapping[str, float]], rows: str = "split"
) -> None:
    """Print a table with one row per split.

    Args:
        title: of the table.
        metrics: split -> figure -> value. Fractions are printed in percent. A split without
            figures is marked as one without labels.
        rows: what a row is, the heading of the first column.
    """
    from rich.table import Table

    present = set().union(*metrics.values())
    columns = [name for name in NAMES if name in present]
    # Above the table, not its title, which would be broken to the width of the table.
    console().print(title, markup=False, highlight=False)
    table = Table()
    table.add_column(rows)
    for name in columns:
        table.add_column(NAMES[name], justify="right")
    for split, found in metrics.items():
        cells = [_cell(name, found.get(name)) for name in columns]
        table.add_row(split if found else f"{split} (no labels: predictions only)", *cells)
    console().print(table)


def print_classes(classes: Sequence, wanted: bool | None = None) -> None:
    """Print a row per class.

    Args:
        classes: `heads.evaluation.per_class.ClassFigures` of every class.
        wanted: whether to print them; None where there are at most FEW classes.
    """
    from rich.table import Table

    if not classes or wanted is False or (wanted is None and len(classes) > FEW):
        return
    several = any(not math.isnan(one.average_precision) for one in classes)
    names = ["videos", "AP %"] if several else ["videos", "top-1 %", "predicted", "precision %"]
    table = Table(title="per class", title_justify="left")
    table.add_column("class")
    for name in names:
        table.add_column(name, justify="right")
    if not several:
        table.add_column("taken most often for")
    for one in classes:
        if several:
            table.add_row(one.name, f"{one.videos:,}", _percent(one.average_precision))
            continue
        taken = f"{one.taken_for} ({one.taken:,})" if one.taken_for else ""
        figures = (_percent(one.recall), f"{one.predicted:,}", _percent(one.precision))
        table.add_row(one.name, f"{one.videos:,}", *figures, taken)
    console().print(table)


def duration(result) -> str:
    """Say how long a training took.

    Args:
        result: `heads.training.study.Result`.
    """
    epochs = counted(result.epochs, "epoch")
    share = 100 * result.waiting / max(result.seconds, 1e-9)
    return f"{epochs} in {result.seconds:.1f} s, {share:.1f} % of it waiting for data"


def _percent(value: float) -> str:
    return "" if math.isnan(value) else f"{100 * value:.1f}"


def print_exchange(title: str, rows: Iterable) -> None:
    """Print how videos are classified with one another's structures.

    Args:
        title: of the table.
        rows: of `heads.evaluation.one_structure.exchange`.
    """
    from rich.table import Table

    table = Table(title=title, title_justify="left")
    for column in ("video", "label", "structure of", "predicted"):
        table.add_column(column)
    table.add_column("score", justify="right")
    table.add_column("score of its label", justify="right")
    for row in rows:
        of = "its own" if row.clip == row.structure_of else row.structure_of
        own = "" if math.isnan(row.score_of_label) else f"{row.score_of_label:.3f}"
        table.add_row(row.clip, row.label, of, row.predicted, f"{row.score:.3f}", own)
    console().print(table)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    if name.startswith(PLAIN):
        return f"{value:.3f}"
    return f"{100 * value:.1f}"
