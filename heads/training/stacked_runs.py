"""Runs of one study that are trained as one, where that computes the same.

    stacking = Stacking(study, wanted=True, say=print)
    for unit in stacking.units(runs):       # runs that share a pass
        unit.draw(), unit.learn(...)
    for group in stacking.together(runs):   # runs that predict
        stacking.predictor(group, "val")

Runs are trained as one if they differ in values alone: seed, learning rate, weight decay, momentum,
schedule, warm-up, stop rules, the limit of the gradient's norm, the decay of a moving average. The
first mini-batch is computed both ways (`StackedLearner.compare`); unless losses and gradients agree
within `TOLERANCE`, and wherever torch cannot compute the heads in one call, each run is trained by
itself from that mini-batch on. One line says what was done. Runs that were trained as one are also
validated and tested as one, within the same tolerance of their logits.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from heads.data.feature_store import ReadRequest
from heads.evaluation.stacked_predictor import StackedHead, StackedPredictor
from heads.interface.clips import Clips
from heads.training.stacked_learner import (
    TOLERANCE,
    MemberLosses,
    StackedLearner,
    weights_that_learn,
    why_alone,
)
from heads.training.study import Study
from heads.training.training_run import TrainingRun
from pipeline.workers.waiting import PrintLine


class Stacking:
    """Which runs of a study are trained as one.

    Args:
        study: what the runs share.
        wanted: True tries, False does not; None tries on a GPU.
        say: prints one line for a person.
    """

    def __init__(self, study: Study, wanted: bool | None, say: PrintLine):
        self.wanted = study.device.type == "cuda" if wanted is None else wanted
        self.say = say
        # Keys of runs that cannot be stacked, and of those that were compared.
        self.refused: set[str] = set()
        self.compared: set[str] = set()
        # The same for predictions.
        self.predict_apart: set[str] = set()
        self.predictions_compared: set[str] = set()

    def units(self, runs: Sequence[TrainingRun]) -> "list[TrainingRun | StackedRuns]":
        """Join the runs of a pass that can be trained as one.

        Args:
            runs: runs that draw the same views in the same order.

        Returns:
            Each run, by itself or within one `StackedRuns`, in the order of `runs`.
        """
        if not self.wanted:
            return list(runs)
        by_key: dict[tuple, list[TrainingRun]] = {}
        for run in runs:
            learner = run.learner
            # A number of iterations may end within the epoch.
            left = min(learner.steps_per_epoch, learner.total_steps - learner.progress.step)
            by_key.setdefault((key_of(run), learner.progress.step, left), []).append(run)

        units: list[TrainingRun | StackedRuns] = []
        for (key, _, _), same in by_key.items():
            if len(same) > 1 and key not in self.refused and not self._refuses(key, same):
                units.append(StackedRuns(same, key, self))
            else:
                units += same
        return units

    def together(self, runs: Sequence[TrainingRun]) -> list[list[TrainingRun]]:
        """Join the runs that can predict as one: those that can be trained as one.

        Args:
            runs: with the weights that they predict with.

        Returns:
            The runs in groups of one or more, in the order of their first ones.
        """
        groups: dict[tuple, list[TrainingRun]] = {}
        for run in runs:
            key = self._prediction_key(run)
            alone = key not in self.compared or key in self.refused | self.predict_apart
            groups.setdefault((key, id(run) if alone else None), []).append(run)
        return list(groups.values())

    def predictor(self, runs: Sequence[TrainingRun], split: str) -> StackedPredictor:
        """Return what predicts a split with several runs of `together`."""
        one, key = runs[0].predictor(split), self._prediction_key(runs[0])
        heads = [run.learner.head for run in runs]
        compared = key in self.predictions_compared
        head = StackedHead(heads, TOLERANCE[one.precision], compared)
        return StackedPredictor(head, one.part, one.recipe, one.precision)

    def predicted(self, runs: Sequence[TrainingRun], head: StackedHead) -> None:
        """Remember whether runs could predict as one; say so where they could not."""
        key = self._prediction_key(runs[0])
        self.predictions_compared.add(key)
        if head.why:
            self.predict_apart.add(key)
            self.say(f"{_count(runs)}: evaluated one by one, because {head.why}")

    def _prediction_key(self, run: TrainingRun) -> str:
        return key_of(run) if self.wanted else ""

    def _refuses(self, key: str, runs: Sequence[TrainingRun]) -> bool:
        why = why_alone(runs[0].learner)
        if why:
            self.refuse(key, runs, why)
        return bool(why)

    def refuse(self, key: str, runs: Sequence[TrainingRun], why: str) -> None:
        """Train runs of this key one by one from now on."""
        self.refused.add(key)
        self.say(f"{_count(runs)}: one by one, because {why}")


def key_of(run: TrainingRun) -> str:
    """Return a text that is the same for runs that differ in values alone."""
    learner, recipe, training = run.learner, run.phase_recipe, run.learner.training
    shapes = [(name, tuple(t.shape), t.dtype) for name, t in learner.head.state_dict().items()]
    # Where an auxiliary loss ends depends on the length of the training.
    until = learner.total_steps if training.losses else 0
    same = (
        recipe.head.name,
        sorted(recipe.head.options.items(), key=lambda item: item[0]),
        recipe.data,
        run.reads,
        learner.steps_per_epoch,
        shapes,
        weights_that_learn(learner),
        (training.batch, training.accumulate, training.optimiser, training.nesterov),
        (training.groups, sorted(training.losses.items()), until, training.ema > 0),
        recipe.evaluate.batch,
    )
    return repr(same)


class StackedRuns:
    """Runs that are trained as one in a pass; `train_one_epoch` takes it for a run.

    Args:
        runs: of one key.
        key: see `key_of`.
        stacking: is told if the runs cannot be trained as one after all.
    """

    def __init__(self, runs: Sequence[TrainingRun], key: str, stacking: Stacking):
        self.runs, self.key, self.stacking = list(runs), key, stacking
        self.stack: StackedLearner | None = None
        # Whether the runs are trained one by one, for the rest of the pass.
        self.apart = False

    @property
    def error(self) -> Exception | None:
        """What ended the runs; None while one of them is well."""
        errors = [run.error for run in self.runs]
        return errors[0] if all(errors) else None

    @property
    def wants_more(self) -> bool:
        """Whether a run takes another mini-batch."""
        return any(run.wants_more for run in self.runs)

    def draw(self) -> ReadRequest:
        """Draw the views of the next epoch, which are the same for all runs."""
        requests = [run.draw() for run in self.runs]
        return requests[0]

    def attempt(self, step: Callable, *args: Any) -> None:
        """Call `step(*args)`; whatever it raises ends these runs and no other."""
        try:
            step(*args)
        except Exception as error:
            for run in self.runs:
                if run.error is None:
                    run.fail(error)

    def spend(self, seconds: float) -> None:
        """Count seconds of computing, in equal parts."""
        for run in self.runs:
            run.spend(seconds / len(self.runs))

    def learn(self, clips: Clips, rows: slice) -> None:
        """Train on one mini-batch.

        Args:
            clips: its B views.
            rows: where they are in the rows that were drawn.
        """
        if not self.apart:
            targets = self.runs[0].targets_of(clips, rows)
            try:
                self._start(clips, targets)
                values, names = self.stack.backward(clips, targets)
            # Whatever vmap or the memory refuses: no weight has moved.
            except Exception as error:
                self._part(_reason(error))
            else:
                self.stack.move(values, names, len(targets))
                return
        for run in self.runs:
            if run.wants_more:
                run.attempt(run.learn, clips, rows)

    def _start(self, clips: Clips, targets: Tensor) -> None:
        """Stack the runs at the first mini-batch of the pass; compare the two ways once."""
        if self.stack is not None:
            return
        self.stack = StackedLearner([run.learner for run in self.runs])
        if self.key in self.stacking.compared:
            return
        difference = self.stack.compare(clips, targets)
        limit = TOLERANCE[self.runs[0].learner.precision]
        if not difference <= limit:
            raise RuntimeError(
                f"losses or gradients differ by {difference:.1g} of the largest from those of one "
                f"by one (allowed: {limit:g})"
            )
        self.stacking.compared.add(self.key)
        self.stacking.say(
            f"{_count(self.runs)}: as one; the first mini-batch differs from one by one by "
            f"{difference:.1g} of the largest gradient"
        )

    def _part(self, why: str) -> None:
        """Train the runs one by one from here on."""
        self.apart = True
        self.stacking.refuse(self.key, self.runs, why)
        if self.stack is not None:
            stack, self.stack = self.stack, None
            self._settle(stack.give_back())
        if self.runs[0].study.device.type == "cuda":
            torch.cuda.empty_cache()

    def _settle(self, losses: Sequence[MemberLosses]) -> None:
        """Give every run its losses; a run whose loss was not finite ends."""
        for run, own in zip(self.runs, losses, strict=True):
            run.stats.loss += own.total
            run.clips_seen += own.clips
            if own.error is not None:
                run.fail(own.error)

    def end_pass(self) -> None:
        """Hand the state over to the runs, and wait for the device."""
        if self.stack is not None:
            stack, self.stack = self.stack, None
            self._settle(stack.give_back())
        for run in self.runs:
            if run.error is None:
                run.attempt(run.end_pass)


def _count(runs: Sequence[TrainingRun]) -> str:
    names = [run.folder.name for run in runs]
    more = f", {names[1]}" if len(names) == 2 else f" to {names[-1]}"
    return f"{len(runs)} members of head {runs[0].recipe.head.name} ({names[0]}{more})"


def _reason(error: Exception) -> str:
    """Return the first line of an error, which may be long."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    first = lines[0].rstrip(".")
    return first if len(first) < 160 else f"{first[:157]}..."
