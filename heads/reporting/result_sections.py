"""The study's table, every run, learning curves, and what accuracy costs."""

from collections.abc import Sequence

import numpy as np

from heads.reporting.document import Block, Cell, Column, Figure, Fold, Panel, Section, Table, Text
from heads.reporting.groups import MANIFEST, RunGroup, by_test_set, differences, setting_text
from heads.reporting.plots import COLOURS, REST, Series, curves, points
from heads.reporting.predictions import main_figure
from heads.reporting.run_folders import FoundRun

NAMES = {
    "top1": "top-1 %",
    "top5": "top-5 %",
    "map": "mAP %",
    "class_mean": "class mean %",
    "loss": "loss",
}
LONG = 8  # rows from which on a table can be filtered


def figure_names(groups: Sequence[RunGroup], split: str) -> list[str]:
    """The figures that any group has on a split, the main one first."""
    there = {name for group in groups for run in group.runs for name in run.figures(split)}
    return [name for name in ("map", "top1", "top5", "class_mean", "loss") if name in there]


def legend_of(groups: Sequence[RunGroup]) -> tuple[tuple[int, str], ...]:
    """The groups that have a colour of their own; the others as one."""
    named = tuple((group.colour, group.name) for group in groups if group.colour < REST)
    rest = len(groups) - len(named)
    return (*named, (REST, f"{rest} more")) if rest else named


def results(groups: Sequence[RunGroup], found: Sequence[FoundRun], split: str) -> Section:
    """The section of the study's table."""
    blocks: list[Block] = []
    if groups:
        sets = by_test_set(groups, split)
        for number, together in enumerate(sets):
            blocks.append(
                _study_table(
                    together, split, number, _about_set(together[0], split) if len(sets) > 1 else ""
                )
            )
        if settings := _settings_table(groups):
            blocks.append(Fold("Settings in which the rows differ", (settings,)))
    blocks.append(Fold("Every run", (_runs_table(found, split),)))
    if evaluated := _evaluations_table(found):
        blocks.append(Fold("Evaluations after the training", (evaluated,)))
    return Section("Results", "results", tuple(blocks))


def _about_set(group: RunGroup, split: str) -> str:
    """Whose figures a table has, where there are several sets of clips: rows of different ones are
    not ranked together.
    """
    record = (group.runs[0].about.get("manifest") or {}).get("splits", {}).get(split)
    if not group.predicted and record is None:
        return f"Runs that do not record which clips are in {split}. "
    clips = len(group.predicted[0].clips) if group.predicted else record["clips"]
    of = f" of {setting_text(group.settings[MANIFEST])}" if MANIFEST in group.settings else ""
    total = f" of {record['clips']:,}" if record and record["clips"] != clips else ""
    return f"The {clips:,}{total} clips of split {split}{of}; other tables are of other clips or labels. "


def _study_table(groups: Sequence[RunGroup], split: str, number: int, about: str) -> Table:
    """The rows of one set of clips, the best first; `number` from 0 tells the tables apart."""
    names = [name for name in figure_names(groups, split) if name != "loss"]
    other = "val" if split == "test" else "test"
    more = [
        name for name in figure_names(groups, other) if name == main_figure(dict.fromkeys(names))
    ]
    columns = [
        Column("name"),
        Column("head"),
        Column("seeds", "count"),
        *(Column(f"{split} {NAMES[name]}", "percent") for name in names),
        *(Column(f"{other} {NAMES[name]}", "percent") for name in more),
        Column("parameters", "short"),
        Column("MACs", "short"),
        Column("training s", "seconds"),
    ]
    rows = []
    for group in groups:
        row: list[Cell] = [group.name, group.head, len(group.runs)]
        row += [group.figure(split, name, 100.0) for name in names]
        row += [group.figure(other, name, 100.0) for name in more]
        rows.append(
            (
                *row,
                group.runs[0].result["parameters"],
                group.macs,
                group.spread(lambda run: run.result["seconds"]),
            )
        )
    seeds = (
        "Mean ± standard deviation over seeds. "
        if any(len(group.runs) > 1 for group in groups)
        else ""
    )
    whole = (
        " Trained from frames, they are the whole network's."
        if any("frames" in g.runs[0].about for g in groups)
        else ""
    )
    caption = f"{seeds}Parameters and MACs (one view) are the head's.{whole} Seconds: its own computing and waiting for data."
    name = f"study-{number}" if number else "study"
    return Table(name, about + caption, tuple(columns), tuple(rows), long=len(rows) >= LONG)


def _settings_table(groups: Sequence[RunGroup]) -> Table | None:
    """A column for every setting in which groups differ."""
    keys = differences(groups) if len(groups) > 1 else []
    if not keys:
        return None
    columns = (Column("name"), *(Column(key.removeprefix("recipe.")) for key in keys))
    rows = tuple((group.name, *(setting_text(group.settings.get(key)) for key in keys)) for group in groups)
    caption = "Keys of the recipe and, as config, of the cache's configuration."
    return Table("settings", caption, columns, rows, long=len(rows) >= LONG)


def _runs_table(found: Sequence[FoundRun], split: str) -> Table:
    names = [
        name
        for name in ("map", "top1", "top5", "class_mean", "loss")
        if any(name in run.figures(split) for run in found)
    ]
    columns = [
        Column("run"),
        Column("state"),
        Column("seed", "count"),
        Column("epochs", "count"),
        Column("best epoch", "count"),
    ]
    columns += [
        Column(f"{split} {NAMES[name]}", "fixed" if name == "loss" else "percent") for name in names
    ]
    columns += [
        Column("training s", "seconds"),
        Column("device"),
        Column("cache"),
        Column("manifest"),
    ]
    rows = []
    for run in found:
        about, result = run.about or {}, run.result or {}
        epochs = result.get("epochs", len(run.log))
        row: list[Cell] = [
            str(run.folder),
            run.state,
            about.get("seed"),
            epochs,
            result.get("best_epoch"),
        ]
        for name in names:
            value = run.figures(split).get(name)
            row.append(value if value is None or name == "loss" else 100 * value)
        row += [
            result.get("seconds"),
            str(about.get("device", "")),
            str(about.get("fingerprint", ""))[:12],
        ]
        rows.append((*row, str((about.get("manifest") or {}).get("path", ""))))
    return Table(
        "runs", "One row per run folder.", tuple(columns), tuple(rows), long=len(rows) >= LONG
    )


def _evaluations_table(found: Sequence[FoundRun]) -> Table | None:
    """What `vidgraph evaluate` has left; None without any."""
    records = [(run, name, record) for run in found for name, record in run.evaluations]
    names = [name for name in NAMES if any(name in record for _, _, record in records)]
    columns = [
        Column("run"),
        Column("evaluation"),
        Column("checkpoint"),
        Column("cache"),
        Column("manifest"),
    ]
    columns += [Column(NAMES[name], "fixed" if name == "loss" else "percent") for name in names]
    rows = []
    for run, tag, record in records:
        values = [
            value if (value := record.get(name)) is None or name == "loss" else 100 * value
            for name in names
        ]
        cells = (
            str(run.folder),
            tag,
            str(record.get("checkpoint", "")),
            str(record.get("fingerprint", ""))[:12],
        )
        rows.append((*cells, str(record.get("manifest", "")), *values))
    caption = "Named after the split, the cache's fingerprint where it is not the run's own, and the checksum of a split that is not."
    return (
        Table("evaluations", caption, tuple(columns), tuple(rows), long=len(rows) >= LONG)
        if rows
        else None
    )


def learning(groups: Sequence[RunGroup]) -> Section | None:
    """The section of the learning curves; None without any."""
    drawn = [group for group in groups if any(run.log for run in group.runs)]
    if not drawn:
        return None
    name = next(
        (main_figure(row["val"]) for g in drawn for run in g.runs for row in run.log if row["val"]),
        "",
    )
    wanted = [("loss", "Training loss", lambda row: row["loss"], "plain")]
    if name:
        wanted.append(
            (name, f"val {NAMES[name]}", lambda row: 100 * row["val"].get(name, np.nan), "percent")
        )
    wanted.append(("val-loss", "val loss", lambda row: row["val"].get("loss", np.nan), "plain"))
    panels = []
    for stem, title, value, form in wanted:
        lines = [line for group in drawn if (line := _curve(group, value))]
        if lines:
            alt = f"{title} by epoch, one curve for each of {len(lines)} rows of the study"
            if form == "plain" and _steep(lines):
                form, title = "log", f"{title}, logarithmic"
            panels.append(Panel(f"learning-{stem}", curves(lines, "epoch", title, alt, form), alt))
    seeds = (
        " Bands are one standard deviation over seeds."
        if any(len(group.runs) > 1 for group in drawn)
        else ""
    )
    figure = Figure(
        f"By epoch; the epochs of all phases are counted through.{seeds}",
        tuple(panels),
        legend_of(drawn),
    )
    return Section("Learning curves", "learning", (figure,))


def _steep(lines: Sequence[Series]) -> bool:
    """Whether values are so far apart that a linear axis would show the largest alone."""
    values = np.concatenate([line.y for line in lines])
    values = values[np.isfinite(values)]
    return bool(len(values) and values.min() > 0 and values.max() > 20 * values.min())


def _curve(group: RunGroup, value) -> Series | None:
    """The mean over the runs, of as many epochs as any of them has."""
    by_epoch: dict[int, list[float]] = {}
    for run in group.runs:
        for row in run.log:
            by_epoch.setdefault(row["epoch"], []).append(float(value(row)))
    kept = {
        epoch: values for epoch, values in sorted(by_epoch.items()) if np.isfinite(values).any()
    }
    if not kept:
        return None
    y = [float(np.nanmean(values)) for values in kept.values()]
    return Series(
        group.name,
        group.colour,
        list(kept),
        y,
        [float(np.nanstd(values)) for values in kept.values()],
    )


def costs(groups: Sequence[RunGroup], split: str) -> Section | None:
    """The section of accuracy against parameters, MACs and training time; None without a figure."""
    names = figure_names(groups, split)
    if not names or names[0] == "loss":
        return None
    sets = by_test_set(groups, split)
    blocks: list[Block] = []
    for number, together in enumerate(sets):
        about = _about_set(together[0], split) if len(sets) > 1 else ""
        if panels := _cost_panels(
            together, f"{split} {NAMES[names[0]]}", split, names[0], f"-{number}" if number else ""
        ):
            caption = "Of the head alone: what is cached was computed once for all. Bars are one standard deviation over seeds."
            blocks.append(Figure(about + caption, tuple(panels), legend_of(together)))
    if not blocks:
        return None
    if len(groups) > COLOURS:
        blocks.append(
            Text(
                f"The {COLOURS} best rows have a colour of their own; a point's name appears when "
                f"it is pointed at."
            )
        )
    return Section("Accuracy and cost", "cost", tuple(blocks))


def _cost_panels(
    groups: Sequence[RunGroup], title: str, split: str, name: str, suffix: str
) -> list[Panel]:
    """The main figure against each cost; the panels' names end in `suffix`."""
    panels = []
    of = {
        "parameters": lambda group: group.runs[0].result["parameters"],
        "MACs": lambda group: group.macs,
        "training seconds": lambda group: group.spread(lambda run: run.result["seconds"]).mean,
    }
    for cost, value in of.items():
        dots = []
        for group in groups:
            x, y = value(group), group.figure(split, name, 100.0)
            if x and y:
                dots.append(Series(group.name, group.colour, [x], [y.mean], [y.deviation or 0.0]))
        if dots:
            xs = [dot.x[0] for dot in dots]
            alt = f"{title} against {cost}"
            drawing = points(list(reversed(dots)), cost, title, alt, log=max(xs) > 10 * min(xs))
            panels.append(Panel(f"cost-{cost.split()[-1].lower()}{suffix}", drawing, alt))
    return panels
