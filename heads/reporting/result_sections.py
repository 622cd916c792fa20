"""Report sections of the study's table, every run, learning curves, and accuracy against cost."""

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from heads.reporting.comparable import (
    FoldedRow,
    folded_rows,
    heading_of,
    settings_tables,
    test_videos,
)
from heads.reporting.document import (
    Block,
    Cell,
    Column,
    Figure,
    Fold,
    Heading,
    Panel,
    Section,
    Spread,
    Table,
    long_table,
)
from heads.reporting.groups import RunGroup, by_test_set, sorting_split
from heads.reporting.plots import COLOURS, Series, curves, points
from heads.reporting.predictions import main_figure
from heads.reporting.run_folders import FoundRun

# How figures are called in tables, and their order there.
NAMES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "map": "mAP %",
    "class_mean": "class mean %",
    "loss": "loss",
    "dist": "Dist",
    "dist_start": "Dist, start",
    "dist_regions": "Dist of regions",
    "dist_regions_start": "Dist of regions, start",
}
# Figures that are no fractions of videos.
PLAIN = ("loss", "dist")
ORDER = ("map", "top1", "top5", "class_mean", "loss")


def figure_names(groups: Sequence[RunGroup], split: str) -> list[str]:
    """Return the figures that any group has on a split, the main one first."""
    runs: list[FoundRun] = []
    for group in groups:
        runs += group.runs
    return _names_of(runs, split)


def _names_of(runs: Sequence[FoundRun], split: str) -> list[str]:
    names = set().union(*[run.figures(split) for run in runs])
    return [name for name in ORDER if name in names]


def _figure_column(name: str, split: str = "") -> Column:
    title = f"{split} {NAMES[name]}" if split else NAMES[name]
    return Column(title, "fixed" if name.startswith(PLAIN) else "percent")


def _figure_value(name: str, value: float | None) -> float | None:
    """A loss and a distance as they are, others in percent."""
    return value if value is None or name.startswith(PLAIN) else 100 * value


def legend_of(groups: Sequence[RunGroup]) -> tuple[tuple[int, str], ...]:
    """Return the legend of groups; their numbers stand in the drawing where they are many."""
    entries = []
    for group in groups:
        label = label_of(group, groups)
        entries.append((group.colour, f"{label} {group.name}" if label else group.name))
    return tuple(entries)


def label_of(group: RunGroup, drawn: Sequence[RunGroup]) -> str:
    """Return the label beside a group's line or point: its number, if colours do not suffice."""
    return str(group.rank + 1) if len(drawn) > COLOURS else ""


def results(groups: Sequence[RunGroup], found: Sequence[FoundRun], split: str) -> Section:
    """Make the section of the study's table.

    Args:
        groups: the rows, the best first.
        found: all runs.
        split: whose figures are shown.

    Returns:
        The section.
    """
    blocks: list[Block] = []
    sets = by_test_set(groups, split)
    folded = folded_rows(groups, split)
    tables: list[Block] = []
    for number, members in enumerate(sets):
        if len(sets) > 1:
            tables.append(Heading(heading_of(members[0], split)))
        tables.append(_study_table(members, split, number))
    for number, rows in enumerate(folded):
        blocks += [Heading("Averages over folds"), _folds_table(rows, split, number)]
    if folded:
        blocks.append(Fold("Every fold by itself", tuple(tables)))
    else:
        blocks += tables
    settings = settings_tables(groups)
    if settings:
        blocks.append(Fold("Settings in which the rows differ", tuple(settings)))
    blocks.append(Fold("Every run", (_runs_table(found, split),)))
    evaluations = _evaluations_table(found)
    if evaluations is not None:
        blocks.append(Fold("Evaluations after the training", (evaluations,)))
    return Section("Results", "results", tuple(blocks))


def _study_table(groups: Sequence[RunGroup], split: str, number: int) -> Table:
    """The rows of one set of videos, the best first; `number` from 0 tells the tables apart."""
    figures = _shown_figures(groups, split)
    columns = [Column("name"), Column("head"), Column("seeds", "count"), Column("videos", "count")]
    columns += [_figure_column(name, of) for of, name in figures]
    columns += [
        Column("parameters", "short"),
        Column("MACs", "short"),
        Column("training s", "seconds"),
    ]
    rows = []
    for group in groups:
        row: list[Cell] = [group.name, group.head, len(group.runs), test_videos(group, split)]
        row += [group.figure(of, name, 100.0) for of, name in figures]
        row += [group.runs[0].result["parameters"], group.macs, _seconds(group)]
        rows.append(tuple(row))

    caption = ""
    if len(groups) > 1:
        chooser = sorting_split(groups, split)
        caption += f"Sorted by {chooser}"
        if not all(group.runs[0].figures(chooser) for group in groups):
            caption += f"; rows without figures of {chooser} come last"
        caption += ". "
    if _several_seeds(groups):
        caption += "Mean ± standard deviation over seeds. "
    caption += f"Videos: those of {split}. Parameters and MACs (one view) are the head's."
    if any("frames" in group.runs[0].about for group in groups):
        caption += " Trained from frames, they are the whole network's."
    caption += " Seconds: its own computing and waiting for data."
    name = f"study-{number}" if number else "study"
    return long_table(name, caption, columns, rows)


def _shown_figures(groups: Sequence[RunGroup], split: str) -> list[tuple[str, str]]:
    """(split, figure) of each column: those of `split`, and the main figure of the other split."""
    names = [name for name in figure_names(groups, split) if name != "loss"]
    figures = [(split, name) for name in names]
    other = "val" if split == "test" else "test"
    main = main_figure(dict.fromkeys(names))
    if main in figure_names(groups, other):
        figures.append((other, main))
    return figures


def _folds_table(rows: Sequence[FoldedRow], split: str, number: int) -> Table:
    """A row for each configuration, averaged over its folds."""
    every_fold: list[RunGroup] = []
    for row in rows:
        every_fold += row.folds
    figures = _shown_figures(every_fold, split)
    columns = [Column("name"), Column("head"), Column("folds", "count"), Column("runs", "count")]
    columns += [Column("videos", "count")]
    columns += [_figure_column(name, of) for of, name in figures]
    cells = []
    for row in rows:
        videos = [test_videos(fold, split) for fold in row.folds]
        cell: list[Cell] = [row.name, row.folds[0].head, len(row.folds)]
        cell.append(sum([len(fold.runs) for fold in row.folds]))
        cell.append(None if None in videos else sum(videos))
        cell += [row.figure(of, name, 100.0) for of, name in figures]
        cells.append(tuple(cell))
    caption = (
        f"Mean ± standard deviation over folds; a fold counts as the mean of its seeds. Videos: "
        f"those of {split}, of all folds together."
    )
    name = f"folds-{number}" if number else "folds"
    return long_table(name, caption, columns, cells)


def _seconds(group: RunGroup) -> Spread:
    """The spread of its training seconds."""
    return group.spread(lambda run: run.result["seconds"])


def _several_seeds(groups: Sequence[RunGroup]) -> bool:
    return any(len(group.runs) > 1 for group in groups)


def _runs_table(found: Sequence[FoundRun], split: str) -> Table:
    names = _names_of(found, split)
    columns = [
        Column("run"),
        Column("state"),
        Column("seed", "count"),
        Column("epochs", "count"),
        Column("best epoch", "count"),
        *[_figure_column(name, split) for name in names],
        Column("training s", "seconds"),
        Column("device"),
        Column("cache"),
        Column("manifest"),
    ]
    rows = []
    for run in found:
        about, result = run.about or {}, run.result or {}
        row: list[Cell] = [str(run.folder), run.state, about.get("seed")]
        row += [result.get("epochs", len(run.log)), result.get("best_epoch")]
        row += [_figure_value(name, run.figures(split).get(name)) for name in names]
        row += [result.get("seconds"), str(about.get("device", ""))]
        # Twelve characters tell caches apart.
        row += [str(about.get("fingerprint", ""))[:12]]
        row += [str((about.get("manifest") or {}).get("path", ""))]
        rows.append(tuple(row))
    title = "One row per run folder."
    return long_table("runs", title, columns, rows)


def _evaluations_table(found: Sequence[FoundRun]) -> Table | None:
    """What `vidgraph evaluate` has left; None without any."""
    records, figures = [], set()
    for run in found:
        for tag, record in run.evaluations:
            records.append((run, tag, record))
            figures |= record.keys()
    if not records:
        return None

    names = [name for name in NAMES if name in figures]
    columns = [
        Column("run"),
        Column("evaluation"),
        Column("checkpoint"),
        Column("cache"),
        Column("manifest"),
        *[_figure_column(name) for name in names],
    ]
    rows = []
    for run, tag, record in records:
        row: list[Cell] = [str(run.folder), tag, str(record.get("checkpoint", ""))]
        row += [str(record.get("fingerprint", ""))[:12], str(record.get("manifest", ""))]
        row += [_figure_value(name, record.get(name)) for name in names]
        rows.append(tuple(row))
    caption = (
        "Named after the split, the cache's fingerprint where it is not the run's own, and the "
        "checksum of a split that is not."
    )
    return long_table("evaluations", caption, columns, rows)


def learning(groups: Sequence[RunGroup], split: str) -> Section | None:
    """Make the section of the learning curves; None without any.

    Args:
        groups: all rows.
        split: whose figures are reported; rows of other videos are drawn apart.
    """
    blocks: list[Block] = []
    sets = by_test_set(groups, split)
    for number, members in enumerate(sets):
        figure = _learning_figure(members, f"-{number}" if number else "")
        if figure is None:
            continue
        if len(sets) > 1:
            blocks.append(Heading(heading_of(members[0], split)))
        blocks.append(figure)
    return Section("Learning curves", "learning", tuple(blocks)) if blocks else None


def _learning_figure(groups: Sequence[RunGroup], suffix: str) -> Figure | None:
    """The curves of one set of rows; the panels' names end in `suffix`."""
    drawn, name = [], ""
    for group in groups:
        if any(run.log for run in group.runs):
            drawn.append(group)
        for run in group.runs:
            for row in run.log:
                if not name and row["val"]:
                    name = main_figure(row["val"])
    if not drawn:
        return None

    wanted: list[tuple[str, str, str, Callable[[dict[str, Any]], float]]] = []
    wanted.append(("loss", "Training loss", "plain", lambda row: row["loss"]))
    # A run with several labels has a mAP, others a top-1.
    if name:
        title = f"val {NAMES[name]}"
        wanted.append((name, title, "percent", lambda row: 100 * row["val"].get(name, np.nan)))
    wanted.append(("val-loss", "val loss", "plain", lambda row: row["val"].get("loss", np.nan)))
    panels = []
    for stem, title, form, value in wanted:
        lines = list(filter(None, [_curve(group, value, drawn) for group in drawn]))
        if not lines:
            continue
        alt = f"{title} by epoch, one curve for each row of the study, {len(lines)} in all"
        if form == "plain" and _needs_log_axis(lines):
            form, title = "log", f"{title}, logarithmic"
        panels.append(
            Panel(f"learning-{stem}{suffix}", curves(lines, "epoch", title, alt, form), alt)
        )

    caption = "By epoch; the epochs of all phases are counted through."
    if _several_seeds(drawn):
        caption += " Bands are one standard deviation over seeds."
    return Figure(caption, tuple(panels), legend_of(drawn))


def _needs_log_axis(lines: Sequence[Series]) -> bool:
    """Whether values are so far apart that a linear axis would show the largest alone."""
    values = np.concatenate([line.y for line in lines])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 20 * values.min())


def _curve(
    group: RunGroup, value: Callable[[dict[str, Any]], float], drawn: Sequence[RunGroup]
) -> Series | None:
    """The mean over the runs of a group, of as many epochs as any of them has."""
    by_epoch: dict[int, list[float]] = {}
    for run in group.runs:
        for row in run.log:
            by_epoch.setdefault(row["epoch"], []).append(float(value(row)))

    epochs, mean, deviation = [], [], []
    for epoch, values in sorted(by_epoch.items()):
        # nanmean warns of an epoch without any value.
        if np.isfinite(values).any():
            epochs.append(epoch)
            mean.append(float(np.nanmean(values)))
            deviation.append(float(np.nanstd(values)))
    if not epochs:
        return None
    return Series(group.name, group.colour, epochs, mean, deviation, label_of(group, drawn))


def costs(groups: Sequence[RunGroup], split: str) -> Section | None:
    """Make the section of accuracy against parameters, MACs and training time.

    Args:
        groups: the best first.
        split: whose figures are shown.

    Returns:
        The section; None without a figure.
    """
    sets = by_test_set(groups, split)
    blocks: list[Block] = []
    for number, members in enumerate(sets):
        # One set may have a mAP, and another a top-1.
        names = figure_names(members, split)
        if not names or names[0] == "loss":
            continue
        panels = _cost_panels(members, split, names[0], f"-{number}" if number else "")
        if not panels:
            continue
        if len(sets) > 1:
            blocks.append(Heading(heading_of(members[0], split)))
        caption = (
            "Of the head alone: what is cached was computed once for all. Bars are one standard "
            "deviation over seeds."
        )
        blocks.append(Figure(caption, tuple(panels), legend_of(members)))
    if not blocks:
        return None
    return Section("Accuracy and cost", "cost", tuple(blocks))


def _cost_panels(groups: Sequence[RunGroup], split: str, name: str, suffix: str) -> list[Panel]:
    """The figure `name` against each cost; the panels' names end in `suffix`."""
    title = f"{split} {NAMES[name]}"
    costs_of = {
        "parameters": lambda group: group.runs[0].result["parameters"],
        "MACs": lambda group: group.macs,
        "training seconds": lambda group: _seconds(group).mean,
    }
    panels = []
    for cost, value in costs_of.items():
        dots = []
        for group in groups:
            x, y = value(group), group.figure(split, name, 100.0)
            # MACs may be unknown, and a logarithmic axis cannot show 0.
            if x and y:
                label = label_of(group, groups)
                spread = [y.deviation or 0.0]
                dots.append(Series(group.name, group.colour, [x], [y.mean], spread, label))
        if not dots:
            continue
        xs = [dot.x[0] for dot in dots]
        alt = f"{title} against {cost}"
        # The best row is drawn last, on top.
        drawing = points(dots[::-1], cost, title, alt, log=max(xs) > 10 * min(xs))
        panels.append(Panel(f"cost-{cost.split()[-1].lower()}{suffix}", drawing, alt))
    return panels
