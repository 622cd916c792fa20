"""The table that a study ends with: one row per combination of its grid, over its seeds; as text,
CSV and JSON.
"""

import io
import json
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from heads.runs import run_files as runs
from heads.training.study import Result
from pipeline.text.printable import write_table


@dataclass(frozen=True)
class FailedRow:
    """A member that ended with an error, as one line, after so many whole epochs."""

    folder: str
    seed: int
    error: str
    epochs: int

    def line(self) -> str:
        """For a person."""
        return f"{Path(self.folder).name} failed after epoch {self.epochs}: {self.error}"


@dataclass(frozen=True)
class FigureSpread:
    """Mean and sample standard deviation (None of a single value) of a figure over seeds."""

    mean: float
    std: float | None

    def text(self, digits: int, factor: float = 1.0) -> str:
        """ "41.3 ± 0.9"."""
        spread = "" if self.std is None else f" ± {factor * self.std:.{digits}f}"
        return f"{factor * self.mean:,.{digits}f}{spread}"


def spread(values: Iterable[float]) -> FigureSpread | None:
    """Of these values; None of none."""
    values = list(values)
    if not values:
        return None
    return FigureSpread(
        statistics.fmean(values), statistics.stdev(values) if len(values) > 1 else None
    )


@dataclass(frozen=True)
class TableRow:
    """Members that differ in their seed alone: what each came to, by its seed, or how it failed;
    MACs of the head for one view (None of one that could not be built)."""

    name: str
    cells: dict[str, Any]
    results: dict[int, Result]
    failed: tuple[FailedRow, ...]
    macs: int | None

    def figure(self, split: str, name: str) -> FigureSpread | None:
        """A figure of a split over the seeds."""
        return spread(
            one.metrics[split][name]
            for one in self.results.values()
            if name in one.metrics.get(split, {})
        )

    def other(self, name: str) -> FigureSpread | None:
        """seconds, waiting, best_epoch, epochs or parameters over the seeds."""
        return spread(getattr(one, name) for one in self.results.values())

    @property
    def figures(self) -> list[tuple[str, str]]:
        """(split, figure) of all that were computed."""
        return [
            (split, name)
            for one in self.results.values()
            for split, found in one.metrics.items()
            for name in found
        ]


@dataclass(frozen=True)
class StudyTable:
    """A study's results; `columns` of the rows' cells are shown; `about`: what all members have in
    common.
    """

    name: str
    columns: tuple[str, ...]
    rows: tuple[TableRow, ...]
    about: dict[str, Any]

    @property
    def figures(self) -> list[tuple[str, str]]:
        """(split, figure), val's first, the loss last."""
        found = dict.fromkeys(key for row in self.rows for key in row.figures)
        return sorted(found, key=lambda key: (key[0] != "val", key[1] == "loss"))

    def text(self) -> str:
        """For a person: means ± standard deviations over seeds, fractions in percent; then what
        failed, a line each.
        """
        main = [key for key in self.figures if key[1] in ("top1", "top5", "map")]
        head = [*self.columns, "seeds", *(f"{split} {name} %" for split, name in main)]
        lines = [[*head, "parameters", "MACs", "seconds", "best epoch"]]
        for row in self.rows:
            cells = [_shown(row.cells[name]) for name in self.columns]
            count = len(row.results)
            cells.append(f"{count} of {count + len(row.failed)}" if row.failed else str(count))
            cells += [_or_dash(row.figure(*key), 1, 100) for key in main]
            cells += [
                _or_dash(row.other("parameters"), 0),
                "-" if row.macs is None else _short(row.macs),
            ]
            lines.append(
                [*cells, _or_dash(row.other("seconds"), 1), _or_dash(row.other("best_epoch"), 1)]
            )
        failed = [one.line() for row in self.rows for one in row.failed]
        what = "mean ± standard deviation over seeds; MACs of the head for one view; seconds of one member, waiting included"
        return "\n".join(
            [
                f"{self.name}: {what}",
                "",
                *_aligned(lines, len(self.columns)),
                *([""] * bool(failed)),
                *failed,
            ]
        )

    def csv(self) -> str:
        """Every figure, as fractions; a mean and a std column for what varies over seeds."""
        measured = [
            *self.figures,
            ("", "seconds"),
            ("", "waiting"),
            ("", "epochs"),
            ("", "best_epoch"),
        ]
        names = ["_".join(filter(None, key)) for key in measured]
        head = [*self.columns, "member", "seeds", "failed", "parameters", "macs"]
        file = io.StringIO()
        lines: list[list] = [
            [*head, *(f"{name}_{part}" for name in names for part in ("mean", "std"))]
        ]
        for row in self.rows:
            found = [row.figure(*key) if key[0] else row.other(key[1]) for key in measured]
            values = [
                value for one in found for value in ((one.mean, one.std) if one else (None, None))
            ]
            parameters = row.other("parameters")
            cells = [_shown(row.cells[name]) for name in self.columns]
            counts = [
                len(row.results),
                len(row.failed),
                parameters and int(parameters.mean),
                row.macs,
            ]
            lines.append([*cells, row.name, *counts, *values])
        write_table(file, lines)
        return file.getvalue()

    def json(self) -> str:
        """Everything, each member's own figures too."""
        return (
            json.dumps(
                {
                    **self.about,
                    "columns": self.columns,
                    "rows": [_record(row) for row in self.rows],
                },
                indent=1,
            )
            + "\n"
        )

    def write(self, folder: Path) -> None:
        """results.txt, results.csv and results.json, each whole or not at all."""
        for kind, text in (("txt", self.text() + "\n"), ("csv", self.csv()), ("json", self.json())):
            runs.write_text(folder / f"results.{kind}", text)


def _record(row: TableRow) -> dict[str, Any]:
    metrics: dict[str, dict[str, Any]] = {}
    for split, name in dict.fromkeys(row.figures):
        metrics.setdefault(split, {})[name] = asdict(row.figure(split, name))
    others = {
        name: row.other(name)
        for name in ("seconds", "waiting", "epochs", "best_epoch", "parameters")
    }
    return {
        "name": row.name,
        "cells": row.cells,
        "macs": row.macs,
        "metrics": metrics,
        **{name: one and asdict(one) for name, one in others.items()},
        "members": [
            {**asdict(one), "seed": seed, "folder": Path(one.folder).name}
            for seed, one in row.results.items()
        ],
        "failed": [{**asdict(one), "folder": Path(one.folder).name} for one in row.failed],
    }


def _aligned(lines: Sequence[Sequence[str]], left: int) -> list[str]:
    """A table of Markdown whose columns are aligned, the first `left` of them to the left."""
    widths = [max(len(line[k]) for line in lines) for k in range(len(lines[0]))]
    rule = ["-" * width if k < left else "-" * (width - 1) + ":" for k, width in enumerate(widths)]

    def row(cells: Sequence[str]) -> str:
        placed = [
            cells[k].ljust(width) if k < left else cells[k].rjust(width)
            for k, width in enumerate(widths)
        ]
        return f"| {' | '.join(placed)} |"

    return [row(lines[0]), row(rule), *map(row, lines[1:])]


def _or_dash(value: FigureSpread | None, digits: int, factor: float = 1.0) -> str:
    return (
        "-"
        if value is None
        else (FigureSpread(value.mean, value.std or None) if digits == 0 else value).text(
            digits, factor
        )
    )


def _short(count: int) -> str:
    """1,234 · 56.7 k · 8.90 M · 1.23 G"""
    for limit, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if count >= limit:
            return f"{count / limit:.3g} {unit}"
    return str(count)


def _shown(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)
