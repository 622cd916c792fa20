"""The table that `train` and `evaluate` end with."""

from collections.abc import Mapping

from cli._say import console

NAMES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "map": "mAP %",
    "class_mean": "class mean %",
    "loss": "loss",
}


def print_figures(
    title: str, metrics: Mapping[str, Mapping[str, float]], rows: str = "split"
) -> None:
    """One row per split, or whatever `rows` names.

    Fractions are shown in percent, the loss as it is, a split without labels as such.
    """
    from rich.table import Table

    columns = [name for name in NAMES if any(name in found for found in metrics.values())]
    table = Table(title=title, title_justify="left")
    table.add_column(rows)
    for name in columns:
        table.add_column(NAMES[name], justify="right")
    for split, found in metrics.items():
        cells = [_cell(name, found.get(name)) for name in columns]
        table.add_row(split if found else f"{split} (no labels: predictions only)", *cells)
    console().print(table)


def _cell(name: str, value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.3f}" if name == "loss" else f"{100 * value:.1f}"
