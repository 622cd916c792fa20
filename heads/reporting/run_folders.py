"""Find run folders, and read what each holds, whatever state it is in.

A run that is not finished, or that has a damaged file, is reported as a problem and never raises.
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
from pipeline.text.counted import counted

# A folder with any of these is a run folder.
MARKS = ("run.json", "metrics.json", "log.jsonl", "last.pt")


@dataclass
class FoundRun:
    """A run folder as it is.

    Attributes:
        folder: its path.
        about: run.json; None if it cannot be read.
        result: metrics.json; None unless the run is finished.
        log: one entry per epoch.
        evaluations: (name, record) of later calls of `vidgraph evaluate`.
        problems: what is wrong with it, in words.
        predicted: its predictions of the report's split; None where there are none.
        agrees: whether those predictions give the run's figures.
    """

    folder: Path
    about: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    predicted: VideoPredictions | None = None
    agrees: bool = False

    @property
    def finished(self) -> bool:
        """Whether its figures can be reported."""
        return self.about is not None and self.result is not None

    @property
    def state(self) -> str:
        """finished, unfinished or damaged."""
        if self.finished:
            return "finished"
        if self.about is not None and not (self.folder / "metrics.json").exists():
            return "unfinished"
        return "damaged"

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's tables."""
        return self.about["recipe"]

    def test_set(self, split: str) -> str:
        """Return the checksum of the clips and labels that the run's figures of a split are of.

        They are the clips that it predicted. Without predictions they are those that it records,
        some of which may have been left out. "" where neither is known.
        """
        if self.predicted is not None and self.agrees:
            return self.predicted.test_set
        return split_sha256((self.about or {}).get("manifest"), split)

    def figures(self, split: str) -> dict[str, float]:
        """Return the figures of a split; {} where there are none."""
        return (self.result or {}).get("metrics", {}).get(split) or {}


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """Find run folders.

    Args:
        paths: run folders, folders that hold some at any depth, and patterns of both.

    Returns:
        The run folders, each once.

    Raises:
        ValueError: a path that names none.
    """
    found: dict[Path, Path] = {}
    for path in map(str, paths):
        starts = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not starts:
            raise ValueError(
                f"{path}: no such file or folder; expected run folders, or folders that hold some"
            )
        folders = []
        for start in starts:
            folders += _runs_below(Path(start))
        if not folders:
            raise ValueError(
                f"{path}: holds no run; expected folders that `vidgraph train` or `vidgraph "
                f"ablate` made"
            )
        # Two paths may name the same run; it keeps the name that was given first.
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _runs_below(start: Path) -> Iterator[Path]:
    """The run folders at `start` and below; not inside a cache."""
    for folder, subfolders, files in os.walk(start):
        if "cache.json" in files:
            subfolders.clear()
        else:
            # In a fixed order, so that the same runs give the same report.
            subfolders[:] = sorted(set(subfolders) - {"tensorboard"})
        if not set(files).isdisjoint(MARKS):
            yield Path(folder)


def failed_members(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """Read which members of studies failed.

    Args:
        folders: run folders; the results.json beside each is read.

    Returns:
        (folder, reason) of each failed member.
    """
    failed = []
    for parent in dict.fromkeys(folder.parent for folder in folders):
        path = parent / "results.json"
        try:
            rows = require(parse_json(read_small(path), path), FAILED, path)["rows"]
        except FileNotFoundError:
            continue
        except (OSError, Damaged) as error:
            failed.append((str(parent), f"results.json cannot be read ({_reason(error, parent)})"))
            continue
        for row in rows:
            for member in row["failed"]:
                reason = f"failed after epoch {member['epochs']}: {member['error']}"
                failed.append((str(parent / member["folder"]), reason))
    return failed


def read_run(folder: Path) -> FoundRun:
    """Read what a run folder holds.

    Args:
        folder: of the run, in any state.

    Returns:
        The run; files that cannot be read are among its `problems`.
    """
    run = FoundRun(folder)
    run.about = _read(run, "run.json", REPORTED)
    if (folder / "metrics.json").exists():
        run.result = _read(run, "metrics.json", METRICS)
    run.log = _log(run)
    for path in sorted(folder.glob("metrics_*.json")):
        record = _read(run, path.name, EVALUATION)
        if record is not None:
            run.evaluations.append((path.stem.removeprefix("metrics_"), record))
    if run.about is not None and run.result is None and not run.problems:
        run.problems.append(
            f"not finished: stopped after {counted(len(run.log), 'epoch')}; run its command "
            "again to continue"
        )
    return run


def _read(run: FoundRun, name: str, shape: Any) -> dict[str, Any] | None:
    """A JSON file of the run, of a shape of heads/interface/run_records.py.

    None, and a problem of the run, where it cannot be read.
    """
    try:
        return runs.read_json(run.folder / name, shape)
    except (ValueError, OSError) as error:
        reason = _reason(error, run.folder)
        run.problems.append(reason if reason.startswith(name) else f"{name}: {reason}")
        return None


def _reason(error: Exception, folder: Path) -> str:
    """An error's message about a file in `folder`, without the folder's path."""
    message = str(error)
    if isinstance(error, OSError) and error.strerror:
        message = error.strerror
    return message.removeprefix(f"{folder}{os.sep}")


def _log(run: FoundRun) -> list[dict[str, Any]]:
    """The lines of log.jsonl up to the first that cannot be read."""
    path = run.folder / "log.jsonl"
    try:
        lines = read_small_text(path, errors="replace").splitlines()
    except FileNotFoundError:
        return []
    except OSError as error:
        run.problems.append(f"{path.name}: {_reason(error, run.folder)}")
        return []

    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = require(parse_json(line, path), LOG_LINE, path)
            found.append({key: record[key] for key in LOG_LINE})
        except Damaged:
            # The last line of a run in progress may be half written.
            if run.result is not None or number < len(lines):
                run.problems.append(f"log.jsonl: line {number} cannot be read")
            break
    return found


def predictions_of(run: FoundRun, split: str) -> dict[str, np.ndarray] | None:
    """Read predictions_SPLIT.npz.

    Args:
        run: the run; a file that is missing or damaged becomes a problem of it.
        split: "val" or "test".

    Returns:
        The arrays; None where the file cannot be read.
    """
    path = run.folder / f"predictions_{split}.npz"
    advice = f"run `vidgraph evaluate {run.folder} --split {split}`"
    try:
        return read_predictions(path, advice)
    except FileNotFoundError:
        run.problems.append(f"{path.name}: no such file; {advice}")
    except Damaged as error:
        run.problems.append(_reason(error, run.folder))
    return None
