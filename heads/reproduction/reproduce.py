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

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from heads.config.recipe import recipe_from
from heads.finetuning.end_to_end import train_frames
from heads.finetuning.frame_training import FrameRunOptions, new_network
from heads.finetuning.joint_network import JointNetwork, joint_dims
from heads.interface.random_streams import INIT, reseed
from heads.interface.run_records import RUN
from heads.reproduction.digit_regions import distance_of_network, distance_of_run
from heads.reproduction.earlier_results import EarlierResults
from heads.reproduction.experiments import (
    ExperimentSize,
    PaperRow,
    PaperTable,
    backbone_options,
    has_row,
    lower_width,
    reads_frames,
    recipe_of,
    row_has_regions,
    start_of,
    trains_lower,
)
from heads.reproduction.generated_frames import GeneratedFrames
from heads.reproduction.place_training import PlaceTraining, train_places
from heads.reproduction.pretraining import Pretraining, pretrain
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, hold_folder
from heads.runs.head_versions import refuse_changed_head, version_of
from heads.runs.start_weights import checkpoint_of, take_weights
from heads.training.study import Result
from heads.training.train import train
from pipeline.backbones import Backbone, build_backbone, freeze
from pipeline.cache.reader import Cache
from pipeline.digits.digit_cache import cache_digits
from pipeline.digits.images import Images, load_images
from pipeline.digits.scenes import Task
from pipeline.digits.tasks import TASKS
from pipeline.files.atomic_files import sha256_of
from pipeline.networks.memory_format import lay_out
from pipeline.workers.waiting import PrintLine

# Steps of the digit network's training, at most.
STEPS = 400
# Of the videos and of their order: all rows and seeds see the same.
SEED = 0
# Raise it when the digit network or the videos are made in another way for the same options:
# figures of earlier records then no longer count.
METHOD = 1
# In the folder of a run whose head has regions: how far they are from the digits.
DISTANCE = "dist.json"
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
        earlier: figures of runs whose folders are gone.
    """

    table: PaperTable
    size: ExperimentSize
    folder: Path
    device: str = "cpu"
    images: str = "sklearn"
    say: PrintLine = print
    earlier: EarlierResults = field(default_factory=EarlierResults)

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

    def made(self, task: str, row: PaperRow) -> dict[str, Any]:
        """Return what decides a run's figures beside its seed and the device, as JSON has it."""
        recipe = recipe_of(row, self.size, task)
        easier = start_of(row, self.size, task)
        facts = {
            "recipe": recipe.as_dict(),
            "head_version": version_of(recipe),
            "task": {"name": task, **asdict(self.task(task))},
            "videos": self.videos(row),
            "images": self.images,
            "widths": [lower_width(self.table, self.size), self.size.trunk],
            "place_steps": self.size.place_steps,
            "joint": self.size.joint,
            "start": self.made(easier, row) if easier else None,
            "method": METHOD,
        }
        # Tuples become lists, as in a record that is read.
        return json.loads(json.dumps(facts))

    def pictures(self, task: Task) -> dict[str, Images]:
        """Return the handwritten digits of each split, of the classes that a task uses."""
        chosen = {}
        for split, images in self._pictures.items():
            chosen[split] = images.only(np.flatnonzero(images.classes < task.classes))
        return chosen

    @cached_property
    def _pictures(self) -> dict[str, Images]:
        return load_images(self.images)

    def digit_network(self, task: str) -> tuple[Backbone, Path]:
        """Return the table's `lower` network, pre-trained, and its checkpoint.

        Trains it first, where that is not done yet. A network that learns places is trained on
        the frames of all tasks, and is one for all of them.
        """
        lower, options = self.table.lower, self.table.lower_options
        width = lower_width(self.table, self.size)
        made = self.task(task)
        images = self.pictures(made)

        shared = self.size.place_steps > 0
        folder = self.folder if shared else self.folder / task
        weights = folder / f"{lower}.pt"
        if not weights.exists():
            weights.parent.mkdir(parents=True, exist_ok=True)
            if shared:
                self.say(f"the digit network learns {made.classes} digits and their places")
                places = PlaceTraining(width, options, self.size.place_steps)
                tasks = [self.task(name) for name in self.table.tasks]
                train_places(weights, tasks, images, places, say=self.say)
            else:
                self.say(f"{task}: the digit network learns {made.classes} digits")
                training = Pretraining(lower, width, options, made.shown, made.size, steps=STEPS)
                pretrain(weights, images, training, say=self.say)
        return build_backbone(lower, weights=str(weights), width=width, **options), weights

    def cache(self, task: str) -> Cache:
        """Return the cache of a task's videos.

        Passes the videos through the frozen digit network, as far as that is not done yet.
        """
        made = self.task(task)
        network, weights = self.digit_network(task)
        videos = self.videos()
        self.say(f"{task}: {sum(videos.values()):,} videos through the digit network")
        backbone = freeze(network, device=self.device)
        path, images = self.folder / task / "cache", self.pictures(made)
        return cache_digits(path, made, images, videos, backbone, weights, SEED, self.device)


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
    rows = [row for row in rows if has_row(row, work.size, task)]
    seeds = list(seeds)
    cache = None
    if _needs_cache(work, task, rows, seeds, resume):
        # Two commands may need the same cache, or digit network: the second one waits for it.
        with hold_folder(work.folder, work.say):
            cache = work.cache(task)

    results = []
    for seed in seeds:
        for row in rows:
            if resume and known(work, task, row, seed):
                work.say(f"{task}, {row.title}, seed {seed}: finished before")
                continue
            easier = start_of(row, work.size, task)
            if easier and not finished(work, easier, row, seed):
                # An earlier record has the figures of the easier task, but no weights.
                alone = replace(work, earlier=EarlierResults())
                results += train_rows(alone, easier, [row], [seed])
                if not finished(work, easier, row, seed):
                    work.say(f"left out: it starts from {easier}, which another command trains")
                    continue
            work.say(f"{task}, {row.title}, seed {seed}")
            try:
                if reads_frames(row, work.size):
                    results.append(_train_from_frames(work, task, row, seed, resume))
                else:
                    results.append(_train_from_maps(work, cache, task, row, seed, resume))
                    _measure_distance(work, cache, task, row, seed)
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
            if not resume or not known(work, task, row, seed):
                return True
    return False


def known(work: Reproduction, task: str, row: PaperRow, seed: int) -> bool:
    """Return whether a run has its figures, in its folder or in an earlier record."""
    if finished(work, task, row, seed):
        return True
    earlier = work.earlier.runs(task, row.name, work.made(task, row))
    return seed in [run["seed"] for run in earlier]


def finished(work: Reproduction, task: str, row: PaperRow, seed: int) -> bool:
    """Return whether a run has its figures in its folder.

    Runs of another size that had the same name do not count, nor do those of a head that computed
    something else.
    """
    folder = work.run_folder(task, row, seed)
    if not (folder / "metrics.json").exists():
        return False
    if row_has_regions(row) and not (folder / DISTANCE).exists():
        return False
    run = runs.read_json(folder / "run.json", RUN)
    # A run from frames records its task, a run from maps that of its cache.
    trained_on = run["task"] if "task" in run else run["config"]["task"]
    recipe, recorded = recipe_of(row, work.size, task), recipe_from(run["recipe"], str(folder))
    try:
        refuse_changed_head(folder, run, "")
    except ValueError:
        return False
    started = "start" in run
    return (
        recorded == recipe
        and trained_on == {"name": task, **asdict(work.task(task))}
        and started == bool(start_of(row, work.size, task))
    )


def _start(work: Reproduction, task: str, row: PaperRow, seed: int) -> Path | None:
    """Return the finished run that a run starts from, None for random weights."""
    easier = start_of(row, work.size, task)
    return work.run_folder(easier, row, seed) if easier else None


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
        start=_start(work, task, row, seed),
    )


def _measure_distance(
    work: Reproduction, cache: Cache, task: str, row: PaperRow, seed: int
) -> None:
    """Write how far the regions of a finished run are from the digits, where it has regions."""
    if row_has_regions(row):
        folder, made = work.run_folder(task, row, seed), work.task(task)
        found = distance_of_run(folder, cache, made, work.pictures(made), SEED, "test", work.device)
        runs.write_json(folder / DISTANCE, found)


def _train_from_frames(
    work: Reproduction, task: str, row: PaperRow, seed: int, resume: bool
) -> Result:
    made, recipe = work.task(task), recipe_of(row, work.size, task)
    phase, videos = recipe.all_phases[0], work.videos(row)
    joint = trains_lower(row, work.size)
    # Videos that are made anew cost what repeated ones cost, and cannot be learned by heart.
    fresh_epochs = phase.train.epochs if joint else 0
    source = GeneratedFrames(
        made, work.pictures(made), videos, work.device, fresh_epochs=fresh_epochs
    )
    start = _start(work, task, row, seed)

    about = {"task": {"name": task, **asdict(made)}, "videos": videos}
    if joint:
        with hold_folder(work.folder, work.say):
            backbone, weights = work.digit_network(task)
        about |= {"weights": sha256_of(weights), "fresh_videos": True}
    else:
        reseed(torch.device("cpu"), seed, INIT, 1)
        backbone = build_backbone(row.backbone, **backbone_options(row, work.size))
    about["backbone"] = backbone.options
    if start is not None:
        about["start"] = str(start)

    dims = joint_dims(backbone, made.frames, made.size)
    network = new_network(recipe.of(phase), backbone, dims, len(made.labels), seed, phase.frames)
    # Channels last: a quarter less time on a CPU.
    network = lay_out(network, work.device)

    def begin(network: JointNetwork) -> None:
        if start is not None:
            path = checkpoint_of(start)
            work.say(take_weights(network.head, path, phase))
            network.backbone.load_state_dict(runs.load_checkpoint(path)["backbone"])

    options = FrameRunOptions(
        seed=seed,
        order_seed=SEED,
        resume=resume,
        tensorboard=False,
        checkpoint_every=CHECKPOINT_EVERY,
    )
    folder, distances = work.run_folder(task, row, seed), {}
    if row_has_regions(row):
        before = distance_of_network(network, source.videos["test"], videos["test"])
        distances |= {f"{name}_start": figure for name, figure in before.items()}
    result = train_frames(
        recipe,
        folder,
        network,
        source,
        made.labels,
        options,
        say=work.say,
        about=about,
        begin=begin,
    )
    if row_has_regions(row):
        saved = runs.load_checkpoint(checkpoint_of(folder))
        network.load_state_dict(JointNetwork.join(saved["state"], saved["backbone"]))
        distances |= distance_of_network(network, source.videos["test"], videos["test"])
        runs.write_json(folder / DISTANCE, distances)
    return result
