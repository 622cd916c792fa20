"""Combine several runs: add their scores, video by video, from the predictions they left behind.

    ensemble(["runs/ean-8", "runs/ean-16"], "test").figures["top1"]

This is how EAN combines its 8 and 16 frames (IJCV 2022, Table 1).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heads.config.recipe import recipe_from
from heads.evaluation.metrics import aggregate, scores_of, summarise
from heads.evaluation.prediction_files import read_predictions
from heads.interface.run_records import RUN
from heads.runs import run_files


@dataclass(frozen=True)
class VideoScores:
    """One score per video and class.

    Attributes:
        clips: [V] clip ids.
        classes: [K] class names.
        scores: [V,K].
        targets: [V] class ids, or [V,K] of 0 and 1; None without labels.
        target: "single", or "multi" if a run predicts several classes per video.
    """

    clips: tuple[str, ...]
    classes: tuple[str, ...]
    scores: np.ndarray
    targets: np.ndarray | None
    target: str = "single"

    @property
    def figures(self) -> dict[str, float]:
        """The figures (see `heads.evaluation.metrics.summarise`); {} without labels."""
        return {} if self.targets is None else summarise(self.scores, self.targets)

    def save(self, folder: Path, split: str) -> None:
        """Write scores_SPLIT.npz and metrics_SPLIT.json.

        Args:
            folder: any folder but that of a run, which has files of these names.
            split: the split's name.

        Raises:
            ValueError: the folder holds a run.
        """
        if (folder / "run.json").exists():
            raise ValueError(
                f"{folder}: holds a run; expected a folder of its own for the sums of an ensemble"
            )
        folder.mkdir(parents=True, exist_ok=True)
        arrays = {
            "clips": np.array(self.clips),
            "classes": np.array(self.classes),
            "scores": self.scores,
        }
        if self.targets is not None:
            arrays["targets"] = self.targets
        run_files.save_predictions(folder / f"scores_{split}.npz", arrays)
        run_files.write_json(folder / f"metrics_{split}.json", self.figures)


def scores_of_run(
    folder: Path | str, split: str, settings: Mapping[str, str] | None = None
) -> VideoScores:
    """Read a run's predictions of a split and aggregate them over views.

    Args:
        folder: the run folder, with predictions_SPLIT.npz.
        split: the split's name.
        settings: values that replace those of the recipe's table `evaluate` (aggregate, scores).

    Raises:
        ValueError: the folder has no predictions of this split.
    """
    folder = Path(folder)
    table = run_files.read_json(folder / "run.json", RUN)["recipe"]
    options = {**table["evaluate"], **(settings or {})}
    recipe = recipe_from({**table, "evaluate": options}, str(folder))

    path = folder / f"predictions_{split}.npz"
    advice = f"run `vidgraph evaluate {folder} --split {split}`"
    try:
        arrays = read_predictions(path, advice)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {advice} first") from None

    scores = scores_of(arrays["logits"], recipe.scores)
    videos = len(arrays["clips"])
    scores = aggregate(scores, arrays["video"], videos, recipe.evaluate.aggregate)
    clips, classes = tuple(arrays["clips"].tolist()), tuple(arrays["classes"].tolist())
    return VideoScores(clips, classes, scores, arrays.get("targets"), recipe.data.target)


def ensemble(
    folders: Sequence[Path | str], split: str, settings: Mapping[str, str] | None = None
) -> VideoScores:
    """Add the scores of several runs, which may have other caches, heads and frames.

    Args:
        folders: at least two run folders.
        split: the split's name.
        settings: as for `scores_of_run`.

    Returns:
        The sums, in the order of the first run's videos.

    Raises:
        ValueError: fewer than two runs, or runs of other videos, classes or labels.
    """
    if len(folders) < 2:
        raise ValueError(f"an ensemble sums the scores of at least 2 runs, got {len(folders)}")

    first, *others = [scores_of_run(folder, split, settings) for folder in folders]
    total, target = first.scores, first.target
    for folder, other in zip(folders[1:], others, strict=True):
        position = {clip: k for k, clip in enumerate(other.clips)}
        apart = sorted(position.keys() ^ set(first.clips))
        if apart:
            raise ValueError(
                f"{folder} and {folders[0]} predict other videos of split {split}: {len(apart)} "
                f"are in only one of them, such as {apart[0]}; evaluate both on the same clips"
            )
        # Two runs may list the same videos in different orders.
        order = [position[clip] for clip in first.clips]
        if other.classes != first.classes or not _same_labels(first.targets, other.targets, order):
            raise ValueError(
                f"{folder} and {folders[0]} have other classes or labels; train both with one "
                f"manifest"
            )
        total = total + other.scores[order]
        if other.target == "multi":
            target = "multi"
    return VideoScores(first.clips, first.classes, total, first.targets, target)


def _same_labels(first: np.ndarray | None, other: np.ndarray | None, order: list[int]) -> bool:
    if first is None or other is None:
        return first is other
    return np.array_equal(first, other[order])
