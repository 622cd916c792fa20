"""Run folders: finding them, and reading what each holds, whatever state it is in.

A run that is not finished, or of which a file is damaged, is a finding and never an error: a report says what there is.
"""

import glob
import json
import os
import zipfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from heads import runs

MARKS = ("run.json", "metrics.json", "log.jsonl", "last.pt")


@dataclass
class FoundRun:
    """A run folder as it is. `about`: run.json, None if it cannot be read; `result`: metrics.json, None unless the run is
    finished; `log`: one entry per epoch; `evaluations`: (name, record) of what `vidgraph evaluate` found later;
    `problems`: what is wrong with it, for a person."""

    folder: Path
    about: dict[str, Any] | None = None
    result: dict[str, Any] | None = None
    log: list[dict[str, Any]] = field(default_factory=list)
    evaluations: list[tuple[str, dict[str, Any]]] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    @property
    def finished(self) -> bool:
        """Whether its figures can be reported."""
        return self.about is not None and self.result is not None

    @property
    def state(self) -> str:
        """finished, unfinished or damaged."""
        if self.finished:
            return "finished"
        return "unfinished" if self.about is not None and not (self.folder / "metrics.json").exists() else "damaged"

    @property
    def recipe(self) -> dict[str, Any]:
        """The recipe's tables."""
        return self.about["recipe"]

    def figures(self, split: str) -> dict[str, float]:
        """The figures of a split, {} where there are none."""
        return (self.result or {}).get("metrics", {}).get(split) or {}


def find_runs(paths: Iterable[str | Path]) -> list[Path]:
    """The run folders that `paths` name: run folders, folders that hold some (a study's, at any depth), and patterns of both.

    ValueError for a path that names none.
    """
    found: dict[Path, Path] = {}
    for path in map(str, paths):
        places = [path] if os.path.exists(path) else sorted(glob.glob(path, recursive=True))
        if not places:
            raise ValueError(f"{path}: no such file or folder; expected run folders, or folders that hold some")
        folders = [folder for place in places for folder in _below(Path(place))]
        if not folders:
            raise ValueError(f"{path}: holds no run; expected folders that `vidgraph train` or `vidgraph ablate` made")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _below(place: Path) -> Iterator[Path]:
    """The run folders at `place` and below; not inside a cache."""
    for folder, below, files in os.walk(place):
        below[:] = [] if "cache.json" in files else sorted(name for name in below if name != "tensorboard")
        if any(mark in files for mark in MARKS):
            yield Path(folder)


def failed_members(folders: Iterable[Path]) -> list[tuple[str, str]]:
    """(folder, why) of the members that failed, from the results.json of the studies that these run folders belong to."""
    failed = []
    for parent in dict.fromkeys(folder.parent for folder in folders):
        try:
            rows = json.loads((parent / "results.json").read_text(encoding="utf-8"))["rows"]
            for one in (one for row in rows for one in row["failed"]):
                failed.append((str(parent / str(one["folder"])), f"failed after epoch {one['epochs']}: {one['error']}"))
        except FileNotFoundError:
            continue
        except (OSError, ValueError, KeyError, TypeError) as error:
            failed.append((str(parent), f"results.json cannot be read ({type(error).__name__})"))
    return failed


def read_run(folder: Path) -> FoundRun:
    """What a run folder holds."""
    run = FoundRun(folder)
    run.about = _read(run, "run.json", ("recipe", "seed", "classes", "dims", "config", "fingerprint"))
    if (folder / "metrics.json").exists():
        run.result = _read(run, "metrics.json", ("metrics", "epochs", "parameters", "seconds"))
    run.log = _log(run)
    for path in sorted(folder.glob("metrics_*.json")):
        if (record := _read(run, path.name, ())) is not None:
            run.evaluations.append((path.stem.removeprefix("metrics_"), record))
    if run.about is not None and run.result is None and not run.problems:
        run.problems.append(f"not finished: stopped after {len(run.log)} epochs; the command that began it goes on")
    return run


def _read(run: FoundRun, name: str, keys: tuple[str, ...]) -> dict[str, Any] | None:
    """A JSON file of the run with at least these keys; None, and a problem, if there is none."""
    try:
        record = runs.read_json(run.folder / name)
    except (ValueError, OSError) as error:
        run.problems.append(str(error).removeprefix(f"{run.folder}{os.sep}"))
        return None
    if missing := [key for key in keys if key not in record]:
        run.problems.append(f"{name}: holds no {missing[0]}; it was written by another version, or by hand")
        return None
    return record


def _log(run: FoundRun) -> list[dict[str, Any]]:
    """The lines of log.jsonl that can be read, up to the first that cannot; the last may be one that was being written."""
    path = run.folder / "log.jsonl"
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return []
    found = []
    for number, line in enumerate(lines, 1):
        try:
            record = json.loads(line)
            found.append({"epoch": int(record["epoch"]), "loss": float(record["loss"]), "val": dict(record["val"])})
        except (ValueError, KeyError, TypeError):
            if run.result is not None or number < len(lines):
                run.problems.append(f"log.jsonl: line {number} cannot be read")
            break
    return found


def read_predictions(run: FoundRun, split: str) -> dict[str, np.ndarray] | None:
    """predictions_SPLIT.npz; None where there is none, or, with a problem noted, where it is damaged."""
    path = run.folder / f"predictions_{split}.npz"
    try:
        with np.load(path) as file:
            found = dict(file)
        views, classes = found["logits"].shape
        whole = found["video"].shape == (views,) and found["view"].shape == (views,) and found["classes"].shape == (classes,)
        if whole and len(found["video"]) and 0 <= found["video"].min() <= found["video"].max() < len(found["clips"]):
            return found
        run.problems.append(f"{path.name}: its arrays do not fit one another; run `vidgraph evaluate {run.folder}`")
    except FileNotFoundError:
        run.problems.append(f"{path.name}: no such file; run `vidgraph evaluate {run.folder} --split {split}`")
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile) as error:
        said = (str(error) or type(error).__name__).splitlines()[0]
        run.problems.append(f"{path.name}: damaged ({said[:120]}); run `vidgraph evaluate {run.folder} --split {split}`")
    return None
