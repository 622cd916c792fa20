"""What an evaluation writes to a run folder, and how it keeps out of a training's way.

`heads.evaluation.evaluate` evaluates on a cache, `heads.prediction.frames_evaluate` on videos: both
leave the same files.
"""

import io
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from heads.config.recipe import Recipe
from heads.data.splits import SplitViews
from heads.evaluation.head_predictor import Predictions, compute_figures, write_predictions
from heads.evaluation.one_structure import structure_rows
from heads.evaluation.per_class import ClassFigures, as_rows, class_figures
from heads.evaluation.submission import Submission
from heads.runs import run_files
from heads.runs.folder_lock import FolderBusy, refuse_if_busy
from pipeline.files.owners import remove_abandoned
from pipeline.files.watched_folder import WatchedFolder
from pipeline.text.counted import counted
from pipeline.text.printable import write_table
from pipeline.workers.completion import version_of


@dataclass(frozen=True)
class Evaluation:
    """What an evaluation found and wrote.

    Attributes:
        figures: figure -> value; without labels no figures but those of regions.
        classes: the figures of every class; () without labels.
        files: the files that were written, predictions first.
    """

    figures: dict[str, float]
    classes: tuple[ClassFigures, ...]
    files: tuple[Path, ...]


class EvaluationGuard:
    """Sees to it that a run stays as it is while it is evaluated.

    Args:
        folder: the run folder.
        say: prints one line for a person.

    Raises:
        ValueError: there is no such folder.
        FolderBusy: a process trains in it.
    """

    def __init__(self, folder: Path, say: Callable[[str], None]):
        self.folder, self.say = folder, say
        self._watch = refuse_if_busy(folder, say)
        self._watched = watch_run(folder)
        # Partial files of an evaluation that was killed.
        remove_abandoned(folder)
        # Compared after predicting: a run may be trained further while it is evaluated.
        self._versions = {path.name: version_of(path) for path in folder.glob("*.pt")}

    @contextmanager
    def writing(self, checkpoint: str) -> Iterator[None]:
        """Check the folder again, and guard it while files are written.

        Args:
            checkpoint: the name of the checkpoint that was evaluated.

        Raises:
            FolderBusy: a process trains in the folder, or has trained the checkpoint further.
            FolderGone: the folder was moved or deleted.
        """
        # Another process may have trained, or moved the folder, in the meantime.
        self._watched.check()
        refuse_if_busy(self.folder, self.say, self._watch)
        _refuse_if_trained(self.folder, f"{checkpoint}.pt", self._versions)
        with self._watched.guarded():
            yield


def _refuse_if_trained(folder: Path, file: str, versions: Mapping[str, Any]) -> None:
    """Raise FolderBusy if a checkpoint is not of the version that was read."""
    if version_of(folder / file) != versions.get(file):
        raise FolderBusy(
            f"{folder}: {file} was trained further while it was evaluated; nothing was written, "
            f"evaluate it again"
        )


def write_evaluation(
    folder: Path,
    tag: str,
    recipe: Recipe,
    classes: tuple[str, ...],
    part: SplitViews,
    predictions: Predictions,
    about: Mapping[str, str],
    of_regions: Mapping[str, float],
    head: nn.Module | None = None,
) -> Evaluation:
    """Write predictions, figures, and the structure of all views if there is one.

    Args:
        folder: the run folder.
        tag: what the files are named after.
        recipe: of one phase.
        classes: the K class names.
        part: the split's views.
        predictions: of these views.
        about: what the file of figures says before them.
        of_regions: figures of the head's regions.
        head: the head, where `about` names one structure for all views.

    Returns:
        All figures, and the files.
    """
    figures = write_predictions(folder, tag, predictions, part, recipe, classes)
    figures |= of_regions
    files = [folder / f"predictions_{tag}.npz", folder / f"metrics_{tag}.json"]

    of_classes: list[ClassFigures] = []
    if part.targets is not None:
        scores = compute_figures(predictions, part, recipe)[1]
        of_classes = class_figures(scores, part.targets, classes)
        files.append(folder / f"per_class_{tag}.csv")
        write_rows(files[-1], as_rows(of_classes))
        if part.targets.ndim == 1:
            files.append(folder / f"confusion_{tag}.csv")
    if "structure" in about:
        files.append(folder / f"structure_{tag}.csv")
        write_rows(files[-1], structure_rows(head.forced, head))
    run_files.write_json(folder / f"metrics_{tag}.json", {**about, **figures})
    return Evaluation(figures, tuple(of_classes), tuple(files))


def write_submission(
    submission: Submission | None,
    predictions: Predictions,
    part: SplitViews,
    recipe: Recipe,
    classes: tuple[str, ...],
    say: Callable[[str], None],
) -> None:
    """Write the predictions of a split as a test server takes them.

    Args:
        submission: the file; None writes nothing.
        predictions: of every view of the split.
        part: the split.
        recipe: says how logits become scores and how views are aggregated.
        classes: the K class names.
        say: prints one line for a person.
    """
    if submission is None:
        return
    scores = compute_figures(predictions, part, recipe)[1]
    count = submission.write(part.clips, classes, scores)
    say(
        f"{submission.path}: {counted(count, 'video')} of split {part.split}, format "
        f"{submission.format}"
    )


def write_rows(path: Path, rows: Iterable[Sequence]) -> None:
    """Write a table of a run as CSV, whole or not at all.

    Args:
        path: the file.
        rows: cells of each row, the header first.
    """
    text = io.StringIO()
    write_table(text, rows)
    run_files.write_text(path, text.getvalue())


def watch_run(folder: Path) -> WatchedFolder:
    """Return a watch on a run folder; ValueError if there is none."""
    try:
        return WatchedFolder(folder)
    except (FileNotFoundError, NotADirectoryError):
        raise ValueError(
            f"{folder}: no such folder; expected the folder of a run that `vidgraph train` made"
        ) from None
