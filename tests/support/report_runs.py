"""Run folders as `vidgraph train` leaves them, made without training, for tests of the report."""

from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from heads.config.recipe import recipe_with, to_toml
from heads.evaluation.metrics import aggregate, scores_of, summarise
from heads.runs import run_files as runs

CLASSES = ("put", "take", "turn")


@dataclass
class Made:
    """One run.

    Attributes:
        name, seed: of its folder.
        head, options: of its recipe, as are `data` and `epochs`.
        skill: how often it is right.
        clips, classes, views, targets: what it predicts.
        val: figures of val; {} for none.
        more: further arrays beside the predictions.
        about: further keys of run.json.
    """

    name: str = "pool"
    seed: int = 0
    head: str = "pool"
    options: dict = field(default_factory=dict)
    skill: float = 0.5
    clips: tuple[str, ...] = tuple(f"clip{k}" for k in range(30))
    classes: tuple[str, ...] = CLASSES
    views: int = 1
    epochs: int = 3
    data: dict = field(default_factory=dict)
    dims: dict = field(default_factory=lambda: {"T": 3, "N": 2, "C": 4, "maps": {}})
    config: dict = field(
        default_factory=lambda: {"backbone": "digit_cnn", "sampling": {"train_views": 4}}
    )
    fingerprint: str = "f" * 64
    cache: str = "nowhere/cache"
    targets: np.ndarray | None = None
    more: dict = field(default_factory=dict)
    about: dict = field(default_factory=dict)
    phase: str = "train"
    val: dict = field(default_factory=dict)

    def write(self, parent: Path) -> Path:
        """Write the folder NAME-seedSEED in `parent`, finished."""
        folder = parent / f"{self.name}-seed{self.seed}"
        folder.mkdir(parents=True)
        table = {
            "source": "a test",
            "head": {"name": self.head, **self.options},
            "train": {"epochs": self.epochs},
            "data": self.data,
        }
        recipe = recipe_with(table, {}, Path(f"{self.head}.toml"))
        runs.write_text(folder / "recipe.toml", to_toml(recipe))
        about = {
            "recipe": recipe.as_dict(),
            "seed": self.seed,
            "order_seed": self.seed,
            "precision": "fp32",
            "classes": list(self.classes),
            "dims": self.dims,
            "fingerprint": self.fingerprint,
            "config": self.config,
            "cache": self.cache,
            "device": "cpu",
            "versions": {"torch": "2"},
            **self.about,
        }
        runs.write_json(folder / "run.json", about)

        figures = self._predict(folder, recipe)
        halved = {key: value / 2 for key, value in figures.items()}
        for epoch in range(1, self.epochs + 1):
            line = {"epoch": epoch, "step": epoch, "lr": 0.1, "loss": 2.0 / epoch}
            line |= {"seconds": 1.0, "waiting": 0.1, "val": halved}
            runs.append_log(folder / "log.jsonl", line)

        result = {
            "folder": folder.name,
            "metrics": {"test": figures, **({"val": self.val} if self.val else {})},
            "epochs": self.epochs,
            "best_epoch": 2,
            "parameters": 1234,
            "seconds": 5.0 + self.seed,
            "waiting": 1.0,
            "excluded": {},
            "phase": self.phase,
        }
        runs.write_json(folder / "metrics.json", result)
        return folder

    def _predict(self, folder: Path, recipe) -> dict[str, float]:
        """Write predictions_test.npz; return its figures.

        Whether a video is right depends only on the seed and the skill.
        """
        rng = np.random.default_rng([self.seed, round(1000 * self.skill)])
        videos, classes = len(self.clips), len(self.classes)
        targets = np.arange(videos) % classes if self.targets is None else self.targets
        video = np.repeat(np.arange(videos), self.views)
        logits = rng.normal(size=(len(video), classes)).astype(np.float32)
        right = np.repeat(rng.random(videos) < self.skill, self.views)
        if targets.ndim == 1:
            logits[np.arange(len(video)), targets[video]] += np.where(right, 9, -9)
        else:
            logits += 4 * targets[video] * right[:, None]

        arrays = {
            "clip": np.array(self.clips)[video],
            "view": np.tile(np.arange(self.views), videos),
            "logits": logits,
            "video": video,
            "clips": np.array(self.clips),
            "classes": np.array(self.classes),
            "targets": targets,
            **self.more,
        }
        runs.save_predictions(folder / "predictions_test.npz", arrays)
        view_scores = scores_of(logits, recipe.scores)
        scores = aggregate(view_scores, video, videos, recipe.evaluate.aggregate)
        return {**summarise(scores, targets), "loss": 1.0}


def study(parent: Path, **changes) -> Path:
    """Write two heads with two seeds each."""
    for name, head, skill in (("strong", "strg", 0.9), ("weak", "pool", 0.3)):
        for seed in (0, 1):
            Made(name, seed, head, skill=skill, **changes).write(parent)
    return parent
