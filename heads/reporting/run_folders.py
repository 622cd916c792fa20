"""Run folders: finding them, and reading what each holds, whatever state it is in.

A run that is not finished, or of which a file is damaged, is a finding and never an error: a report
says what there is.
"""

import glob
import os
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from heads.evaluation.prediction_files import read_predictions
from heads.interface.run_records import EVALUATION, FAILED, LOG_LINE, METRICS, REPORTED
from heads.reporting.predictions import VideoPredictions
from heads.runs import run_files as runs
from heads.runs.manifest_record import split_sha256
from pipeline.cache.records import require
from pipeline.files.atomic_files import Damaged, parse_json
from pipeline.files.regular_files import read_small, read_small_text

MARKS = ("run.json", "metrics.json", "log.jsonl", "last.pt")


@dataclass
class FoundRun:
    """A run folder as it is. `about`: run.json, None if it cannot be read; `result`: metrics.json,
    None unless the run is finished; `log`: one entry per epoch; `evaluations`: (name, record) of
    what `vidgraph evaluate` found later; `problems`: what is wrong with it, for a person;
    `predicted`: what its predictions of the report's split say, and `own` whether its figures are
    of those.
    """

    folder: Path
    about: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    predicted: VideoPredictions | None = None
    own: bool = False

    @property
    def finished(self) -> bool:
        """Whether its figures can be reported."""
        return self.about is not None and self.result is not None

    @property
    def state(self) -> str:
        """finished, unfinished or damaged."""
        if self.finished:
            return "finished"
        return (
            "unfinished"
            if self.about is not None and not (self.folder / "metrics.json").exists()
            else "damaged"
        )

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's tables."""
        return self.about["recipe"]

    def test_set(self, split: str) -> str:
        """The checksum of the clips and labels that its figures of a split are of: those that it
        predicted, or else those that it records, some of which may have been left out; "" where it
        does not tell.
        """
        if self.predicted is not None and self.own:
            return self.predicted.test_set
        return split_sha256((self.about or {}).get("manifest"), split)

    def figures(self, split: str) -> dict[str, float]:
        """The figures of a split, {} where there are none."""
        return (self.result or {}).get("metrics", {}).get(split) or {}


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders that `paths` name: run folders, folders that hold some (a study's, at any
    depth), and patterns of both.

    ValueError for a path that names none.
    """
    found: dict[Path, Path] = {}
    for path in map(str, paths):
        places = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not places:
            raise ValueError(
                f"{path}: no such file or folder; expected run folders, or folders that hold some"
            )
        folders = [folder for place in places for folder in _below(Path(place))]
        if not folders:
            raise ValueError(
                f"{path}: holds no run; expected folders that `vidgraph train` or `vidgraph "
                f"ablate` made"
            )
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _below(place: Path) -> Iterator[Path]:
    """The run folders at `place` and below; not inside a cache."""
    for folder, below, files in os.walk(place):
        below[:] = (
            [] if "cache.json" in files else sorted(name for name in below if name != "tensorboard")
        )
        if any(mark in files for mark in MARKS):
            yield Path(folder)


def failed_members(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """(folder, why) of the members that failed, from the results.json of the studies that these run
    folders belong to.
    """
    failed = []
    for parent in dict.fromkeys(folder.parent for folder in folders):
        try:
            path = parent / "results.json"
            rows = require(parse_json(read_small(path), path), FAILED, path)["rows"]
            for one in (one for row in rows for one in row["failed"]):
                failed.append(
                    (
                        str(parent / one["folder"]),
                        f"failed after epoch {one['epochs']}: {one['error']}",
                    )
                )
        except FileNotFoundError:
            continue
        except (OSError, Damaged) as error:
            failed.append(
                (str(parent), f"results.json cannot be read ({_in_words(error, parent)})")
            )
    return failed


def read_run(folder: Path) -> FoundRun:
    """What a run folder holds."""
    run = FoundRun(folder)
    run.about = _read(run, "run.json", REPORTED)
    if (folder / "metrics.json").exists():
        run.result = _read(run, "metrics.json", METRICS)
    run.log = _log(run)
    for path in sorted(folder.glob("metrics_*.json")):
        if (record := _read(run, path.name, EVALUATION)) is not None:
            run.evaluations.append((path.stem.removeprefix("metrics_"), record))
    if run.about is not None and run.result is None and not run.problems:
        run.problems.append(
            f"not finished: stopped after {len(run.log)} epochs; the command that began it goes on"
        )
    return run


def _read(run: FoundRun, name: str, shape: Any) -> dict[str, Any] | None:
    """A JSON file of the run, of a shape of heads/interface/run_records.py; None, and a problem, if there is
    none.
    """
    try:
        return runs.read_json(run.folder / name, shape)
    except (ValueError, OSError) as error:
        said = _in_words(error, run.folder)
        run.problems.append(said if said.startswith(name) else f"{name}: {said}")
        return None


def _in_words(error: Exception, folder: Path) -> str:
    """What an error says of a file in `folder`, without the folder's path."""
    said = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
    return said.removeprefix(f"{folder}{os.sep}")


def _log(run: FoundRun) -> list[dict[str, Any]]:
    """The lines of log.jsonl that can be read, up to the first that cannot; the last may be one
    that was being written.
    """
    path = run.folder / "log.jsonl"
    try:
        lines = read_small_text(path, errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        run.problems.append(f"{path.name}: {_in_words(error, run.folder)}")
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = require(parse_json(line, path), LOG_LINE, path)
            found.append({key: record[key] for key in LOG_LINE})
        except Damaged:
            if run.result is not None or number < len(lines):
                run.problems.append(f"log.jsonl: line {number} cannot be read")
            break
    return found


def predictions_of(run: FoundRun, split: str) -> dict[str, np.ndarray] | None:
    """predictions_SPLIT.npz; None where there is none, or, with a problem noted, where it is
    damaged.
    """
    path, advice = (
        run.folder / f"predictions_{split}.npz",
        f"run `vidgraph evaluate {run.folder} --split {split}`",
    )
    try:
        return read_predictions(path, advice)
    except FileNotFoundError:
        run.problems.append(f"{path.name}: no such file; {advice}")
    except Damaged as error:
        run.problems.append(_in_words(error, run.folder))
    return None
