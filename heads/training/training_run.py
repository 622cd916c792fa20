"""One run of a study at work: its folder, its phases, its learner, and what it leaves behind
(heads/runs/run_files.py lists the files).

A recipe of several phases is trained in one folder. last.pt and best.pt are those of the phase that
is being trained; what a phase ends with is PHASE.pt, which the next one and its students read. The
epochs of all phases are counted through.
"""

import math
import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from heads.config.member import Member
from heads.config.recipe import Recipe, command_of
from heads.data.feature_store import ReadRequest
from heads.data.splits import how_to_add, swap_table
from heads.evaluation.evaluate import (
    HeadPredictor,
    Predictions,
    fields_of,
    compute_figures,
    require_same_backbone,
    write_predictions,
)
from heads.interface.clips import Clips, MissingFields
from heads.papers.dyreg.distillation import Teachers
from heads.runs import run_files as runs
from heads.runs.manifest_record import warn_if_seen
from heads.runs.run_writer import RunWriter, epoch_line
from heads.runs.start_weights import checkpoint_of, default_checkpoint, recipe_of, take_weights
from heads.training.learner import INIT, Learner, reseed
from heads.training.study import Result, Study
from heads.training.optimisers import Optimisers
from heads.zoo import build_head
from pipeline.workers.waiting import PrintLine


@dataclass
class EpochStats:
    """One epoch of one run: the mean loss over its clips, the seconds of its own steps and of
    waiting for data, and of these those of waiting."""

    loss: float
    seconds: float
    waiting: float


class TrainingRun:
    """A member at work, `prepare`d, then `open`ed; `error` is what ended it. ValueError for
    whatever the recipe, the manifest and the cache do not agree on, before anything is written."""

    def __init__(self, member: Member, study: Study, say: PrintLine):
        self.member, self.study, self.say = member, study, say
        self.folder, self.recipe, self.seed = Path(member.folder), member.recipe, member.seed
        self.phases = self.recipe.cached(member.phase)
        self.order_seed = self.seed if study.order_seed is None else study.order_seed
        self.classes = study.classes(self.recipe)
        self.about = self._about()
        self.number = self.epochs_before = self.steps_before = 0
        self.seconds = self.waiting = 0.0
        self.files = RunWriter(self.folder, self.recipe, say)
        self.learner: Learner | None = None
        self.stats = EpochStats(0.0, 0.0, 0.0)
        self.error: Exception | None = None
        self.over = False

    def prepare(self) -> None:
        """Finds the splits and what is read of them; builds every head once."""
        study = self.study
        self.parts = study.split(self.recipe, self.classes)
        self.swap = torch.from_numpy(swap_table(self.classes, self.recipe.data)).to(study.device)
        self.fields = self._fields()
        if self.member.start is not None:
            require_same_backbone(
                runs.load_checkpoint(checkpoint_of(self.member.start))["about"]["config"],
                study.cache,
            )
        elif self.phases[0].start == "previous" and not (self.folder / "last.pt").exists():
            self.phase = self.phases[0]
            self._before()  # refused before there is a folder

    def _about(self) -> dict[str, Any]:
        """What makes this run another than others: a folder that holds another is not continued."""
        about = {
            "recipe": self.recipe.as_dict(),
            "seed": self.seed,
            "order_seed": self.order_seed,
            "precision": self.study.precision,
            "classes": list(self.classes),
            "dims": self.study.dims.as_dict(),
            "fingerprint": self.study.cache.fingerprint,
            "config": self.study.cache.config,
            "manifest": self.study.manifest_record,
        }
        return about if self.member.start is None else {**about, "start": str(self.member.start)}

    def _fields(self) -> dict[str, tuple[str, ...]]:
        """What this run reads of each split, over all its phases; builds every head once, which
        checks its options.
        """
        names: dict[str, list[str]] = {split: [] for split in self.parts}
        for phase in self.phases:
            recipe = self.recipe.of(phase)
            heads = [self.new_head(recipe), *(head for head, _ in self._teachers(recipe))]
            Optimisers(heads[0], recipe.train)
            for split, part in self.parts.items():
                for head in heads if split == "train" else heads[:1]:
                    names[split] += fields_of(head, self.study.cache, part, recipe)
        return {split: tuple(dict.fromkeys(those)) for split, those in names.items()}

    def new_head(self, recipe: Recipe) -> nn.Module:
        """The head of a recipe of one phase on the device, initialised by the seed alone."""
        study = self.study
        reseed(study.device, self.seed, INIT)
        try:
            head = build_head(
                recipe.head.name, study.dims, len(self.classes), **recipe.head.options
            )
        except MissingFields as error:
            raise ValueError(how_to_add(study.cache, recipe.head.name, error.names)) from None
        return head.to(study.device)

    def _teachers(self, recipe: Recipe) -> list[tuple[nn.Module, Path]]:
        """The heads that teach a phase, as they are built, and where their weights are, or will
        be.
        """
        found = []
        for name in recipe.train.distil.teachers:
            if name in {phase.name for phase in self.recipe.all_phases}:
                found.append((self.new_head(self.recipe.of(name)), self.folder / f"{name}.pt"))
            else:
                path = checkpoint_of(Path(name))
                found.append((self.new_head(recipe_of(path)), path))
        return found

    # --- opening

    def finished(self) -> Result | None:
        """The result of a run that was finished in the folder, if it is this one; ValueError if it
        is another.
        """
        if (there := self.files.finished()) is None:
            return None
        metrics, record = there
        runs.require_same_run(self.folder, record, self.about)
        self._say_without_manifest(record)
        if self.files.after(metrics["phase"], self.phases[-1].name) < 0:
            return None
        return Result(**{**metrics, "folder": self.folder})

    def _say_without_manifest(self, record: Mapping[str, Any]) -> None:
        """Says that nobody can tell with which labels a run of an earlier version was trained."""
        if "manifest" not in record:
            path = self.study.manifest.path
            self.say(
                f"{self.folder}: an earlier version made it and recorded no manifest; taken to be "
                f"of {path}"
            )

    def open(self, resume: bool, tensorboard: bool) -> None:
        """Makes the run folder, or continues the run that is in it."""
        self.files.make()
        saved = self.files.last() if resume else None
        names = [phase.name for phase in self.phases]
        if saved is None:
            self.files.refuse_to_lose(self.phases, self.member.start is not None)
            self.files.remove("last", "best", *(phase.name for phase in self.recipe.phases))
        else:
            start = "" if saved["phase"] in names else f"--start {self.folder}"
            runs.require_same_run(self.folder, saved["about"], self.about, start)
            self._say_without_manifest(saved["about"])
            self.files.after(saved["phase"], self.phases[-1].name)
            self.epochs_before, self.steps_before = saved["epochs_before"], saved["steps_before"]
            self.seconds, self.waiting = saved["seconds"], saved["waiting"]
            if saved["phase"] not in names:  # --phase: the one before was trained by another call
                self.epochs_before += saved["progress"]["epoch"]
                self.steps_before += saved["progress"]["step"]
                self.files.remove("best")
        continued = saved is not None and saved["phase"] in names
        self._begin(names.index(saved["phase"]) if continued else 0, saved if continued else None)
        if saved is not None:
            self.say(f"{self.folder}: continued after epoch {self.epochs}")
        machine = {"device": str(self.study.device), "versions": runs.versions()}
        record = {**self.about, "cache": str(self.study.cache.path.resolve()), **machine}
        self.files.begin(record, self.epochs, self.steps, tensorboard)
        self._advance()

    def _begin(self, number: int, saved: Mapping[str, Any] | None) -> None:
        """Starts a phase, or continues it from what was saved in it."""
        self.number, self.phase = number, self.phases[number]
        self.now = recipe = self.recipe.of(self.phase)
        head, part = self.new_head(recipe), self.parts["train"]
        if self.phase.start == "previous" and saved is None:
            self.say(take_weights(head, self._before(), self.phase))
            self._say_seen(self._before())
        steps = math.ceil(len(part) / recipe.train.batch)
        weights = (
            torch.from_numpy(part.class_weights(len(self.classes)))
            if recipe.data.balance == "loss"
            else None
        )
        teachers = None
        if recipe.train.distil.teachers:
            taught = self._teachers(recipe)
            for teacher, path in taught:
                teacher.load_state_dict(runs.load_checkpoint(path)["state"])
                if saved is None:
                    self._say_seen(path)
            teachers = Teachers(head, [teacher for teacher, _ in taught])
        data = recipe.data
        self.learner = Learner(
            head,
            recipe.train,
            data.target,
            steps,
            self.seed,
            self.study.precision,
            weights,
            teachers,
        )
        own = fields_of(head, self.study.cache, part, recipe)
        more = [
            fields_of(one, self.study.cache, part, recipe)
            for one in (teachers.heads.values() if teachers else ())
        ]
        self.reads = tuple(dict.fromkeys(name for names in (own, *more) for name in names))
        if saved is not None:
            self.learner.load(saved)

    def _say_seen(self, weights: Path) -> None:
        """Says whether weights of another run know clips that this one is evaluated on."""
        warn_if_seen(
            weights,
            runs.load_checkpoint(weights)["about"].get("manifest"),
            self.study.manifest,
            self.say,
        )

    def _before(self) -> Path:
        """The checkpoint that the present phase starts from."""
        if self.number == 0 and self.member.start is not None:
            return checkpoint_of(self.member.start)
        names = [phase.name for phase in self.recipe.all_phases]
        previous = self.recipe.phase(names[names.index(self.phase.name) - 1])
        path = self.folder / f"{previous.name}.pt"
        if not path.exists():
            how = (
                command_of(self.recipe, previous)
                if previous.reads == "frames"
                else f"--phase {previous.name}"
            )
            raise ValueError(
                f"phase {self.phase.name} starts from phase {previous.name}, which {self.folder} "
                f"does not hold: run it first "
                f"({how}), or name a run with --start"
            )
        return path

    # --- one epoch

    @property
    def epochs(self) -> int:
        """Whole epochs that were trained, over all phases."""
        return self.epochs_before + (self.learner.progress.epoch if self.learner else 0)

    @property
    def steps(self) -> int:
        """Mini-batches that were taken, over all phases."""
        return self.steps_before + (self.learner.progress.step if self.learner else 0)

    @property
    def going(self) -> bool:
        """Whether there is more to train."""
        return self.error is None and not self.over

    @property
    def order(self) -> tuple:
        """Runs with the same one can follow the same order of views."""
        data = self.recipe.data
        own = (data.labels, data.first_labels) if data.balance == "sampling" else ()
        return self.order_seed, data.train_views, data.balance == "sampling", own

    def draw(self) -> ReadRequest:
        """The views of the next epoch."""
        rows, self.video, turns = self.parts["train"].draw(self.order_seed, self.epochs)
        self.stats, self.seen = EpochStats(0.0, 0.0, 0.0), 0
        self.lr = self.learner.lr
        self.learner.head.train()
        return ReadRequest(rows, turns, self.reads, self.now.train.batch)

    def learn(self, clips: Clips, place: slice) -> None:
        """One mini-batch of the views that were drawn."""
        target = torch.from_numpy(self.parts["train"].targets[self.video[place]]).to(
            self.study.device
        )
        if clips.flip is not None:
            target = mirrored(target, clips.flip, self.swap)
        self.stats.loss += self.learner.step(clips, target) * len(target)
        self.seen += len(target)

    def reader(self, split: str) -> HeadPredictor:
        """Whoever predicts a split with the present weights."""
        return HeadPredictor(self.learner.head, self.parts[split], self.now, self.study.precision)

    def end_epoch(self, waiting: float, predictions: Predictions | None) -> None:
        """Counts the epoch: log, checkpoints, and the next phase where this one is done."""
        learner, stats = self.learner, self.stats
        stats.loss, stats.seconds, stats.waiting = (
            stats.loss / max(self.seen, 1),
            stats.seconds + waiting,
            waiting,
        )
        found = compute_figures(predictions, self.parts["val"], self.now)[0] if predictions else {}
        self.seconds += stats.seconds + (predictions.seconds if predictions else 0)
        self.waiting += waiting
        better = learner.end_epoch(
            found.get("map", found.get("top1", math.nan)), found.get("loss", math.nan)
        )
        line = {
            "epoch": self.epochs,
            "step": self.steps,
            "lr": self.lr,
            **asdict(stats),
            "val": found,
        }
        if self.recipe.phases:
            line["phase"] = self.phase.name
        self.files.log(line)
        mine = {"about": self.about, "phase": self.phase.name}
        if better:
            best = {**mine, "epoch": self.epochs, "state": learner.weights()}
            runs.save_checkpoint(self.folder / "best.pt", best)
        # Last of all: a run killed before this repeats the epoch, log line and best.pt included.
        spent = {
            name: getattr(self, name)
            for name in ("epochs_before", "steps_before", "seconds", "waiting")
        }
        runs.save_checkpoint(self.folder / "last.pt", {**mine, **spent, **learner.state()})
        self.files.show(line)
        of = self.now.train.total_epochs(learner.steps_per_epoch)
        self.say(epoch_line(line, line.get("phase", ""), learner.progress.epoch, of, better))
        self._advance()

    def _advance(self) -> None:
        """Ends the present phase if it is done, and starts the next one."""
        while self.learner.done and not self.over:
            if self.recipe.phases:
                self.files.keep(self.phase.name)
            if self.number + 1 == len(self.phases):
                self.over = True
                return
            self.epochs_before, self.steps_before = self.epochs, self.steps
            self.learner = None  # its memory, before the next one takes some
            self.files.remove("best")
            self._begin(self.number + 1, None)

    # --- the end

    def restore(self) -> None:
        """Puts the weights that are evaluated into the head."""
        self.chosen = default_checkpoint(self.folder)
        self.learner.head.load_state_dict(
            runs.load_checkpoint(self.folder / f"{self.chosen}.pt")["state"]
        )

    def finish(self, predictions: Mapping[str, Predictions]) -> Result:
        """Writes the predictions and figures of val and test; metrics.json last, the mark of a
        finished run.
        """
        metrics = {
            name: write_predictions(
                self.folder, name, one, self.parts[name], self.now, self.classes
            )
            for name, one in predictions.items()
        }
        progress = self.learner.progress
        left = {
            name: {
                "failed": len(part.failed),
                "absent": len(part.absent),
                "other": len(part.others),
            }
            for name, part in self.parts.items()
        }
        result = Result(
            self.folder,
            metrics,
            epochs=self.epochs,
            best_epoch=self.epochs_before
            + (progress.best_epoch if self.chosen == "best" else progress.epoch),
            parameters=sum(p.numel() for p in self.learner.head.parameters()),
            seconds=self.seconds + sum(one.seconds for one in predictions.values()),
            waiting=self.waiting,
            excluded=left,
            phase=self.phase.name,
        )
        runs.write_json(
            self.folder / "metrics.json", {**asdict(result), "folder": self.folder.name}
        )
        self.close()
        return result

    def attempt(self, work: Callable, *args: Any) -> Any:
        """work(*args), a step of this run; whatever it raises ends this run alone."""
        try:
            return work(*args)
        except Exception as error:
            self.fail(error)

    def fail(self, error: Exception) -> None:
        """Ends the run with an error and gives its memory back."""
        self.error, self.failed_after = self.files.reason(error), self.epochs
        traceback.clear_frames(error.__traceback__)  # they hold the mini-batch and its graph
        self.learner = None
        if self.study.device.type == "cuda":
            torch.cuda.empty_cache()
        self.close()

    def close(self) -> None:
        """Leaves the folder."""
        self.files.close()


def mirrored(target: Tensor, flip: Tensor, swap: Tensor) -> Tensor:
    """Targets [B] or [B,K] with the classes exchanged by swap [K] where flip [B] holds."""
    if target.dim() == 1:
        return torch.where(flip, swap[target], target)
    return torch.where(flip[:, None], target[:, swap], target)
