"""A study trained from frames on every fold of a cross-validation.

    folds = read_folds("clips-folds")              # as `vidgraph manifest folds` writes it
    outcome = finetune_folds(plan, "runs/parts", folds, config=config)

As in heads/training/folds.py, each fold has a folder of its own, and the figures of the table are
over the folds.
"""

import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heads.config.study_file import StudyPlan
from heads.finetuning.finetune_study import finetune_study
from heads.finetuning.study_rows import rows_from_frames
from heads.training.ablate import AblateOutcome
from heads.training.folds import table_over_folds
from heads.training.study_table import FailedRow
from pipeline.files.atomic_files import make_folder
from pipeline.manifests.manifest import Manifest
from pipeline.workers.waiting import PrintLine

# Arguments of `finetune_study` that decide whether its rows can be trained.
_CHECKED = ("cache", "config", "source_options", "phase", "frames")


def finetune_folds(
    plan: StudyPlan,
    folder: Path | str,
    folds: Mapping[str, Manifest],
    *,
    say: PrintLine = print,
    **how: Any,
) -> AblateOutcome:
    """Train a study from frames on every fold, and write one table.

    Args:
        plan: the study.
        folder: the study's folder; each fold gets a folder in it.
        folds: name -> manifest.
        say: prints one line for a person.
        **how: arguments of `finetune_study`, without a manifest.

    Returns:
        The table over folds, and the failures of all of them.

    Raises:
        ValueError: a member of some fold cannot be trained; before the first step.
    """
    started, folder = time.monotonic(), Path(folder).resolve()
    checked = {key: how[key] for key in _CHECKED if key in how}
    # A fault of the last fold is found before the first one has been trained for hours.
    for manifest in folds.values():
        rows_from_frames(plan, manifest=manifest, **checked)

    make_folder(folder)
    outcomes: dict[str, AblateOutcome] = {}
    for name, manifest in folds.items():
        say(f"{name}: {manifest.path}")
        outcomes[name] = finetune_study(plan, folder / name, manifest=manifest, say=say, **how)

    table = table_over_folds({name: outcome.table for name, outcome in outcomes.items()})
    table.write(folder)
    failed: list[FailedRow] = []
    for outcome in outcomes.values():
        failed += outcome.failed
    before = sum(outcome.before for outcome in outcomes.values())
    return AblateOutcome(table, tuple(failed), before, time.monotonic() - started)
