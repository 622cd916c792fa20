"""The run folder and the loop of one phase that trains from frames.

heads/finetuning/end_to_end.py says what a run is. This module continues from last.pt, trains
epoch by epoch, and evaluates the chosen weights.
"""

import math
import time
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from heads.config.recipe import Recipe
from heads.config.recipe_tables import Phase
from heads.data.classes import mirrored, swap_table
from heads.data.device_lane import DeviceLane
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
from heads.finetuning.missing_clips import MissingClips
from heads.interface.clips import Clips
from heads.runs import run_files as runs
from heads.runs.folder_lock import FolderBusy, lock_folders
from heads.runs.run_writer import RunWriter, epoch_line
from heads.runs.start_weights import default_checkpoint
from heads.training.run_description import describe_run, excluded_clips, write_result
from heads.training.study import Result
from pipeline.workers.waiting import PrintLine, print_nothing

# What last.pt holds of a run beside the learner's state.
COUNTERS = ("epochs_before", "steps_before", "seconds", "waiting")


class FramesRun:
    """One phase of a run that reads frames.

    Args:
        recipe: the whole recipe.
        phase: the phase to train.
        folder: of the run.
        network: on its device.
        source: of the frames.
        classes: the K class names.
        options: how the run works.
        processes: those that train together.
        say: prints a line, in the first process only.
        about: what tells this run from others, beside recipe, seeds and classes.
        conditions: what else the phase's result depends on; stored as "frames".
        notes: further entries of run.json.

    Raises:
        ValueError: recipe and splits do not agree.
    """

    def __init__(
        self,
        recipe: Recipe,
        phase: Phase,
        folder: Path,
        network: JointNetwork,
        source: FrameSource,
        classes: tuple[str, ...],
        options: FrameRunOptions,
        processes: ProcessGroup,
        say: PrintLine,
        about: Mapping[str, Any] | None = None,
        conditions: Mapping[str, Any] | None = None,
        notes: Mapping[str, Any] | None = None,
    ):
        self.whole, self.phase, self.recipe = recipe, phase, recipe.of(phase)
        self.folder = Path(folder)
        self.network, self.source, self.classes = network, source, classes
        self.options, self.processes = options, processes
        self.say = say if processes.first else print_nothing
        self.order_seed = options.seed if options.order_seed is None else options.order_seed
        self.about = describe_run(
            recipe, options.seed, self.order_seed, options.precision, classes, about or {}
        )
        self.conditions, self.notes = dict(conditions or {}), dict(notes or {})
        # Runs of versions that froze these norms are not continued.
        if network.trained_norms:
            self.conditions["trained_norms"] = list(network.trained_norms)

        training = training_of_all_weights(self.recipe.train, phase.frames)
        if options.accumulate:
            training = replace(training, accumulate=options.accumulate)
        if training.distil.teachers:
            raise ValueError(
                f"phase {phase.name}: train.distil needs a phase that reads the cache; distil "
                "there first"
            )

        part, data = source.parts["train"], self.recipe.data
        weights = None
        if data.balance == "loss":
            weights = torch.from_numpy(part.class_weights(len(classes)))
        self.batch = self.recipe.train.batch
        steps = math.ceil(len(part) / self.batch)
        network.train()
        self.learner = FramesLearner(network, training, data, steps, options, processes, weights)
        self.device = self.learner.device
        self.lane = DeviceLane(self.device)
        self.swap = torch.from_numpy(swap_table(classes, data)).to(self.device)

        self.epochs_before = self.steps_before = 0
        self.seconds = self.waiting = 0.0
        self.partial = _new_sums()
        self.missing = MissingClips(self.say)
        self.files = RunWriter(self.folder, recipe, self.say)

    # --- the folder

    def finished(self) -> Result | None:
        """Return the result of this phase or a later one, if the folder has it.

        Raises:
            ValueError: the folder holds another run.
        """
        metrics, record = self.files.finished() or (None, None)
        if metrics is None or self.files.after(metrics["phase"], self.phase.name) < 0:
            return None
        runs.require_same_run(self.folder, record, {**self.about, "frames": self.conditions})
        return Result(**{**metrics, "folder": self.folder})

    def enter(self) -> None:
        """Lock the folder, for all processes of this run.

        Raises:
            FolderBusy: another run is at work there; raised in every process.
        """
        # The first process takes the lock; the others learn from it whether that failed.
        lock = lock_folders([self.folder], self.say)[0] if self.processes.first else None
        refused = {"": str(lock)} if isinstance(lock, Exception) else {}
        refused = self.processes.merge(refused)
        if lock is not None:
            self.files.enter(lock)
        elif refused:
            raise FolderBusy(refused[""])

    def open(self) -> bool:
        """Make the run folder, or continue what is in it.

        Returns:
            Whether an earlier process has started this phase.
        """
        self.files.make()
        saved = self.files.last() if self.options.resume else None
        continued = saved is not None and saved["phase"] == self.phase.name
        if saved is not None:
            self._read_run(saved, continued)
        if continued:
            self._continue_phase(saved)
        elif saved is not None:
            self.epochs_before += saved["progress"]["epoch"]
            self.steps_before += saved["progress"]["step"]
        else:
            self.files.refuse_to_lose([self.phase], "start" in self.about)

        # Every process must have read the files that the first one now changes.
        self.processes.barrier()
        if self.processes.first:
            self._start_files(new=saved is None, continued=continued)
        self.processes.barrier()
        return continued

    def _read_run(self, saved: Mapping[str, Any], continued: bool) -> None:
        """Check that last.pt is of this run, and take its counters."""
        self.files.after(saved["phase"], self.phase.name)
        about, hint = self.about, ""
        if not continued:
            # The phase before may have had another precision.
            about = {**about, "precision": saved["about"]["precision"]}
            hint = f"--start {self.folder}"
        runs.require_same_run(self.folder, saved["about"], about, hint)
        for name in COUNTERS:
            setattr(self, name, saved[name])

    def _continue_phase(self, saved: Mapping[str, Any]) -> None:
        """Take the state of this phase from last.pt."""
        # Only this phase's: videos that a phase before could not decode may be repaired since.
        self.missing.load(saved.get("missing", {}))
        runs.require_same_run(self.folder, saved["frames"], self.conditions)
        self.partial = saved["partial"]
        state = JointNetwork.join(saved["state"], saved["backbone"])
        self.learner.load({**saved, "state": state})
        self.say(
            f"{self.folder}: continued after epoch {self.epochs}, mini-batch {self._epoch_steps}"
        )

    def _start_files(self, new: bool, continued: bool) -> None:
        """Remove what this phase replaces, and write run.json."""
        if new:
            self.files.remove("last", *[phase.name for phase in self.whole.all_phases])
        if not continued:
            self.files.remove("best")
        record = {
            **self.about,
            "frames": self.conditions,
            **self.notes,
            "device": str(self.device),
            "processes": self.processes.size,
            "versions": runs.versions(),
        }
        self.files.begin(record, self.epochs, self.steps, self.options.tensorboard)

    @property
    def epochs(self) -> int:
        """Whole epochs trained, over all phases."""
        return self.epochs_before + self.learner.progress.epoch

    @property
    def steps(self) -> int:
        """Mini-batches trained, over all phases."""
        return self.steps_before + self.learner.progress.step

    @property
    def _epoch_steps(self) -> int:
        """Mini-batches trained in the present epoch."""
        progress = self.learner.progress
        return progress.step - progress.epoch * self.learner.steps_per_epoch

    def save(self) -> None:
        """Write last.pt: all that continuing needs."""
        if not self.processes.first:
            return
        state = self.learner.state()
        head, backbone = self.network.split(state["state"])
        checkpoint = {
            "about": self.about,
            "frames": self.conditions,
            "phase": self.phase.name,
            "missing": self.missing.state(),
            **{name: getattr(self, name) for name in COUNTERS},
            "partial": self.partial,
            **state,
            "state": head,
            "backbone": backbone,
        }
        runs.save_checkpoint(self.folder / "last.pt", checkpoint)

    # --- training

    def fit(self) -> None:
        """Train to the end of the phase."""
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
        if self.processes.first:
            self.files.keep(self.phase)
        self.processes.barrier()

    def _epoch(self) -> None:
        """Train what is left of an epoch."""
        part, learner, partial = self.source.parts["train"], self.learner, self.partial
        # The order follows from the seed and the epoch, so a continued epoch skips what is done.
        rows, video, _ = part.draw(self.order_seed, self.epochs)
        batches = []
        for start in range(0, len(rows), self.batch):
            batches.append(np.arange(start, min(start + self.batch, len(rows))))
        batches = batches[self._epoch_steps :]

        parts_here = [self.processes.part_of(batch) for batch in batches]
        self.network.train()
        asked = time.monotonic()
        found = self.source.batches("train", [rows[batch] for batch in parts_here], self.epochs)
        for batch, positions_here, pieces in zip(batches, parts_here, found, strict=False):
            received = time.monotonic()
            missing = set(range(len(positions_here)))
            given = []
            for clips, positions in pieces:
                missing -= set(positions.tolist())
                given.append((clips, self._targets(video[positions_here[positions]], clips)))
            self.missing.report("train", [part.clips[video[positions_here[k]]] for k in missing])

            loss = learner.step_part(given, len(batch))
            partial["loss"] += loss * len(batch)
            partial["seen"] += len(batch)
            partial["waiting"] += received - asked
            partial["seconds"] += time.monotonic() - asked
            # A number of steps may end the training inside an epoch.
            if learner.done:
                break
            # The epoch's end writes a checkpoint anyway.
            inside = self._epoch_steps < learner.steps_per_epoch
            if inside and self._epoch_steps % self.options.checkpoint_every == 0:
                self._settle()
                self.save()
            asked = time.monotonic()
        found.close()
        self._settle()

    def _settle(self) -> None:
        """Wait for the mini-batches so far, in all processes; LossNotFinite if one diverged."""
        started = time.monotonic()
        self.learner.settle()
        self.partial["loss"] = float(self.partial["loss"])
        self.partial["seconds"] += time.monotonic() - started

    def _targets(self, videos: np.ndarray, clips: Clips) -> Tensor:
        """The targets of these videos; mirrored views may have another label."""
        target = self.lane.put(self.source.parts["train"].targets[videos])
        return target if clips.flip is None else mirrored(target, clips.flip, self.swap)

    def _end_epoch(self, found: Mapping[str, float]) -> None:
        """Count the epoch; write the log and checkpoints."""
        # The first process reports the clips that others could not decode.
        everywhere = self.processes.merge(dict.fromkeys(self.missing.of["train"]))
        self.missing.report("train", everywhere)

        learner, partial = self.learner, self.partial
        first_step = learner.progress.epoch * learner.steps_per_epoch
        lr = learner.training.lr_at(first_step, learner.steps_per_epoch) * learner.progress.factor
        # Without labels of val both are NaN, and no epoch is the best.
        figure = found.get("map", found.get("top1", math.nan))
        better = learner.end_epoch(figure, found.get("loss", math.nan))
        self.seconds += partial["seconds"]
        self.waiting += partial["waiting"]
        line = {
            "epoch": self.epochs,
            "step": self.steps,
            "lr": lr,
            "loss": partial["loss"] / max(partial["seen"], 1),
            "seconds": partial["seconds"],
            "waiting": partial["waiting"],
            "val": dict(found),
            "phase": self.phase.name,
        }
        self.partial = _new_sums()

        if self.processes.first:
            self.files.log(line)
            if better:
                self._write_weights("best", self.epochs)
            # last.pt comes last: a run killed before this repeats what came since the previous one.
            self.save()
            self.files.show(line)
        total = self.recipe.train.total_epochs(learner.steps_per_epoch)
        self.say(epoch_line(line, self.phase.name, learner.progress.epoch, total, better))

    def _write_weights(self, name: str, epoch: int) -> None:
        """Write a checkpoint of weights alone."""
        head, backbone = self.network.split(self.learner.weights())
        checkpoint = {
            "about": self.about,
            "phase": self.phase.name,
            "epoch": epoch,
            "state": head,
            "backbone": backbone,
        }
        runs.save_checkpoint(self.folder / f"{name}.pt", checkpoint)

    # --- evaluation

    def predict(self, split: str) -> tuple[Predictions, SplitViews]:
        """Predict a split with the present weights.

        Returns:
            (predictions, the split without videos that could not be decoded).
        """
        predictor = FramePredictor(
            self.network,
            self.source,
            self.recipe,
            len(self.classes),
            self.options.precision,
            self.processes,
        )
        predictions, part, lost = predictor.predict(split)
        self.missing.report(split, lost)
        return predictions, part

    def finish(self) -> Result:
        """Evaluate the chosen weights on val and test.

        metrics.json is written last: it marks a finished phase.
        """
        chosen = default_checkpoint(self.folder, self.phase.name)
        saved = runs.load_checkpoint(self.folder / f"{chosen}.pt")
        self.network.load_state_dict(JointNetwork.join(saved["state"], saved["backbone"]))

        metrics, seconds = {}, self.seconds
        for split in ("val", "test"):
            if split not in self.source.parts:
                continue
            predictions, part = self.predict(split)
            seconds += predictions.seconds
            metrics[split] = compute_figures(predictions, part, self.recipe)[0]
            if self.processes.first:
                write_predictions(self.folder, split, predictions, part, self.recipe, self.classes)

        progress = self.learner.progress
        best_epoch = progress.best_epoch if chosen == "best" else progress.epoch
        result = Result(
            self.folder,
            metrics,
            epochs=self.epochs,
            best_epoch=self.epochs_before + best_epoch,
            parameters=self.network.size,
            seconds=seconds,
            waiting=self.waiting,
            excluded=excluded_clips(self.source.parts, self.missing.of),
            phase=self.phase.name,
        )
        if self.processes.first:
            write_result(result)
        self.processes.barrier()
        return result

    def close(self) -> None:
        """Unlock the folder."""
        self.files.close()


def _new_sums() -> dict[str, float]:
    """The sums over an epoch, at its start."""
    return {"loss": 0.0, "seen": 0, "seconds": 0.0, "waiting": 0.0}
