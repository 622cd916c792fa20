"""One training run at work: its folder, its phases and its learner.

heads/training/train.py drives it: `prepare`, `open`, then per epoch `draw`, `learn` for each
mini-batch and `end_epoch`, at last `restore` and `finish`. heads/runs/run_files.py lists the files
that it leaves behind.

A recipe of several phases is trained in one folder. last.pt and best.pt belong to the phase that is
being trained. A finished phase leaves PHASE.pt, which the next phase and its students read. Epochs
are counted over all phases.
"""

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from heads.config.member import Member
from heads.data.classes import mirrored, swap_table
from heads.data.device_lane import DeviceLane
from heads.data.feature_store import ReadRequest
from heads.evaluation.head_predictor import (
    HeadPredictor,
    Predictions,
    compute_figures,
    fields_of,
    write_predictions,
)
from heads.evaluation.saved_heads import require_same_backbone
from heads.interface.clips import Clips
from heads.runs import run_files
from heads.runs.manifest_record import warn_if_seen
from heads.runs.run_writer import RunWriter, epoch_line
from heads.runs.start_weights import (
    checkpoint_of,
    default_checkpoint,
    other_classifier,
    take_weights,
)
from heads.training.decisions import Decisions
from heads.training.head_builder import HeadBuilder
from heads.training.learner import Learner
from heads.training.loss_watch import Number
from heads.training.phase_start import previous_checkpoint, trained_teachers
from heads.training.run_description import (
    cache_record,
    describe_run,
    excluded_clips,
    write_result,
)
from heads.training.study import Result, Study
from pipeline.cache.asked import extraction_record
from pipeline.workers.waiting import PrintLine


@dataclass
class EpochStats:
    """What one epoch of one run cost.

    Attributes:
        loss: mean loss over its clips; while it goes on, the sum.
        seconds: its own steps and waiting for data.
        waiting: the part of `seconds` that was waiting for data.
    """

    loss: Number = 0.0
    seconds: float = 0.0
    waiting: float = 0.0


class TrainingRun:
    """A member at work.

    Args:
        member: what to train.
        study: what all members share.
        say: prints one line for a person.

    Attributes:
        error: the exception that ended the run; None while it is well.
        parts: split -> its views and labels (after `prepare`).
        fields: split -> the cached fields that the run reads (after `prepare`).
        learner: the head in training (after `open`); None once the run has failed.

    Raises:
        ValueError: recipe, manifest and cache do not fit together; nothing was written.
    """

    def __init__(self, member: Member, study: Study, say: PrintLine):
        self.member, self.study, self.say = member, study, say
        self.folder, self.recipe, self.seed = Path(member.folder), member.recipe, member.seed
        self.phases = self.recipe.cached(member.phase)
        self.order_seed = self.seed if study.order_seed is None else study.order_seed
        self.classes = study.classes(self.recipe)
        self.heads = HeadBuilder(study, self.recipe, self.classes, self.seed, self.folder)
        self.about = self._about()
        # The number of the present phase, and what earlier phases have trained.
        self.number = self.epochs_before = self.steps_before = 0
        self.seconds = self.waiting = 0.0
        self.files = RunWriter(self.folder, self.recipe, say)
        self.learner: Learner | None = None
        self.stats = EpochStats()
        self.error: Exception | None = None
        self.over = False

    # --- before training

    def prepare(self) -> None:
        """Find the splits and the fields to read, and build every head once to check it."""
        study = self.study
        self.parts = study.split(self.recipe, self.classes)
        self.swap = torch.from_numpy(swap_table(self.classes, self.recipe.data)).to(study.device)
        self.fields = self.heads.fields(self.phases, self.parts)

        if self.member.start is not None:
            start = run_files.load_checkpoint(checkpoint_of(self.member.start))
            require_same_backbone(start["about"]["config"], study.cache)
        elif self.phases[0].start == "previous" and not (self.folder / "last.pt").exists():
            # A missing start is an error now, before there is a folder.
            self.phase = self.phases[0]
            self._start_checkpoint()

    def _about(self) -> dict[str, Any]:
        """What tells this run from others."""
        study = self.study
        more = {
            "dims": study.dims.as_dict(),
            "fingerprint": study.cache.fingerprint,
            "config": study.cache.config,
            "manifest": study.manifest_record,
        }
        if self.member.start is not None:
            more["start"] = str(self.member.start)
        return describe_run(
            self.recipe, self.seed, self.order_seed, study.precision, self.classes, more
        )

    def finished(self) -> Result | None:
        """Read the result of this run from its folder, if it is finished there.

        Raises:
            ValueError: the folder holds another run.
        """
        stored = self.files.finished()
        if stored is None:
            return None
        metrics, record = stored
        run_files.require_same_run(self.folder, record, self.about)
        self._say_without_manifest(record)
        if self.files.after(metrics["phase"], self.phases[-1].name) < 0:
            return None
        return Result(**{**metrics, "folder": self.folder})

    def _say_without_manifest(self, record: Mapping[str, Any]) -> None:
        """Print a line if the run's record does not say which labels it was trained with."""
        if "manifest" not in record:
            self.say(
                f"{self.folder}: an earlier version made this run and recorded no manifest; "
                f"assuming it was {self.study.manifest.path}"
            )

    def open(self, resume: bool, tensorboard: bool) -> None:
        """Make the run folder, or continue the run in it.

        Args:
            resume: continue from last.pt; False starts over.
            tensorboard: also write curves for TensorBoard.
        """
        self.files.make()
        names = [phase.name for phase in self.phases]
        saved = self.files.last() if resume else None
        continued = saved is not None and saved["phase"] in names

        if saved is None:
            self.files.refuse_to_lose(self.phases, self.member.start is not None)
            self.files.remove("last", "best", *(phase.name for phase in self.recipe.phases))
        else:
            start = "" if continued else f"--start {self.folder}"
            run_files.require_same_run(self.folder, saved["about"], self.about, start)
            self._say_without_manifest(saved["about"])
            self.files.after(saved["phase"], self.phases[-1].name)
            self.epochs_before, self.steps_before = saved["epochs_before"], saved["steps_before"]
            self.seconds, self.waiting = saved["seconds"], saved["waiting"]
            if not continued:
                # --phase: an earlier call trained the phase before this one.
                self.epochs_before += saved["progress"]["epoch"]
                self.steps_before += saved["progress"]["step"]
                self.files.remove("best")

        if continued:
            self._begin_phase(names.index(saved["phase"]), saved)
        else:
            self._begin_phase(0, None)
        if saved is not None:
            self.say(f"{self.folder}: continued after epoch {self.epochs}")

        record = {
            **self.about,
            **cache_record(self.study.cache),
            "device": str(self.study.device),
            "versions": run_files.versions(),
        }
        # So that `vidgraph predict` needs no cache.
        extraction = extraction_record(self.study.cache.path)
        if extraction is not None:
            record["extraction"] = extraction
        self.files.begin(record, self.epochs, self.steps, tensorboard)
        self._advance()

    def _begin_phase(self, number: int, saved: Mapping[str, Any] | None) -> None:
        """Start phase `number`, or continue it from `saved`, the content of last.pt."""
        self.number, self.phase = number, self.phases[number]
        self.phase_recipe = recipe = self.recipe.of(self.phase)
        head, part = self.heads.new(recipe), self.parts["train"]
        # A phase that continues has taken its start weights before.
        given = number == 0 and self.member.start is not None
        if saved is None and (given or self.phase.start == "previous"):
            start = self._start_checkpoint()
            other = other_classifier(start, head, recipe.head, self.study.dims, self.classes)
            self.say(take_weights(head, start, self.phase, other))
            self._warn_if_seen(start)

        weights = None
        if recipe.data.balance == "loss":
            weights = torch.from_numpy(part.class_weights(len(self.classes)))
        teachers, taught_by = trained_teachers(self.heads, head, recipe)
        if saved is None:
            for path in taught_by:
                self._warn_if_seen(path)

        self.learner = Learner(
            head,
            recipe.train,
            recipe.data.target,
            math.ceil(len(part) / recipe.train.batch),
            self.seed,
            self.study.precision,
            weights,
            teachers,
        )
        self.decisions = Decisions()  # of the last validation of this phase
        if saved is not None:
            self.learner.load(saved)
            self.decisions.load(saved)

        reads = list(fields_of(head, self.study.cache, part, recipe))
        if teachers is not None:
            for teacher in teachers.heads.values():
                reads += fields_of(teacher, self.study.cache, part, recipe)
        self.reads = tuple(dict.fromkeys(reads))

    def _warn_if_seen(self, weights: Path) -> None:
        """Warn if weights of another run were trained on clips that this run evaluates on."""
        record = run_files.load_checkpoint(weights)["about"].get("manifest")
        warn_if_seen(weights, record, self.study.manifest, self.say)

    def _start_checkpoint(self) -> Path:
        """Return the checkpoint that the present phase starts from."""
        if self.number == 0 and self.member.start is not None:
            return checkpoint_of(self.member.start)
        return previous_checkpoint(self.folder, self.recipe, self.phase)

    # --- one epoch

    @property
    def epochs(self) -> int:
        """Whole epochs that were trained, over all phases."""
        return self.epochs_before + (self.learner.progress.epoch if self.learner else 0)

    @property
    def steps(self) -> int:
        """Mini-batches that were trained, over all phases."""
        return self.steps_before + (self.learner.progress.step if self.learner else 0)

    @property
    def active(self) -> bool:
        """Whether there is more to train."""
        return self.error is None and not self.over

    @property
    def order(self) -> tuple:
        """The key of the order of views: runs of one key can share a pass."""
        data = self.recipe.data
        balanced = data.balance == "sampling"
        labels = (data.labels, data.first_labels) if balanced else ()
        return self.order_seed, data.train_views, balanced, labels

    @property
    def wants_more(self) -> bool:
        """Whether the run takes another mini-batch."""
        return self.active and not self.learner.done

    def draw(self) -> ReadRequest:
        """Draw the views of the next epoch."""
        part = self.parts["train"]
        rows, video, turns = part.draw(self.order_seed, self.epochs)
        # All targets of the epoch cross at once, so that no mini-batch waits for its own.
        self.targets = DeviceLane(self.study.device).put(part.targets[video])
        self.stats, self.clips_seen = EpochStats(), 0
        self.lr = self.learner.lr
        self.learner.head.train()
        return ReadRequest(rows, turns, self.reads, self.phase_recipe.train.batch)

    def learn(self, clips: Clips, rows: slice) -> None:
        """Train on one mini-batch.

        Args:
            clips: its B views.
            rows: where they are in the rows that were drawn.
        """
        targets = self.targets_of(clips, rows)
        self.count(self.learner.step(clips, targets), len(targets))

    def targets_of(self, clips: Clips, rows: slice) -> Tensor:
        """Return the targets of a mini-batch, on the device.

        Args:
            clips: its B views; mirrored ones may have another label.
            rows: where they are in the rows that were drawn.

        Returns:
            class ids [B], or 0 and 1 [B,K].
        """
        targets = self.targets[rows]
        return targets if clips.flip is None else mirrored(targets, clips.flip, self.swap)

    def count(self, loss: Number, clips: int) -> None:
        """Count a mini-batch that was trained.

        Args:
            loss: the mean over its clips.
            clips: how many there are.
        """
        self.stats.loss += loss * clips
        self.clips_seen += clips

    def spend(self, seconds: float) -> None:
        """Count seconds of computing in this epoch."""
        self.stats.seconds += seconds

    def end_pass(self) -> None:
        """Wait until the device has computed the epoch's mini-batches.

        Raises:
            LossNotFinite: the loss of one of them is NaN or infinite.
        """
        self.learner.losses.read()
        self.stats.loss = float(self.stats.loss)

    def predictor(self, split: str) -> HeadPredictor:
        """Return what predicts a split with the present weights."""
        head, part = self.learner.head, self.parts[split]
        return HeadPredictor(head, part, self.phase_recipe, self.study.precision)

    def predictors(self, split: str) -> dict[str, HeadPredictor]:
        """Return what predicts a split: "" is the head itself, others are the head's `forms`."""
        found = {"": self.predictor(split)}
        forms = getattr(self.learner.head, "forms", {})
        for name, form in forms.items():
            found[name] = replace(found[""], head=form)
        return found

    def end_epoch(self, waiting: float, predictions: Predictions | None) -> None:
        """Write the log and the checkpoints of an epoch; start the next phase if this one is done.

        Args:
            waiting: seconds of waiting for data in this epoch.
            predictions: those of split `val`; None without a labelled one.
        """
        learner, stats = self.learner, self.stats
        stats.loss = stats.loss / max(self.clips_seen, 1)
        stats.seconds += waiting
        stats.waiting = waiting

        val: dict[str, float] = {}
        beside: dict[str, dict[str, float]] = {}
        changed: dict[str, float] = {}
        self.seconds += stats.seconds
        self.waiting += waiting
        if predictions is not None:
            part, recipe = self.parts["val"], self.phase_recipe
            val = compute_figures(predictions, part, recipe)[0]
            self.seconds += predictions.seconds
            for form, found in predictions.beside.items():
                beside[form] = compute_figures(found, part, recipe)[0]
                self.seconds += found.seconds
            changed = self.decisions.changed(predictions.stored)
        figure = val.get("map", val.get("top1", math.nan))
        better = learner.end_epoch(figure, val.get("loss", math.nan))

        line = {
            "epoch": self.epochs,
            "step": self.steps,
            "lr": self.lr,
            **asdict(stats),
            "val": val,
        }
        if beside:
            line["beside"] = beside
        if changed:
            line["changed"] = changed
        if self.recipe.phases:
            line["phase"] = self.phase.name
        self.files.log(line)

        about = {"about": self.about, "phase": self.phase.name}
        if better:
            best = {**about, "epoch": self.epochs, "state": learner.weights()}
            run_files.save_checkpoint(self.folder / "best.pt", best)
        # last.pt comes last: a run that is killed before repeats the epoch, with its log line and
        # best.pt.
        last = {
            **about,
            "epochs_before": self.epochs_before,
            "steps_before": self.steps_before,
            "seconds": self.seconds,
            "waiting": self.waiting,
            **learner.state(),
            **self.decisions.state(),
        }
        run_files.save_checkpoint(self.folder / "last.pt", last)
        self.files.show(line)

        total = self.phase_recipe.train.total_epochs(learner.steps_per_epoch)
        self.say(epoch_line(line, line.get("phase", ""), learner.progress.epoch, total, better))
        self._advance()

    def _advance(self) -> None:
        """End the present phase if it is done, and begin the next one."""
        # A run that was stopped at the end of a phase resumes with that phase done.
        while self.learner.done and not self.over:
            if self.recipe.phases:
                self.files.keep(self.phase)
            if self.number + 1 == len(self.phases):
                self.over = True
                return

            self.epochs_before, self.steps_before = self.epochs, self.steps
            # Free the old learner's memory before the next one takes some.
            self.learner = None
            self.files.remove("best")
            self._begin_phase(self.number + 1, None)

    # --- the end

    def restore(self) -> None:
        """Load the weights that are evaluated into the head."""
        self.chosen = default_checkpoint(self.folder, self.phase.name)
        saved = run_files.load_checkpoint(self.folder / f"{self.chosen}.pt")
        self.learner.head.load_state_dict(saved["state"])

    def finish(self, predictions: Mapping[str, Predictions]) -> Result:
        """Write the predictions and figures of val and test.

        metrics.json comes last: it marks a finished run.
        """
        metrics = {}
        seconds = self.seconds
        for split, found in predictions.items():
            metrics[split] = write_predictions(
                self.folder, split, found, self.parts[split], self.phase_recipe, self.classes
            )
            seconds += found.seconds

        progress = self.learner.progress
        chosen_epoch = progress.best_epoch if self.chosen == "best" else progress.epoch
        result = Result(
            self.folder,
            metrics,
            epochs=self.epochs,
            best_epoch=self.epochs_before + chosen_epoch,
            parameters=sum(p.numel() for p in self.learner.head.parameters()),
            seconds=seconds,
            waiting=self.waiting,
            excluded=excluded_clips(self.parts),
            phase=self.phase.name,
        )
        write_result(result)
        self.close()
        return result

    def attempt(self, step: Callable, *args: Any) -> Any:
        """Call `step(*args)`; whatever it raises ends this run and no other."""
        try:
            return step(*args)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """End the run with an error and free its memory."""
        self.error, self.failed_after = self.files.reason(error), self.epochs
        # The traceback's frames hold the mini-batch and its graph.
        traceback.clear_frames(error.__traceback__)
        self.learner = None
        if self.study.device.type == "cuda":
            torch.cuda.empty_cache()
        self.close()

    def close(self) -> None:
        """Release the folder."""
        self.files.close()
