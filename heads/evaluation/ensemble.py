"""Several runs as one: the sum of their scores, video by video, from the predictions that
evaluating each has left.

ensemble(["runs/ean-8", "runs/ean-16"], "test").figures["top1"]      EAN's 8+16 frames (IJCV 2022,
Table 1)
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from heads.config.recipe import recipe_from
from heads.evaluation.metrics import aggregate, scores_of, summarise
from heads.evaluation.prediction_files import read_predictions
from heads.interface.run_records import RUN
from heads.runs import run_files as runs


@dataclass(frozen=True)
class VideoScores:
    """One score per video and class: `scores` [V,K] of the videos `clips` [V] for the `classes`
    [K], with `targets` as predictions_SPLIT.npz has them (None without labels), and their `figures`
    ({} without labels).
    """

    clips: tuple[str, ...]
    classes: tuple[str, ...]
    scores: np.ndarray
    targets: np.ndarray | None

    @property
    def figures(self) -> dict[str, float]:
        return {} if self.targets is None else summarise(self.scores, self.targets)

    def save(self, folder: Path, split: str) -> None:
        """Writes scores_SPLIT.npz and metrics_SPLIT.json. ValueError for the folder of a run, which
        has its own.
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
        runs.save_predictions(folder / f"scores_{split}.npz", arrays)
        runs.write_json(folder / f"metrics_{split}.json", self.figures)


def scores_of_run(
    folder: Path | str, split: str, settings: Mapping[str, str] | None = None
) -> VideoScores:
    """A run's scores from its predictions_SPLIT.npz, aggregated over views as its recipe says, or
    `settings` (aggregate, scores). ValueError for a folder without them."""
    folder = Path(folder)
    table = runs.read_json(folder / "run.json", RUN)["recipe"]
    recipe = recipe_from(
        {**table, "evaluate": {**table["evaluate"], **(settings or {})}}, str(folder)
    )
    path = folder / f"predictions_{split}.npz"
    advice = f"run `vidgraph evaluate {folder} --split {split}`"
    try:
        found = read_predictions(path, advice)
    except FileNotFoundError:
        raise ValueError(f"{path}: no such file; {advice} first") from None
    scores = scores_of(found["logits"], recipe.scores)
    scores = aggregate(scores, found["video"], len(found["clips"]), recipe.evaluate.aggregate)
    return VideoScores(
        tuple(found["clips"].tolist()),
        tuple(found["classes"].tolist()),
        scores,
        found.get("targets"),
    )


def ensemble(
    folders: Sequence[Path | str], split: str, settings: Mapping[str, str] | None = None
) -> VideoScores:
    """The sum of the runs' scores; the runs may have been trained on other caches, heads and
    frames.

    ValueError for fewer than two runs, and unless all have scores for the same videos, classes and
    labels.
    """
    if len(folders) < 2:
        raise ValueError(f"an ensemble sums the scores of at least 2 runs, got {len(folders)}")
    first, *others = (scores_of_run(folder, split, settings) for folder in folders)
    total = first.scores
    for folder, other in zip(folders[1:], others, strict=True):
        place = {clip: k for k, clip in enumerate(other.clips)}
        if apart := sorted(place.keys() ^ set(first.clips)):
            raise ValueError(
                f"{folder} and {folders[0]} predict other videos of split {split}: {len(apart)} "
                f"are in one alone, such as "
                f"{apart[0]}; evaluate both on the same clips"
            )
        order = [place[clip] for clip in first.clips]
        if other.classes != first.classes or not _same_labels(first.targets, other.targets, order):
            raise ValueError(
                f"{folder} and {folders[0]} have other classes or labels; train both with one "
                f"manifest"
            )
        total = total + other.scores[order]
    return VideoScores(first.clips, first.classes, total, first.targets)


def _same_labels(first: np.ndarray | None, other: np.ndarray | None, order: list[int]) -> bool:
    if first is None or other is None:
        return first is other
    return np.array_equal(first, other[order])
