"""The table of a study: one row per combination of its grid, over its seeds; text, CSV, JSON."""

import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heads.config.study_file import StudyPlan, StudyRow
from heads.runs import run_files
from heads.training.study import Result
from pipeline.text.printable import write_table

# What varies over seeds beside the figures: attributes of Result.
COSTS = ("seconds", "waiting", "epochs", "best_epoch")
IN_TEXT = ("top1", "top5", "map")


@dataclass(frozen=True)
class FailedRow:
    """A member that ended with an error.

    Attributes:
        folder: its run folder.
        seed: its seed.
        error: the error in one line.
        epochs: whole epochs that were trained before.
    """

    folder: str
    seed: int
    error: str
    epochs: int

    def line(self) -> str:
        """Return one line for a person."""
        return f"{Path(self.folder).name} failed after epoch {self.epochs}: {self.error}"


# The folder of a member -> what came out of it.
Outcomes = dict[Path, Result | FailedRow]


@dataclass(frozen=True)
class FigureSpread:
    """A figure over seeds.

    Attributes:
        mean: the mean.
        std: the sample standard deviation; None for a single value.
    """

    mean: float
    std: float | None

    def text(self, digits: int, factor: float = 1.0) -> str:
        """Return "41.3 ± 0.9".

        Args:
            digits: digits after the point.
            factor: what both numbers are multiplied by, such as 100 for percent.
        """
        spread = "" if self.std is None else f" ± {factor * self.std:.{digits}f}"
        return f"{factor * self.mean:,.{digits}f}{spread}"


def spread(values: Iterable[float]) -> FigureSpread | None:
    """Return the mean and standard deviation of values; None if there is no value."""
    values = list(values)
    if not values:
        return None
    std = statistics.stdev(values) if len(values) > 1 else None
    return FigureSpread(statistics.fmean(values), std)


@dataclass(frozen=True)
class TableRow:
    """Members that differ in their seed alone.

    Attributes:
        name: what their folders are named after.
        cells: column -> what distinguishes these members from other rows.
        results: seed -> result.
        failed: the members that failed.
        macs: MACs for one view; None if the head could not be built.
    """

    name: str
    cells: dict[str, Any]
    results: dict[int, Result]
    failed: tuple[FailedRow, ...]
    macs: int | None

    def figure(self, split: str, name: str) -> FigureSpread | None:
        """Return a figure of a split over the seeds; None if no member has it."""
        values = []
        for result in self.results.values():
            figures = result.metrics.get(split, {})
            if name in figures:
                values.append(figures[name])
        return spread(values)

    def other(self, name: str) -> FigureSpread | None:
        """Return seconds, waiting, best_epoch, epochs or parameters over the seeds."""
        return spread(getattr(result, name) for result in self.results.values())

    def members(self) -> list[dict[str, Any]]:
        """Return each member's own figures, as results.json has them."""
        members = []
        for seed, one in self.results.items():
            members.append({**asdict(one), "seed": seed, "folder": Path(one.folder).name})
        return members

    @property
    def figures(self) -> list[tuple[str, str]]:
        """(split, figure) of every figure, with repeats over members."""
        names = []
        for result in self.results.values():
            for split, figures in result.metrics.items():
                names += [(split, name) for name in figures]
        return names


def row_of(
    plan: StudyPlan, row: StudyRow, folder: Path, outcomes: Outcomes, macs: int | None
) -> TableRow:
    """Return a row of the table of a study.

    Args:
        plan: the study.
        row: one of its rows.
        folder: the study's folder.
        outcomes: of all members that were trained; another member is in no column.
        macs: MACs of the row's network for one view.
    """
    results: dict[int, Result] = {}
    failed: list[FailedRow] = []
    for seed in plan.seeds:
        outcome = outcomes.get(plan.folder_of(row, seed, folder))
        if isinstance(outcome, Result):
            results[seed] = outcome
        elif outcome is not None:
            failed.append(outcome)
    return TableRow(row.name, row.cells, results, tuple(failed), macs)


@dataclass(frozen=True)
class StudyTable:
    """A study's results.

    Attributes:
        name: the study's name.
        columns: the cells of the rows that are shown.
        rows: one per combination of the grid.
        about: what all members share, for results.json.
        counted: what the parameters and MACs are of.
        over: what means and deviations are over: "seeds", or "folds".
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    about: dict[str, Any]
    counted: str = "the head"
    over: str = "seeds"

    @property
    def _counts(self) -> str:
        """The heading of the number of members."""
        return "seeds" if self.over == "seeds" else "runs"

    @property
    def figures(self) -> list[tuple[str, str]]:
        """(split, figure) of every figure: those of val first, the losses last."""
        names: dict[tuple[str, str], None] = {}
        for row in self.rows:
            names |= dict.fromkeys(row.figures)
        return sorted(names, key=lambda key: (key[0] != "val", key[1] == "loss"))

    def text(self) -> str:
        """Return the table for a person, and one line per failed member.

        Figures are mean ± standard deviation over seeds or folds, fractions in percent.
        """
        main = [key for key in self.figures if key[1] in IN_TEXT]
        figures = [f"{split} {name} %" for split, name in main]
        costs = ["parameters", "MACs", "seconds", "best epoch"]
        lines = [[*self.columns, self._counts, *figures, *costs]]
        for row in self.rows:
            cells = [_shown(row.cells[name]) for name in self.columns]
            count = len(row.results)
            cells.append(f"{count} of {count + len(row.failed)}" if row.failed else str(count))
            cells += [_or_dash(row.figure(*key), 1, 100) for key in main]
            cells.append(_or_dash(row.other("parameters"), 0))
            cells.append("-" if row.macs is None else _short(row.macs))
            cells.append(_or_dash(row.other("seconds"), 1))
            cells.append(_or_dash(row.other("best_epoch"), 1))
            lines.append(cells)

        title = (
            f"{self.name}: mean ± standard deviation over {self.over}; MACs of {self.counted} for "
            f"one view; seconds of one member, waiting included"
        )
        text = [title, "", *_aligned(lines, len(self.columns))]
        failed = []
        for row in self.rows:
            failed += [one.line() for one in row.failed]
        if failed:
            text += ["", *failed]
        return "\n".join(text)

    def csv(self) -> str:
        """Return every figure as a fraction, with a mean and a std column over seeds or folds."""
        measured = [*self.figures, *(("", name) for name in COSTS)]
        header = [*self.columns, "member", self._counts, "failed", "parameters", "macs"]
        for split, name in measured:
            column = f"{split}_{name}" if split else name
            header += [f"{column}_mean", f"{column}_std"]

        lines: list[list] = [header]
        for row in self.rows:
            # Members of a row have one head, so that the mean is a whole number.
            parameters = row.other("parameters")
            line = [_shown(row.cells[name]) for name in self.columns]
            line += [row.name, len(row.results), len(row.failed)]
            line += [parameters and int(parameters.mean), row.macs]
            for split, name in measured:
                found = row.figure(split, name) if split else row.other(name)
                line += [None, None] if found is None else [found.mean, found.std]
            lines.append(line)

        file = io.StringIO()
        write_table(file, lines)
        return file.getvalue()

    def json(self) -> str:
        """Return everything, with each member's own figures."""
        rows = [_record(row) for row in self.rows]
        return json.dumps({**self.about, "columns": self.columns, "rows": rows}, indent=1) + "\n"

    def write(self, folder: Path) -> None:
        """Write results.txt, results.csv and results.json, each whole or not at all."""
        run_files.write_text(folder / "results.txt", self.text() + "\n")
        run_files.write_text(folder / "results.csv", self.csv())
        run_files.write_text(folder / "results.json", self.json())


def _record(row: TableRow) -> dict[str, Any]:
    """Return a row as results.json has it."""
    metrics: dict[str, dict[str, Any]] = {}
    for split, name in dict.fromkeys(row.figures):
        metrics.setdefault(split, {})[name] = asdict(row.figure(split, name))

    record = {"name": row.name, "cells": row.cells, "macs": row.macs, "metrics": metrics}
    for name in (*COSTS, "parameters"):
        found = row.other(name)
        record[name] = found and asdict(found)

    record["members"] = row.members()
    record["failed"] = [{**asdict(one), "folder": Path(one.folder).name} for one in row.failed]
    return record


def _aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return an aligned Markdown table; the first `left` columns are aligned to the left."""
    widths = [max(len(cell) for cell in column) for column in zip(*lines, strict=True)]
    rule = []
    for k, width in enumerate(widths):
        # A colon at the end aligns a column of Markdown to the right.
        rule.append("-" * width if k < left else "-" * (width - 1) + ":")

    table = []
    for line in [lines[0], rule, *lines[1:]]:
        cells = []
        for k, (cell, width) in enumerate(zip(line, widths, strict=True)):
            cells.append(cell.ljust(width) if k < left else cell.rjust(width))
        table.append(f"| {' | '.join(cells)} |")
    return table


def _or_dash(value: FigureSpread | None, digits: int, factor: float = 1.0) -> str:
    if value is None:
        return "-"
    # Whole numbers, such as parameters, show a spread only if they do vary over seeds.
    if digits == 0:
        value = FigureSpread(value.mean, value.std or None)
    return value.text(digits, factor)


def _short(count: int) -> str:
    """Return a count as 640, 56.7 k, 8.9 M or 1.23 G."""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
