"""Training heads on a cache: the plain loop, for one head or for many that share the reading.

    result = train(read_recipe("demo_strg"), Cache("cache"), "runs/strg-0", seed=0)
    result.metrics["test"]["top1"]

What a run computes depends on (recipe, cache, seed) and the arithmetic of the device alone. The
initialisation follows from (seed), the order of the views from (order seed, epoch), dropout from
(seed, mini-batch), so that a run that was stopped and resumed gives the weights of one that was
not, bit for bit on a CPU in fp32 with the same number of threads.

    members = [Member(recipe, Path("study") / f"{recipe.name}-{seed}", seed) for recipe in recipes
    for seed in range(3)]
    for outcome in run_members(members, Cache("cache"), order_seed=0):     # in the order of the
    members
        outcome                                                             # a Result, or a
        Failure: its error and epochs

`run_members` trains many in one process: every batch is read once and given to each member whose
head needs it. A member's weights and figures are those of `train(..., order_seed=order_seed)`
alone: it has its own folder, checkpoints and log, takes its random numbers from its own seed, and
sees the views in the study's order. Members may differ in head, options, seed, schedule, batch
size, label subset and phases; those with other `data.train_views`, or with balanced sampling of
other labels, see other views, and have a pass of their own over the same store. One that raises is
a Failure and leaves the others going; so is one whose folder another process works in
(`heads.runs.folder_lock.FolderBusy`), unless that has finished it by the end. All members have one
device, with room for all their weights.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from heads.config.member import Member
from heads.config.recipe import Recipe, command_of
from heads.data.feature_store import FeatureStore, shared_pass
from heads.data.splits import cache_dims
from heads.evaluation.evaluate import Predictions, predict_all, print_excluded
from heads.interface.loss import device_for
from heads.runs.folder_lock import FolderBusy, lock_folders
from heads.training.study import Failure, Result, Study
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
    """Trains `recipe`'s head on the split `train` of a cache and evaluates the chosen checkpoint on
    `val` and `test`.

    Labels and splits come from `manifest`, by default the cache's copy. The run's files go to
    `folder` (heads/runs/run_files.py lists them); with `resume` a run that is there is continued,
    or only read back if it is finished. `order_seed` (default: `seed`) fixes the order of the
    views, `seed` the initialisation and dropout. `resident`: see `heads.data.feature_store.FeatureStore`.
    `say` gets lines for a person. `phase`, `start`: see `heads.training.study.Member`. Torch's
    global generators are reseeded.

    ValueError, before the first step, for whatever the recipe, the manifest and the cache do not
    agree on; Busy where another process trains in the folder; LossNotFinite.
    """
    member = Member(recipe, Path(folder), seed, phase, start)
    outcome = run_members(
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
    )[0]
    if isinstance(outcome, Failure):
        raise outcome.error
    names = [one.name for one in recipe.all_phases]
    for one in recipe.all_phases[names.index(outcome.phase) + 1 :][:1]:
        say(f"next phase: {one.name}; run `{command_of(recipe, one)}`")
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
) -> list[Result | Failure]:
    """Trains all members in shared passes over the cache; see the top of this file. Options as for
    `train`; `order_seed` None: each member's own seed, which shares nothing between different ones.

    ValueError for what is wrong with all of them: a device, two members in one folder, features
    that are not finite.
    """
    folders = [Path(member.folder).resolve() for member in members]
    if twice := [str(folder) for folder in folders if folders.count(folder) > 1]:
        raise ValueError(f"two members would write to {twice[0]}: give each a folder of its own")
    where = device_for(device, precision)
    study = Study(
        cache, manifest or cache.manifest, cache_dims(cache), where, precision, order_seed
    )
    outcomes: dict[int, Result | Failure] = {}
    live: dict[int, TrainingRun] = {}
    for k, member in enumerate(members):
        mine = say if len(members) == 1 else _named(say, member)
        try:
            run = TrainingRun(member, study, mine)
            if resume and (finished := run.finished()):
                mine(f"{member.folder}: finished before, read back")
                outcomes[k] = finished
            else:
                run.prepare()
                live[k] = run
        except Exception as error:  # whatever it is, the other members can be trained
            outcomes[k] = Failure(member.folder, error, 0)
    said = set()
    for part in (part for run in live.values() for part in run.parts.values()):
        if (key := (part.split, part.failed, part.absent, part.others)) not in said:
            said.add(key)
            print_excluded(part, say)
    with ExitStack() as stack:
        for run, held in zip(
            live.values(), lock_folders([run.folder for run in live.values()], say), strict=True
        ):
            stack.callback(run.close)
            run.attempt(run.files.enter, held)
        going = [run for run in live.values() if run.error is None]
        stores = stores_for(going, study, resident)
        for run in going:
            run.attempt(run.open, resume, tensorboard)
        _fit(going, stores)
        outcomes |= dict(zip(live, _finish(list(live.values()), stores), strict=True))
    return [outcomes[k] for k in range(len(members))]


def stores_for(live: Sequence[TrainingRun], study: Study, resident: str) -> dict[str, FeatureStore]:
    """One store per split, for all that read it: every field that one of them needs. ValueError for
    features that are not finite (see `heads.data.feature_store.FeatureStore`)."""
    stores = {}
    for split in ("train", "val", "test"):
        theirs = [run for run in live if split in run.parts]
        if not theirs:
            continue
        parts = {id(run.parts[split]): run.parts[split] for run in theirs}.values()
        rows = np.concatenate([part.all_rows()[0] for part in parts])
        fields = tuple(dict.fromkeys(name for run in theirs for name in run.fields[split]))
        how = "disk" if split == "test" else resident  # the test views are read once
        group = theirs[0].parts[split].group
        stores[split] = FeatureStore(group, fields, rows, how, str(study.cache.path), study.device)
    return stores


def _fit(live: Sequence[TrainingRun], stores: dict[str, FeatureStore]) -> None:
    """Trains to the end, epoch by epoch, those that are behind first: a stopped study may have left
    some an epoch ahead.
    """
    while going := [run for run in live if run.going]:
        now = [run for run in going if run.epochs == min(run.epochs for run in going)]
        waiting: dict[int, float] = {}
        for _, group in groupby(
            sorted(now, key=lambda run: repr(run.order)), key=lambda run: run.order
        ):
            together = list(group)
            waited = train_one_epoch(together, stores["train"])
            waiting |= {id(run): waited for run in together}
        now = [run for run in now if run.going]
        with ExitStack() as stack:
            for run in now:
                stack.enter_context(run.learner.averaged())
            labelled = [
                run for run in now if "val" in run.parts and run.parts["val"].targets is not None
            ]
            found = _predict(labelled, "val", stores)
        for run in now:
            if run.going:
                run.attempt(run.end_epoch, waiting[id(run)], found.get(id(run)))


def train_one_epoch(live: Sequence[TrainingRun], store: FeatureStore) -> float:
    """One pass over the views that these runs draw, each given every batch of its own; returns the
    seconds of waiting for data. A run ends early at the last mini-batch of its training; one that
    raises is out.
    """
    waiting = 0.0
    batches = shared_pass(store, [run.draw() for run in live])
    while any(run.going and not run.learner.done for run in live):
        asked = time.monotonic()
        k, clips, place = next(batches, (-1, None, None))
        begun = time.monotonic()
        waiting += begun - asked
        if k < 0:
            break
        run = live[k]
        if run.going and not run.learner.done:
            run.attempt(run.learn, clips, place)
            run.stats.seconds += time.monotonic() - begun
    batches.close()
    return waiting


def _predict(
    live: Sequence[TrainingRun], split: str, stores: dict[str, FeatureStore]
) -> dict[int, Predictions]:
    """What each run that has the split predicts for it, by the run's id; one that raises is out."""
    live = [run for run in live if run.error is None and split in run.parts]
    if not live:
        return {}
    found = {}
    for run, one in zip(
        live, predict_all([run.reader(split) for run in live], stores[split]), strict=True
    ):
        if isinstance(one, Exception):
            run.fail(one)
        else:
            found[id(run)] = one
    return found


def _finish(live: Sequence[TrainingRun], stores: dict[str, FeatureStore]) -> list[Result | Failure]:
    """Evaluates the weights that were chosen on val and test and closes every run."""
    for run in live:
        if run.error is None:
            run.attempt(run.restore)
    found = {split: _predict(live, split, stores) for split in ("val", "test")}
    outcomes: list[Result | Failure] = []
    for run in live:
        mine = {split: by_run[id(run)] for split, by_run in found.items() if id(run) in by_run}
        result = run.attempt(run.finish, mine) if run.error is None else None
        if isinstance(run.error, FolderBusy):
            try:
                result = run.finished()  # by the other, in the meantime
            except ValueError as error:  # it was another run
                run.error = error
        outcomes.append(result or Failure(run.folder, run.error, run.failed_after))
    return outcomes


def _named(say: PrintLine, member: Member) -> PrintLine:
    """Lines that begin with whose they are."""
    return lambda line: say(f"{Path(member.folder).name}: {line}")
