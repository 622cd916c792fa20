"""A study on every fold of a cross-validation: its members are trained once for each fold.

    folds = read_folds("clips-folds")              # as `vidgraph manifest folds` writes it
    outcome = ablate_folds(plan, Cache("cache"), "runs/regions", folds)

Each fold is a study of its own in a folder of its own, `runs/regions/fold1`. The table that is
written beside them has the same rows. A figure is first averaged over the seeds of a fold. Mean and
standard deviation are then over the folds.
"""

import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.config.study_file import StudyPlan
from heads.training.ablate import AblateOutcome, ablate
from heads.training.estimates import AblateOptions, estimate_members
from heads.training.study_table import FailedRow, FigureSpread, StudyTable, TableRow, spread
from pipeline.manifests.manifest import Manifest, read_manifest
from pipeline.text.counted import counted
from pipeline.workers.waiting import PrintLine, print_nothing

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache


def read_folds(folder: str | Path, root: str | Path | None = None) -> dict[str, Manifest]:
    """Read the manifests of a cross-validation.

    Args:
        folder: a folder whose CSV files are the folds.
        root: the folder of the videos; None for the one that each manifest names.

    Returns:
        Name of the fold (the file's, without ending) -> its manifest, in the order of numbers in
        the names.

    Raises:
        ValueError: there are fewer than two, or they are not of the same clips.
    """
    folder = Path(folder)
    paths = sorted(folder.glob("*.csv"), key=_natural)
    if len(paths) < 2:
        raise ValueError(
            f"{folder}: expected the manifests of at least two folds, found "
            f"{counted(len(paths), 'CSV file')}; `vidgraph manifest folds M.csv` makes them"
        )
    folds = {path.stem: read_manifest(path, root) for path in paths}
    first = folds[paths[0].stem]
    clips = {clip.clip for clip in first.clips}
    for manifest in folds.values():
        if {clip.clip for clip in manifest.clips} != clips:
            raise ValueError(
                f"{manifest.path}: expected the clips of {first.path}, got others; make the folds "
                f"of one manifest, and leave no other CSV file in the folder"
            )
    return folds


def _natural(path: Path) -> list[str | int]:
    """Return what orders fold10 after fold9: texts and numbers, which take turns."""
    parts: list[str | int] = list(re.split(r"(\d+)", path.stem))
    for k in range(1, len(parts), 2):
        parts[k] = int(parts[k])
    return parts


def ablate_folds(
    plan: StudyPlan,
    cache: "Cache",
    folder: Path | str,
    folds: Mapping[str, Manifest],
    options: AblateOptions = AblateOptions(),  # noqa: B008 (it is frozen)
    *,
    say: PrintLine = print,
    **how: Any,
) -> AblateOutcome:
    """Train a study on every fold, and write one table.

    Args:
        plan: the study.
        cache: the features to train on, of the clips of all folds.
        folder: the study's folder; each fold gets a folder in it.
        folds: name -> manifest.
        options: how members are trained; its manifest is replaced.
        say: prints one line for a person.
        **how: `engine`, `jobs`, `at_once` and `before`, as for `ablate`.

    Returns:
        The table over folds, and the failures of all of them.

    Raises:
        ValueError: a member of some fold cannot be trained; before the first step.
    """
    folder = Path(folder).resolve()
    # A fault of the last fold is found before the first one has been trained for hours.
    for name, manifest in folds.items():
        asked = replace(options, manifest=manifest)
        estimate_members(plan, cache, folder / name, asked, print_nothing, check_features=False)

    def train(fold: Path, manifest: Manifest) -> AblateOutcome:
        return ablate(plan, cache, fold, replace(options, manifest=manifest), say=say, **how)

    return train_folds(folder, folds, train, say)


def train_folds(
    folder: Path,
    folds: Mapping[str, Manifest],
    train: Callable[[Path, Manifest], AblateOutcome],
    say: PrintLine,
) -> AblateOutcome:
    """Train a study on one fold after the other, and write one table.

    Args:
        folder: the study's folder.
        folds: name -> manifest.
        train: gets the folder and the manifest of a fold, and trains the study on it.
        say: prints one line for a person.

    Returns:
        The table over folds, and the failures of all of them.
    """
    started, outcomes = time.monotonic(), {}
    for name, manifest in folds.items():
        say(f"{name}: {manifest.path}")
        outcomes[name] = train(folder / name, manifest)

    table = table_over_folds({name: outcome.table for name, outcome in outcomes.items()})
    table.write(folder)
    failed: list[FailedRow] = []
    for outcome in outcomes.values():
        failed += outcome.failed
    before = sum(outcome.before for outcome in outcomes.values())
    return AblateOutcome(table, tuple(failed), before, time.monotonic() - started)


@dataclass(frozen=True)
class FoldRow(TableRow):
    """Members that differ in their fold and seed alone.

    Attributes:
        folds: name of the fold -> the row of these members in its own table.
    """

    folds: dict[str, TableRow] = field(default_factory=dict)

    def figure(self, split: str, name: str) -> FigureSpread | None:
        """Return a figure of a split over the folds; None if no member has it."""
        return _over([row.figure(split, name) for row in self.folds.values()])

    def other(self, name: str) -> FigureSpread | None:
        """Return seconds, waiting, best_epoch, epochs or parameters over the folds."""
        return _over([row.other(name) for row in self.folds.values()])

    def members(self) -> list[dict[str, Any]]:
        """Return each member's own figures, as results.json has them."""
        members = []
        for fold, row in self.folds.items():
            for member in row.members():
                members.append({**member, "fold": fold, "folder": f"{fold}/{member['folder']}"})
        return members


def table_over_folds(tables: Mapping[str, StudyTable]) -> StudyTable:
    """Join the tables of a study's folds.

    Args:
        tables: name of the fold -> its table; all of one study.

    Returns:
        A table with the same rows, whose figures are over the folds.
    """
    first = next(iter(tables.values()))
    rows = []
    for k, one in enumerate(first.rows):
        folds = {name: table.rows[k] for name, table in tables.items()}
        results: dict[Any, Any] = {}
        failed: list[FailedRow] = []
        for name, row in folds.items():
            for seed, result in row.results.items():
                results[name, seed] = result
            for failure in row.failed:
                folder = f"{name}, {Path(failure.folder).name}"
                failed.append(replace(failure, folder=folder))
        rows.append(FoldRow(one.name, one.cells, results, tuple(failed), one.macs, folds))

    records = {name: table.about["manifest"] for name, table in tables.items()}
    about = {key: value for key, value in first.about.items() if key != "manifest"}
    return replace(first, rows=tuple(rows), about={**about, "folds": records}, over="folds")


def _over(spreads: Sequence[FigureSpread | None]) -> FigureSpread | None:
    return spread(one.mean for one in spreads if one is not None)
