"""The digit experiments of RSTG and DyReg-GNN again, at a size that fits a budget of minutes.

    work = Work(TABLES["rstg"], size_for(TABLES["rstg"], 60, "cpu"), Path("reproduce/rstg-small"))
    for task in work.table.tasks:
        train_rows(work, task, work.table.rows, seeds=range(2))
    record(work)                                            # heads/reproduction/report.py: what
    there is, beside the paper's

Rows whose head alone is trained share a cache of the frozen digit network's maps
(pipeline/digits/digit_cache.py); the others are trained from frames that are generated as they are
needed. Every row and seed has a run folder (heads/runs/run_files.py) and continues where it was
stopped: after its last epoch, or inside one where it reads frames.
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
from heads.interface.run_records import RUN
from heads.reproduction.pretraining import Pretraining, pretrain
from heads.reproduction.tables import (
    PaperTable,
    Row,
    Size,
    backbone_options,
    lower_width,
    reads_frames,
    recipe_of,
)
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, hold_folder
from heads.training.learner import INIT, reseed
from heads.training.study import Result
from heads.training.train import train
from pipeline.backbones import build_backbone, freeze
from pipeline.cache.reader import Cache
from pipeline.digits import TASKS, DigitVideos, Images, Task, load_images
from pipeline.digits.digit_cache import cache_digits
from pipeline.manifests.manifest import SPLITS
from pipeline.networks.memory_format import lay_out
from pipeline.workers.waiting import PrintLine


@dataclass(frozen=True)
class Work:
    """A table at a size, and where it is done. Everything in `folder` follows from (table, size,
    images, seeds); `device` is where the networks run. `images`: "sklearn" or "mnist"
    (`pipeline.digits.load_images`).
    """

    table: PaperTable
    size: Size
    folder: Path
    device: str = "cpu"
    images: str = "sklearn"
    say: PrintLine = print

    def task(self, name: str) -> Task:
        """A task of the table with the options of the size."""
        kind = TASKS[name]
        plain = kind(**self.size.task)
        least = plain.digits if kind.name != "multisync" else 2
        return replace(plain, classes=max(self.size.classes, least))

    def videos(self, row: Row | None = None) -> dict[str, int]:
        """How many videos each split has; a row that is trained from frames may get fewer for
        training.
        """
        train, val, test = self.size.videos
        share = self.size.end_to_end if row is not None and reads_frames(row, self.size) else 1.0
        return {"train": max(self.size.batch, round(train * share)), "val": val, "test": test}

    def run_folder(self, task: str, row: Row, seed: int) -> Path:
        """Where a row's run is."""
        return self.folder / task / f"{row.name}-seed{seed}"

    def pictures(self, task: Task) -> dict[str, Images]:
        """The handwritten digits of each split, of the classes that the task uses."""
        found = self._pictures
        return {
            split: one.only(np.flatnonzero(one.classes < task.classes))
            for split, one in found.items()
        }

    @cached_property
    def _pictures(self) -> dict[str, Images]:
        return load_images(self.images)

    def cache(self, task: str) -> Cache:
        """The maps of a task's videos; the table's `lower` network is trained and the videos go
        through it where that is not done."""
        made = self.task(task)
        lower, width, options = (
            self.table.lower,
            lower_width(self.table, self.size),
            self.table.lower_options,
        )
        images, weights = self.pictures(made), self.folder / task / f"{lower}.pt"
        if not weights.exists():
            self.say(f"{task}: the digit network learns {made.classes} digits")
            how = Pretraining(lower, width, options, made.shown, made.size, steps=STEPS)
            weights.parent.mkdir(parents=True, exist_ok=True)
            pretrain(weights, images, how, say=self.say)
        network = build_backbone(lower, weights=str(weights), width=width, **options)
        self.say(f"{task}: {sum(self.videos().values()):,} videos through the digit network")
        frozen = freeze(network, device=self.device)
        return cache_digits(
            self.folder / task / "cache",
            made,
            images,
            self.videos(),
            frozen,
            weights,
            SEED,
            device=self.device,
        )


STEPS = 400  # of the digit network's training, at most
SEED = 0  # of the videos: one set for all rows and seeds


class Generated:
    """Digit videos as a `heads.finetuning.frame_training.FrameSource`: view k of a split is its video k,
    made when it is asked for.
    """

    def __init__(
        self,
        task: Task,
        images: Mapping[str, Images],
        videos: Mapping[str, int],
        device: str,
        seed: int = SEED,
    ):
        self.videos = {
            split: DigitVideos(task, images[split], seed, split, device) for split in SPLITS
        }
        self.parts: dict[str, SplitViews] = {}
        for split, count in videos.items():
            labels = task.scenes(self.videos[split].images, seed, split, np.arange(count)).labels
            self.parts[split] = part_of_clips(
                split, [f"{split}-{k:06d}" for k in range(count)], labels
            )

    def batches(
        self, split: str, batches: Sequence[np.ndarray], epoch: int
    ) -> Iterator[list[Piece]]:
        """See `Source.batches`; the videos are the same in every epoch."""
        for rows in batches:
            yield (
                [(Clips(frames=self.videos[split][rows].rgb), np.arange(len(rows)))]
                if len(rows)
                else []
            )


def train_rows(
    work: Work, task: str, rows: Iterable[Row], seeds: Iterable[int], resume: bool = True
) -> list[Result]:
    """Trains rows of a task with these seeds, all rows with the first seed first; what is finished
    is read back, what another process trains at the moment is left to it.

    KeyboardInterrupt leaves every run as it was after its last epoch.
    """
    rows, seeds, found = list(rows), list(seeds), []
    frozen = [row for row in rows if not reads_frames(row, work.size)]
    begun = [
        row for row in frozen for seed in seeds if not resume or not finished(work, task, row, seed)
    ]
    cache = None
    if begun:
        with hold_folder(work.folder / task, work.say):
            cache = work.cache(task)
    for seed in seeds:
        for row in rows:
            if resume and finished(work, task, row, seed):
                work.say(f"{task}, {row.title}, seed {seed}: finished before")
                continue
            work.say(f"{task}, {row.title}, seed {seed}")
            try:
                found.append(
                    _from_frames(work, task, row, seed, resume)
                    if reads_frames(row, work.size)
                    else _from_maps(work, cache, task, row, seed, resume)
                )
            except FolderBusy as error:  # another command has it
                work.say(str(error))
    return found


def finished(work: Work, task: str, row: Row, seed: int) -> bool:
    """Whether this run has its figures; those of a size that was another one, under the same name,
    do not count.
    """
    folder = work.run_folder(task, row, seed)
    if not (folder / "metrics.json").exists():
        return False
    there = runs.read_json(folder / "run.json", RUN)
    trained_on = there["task"] if "task" in there else there["config"]["task"]
    return (there["recipe"], trained_on) == (
        recipe_of(row, work.size, task).as_dict(),
        {"name": task, **asdict(work.task(task))},
    )


def _from_maps(work: Work, cache: Cache, task: str, row: Row, seed: int, resume: bool) -> Result:
    return train(
        recipe_of(row, work.size, task),
        cache,
        work.run_folder(task, row, seed),
        seed=seed,
        order_seed=0,
        device=work.device,
        resume=resume,
        say=work.say,
        tensorboard=False,
    )


def _from_frames(work: Work, task: str, row: Row, seed: int, resume: bool) -> Result:
    made, recipe = work.task(task), recipe_of(row, work.size, task)
    source = Generated(made, work.pictures(made), work.videos(row), work.device)
    phase = recipe.all_phases[0]
    reseed(torch.device("cpu"), seed, INIT, 1)
    backbone = build_backbone(row.backbone, **backbone_options(row, work.size))
    dims = joint_dims(backbone, made.frames, made.size)
    network = new_network(recipe.of(phase), backbone, dims, len(made.labels), seed, phase.frames)
    network = lay_out(network, work.device)  # channels last: a quarter less time on a CPU
    return train_frames(
        recipe,
        work.run_folder(task, row, seed),
        network,
        source,
        made.labels,
        FrameRunOptions(
            seed=seed, order_seed=0, resume=resume, tensorboard=False, checkpoint_every=50
        ),
        say=work.say,
        about={
            "task": {"name": task, **asdict(made)},
            "videos": work.videos(row),
            "backbone": backbone.options,
        },
    )
