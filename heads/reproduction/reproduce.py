"""Train the digit experiments of RSTG and DyReg-GNN, at a size that fits a budget of minutes.

    table = TABLES["rstg"]
    work = Reproduction(table, size_for(table, 60, "cpu"), Path("reproduce/rstg-small"))
    for task in table.tasks:
        train_rows(work, task, table.rows, seeds=range(2))
    write_report(work, work.folder)  # in report.py: the figures beside the paper's

Rows of which only the head is trained share a cache of the frozen digit network's maps
(`pipeline.digits.digit_cache`). The other rows are trained from frames, which are generated when
they are needed. Every row and seed has a run folder (`heads.runs.run_files`). A stopped run
continues after its last epoch, or inside an epoch where it reads frames.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path

import numpy as np
import torch

from heads.data.splits import SplitViews
from heads.finetuning.end_to_end import train_frames
from heads.finetuning.frame_training import FrameRunOptions, Piece, new_network, part_of_clips
from heads.finetuning.joint_network import joint_dims
from heads.interface.clips import Clips
from heads.interface.random_streams import INIT, reseed
from heads.interface.run_records import RUN
from heads.reproduction.pretraining import Pretraining, pretrain
from heads.reproduction.tables import (
    ExperimentSize,
    PaperRow,
    PaperTable,
    backbone_options,
    lower_width,
    reads_frames,
    recipe_of,
)
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, hold_folder
from heads.training.study import Result
from heads.training.train import train
from pipeline.backbones import build_backbone, freeze
from pipeline.cache.reader import Cache
from pipeline.digits.batches import DigitVideos
from pipeline.digits.digit_cache import cache_digits
from pipeline.digits.images import Images, load_images
from pipeline.digits.scenes import Task
from pipeline.digits.tasks import TASKS
from pipeline.manifests.manifest import SPLITS
from pipeline.networks.memory_format import lay_out
from pipeline.workers.waiting import PrintLine

# Steps of the digit network's training, at most.
STEPS = 400
# Of the videos and of their order: all rows and seeds see the same.
SEED = 0
# Mini-batches between checkpoints of a run that reads frames.
CHECKPOINT_EVERY = 50


@dataclass(frozen=True)
class Reproduction:
    """A table at a size, and the folder in which it is trained.

    Everything in the folder follows from the table, the size, the images and the seeds.

    Attributes:
        table: the paper's experiment.
        size: one of its sizes.
        folder: where caches and runs are.
        device: where the networks run, "cpu" or "cuda".
        images: "sklearn" or "mnist", see `pipeline.digits.load_images`.
        say: prints a line.
    """

    table: PaperTable
    size: ExperimentSize
    folder: Path
    device: str = "cpu"
    images: str = "sklearn"
    say: PrintLine = print

    def task(self, name: str) -> Task:
        """Return a task of the table with the options of the size."""
        kind = TASKS[name]
        task = kind(**self.size.task)
        # Only multisync draws classes with replacement.
        least = 2 if kind.name == "multisync" else task.digits
        return replace(task, classes=max(self.size.classes, least))

    def videos(self, row: PaperRow | None = None) -> dict[str, int]:
        """Return the number of videos of each split.

        Args:
            row: a row that is trained from frames may get fewer training videos.
        """
        train, val, test = self.size.videos
        if row is not None and reads_frames(row, self.size):
            train = round(train * self.size.end_to_end)
        return {"train": max(self.size.batch, train), "val": val, "test": test}

    def run_folder(self, task: str, row: PaperRow, seed: int) -> Path:
        """Return the folder of a run."""
        return self.folder / task / f"{row.name}-seed{seed}"

    def pictures(self, task: Task) -> dict[str, Images]:
        """Return the handwritten digits of each split, of the classes that a task uses."""
        chosen = {}
        for split, images in self._pictures.items():
            chosen[split] = images.only(np.flatnonzero(images.classes < task.classes))
        return chosen

    @cached_property
    def _pictures(self) -> dict[str, Images]:
        return load_images(self.images)

    def cache(self, task: str) -> Cache:
        """Return the cache of a task's videos.

        Trains the table's `lower` network and passes the videos through it, as far as that is
        not done yet.
        """
        made = self.task(task)
        images = self.pictures(made)
        lower, options = self.table.lower, self.table.lower_options
        width = lower_width(self.table, self.size)

        weights = self.folder / task / f"{lower}.pt"
        if not weights.exists():
            self.say(f"{task}: the digit network learns {made.classes} digits")
            training = Pretraining(lower, width, options, made.shown, made.size, steps=STEPS)
            weights.parent.mkdir(parents=True, exist_ok=True)
            pretrain(weights, images, training, say=self.say)

        network = build_backbone(lower, weights=str(weights), width=width, **options)
        videos = self.videos()
        self.say(f"{task}: {sum(videos.values()):,} videos through the digit network")
        backbone = freeze(network, device=self.device)
        path = self.folder / task / "cache"
        return cache_digits(path, made, images, videos, backbone, weights, SEED, self.device)


class GeneratedFrames:
    """Digit videos as a `heads.finetuning.frame_training.FrameSource`.

    View k of a split is its video k, which is made when it is asked for.

    Args:
        task: what can happen in a video.
        images: the images of each split.
        videos: split -> number of videos.
        device: where videos are made.
        seed: of the videos.
    """

    def __init__(
        self,
        task: Task,
        images: Mapping[str, Images],
        videos: Mapping[str, int],
        device: str,
        seed: int = SEED,
    ):
        self.videos = {}
        for split in SPLITS:
            self.videos[split] = DigitVideos(task, images[split], seed, split, device)
        self.parts: dict[str, SplitViews] = {}
        for split, count in videos.items():
            # Labels follow from the seed; no frame is drawn for them.
            labels = task.scenes(self.videos[split].images, seed, split, np.arange(count)).labels
            clips = [f"{split}-{k:06d}" for k in range(count)]
            self.parts[split] = part_of_clips(split, clips, labels)

    def batches(
        self, split: str, batches: Sequence[np.ndarray], epoch: int
    ) -> Iterator[list[Piece]]:
        """Yield the frames of each batch; see `FrameSource.batches`.

        The videos are the same in every epoch.
        """
        for rows in batches:
            pieces = []
            if len(rows):
                clips = Clips(frames=self.videos[split][rows].rgb)
                pieces.append((clips, np.arange(len(rows))))
            yield pieces


def train_rows(
    work: Reproduction,
    task: str,
    rows: Iterable[PaperRow],
    seeds: Iterable[int],
    resume: bool = True,
) -> list[Result]:
    """Train rows of a table on a task: all rows with the first seed first.

    Ctrl-C leaves every run as it was after its last epoch.

    Args:
        work: the table, its size and folder.
        task: a task of the table.
        rows: rows of the table.
        seeds: one run of each row per seed.
        resume: skip finished runs and continue the others; else train them again.

    Returns:
        The results of the runs trained here. Finished runs, and runs that another process trains
        at the moment, are left out.
    """
    rows, seeds = list(rows), list(seeds)
    cache = None
    if _needs_cache(work, task, rows, seeds, resume):
        # Two commands may need the same cache: the second one waits for it.
        with hold_folder(work.folder / task, work.say):
            cache = work.cache(task)

    results = []
    for seed in seeds:
        for row in rows:
            if resume and finished(work, task, row, seed):
                work.say(f"{task}, {row.title}, seed {seed}: finished before")
                continue
            work.say(f"{task}, {row.title}, seed {seed}")
            try:
                if reads_frames(row, work.size):
                    results.append(_train_from_frames(work, task, row, seed, resume))
                else:
                    results.append(_train_from_maps(work, cache, task, row, seed, resume))
            except FolderBusy as error:
                # Another command trains this run.
                work.say(str(error))
    return results


def _needs_cache(
    work: Reproduction, task: str, rows: list[PaperRow], seeds: list[int], resume: bool
) -> bool:
    """Return whether a run that reads cached maps is not finished."""
    for row in rows:
        if reads_frames(row, work.size):
            continue
        for seed in seeds:
            if not resume or not finished(work, task, row, seed):
                return True
    return False


def finished(work: Reproduction, task: str, row: PaperRow, seed: int) -> bool:
    """Return whether a run has its figures.

    Runs of another size that had the same name do not count.
    """
    folder = work.run_folder(task, row, seed)
    if not (folder / "metrics.json").exists():
        return False
    run = runs.read_json(folder / "run.json", RUN)
    # A run from frames records its task, a run from maps that of its cache.
    trained_on = run["task"] if "task" in run else run["config"]["task"]
    same_recipe = run["recipe"] == recipe_of(row, work.size, task).as_dict()
    return same_recipe and trained_on == {"name": task, **asdict(work.task(task))}


def _train_from_maps(
    work: Reproduction, cache: Cache, task: str, row: PaperRow, seed: int, resume: bool
) -> Result:
    return train(
        recipe_of(row, work.size, task),
        cache,
        work.run_folder(task, row, seed),
        seed=seed,
        order_seed=SEED,
        device=work.device,
        resume=resume,
        say=work.say,
        tensorboard=False,
    )


def _train_from_frames(
    work: Reproduction, task: str, row: PaperRow, seed: int, resume: bool
) -> Result:
    made, recipe = work.task(task), recipe_of(row, work.size, task)
    source = GeneratedFrames(made, work.pictures(made), work.videos(row), work.device)
    phase = recipe.all_phases[0]

    reseed(torch.device("cpu"), seed, INIT, 1)
    backbone = build_backbone(row.backbone, **backbone_options(row, work.size))
    dims = joint_dims(backbone, made.frames, made.size)
    network = new_network(recipe.of(phase), backbone, dims, len(made.labels), seed, phase.frames)
    # Channels last: a quarter less time on a CPU.
    network = lay_out(network, work.device)

    options = FrameRunOptions(
        seed=seed,
        order_seed=SEED,
        resume=resume,
        tensorboard=False,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    about = {
        "task": {"name": task, **asdict(made)},
        "videos": work.videos(row),
        "backbone": backbone.options,
    }
    folder = work.run_folder(task, row, seed)
    return train_frames(
        recipe, folder, network, source, made.labels, options, say=work.say, about=about
    )
