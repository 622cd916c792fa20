"""Training from frames: one phase of one run, with any source of frames.

    network = new_network(recipe, backbone, dims, classes=5, seed=0,
    frames=Frames(train_from="stem", frozen_bn=False)) result = train_frames(recipe,
    "runs/digits-0", network, source, classes, seed=0)

`source` is a `heads.finetuning.frame_training.FrameSource`: it says which videos each split has and
hands out their frames. The run folder is that of heads/training/train.py (heads/runs/run_files.py
lists the files), and what a run computes depends on the same things. Its checkpoints hold the
weights of the backbone too, under "backbone", as `vidgraph extract --weights` reads them; they are
written every `checkpoint_every` mini-batches, and a run that was killed goes on from the last one,
inside an epoch too.
"""

import math
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.config.recipe import PLAIN, Recipe
from heads.config.recipe_tables import Phase
from heads.data.classes import mirrored, swap_table
from heads.data.splits import SplitViews
from heads.evaluation.head_predictor import Predictions, compute_figures, write_predictions
from heads.finetuning.data_parallel import ProcessGroup
from heads.finetuning.frame_predictions import FramePredictor
from heads.finetuning.frame_training import (
    FrameRunOptions,
    FramesLearner,
    FrameSource,
    training_of_all_weights,
)
from heads.finetuning.joint_network import JointNetwork
from heads.interface.clips import Clips
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, lock_folders
from heads.runs.run_writer import RunWriter, epoch_line
from heads.runs.start_weights import default_checkpoint
from heads.training.study import SPLITS, Result
from pipeline.workers.waiting import PrintLine


class FramesRun:
    """One phase of a run that reads frames. `network` is on its device; `about` tells runs apart
    (see heads/training/training_run.py), and `reading` what else the phase's result depends on. ValueError
    for what the recipe and the splits do not agree on.
    """

    def __init__(
        self,
        recipe: Recipe,
        phase: Phase,
        folder: Path,
        network: JointNetwork,
        source: FrameSource,
        classes: tuple[str, ...],
        how: FrameRunOptions,
        world: ProcessGroup,
        say: PrintLine,
        about: Mapping[str, Any] | None = None,
        reading: Mapping[str, Any] | None = None,
        noted: Mapping[str, Any] | None = None,
    ):
        self.whole, self.phase, self.recipe = recipe, phase, recipe.of(phase)
        self.folder, self.network, self.source, self.classes = (
            Path(folder),
            network,
            source,
            classes,
        )
        self.how, self.world, self.say = how, world, say if world.first else lambda line: None
        self.order_seed = how.seed if how.order_seed is None else how.order_seed
        shared = {
            "recipe": recipe.as_dict(),
            "seed": how.seed,
            "order_seed": self.order_seed,
            "precision": how.precision,
        }
        self.about = runs.with_plugins({**shared, "classes": list(classes), **(about or {})})
        self.reading, self.noted = dict(reading or {}), dict(noted or {})
        part = source.parts["train"]
        self.batch = self.recipe.train.batch
        training = training_of_all_weights(self.recipe.train, phase.frames)
        if how.accumulate:
            training = replace(training, accumulate=how.accumulate)
        if training.distil.teachers:
            raise ValueError(
                f"phase {phase.name}: train.distil needs a phase that reads the cache; distil "
                f"there first"
            )
        data = self.recipe.data
        weights = (
            torch.from_numpy(part.class_weights(len(classes))) if data.balance == "loss" else None
        )
        network.train()
        steps = math.ceil(len(part) / self.batch)
        self.learner = FramesLearner(network, training, data, steps, how, world, weights)
        self.device = self.learner.device
        self.swap = torch.from_numpy(swap_table(classes, data)).to(self.device)
        self.epochs_before = self.steps_before = 0
        self.seconds = self.waiting = 0.0
        self.partial = _nothing()
        self.missing: dict[str, set[str]] = {split: set() for split in SPLITS}
        self.files = RunWriter(self.folder, recipe, self.say)

    # --- the folder

    def finished(self) -> Result | None:
        """The result of this phase or a later one, if the folder has it; ValueError if it holds
        another run.
        """
        if (there := self.files.finished()) is None:
            return None
        metrics, record = there
        if self.files.after(metrics["phase"], self.phase.name) < 0:
            return None
        runs.require_same_run(self.folder, record, {**self.about, "frames": self.reading})
        return Result(**{**metrics, "folder": self.folder})

    def enter(self) -> None:
        """Takes the folder, for all processes of this run; Busy in each of them where another run
        is at work there.
        """
        held = lock_folders([self.folder], self.say)[0] if self.world.first else None
        against = self.world.union({"": str(held)} if isinstance(held, Exception) else {})
        if held is not None:
            self.files.enter(held)
        elif against:
            raise FolderBusy(against[""])

    def open(self) -> bool:
        """Makes the run folder, or continues what is in it; whether this phase was begun before."""
        self.files.make()
        saved = self.files.last() if self.how.resume else None
        continued = saved is not None and saved["phase"] == self.phase.name
        if saved is not None:
            self.files.after(saved["phase"], self.phase.name)
            asked = (
                self.about
                if continued
                else {**self.about, "precision": saved["about"]["precision"]}
            )
            runs.require_same_run(
                self.folder, saved["about"], asked, "" if continued else f"--start {self.folder}"
            )
            for name in ("epochs_before", "steps_before", "seconds", "waiting"):
                setattr(self, name, saved[name])
        if continued:
            for split, clips in saved.get(
                "missing", {}
            ).items():  # not a phase before's: videos may have been mended since
                self.missing[split] |= set(clips)
            runs.require_same_run(self.folder, saved["frames"], self.reading)
            self.partial = saved["partial"]
            self.learner.load(
                {**saved, "state": JointNetwork.join(saved["state"], saved["backbone"])}
            )
            self.say(
                f"{self.folder}: continued after epoch {self.epochs}, mini-batch {self._inside}"
            )
        elif saved is not None:
            self.epochs_before += saved["progress"]["epoch"]
            self.steps_before += saved["progress"]["step"]
        else:
            self.files.refuse_to_lose([self.phase], "start" in self.about)
        self.world.wait()  # everybody has read what is now changed
        if self.world.first:
            self._write_beginnings(saved is None, continued)
        self.world.wait()
        return continued

    def _write_beginnings(self, anew: bool, continued: bool) -> None:
        if anew:
            self.files.remove("last", *(phase.name for phase in self.whole.all_phases))
        if not continued:
            self.files.remove("best")
        machine = {
            "device": str(self.device),
            "processes": self.world.size,
            "versions": runs.versions(),
        }
        record = {**self.about, "frames": self.reading, **self.noted, **machine}
        self.files.begin(record, self.epochs, self.steps, self.how.tensorboard)

    @property
    def epochs(self) -> int:
        """Whole epochs that were trained, over all phases."""
        return self.epochs_before + self.learner.progress.epoch

    @property
    def steps(self) -> int:
        """Mini-batches that were taken, over all phases."""
        return self.steps_before + self.learner.progress.step

    @property
    def _inside(self) -> int:
        """Mini-batches of the present epoch that were taken."""
        progress = self.learner.progress
        return progress.step - progress.epoch * self.learner.steps_per_epoch

    def save(self) -> None:
        """Writes last.pt: all that continuing needs."""
        if not self.world.first:
            return
        state = self.learner.state()
        head, backbone = self.network.split(state["state"])
        spent = {
            name: getattr(self, name)
            for name in ("epochs_before", "steps_before", "seconds", "waiting", "partial")
        }
        missing = {split: sorted(clips) for split, clips in self.missing.items()}
        mine = {
            "about": self.about,
            "frames": self.reading,
            "phase": self.phase.name,
            "missing": missing,
        }
        runs.save_checkpoint(
            self.folder / "last.pt", {**mine, **spent, **state, "state": head, "backbone": backbone}
        )

    # --- training

    def fit(self) -> None:
        """Trains to the end of the phase."""
        while not self.learner.done:
            self._epoch()
            with self.learner.averaged():
                part = self.source.parts.get("val")
                found = {}
                if part is not None and part.targets is not None:
                    predictions, part = self.predict("val")
                    found = compute_figures(predictions, part, self.recipe)[0]
                    self.seconds += predictions.seconds
            self._end_epoch(found)
        if self.world.first:
            self.files.keep(self.phase.name)
        self.world.wait()

    def _epoch(self) -> None:
        """What is left of an epoch."""
        part, learner = self.source.parts["train"], self.learner
        rows, video, _ = part.draw(self.order_seed, self.epochs)
        places = [
            np.arange(start, min(start + self.batch, len(rows)))
            for start in range(0, len(rows), self.batch)
        ]
        places = places[self._inside :]
        mine = [self.world.share(place) for place in places]
        self.network.train()
        asked = time.monotonic()
        batches = self.source.batches("train", [rows[place] for place in mine], self.epochs)
        for place, own, pieces in zip(places, mine, batches, strict=False):
            begun = time.monotonic()
            missing = set(range(len(own))) - {int(k) for _, at in pieces for k in at}
            self._lost("train", (part.clips[video[own[k]]] for k in missing))
            given = [(clips, self._targets(video[own[at]], clips)) for clips, at in pieces]
            loss = learner.step_share(given, len(place))
            ended = time.monotonic()
            partial = self.partial
            partial["loss"] += loss * len(place)
            partial["seen"] += len(place)
            partial["waiting"] += begun - asked
            partial["seconds"] += ended - asked
            if learner.done:
                break
            if (
                self._inside % self.how.checkpoint_every == 0
                and self._inside < learner.steps_per_epoch
            ):
                self.save()
            asked = time.monotonic()
        batches.close()

    def _targets(self, videos: np.ndarray, clips: Clips) -> Tensor:
        target = torch.from_numpy(self.source.parts["train"].targets[videos]).to(self.device)
        return target if clips.flip is None else mirrored(target, clips.flip, self.swap)

    def _lost(self, split: str, clips: Iterable[str]) -> None:
        """Says once of each clip that it could not be had."""
        for clip in sorted(set(clips) - self.missing[split]):
            self.missing[split].add(clip)
            self.say(
                f"split {split}: clip {clip} cannot be decoded and is left out; `vidgraph check` "
                f"says why"
            )

    def _end_epoch(self, found: Mapping[str, float]) -> None:
        """Counts the epoch: log and checkpoints."""
        self._lost("train", self.world.union(dict.fromkeys(self.missing["train"])))
        learner, partial = self.learner, self.partial
        begun = learner.progress.epoch * learner.steps_per_epoch
        lr = learner.training.lr_at(begun, learner.steps_per_epoch) * learner.progress.factor
        better = learner.end_epoch(
            found.get("map", found.get("top1", math.nan)), found.get("loss", math.nan)
        )
        self.seconds += partial["seconds"]
        self.waiting += partial["waiting"]
        line = {
            "epoch": self.epochs,
            "step": self.steps,
            "lr": lr,
            "loss": partial["loss"] / max(partial["seen"], 1),
        }
        line |= {
            "seconds": partial["seconds"],
            "waiting": partial["waiting"],
            "val": dict(found),
            "phase": self.phase.name,
        }
        self.partial = _nothing()
        if self.world.first:
            self.files.log(line)
            if better:
                self._write_weights("best", self.epochs)
            # last of all: a run killed before this repeats what came since the checkpoint before
            self.save()
            self.files.show(line)
        of = self.recipe.train.total_epochs(learner.steps_per_epoch)
        self.say(epoch_line(line, self.phase.name, learner.progress.epoch, of, better))

    def _write_weights(self, name: str, epoch: int) -> None:
        head, backbone = self.network.split(self.learner.weights())
        kept = {
            "about": self.about,
            "phase": self.phase.name,
            "epoch": epoch,
            "state": head,
            "backbone": backbone,
        }
        runs.save_checkpoint(self.folder / f"{name}.pt", kept)

    # --- evaluation

    def predict(self, split: str) -> tuple[Predictions, SplitViews]:
        """What the present weights predict for a split, and the split without the videos that could
        not be had.
        """
        reader = FramePredictor(
            self.network,
            self.source,
            self.recipe,
            len(self.classes),
            self.how.precision,
            self.world,
        )
        predictions, part, lost = reader.predict(split)
        self._lost(split, lost)
        return predictions, part

    def finish(self) -> Result:
        """Evaluates the chosen weights on val and test; metrics.json last, the mark of a finished
        phase.
        """
        chosen = default_checkpoint(self.folder)
        saved = runs.load_checkpoint(self.folder / f"{chosen}.pt")
        self.network.load_state_dict(JointNetwork.join(saved["state"], saved["backbone"]))
        metrics, excluded, spent = {}, {}, self.seconds
        for split in ("val", "test"):
            if split in self.source.parts:
                predictions, part = self.predict(split)
                spent += predictions.seconds
                metrics[split] = compute_figures(predictions, part, self.recipe)[0]
                if self.world.first:
                    write_predictions(
                        self.folder, split, predictions, part, self.recipe, self.classes
                    )
        for split, part in self.source.parts.items():
            left = {
                "failed": len(part.failed),
                "absent": len(part.absent),
                "other": len(part.others),
            }
            excluded[split] = {**left, "undecoded": len(self.missing[split])}
        progress = self.learner.progress
        best = progress.best_epoch if chosen == "best" else progress.epoch
        result = Result(
            self.folder,
            metrics,
            epochs=self.epochs,
            best_epoch=self.epochs_before + best,
            parameters=self.network.size,
            seconds=spent,
            waiting=self.waiting,
            excluded=excluded,
            phase=self.phase.name,
        )
        if self.world.first:
            runs.write_json(
                self.folder / "metrics.json", {**asdict(result), "folder": self.folder.name}
            )
        self.world.wait()
        return result

    def close(self) -> None:
        """Leaves the folder."""
        self.files.close()


def train_frames(
    recipe: Recipe,
    folder: Path | str,
    network: JointNetwork,
    source: FrameSource,
    classes: tuple[str, ...],
    how: FrameRunOptions | None = None,
    *,
    phase: str = "",
    world: ProcessGroup | None = None,
    say: PrintLine = print,
    about: Mapping[str, Any] | None = None,
    reading: Mapping[str, Any] | None = None,
    noted: Mapping[str, Any] | None = None,
    begin: Callable[[JointNetwork], None] = lambda network: None,
) -> Result:
    """Trains one phase of a recipe (by default its first) from frames and evaluates it on val and
    test; see the top of this file. `noted` goes into run.json.

    `begin(network)` is called before the first mini-batch of a phase, not where one is continued.
    Busy where another process trains in the folder.
    """
    run = FramesRun(
        recipe,
        recipe.phase(phase or recipe.all_phases[0].name or PLAIN),
        Path(folder),
        network,
        source,
        classes,
        how or FrameRunOptions(),
        world or ProcessGroup(),
        say,
        about,
        reading,
        noted,
    )
    if run.how.resume and (finished := run.finished()):
        run.say(f"{folder}: finished before, read back")
        return finished
    try:
        run.enter()
        if not run.open():
            begin(network)
        if run.how.checkpointing:
            network.checkpointed()
        run.fit()
        return run.finish()
    except Exception as error:
        if (reason := run.files.reason(error)) is not error:
            raise reason from None
        raise
    finally:
        run.close()


def _nothing() -> dict[str, float]:
    """The sums over an epoch, at its start."""
    return {"loss": 0.0, "seen": 0, "seconds": 0.0, "waiting": 0.0}
