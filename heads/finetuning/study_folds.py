"""A study trained from frames on every fold of a cross-validation.

    folds = read_folds("clips-folds")              # as `vidgraph manifest folds` writes it
    outcome = finetune_folds(plan, "runs/parts", folds, config=config)

As in heads/training/folds.py, each fold has a folder of its own, and the figures of the table are
over the folds.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from heads.config.study_file import StudyPlan
from heads.finetuning.finetune_study import finetune_study
from heads.finetuning.study_rows import rows_from_frames
from heads.training.ablate import AblateOutcome
from heads.training.folds import train_folds
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
    folder = Path(folder).resolve()
    checked = {key: how[key] for key in _CHECKED if key in how}
    # A fault of the last fold is found before the first one has been trained for hours.
    for manifest in folds.values():
        rows_from_frames(plan, manifest=manifest, **checked)

    def train(fold: Path, manifest: Manifest) -> AblateOutcome:
        return finetune_study(plan, fold, manifest=manifest, say=say, **how)

    return train_folds(folder, folds, train, say)
