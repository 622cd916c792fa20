"""Train heads on a cache: the plain loop, for one head or for many that share every read.

    result = train(read_recipe("demo_strg"), Cache("cache"), "runs/strg-0", seed=0)
    result.metrics["test"]["top1"]

`train` trains one head. `run_members` trains the members of a study in one process: it reads
every batch once and gives it to each member whose head needs it.

    members = [Member(recipe, Path(f"study/{recipe.name}"), seed=0) for recipe in recipes]
    outcomes = run_members(members, Cache("cache"), order_seed=0)

What a run computes depends on (recipe, cache, seed) and on the device's arithmetic alone. The
initial weights follow from the seed, the order of the views from (order seed, epoch), and dropout
from (seed, mini-batch). A run that was stopped and resumed therefore ends with the weights of one
that was not. On a CPU in fp32, with the same number of threads, they are equal bit for bit.

A member gets the same weights and figures as `train(..., order_seed=order_seed)` would give it
alone. Members may differ in head, options, seed, schedule, batch size, labels and phases. Members
that draw other views (other `data.train_views`, or balanced sampling of other labels) get a pass
of their own over the same store. One device must hold the weights of all members.

A member that raises becomes a `Failure`, and the others continue. A member whose folder is locked
by another process is a `Failure` too, unless that process finishes the run in the meantime.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heads.config.member import Member
from heads.config.recipe import Recipe, command_of
from heads.data.feature_store import FeatureStore, shared_pass
from heads.data.splits import cache_dims, print_excluded
from heads.evaluation.head_predictor import HeadPredictor, Predictions, predict_all
from heads.interface.loss import device_for
from heads.runs.folder_lock import FolderBusy, lock_folders
from heads.training.few_views import print_few_views
from heads.training.stacked_runs import Stacking
from heads.training.study import SPLITS, Failure, Result, Study
from heads.training.training_run import TrainingRun
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest


def train(
    recipe: Recipe,
    cache: "Cache",
    folder: Path | str,
    *,
    seed: int = 0,
    order_seed: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    manifest: "Manifest | None" = None,
    resume: bool = True,
    resident: str = "auto",
    say: PrintLine = print,
    tensorboard: bool = True,
    phase: str = "",
    start: Path | None = None,
) -> Result:
    """Train a recipe's head on split `train`, then evaluate it on `val` and `test`.

    Torch's global random generators are reseeded.

    Args:
        recipe: what to train (see `heads.config.recipe.Recipe`).
        cache: the features to train on.
        folder: the run folder; `heads/runs/run_files.py` lists its files.
        seed: fixes the initial weights and dropout.
        order_seed: fixes the order of the views; None: `seed`.
        device: "auto", "cpu" or "cuda".
        precision: "fp32", "tf32", "bf16" or "fp16".
        manifest: labels and splits; None: the cache's copy.
        resume: continue the run in `folder`; a finished one is only read back.
        resident: where the features are kept: "auto", "gpu", "ram" or "disk"
            (see `heads.data.feature_store.FeatureStore`).
        say: prints one line for a person.
        tensorboard: also write curves for TensorBoard.
        phase: train only this phase of the recipe (see `heads.config.member.Member`).
        start: a run folder or checkpoint that the first phase starts from.

    Returns:
        The figures of both splits, and what the run cost.

    Raises:
        ValueError: recipe, manifest and cache do not fit together; raised before the first step.
        FolderBusy: another process trains in the folder.
        LossNotFinite: the training diverged.
    """
    member = Member(recipe, Path(folder), seed, phase, start)
    outcomes = run_members(
        [member],
        cache,
        order_seed=order_seed,
        device=device,
        precision=precision,
        manifest=manifest,
        resume=resume,
        resident=resident,
        say=say,
        tensorboard=tensorboard,
    )
    outcome = outcomes[0]
    if isinstance(outcome, Failure):
        raise outcome.error

    names = [one.name for one in recipe.all_phases]
    following = names.index(outcome.phase) + 1
    if following < len(names):
        next_phase = recipe.all_phases[following]
        say(f"next phase: {next_phase.name}; run `{command_of(recipe, next_phase)}`")
    return outcome


def run_members(
    members: Sequence[Member],
    cache: "Cache",
    *,
    order_seed: int | None = None,
    device: str = "auto",
    precision: str = "fp32",
    manifest: "Manifest | None" = None,
    resume: bool = True,
    resident: str = "auto",
    say: PrintLine = print,
    tensorboard: bool = False,
    batch_members: bool | None = None,
    announce: PrintLine | None = None,
) -> list[Result | Failure]:
    """Train all members in shared passes over the cache.

    Args:
        members: what to train, each in a folder of its own.
        cache: the features to train on.
        order_seed: fixes the order of the views for all members; None: each member's own seed,
            so that members of different seeds share no pass.
        device, precision, manifest, resume, resident, say, tensorboard: as for `train`.
        batch_members: train members of the same shapes as one (`heads.training.stacked_runs`);
            None: on a GPU. Their figures then equal those of `train` to rounding.
        announce: prints the lines about all members, such as where features are kept; None: `say`.

    Returns:
        One outcome per member, in the order of `members`.

    Raises:
        ValueError: a problem of all members: an unknown device, two members with one folder,
            or features that are not finite.
    """
    _refuse_shared_folders(members)
    study = Study(
        cache=cache,
        manifest=manifest or cache.manifest,
        dims=cache_dims(cache),
        device=device_for(device, precision),
        precision=precision,
        order_seed=order_seed,
    )

    outcomes: dict[int, Result | Failure] = {}
    runs: dict[int, TrainingRun] = {}
    for number, member in enumerate(members):
        say_member = say if len(members) == 1 else _with_name(say, member)
        try:
            run = TrainingRun(member, study, say_member)
            finished = run.finished() if resume else None
            if finished is not None:
                say_member(f"{member.folder}: finished before; reading its result")
                outcomes[number] = finished
            else:
                run.prepare()
                runs[number] = run
        # Whatever one member raises, the other members can still be trained.
        except Exception as error:
            outcomes[number] = Failure(member.folder, error, epochs=0)

    print_excluded_clips(list(runs.values()), say)
    print_few_views(list(runs.values()), say)
    stacking = Stacking(study, batch_members, say if announce is None else announce)
    trained = _train_all(list(runs.values()), study, resume, resident, tensorboard, stacking, say)
    outcomes.update(zip(runs, trained, strict=True))
    return [outcomes[number] for number in range(len(members))]


def _train_all(
    runs: Sequence[TrainingRun],
    study: Study,
    resume: bool,
    resident: str,
    tensorboard: bool,
    stacking: Stacking,
    say: PrintLine,
) -> list[Result | Failure]:
    """Lock the folders, load the features, train and evaluate; every lock is released after."""
    with ExitStack() as stack:
        locks = lock_folders([run.folder for run in runs], say)
        # A run whose folder another process holds fails here; the others continue.
        for run, lock in zip(runs, locks, strict=True):
            # Also a run that fails here; closing it twice does no harm.
            stack.callback(run.close)
            run.attempt(run.files.enter, lock)

        locked = [run for run in runs if run.error is None]
        stores = stores_for(locked, study, resident)
        if study.device.type == "cuda" and "train" in stores:
            stacking.say(f"split train: {stores['train'].describe()}")
        for run in locked:
            run.attempt(run.open, resume, tensorboard)

        _fit(locked, stores, stacking)
        return _finish(runs, stores, stacking)


def stores_for(runs: Sequence[TrainingRun], study: Study, resident: str) -> dict[str, FeatureStore]:
    """Open one store per split, with every row and field that any of the runs reads.

    Args:
        runs: prepared runs.
        study: what the runs share.
        resident: where features are kept (see `heads.data.feature_store.FeatureStore`).

    Returns:
        split -> its store, for the splits that a run has.

    Raises:
        ValueError: a feature is NaN or infinite.
    """
    stores = {}
    for split in SPLITS:
        readers = [run for run in runs if split in run.parts]
        if not readers:
            continue

        # Runs of the same labels share one SplitViews: take its rows once.
        parts = {id(run.parts[split]): run.parts[split] for run in readers}
        rows = np.concatenate([part.all_rows()[0] for part in parts.values()])
        fields: list[str] = []
        for run in readers:
            fields += run.fields[split]

        stores[split] = FeatureStore(
            readers[0].parts[split].group,
            tuple(dict.fromkeys(fields)),
            rows,
            # Test views are read only once, so loading them first would gain nothing.
            "disk" if split == "test" else resident,
            str(study.cache.path),
            study.device,
        )
    return stores


def _fit(runs: Sequence[TrainingRun], stores: dict[str, FeatureStore], stacking: Stacking) -> None:
    """Train all runs to their end, epoch by epoch."""
    while True:
        active = [run for run in runs if run.active]
        if not active:
            return

        # A study that was stopped may have left some runs an epoch ahead: they wait here.
        epoch = min(run.epochs for run in active)
        current = [run for run in active if run.epochs == epoch]

        by_order: dict[str, list[TrainingRun]] = {}
        for run in current:
            by_order.setdefault(repr(run.order), []).append(run)
        waiting: dict[int, float] = {}
        for order in sorted(by_order):
            seconds = train_one_epoch(by_order[order], stores["train"], stacking)
            waiting |= {id(run): seconds for run in by_order[order]}

        current = [run for run in current if run.active]
        validated = _validate(current, stores, stacking)
        for run in current:
            if run.active:
                run.attempt(run.end_epoch, waiting[id(run)], validated.get(id(run)))


def train_one_epoch(
    runs: Sequence[TrainingRun], store: FeatureStore, stacking: Stacking | None = None
) -> float:
    """Pass once over the training views; give each run its mini-batches.

    A run stops early after the last mini-batch of its training. A run that raises drops out.

    Args:
        runs: runs that draw the same views in the same order.
        store: the features of split `train`.
        stacking: trains some of the runs as one; None: each by itself.

    Returns:
        Seconds of waiting for data.
    """
    waiting = 0.0
    units = list(runs) if stacking is None else stacking.units(runs)
    batches = shared_pass(store, [unit.draw() for unit in units])
    while any(unit.wants_more for unit in units):
        asked = time.monotonic()
        k, clips, rows = next(batches, (-1, None, None))
        received = time.monotonic()
        waiting += received - asked
        if k < 0:
            break

        unit = units[k]
        if unit.wants_more:
            unit.attempt(unit.learn, clips, rows)
            unit.spend(time.monotonic() - received)
    # Ends the reading thread: the runs may be done before the pass is.
    batches.close()

    # A GPU computes what it was given until now: all share what is left of it.
    well = [unit for unit in units if unit.error is None]
    started = time.monotonic()
    for unit in well:
        unit.attempt(unit.end_pass)
    for unit in well:
        unit.spend((time.monotonic() - started) / len(well))
    return waiting


def _validate(
    runs: Sequence[TrainingRun], stores: dict[str, FeatureStore], stacking: Stacking
) -> dict[int, Predictions]:
    """Predict split `val` with the weights that are kept (a moving average, where there is one)."""
    labelled = []
    for run in runs:
        part = run.parts.get("val")
        if part is not None and part.targets is not None:
            labelled.append(run)

    with ExitStack() as stack:
        for run in runs:
            stack.enter_context(run.learner.averaged())
        return _predict(labelled, "val", stores, stacking, forms=True)


def _predict(
    runs: Sequence[TrainingRun],
    split: str,
    stores: dict[str, FeatureStore],
    stacking: Stacking,
    forms: bool = False,
) -> dict[int, Predictions]:
    """Predict a split with every run that has it; the keys are the runs' `id`s.

    A run that raises drops out. `forms`: also predict with other forms of the heads, which become
    `Predictions.beside`.
    """
    well = [run for run in runs if run.error is None and split in run.parts]
    asked: list[tuple[list[TrainingRun], str, HeadPredictor]] = []
    for group in stacking.together(well):
        if len(group) > 1:
            asked.append((group, "", stacking.predictor(group, split)))
        for run in group:
            found = run.predictors(split) if forms else {"": run.predictor(split)}
            if len(group) > 1:
                # The head itself is in the group's predictor.
                del found[""]
            asked += [([run], form, predictor) for form, predictor in found.items()]
    if not asked:
        return {}

    predictions: dict[int, Predictions] = {}
    outcomes = predict_all([predictor for _, _, predictor in asked], stores[split])
    # The head itself comes before its other forms.
    for (group, form, predictor), outcome in zip(asked, outcomes, strict=True):
        if len(group) > 1:
            stacking.predicted(group, predictor.head)
        each = outcome if isinstance(outcome, list) else [outcome]
        if len(group) > len(each):
            # What one head of a group raises concerns that head alone.
            each = predict_all([run.predictor(split) for run in group], stores[split])
        for run, own in zip(group, each, strict=True):
            if isinstance(own, Exception):
                run.fail(own)
                predictions.pop(id(run), None)
            elif not form:
                predictions[id(run)] = own
            elif id(run) in predictions:
                predictions[id(run)].beside[form] = own
    return predictions


def _finish(
    runs: Sequence[TrainingRun], stores: dict[str, FeatureStore], stacking: Stacking
) -> list[Result | Failure]:
    """Evaluate the chosen weights on val and test, and close every run."""
    for run in runs:
        if run.error is None:
            run.attempt(run.restore)
    # All runs predict a split in one pass, before any of them writes its result.
    predictions = {split: _predict(runs, split, stores, stacking) for split in ("val", "test")}

    outcomes: list[Result | Failure] = []
    for run in runs:
        result = None
        if run.error is None:
            by_split = {}
            for split, by_run in predictions.items():
                if id(run) in by_run:
                    by_split[split] = by_run[id(run)]
            result = run.attempt(run.finish, by_split)

        if isinstance(run.error, FolderBusy):
            # The process that held the folder may have finished this very run by now.
            try:
                result = run.finished()
            except ValueError as error:
                run.error = error
        outcomes.append(result or Failure(run.folder, run.error, run.failed_after))
    return outcomes


def print_excluded_clips(runs: Sequence[TrainingRun], say: PrintLine) -> None:
    """Print which clips the runs leave out: one line per reason, not one per run.

    Args:
        runs: prepared runs.
        say: prints one line for a person.
    """
    printed = set()
    for run in runs:
        for part in run.parts.values():
            key = (part.split, part.failed, part.absent, part.others)
            if key not in printed:
                printed.add(key)
                print_excluded(part, say)


def _refuse_shared_folders(members: Sequence[Member]) -> None:
    """Raise ValueError if two members would write to one folder."""
    folders = set()
    for member in members:
        folder = Path(member.folder).resolve()
        if folder in folders:
            raise ValueError(f"two members would write to {folder}: give each its own folder")
        folders.add(folder)


def _with_name(say: PrintLine, member: Member) -> PrintLine:
    """Print lines that start with the member's name."""
    return lambda line: say(f"{Path(member.folder).name}: {line}")
