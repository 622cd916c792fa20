"""Train all members of a study in as few passes over the cache as possible, and tabulate them.

    plan = read_study("demo")
    outcome = ablate(plan, Cache("demo/cache"), "runs/demo")
    print(outcome.table.text())

A member computes what `train(recipe, cache, folder, seed=seed, order_seed=plan.order_seed)`
computes. It depends neither on the other members nor on how members are spread over processes, as
long as every process uses the same number of threads.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from heads.config.member import Member
from heads.config.study_file import StudyPlan, StudyRow
from heads.data.splits import cache_dims
from heads.evaluation.counting import count_head
from heads.interface.loss import device_for
from heads.interface.run_records import RUN
from heads.runs import run_files
from heads.runs.folder_lock import claim_path, print_waiting
from heads.runs.manifest_record import manifest_record
from heads.training.study import Failure, Result, Study
from heads.training.study_table import FailedRow, StudyTable, TableRow
from heads.training.train import print_excluded_clips, run_members, stores_for
from heads.training.training_run import TrainingRun
from pipeline.files.atomic_files import make_folder
from pipeline.files.owners import remove_abandoned
from pipeline.files.regular_files import MOST_TEXT, read_small
from pipeline.files.watched_folder import FolderGone, WatchedFolder
from pipeline.workers.claims import ClaimWatch, read_claim
from pipeline.workers.engines import Engine, LocalEngine, run_jobs
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.waiting import PrintLine, claimed_until

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest

# What a training step costs besides the MACs of its head, in MACs per clip. Rough: it only keeps
# a head of no MACs from counting as free.
STEP_MACS = 1e6

Outcomes = dict[Path, "Result | FailedRow"]


@dataclass(frozen=True)
class AblateOptions:
    """How members are trained, the same for all; can be pickled.

    Attributes:
        device, precision, manifest, resume, resident: as for `heads.training.train.train`.
    """

    device: str = "auto"
    precision: str = "fp32"
    manifest: "Manifest | None" = None
    resume: bool = True
    resident: str = "auto"


@dataclass(frozen=True)
class MemberEstimate:
    """What is known of a member before its training.

    Attributes:
        member: the member.
        macs: MACs of its head for one view; None if the head could not be built.
        result: its result, if it was finished before.
        epochs: the most epochs that its training takes; 0 if it was finished before.
        clips: training clips per epoch.
        order: members of the same order can share a pass.
        reads: the cached fields that its training reads.
        why: the error, if it could not be built on this machine (no memory for its head).
    """

    member: Member
    macs: int | None = None
    result: Result | None = None
    epochs: int = 0
    clips: int = 0
    order: str = ""
    reads: tuple[str, ...] = ()
    why: str = ""

    @property
    def cost(self) -> float:
        """The cost of its training, comparable within one study only."""
        return self.epochs * self.clips * ((self.macs or 0) + STEP_MACS)


@dataclass(frozen=True)
class AblateOutcome:
    """What came out of a study.

    Attributes:
        table: one row per combination of the grid.
        failed: the members that failed.
        before: how many members were finished before this call.
        seconds: how long this call took.
    """

    table: StudyTable
    failed: tuple[FailedRow, ...]
    before: int
    seconds: float


def estimate_members(
    plan: StudyPlan,
    cache: "Cache",
    folder: Path,
    options: AblateOptions = AblateOptions(),
    say: PrintLine = print,
    check_features: bool = True,
) -> list[MemberEstimate]:
    """Check every member of a study and estimate its training; print which clips are left out.

    An error that is not a ValueError belongs to that member alone: it is tried in training, which
    records the error.

    Args:
        plan: the study.
        cache: the features to train on.
        folder: the study's folder.
        options: how the members will be trained.
        say: prints one line for a person.
        check_features: also check that the features are finite; of a large cache, a sample.

    Returns:
        One estimate per member, in the study's order.

    Raises:
        ValueError: a member cannot be trained (its head reads what the cache lacks, a label is
            missing, its folder holds another run), or a feature is not finite.
    """
    study = Study(
        cache=cache,
        manifest=options.manifest or cache.manifest,
        dims=cache_dims(cache),
        device=torch.device("cpu"),
        precision=options.precision,
        order_seed=plan.order_seed,
    )

    estimates: list[MemberEstimate] = []
    problems: list[str] = []
    runs: list[TrainingRun] = []
    macs: dict[str, int] = {}
    members = plan.members(folder)
    for member in members:
        try:
            run = TrainingRun(member, study, say)
            estimate = _estimate(run, options.resume, macs)
        except ValueError as error:
            problems.append(f"member {member.folder.name}: {error}")
            continue
        except Exception as error:
            estimates.append(MemberEstimate(member, why=_one_line(error)))
            continue
        estimates.append(estimate)
        if estimate.result is None:
            runs.append(run)

    if problems:
        message = problems[0]
        if len(problems) > 1:
            rest = len(problems) - 1
            message += f" ({rest} more of {len(members)} members cannot be trained)"
        raise ValueError(message)

    if check_features:
        stores_for(runs, study, "disk")
    print_excluded_clips(runs, say)
    return estimates


def _estimate(run: TrainingRun, resume: bool, macs: dict[str, int]) -> MemberEstimate:
    """Estimate one member; `macs` caches the cost of heads."""
    head = run.recipe.of(run.phases[-1]).head
    key = repr((head, len(run.classes)))
    result = run.finished() if resume else None
    if result is None:
        run.prepare()
    # After `prepare`, whose error is better for a head that needs fields the cache lacks.
    if key not in macs:
        macs[key] = count_head(head.name, run.study.dims, len(run.classes), head.options).total.macs
    if result is not None:
        return MemberEstimate(run.member, macs[key], result, order=repr(run.order))

    if resume and (run.folder / "last.pt").exists():
        record = run_files.read_json(run.folder / "run.json", RUN)
        run_files.require_same_run(run.folder, record, run.about)

    clips = len(run.parts["train"])
    epochs = 0
    for phase in run.phases:
        steps_per_epoch = -(-clips // phase.train.batch)
        epochs += phase.train.total_epochs(steps_per_epoch)
    return MemberEstimate(
        run.member,
        macs[key],
        epochs=epochs,
        clips=clips,
        order=repr(run.order),
        reads=run.fields["train"],
    )


def count_passes(estimates: Sequence[MemberEstimate]) -> int:
    """Return how many times one epoch of these members reads the cache."""
    return len({one.order for one in estimates if not one.why})


def count_epochs(estimates: Sequence[MemberEstimate]) -> int:
    """Return the epochs that are over, of all members together.

    The epochs that an early stop saved count as over.
    """
    done = 0
    for one in estimates:
        folder = one.member.folder
        if (folder / "metrics.json").exists():
            done += one.epochs
        else:
            done += min(one.epochs, _epochs_in_log(folder))
    return done


def ablate(
    plan: StudyPlan,
    cache: "Cache",
    folder: Path | str,
    options: AblateOptions = AblateOptions(),
    *,
    engine: Engine | None = None,
    jobs: int = 1,
    at_once: int = 0,
    say: PrintLine = print,
    before: Callable[[list[MemberEstimate]], None] = lambda estimates: None,
) -> AblateOutcome:
    """Train the members of a study that are not finished, and write its table.

    The table goes to results.txt, results.csv and results.json in `folder`. A member that fails
    does not stop the others. A member whose process is lost is tried again alone. The next call
    tries failed members again.

    Args:
        plan: the study.
        cache: the features to train on.
        folder: the study's folder; each member gets a folder in it.
        options: how the members are trained.
        engine: where groups of members are trained; None: here, one group after the other.
        jobs: the number of groups, of about equal cost.
        at_once: the most members that share a pass; 0: all members of a group.
        say: prints one line for a person.
        before: gets the estimates of all members once they have been checked.

    Returns:
        The table and the failures.

    Raises:
        ValueError: a member cannot be trained (see `estimate_members`); before the first step.
    """
    started, folder = time.monotonic(), Path(folder).resolve()
    if engine is None:
        device_for(options.device, options.precision)

    # A single group checks its features when it loads them.
    several = jobs > 1 or at_once > 0
    estimates = estimate_members(plan, cache, folder, options, say, check_features=several)
    before(estimates)
    todo = [one for one in estimates if one.result is None]

    make_folder(folder)
    # Partial files of a study that was killed while it wrote its table.
    remove_abandoned(folder)
    watched = WatchedFolder(folder)
    # The lines of members that are trained elsewhere stay there, so a wait is announced here.
    if engine is not None:
        _say_who_holds_members([one.member for one in todo], say)

    outcomes: Outcomes = {}
    for one in estimates:
        if one.result is not None:
            outcomes[one.member.folder] = one.result
    with watched.guarded():
        function = _TrainGroup(cache.path.resolve(), plan.order_seed, options, folder)
        groups = groups_of(todo, jobs, at_once)
        outcomes |= _train_groups(function, groups, engine or LocalEngine())

    macs = {one.member.folder: one.macs for one in estimates}
    rows = [_table_row(row, plan.seeds, folder, macs, outcomes) for row in plan.rows]
    about = {
        "study": plan.name,
        "source": plan.source,
        "order_seed": plan.order_seed,
        "settings": plan.settings,
        "cache": str(cache.path.resolve()),
        "fingerprint": cache.fingerprint,
        "manifest": manifest_record(options.manifest or cache.manifest),
        "precision": options.precision,
        "passes": count_passes(estimates),
        "versions": run_files.versions(),
    }
    table = StudyTable(plan.name, plan.columns, tuple(rows), about)
    with watched.guarded():
        table.write(folder)

    failed: list[FailedRow] = []
    for row in rows:
        failed += row.failed
    seconds = time.monotonic() - started
    return AblateOutcome(table, tuple(failed), len(estimates) - len(todo), seconds)


def _table_row(
    row: StudyRow,
    seeds: Sequence[int],
    folder: Path,
    macs: dict[Path, int | None],
    outcomes: Outcomes,
) -> TableRow:
    results: dict[int, Result] = {}
    failed: list[FailedRow] = []
    for seed in seeds:
        outcome = outcomes[folder / f"{row.name}-seed{seed}"]
        if isinstance(outcome, Result):
            results[seed] = outcome
        else:
            failed.append(outcome)
    first = folder / f"{row.name}-seed{seeds[0]}"
    return TableRow(row.name, row.cells, results, tuple(failed), macs[first])


def groups_of(
    estimates: Sequence[MemberEstimate], jobs: int, at_once: int = 0
) -> list[list[Member]]:
    """Divide members into groups of about equal cost.

    Members of the same order of views are neighbours, and among these, members that read the same
    fields, so that they share passes.

    Args:
        estimates: the members.
        jobs: the number of groups; there are fewer if there are fewer members.
        at_once: the most members in a group, which may make more groups; 0: any number.

    Returns:
        The groups, none of them empty.
    """
    ordered = sorted(estimates, key=lambda one: (one.order, one.reads))
    total, before = sum(one.cost for one in ordered), 0.0
    shares: list[list[Member]] = [[] for _ in range(jobs)]
    for one in ordered:
        # The group into which the middle of the member's cost falls.
        number = int(jobs * (before + one.cost / 2) / max(total, 1.0))
        shares[number].append(one.member)
        before += one.cost

    size = at_once or max(1, len(ordered))
    groups = []
    for share in shares:
        for start in range(0, len(share), size):
            groups.append(share[start : start + size])
    return groups


def _train_groups(function: "_TrainGroup", groups: list[list[Member]], engine: Engine) -> Outcomes:
    """Train the groups; members of a group whose process was lost are tried again alone."""
    outcomes: Outcomes = {}
    alone: list[list[Member]] = []
    for group, found in run_jobs(function, groups, engine):
        if isinstance(found, RuntimeError) and len(group) > 1:
            alone += [[member] for member in group]
        else:
            outcomes |= _by_folder(group, found)

    if alone:
        # Continue what the lost process left, even if the first try was to start over.
        again = replace(function, options=replace(function.options, resume=True))
        for group, found in run_jobs(again, alone, engine):
            outcomes |= _by_folder(group, found)
    return outcomes


def _by_folder(group: list[Member], found: "list[Result | FailedRow] | Exception") -> Outcomes:
    """Return the outcomes of a group by folder; raise what is wrong with all of its members."""
    if isinstance(found, RuntimeError):
        folder = group[0].folder
        error, epochs = _one_line(found), _epochs_in_log(folder)
        return {folder: FailedRow(str(folder), group[0].seed, error, epochs)}
    if isinstance(found, Exception):
        raise found
    return {Path(one.folder): one for one in found}


def _epochs_in_log(folder: Path) -> int:
    log = folder / "log.jsonl"
    return read_small(log, MOST_TEXT).count(b"\n") if log.exists() else 0


@dataclass(frozen=True)
class _TrainGroup:
    """Train a group of members in the process that calls it.

    A ValueError about all members is returned and not raised: a Dask worker would print a
    traceback of it.
    """

    cache: Path
    order_seed: int
    options: AblateOptions
    # The study's folder; None: not watched.
    folder: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "watched"}

    @cached_property
    def watched(self) -> WatchedFolder:
        """The study's folder, as this process found it when it got its first members."""
        try:
            return WatchedFolder(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            raise FolderGone(
                f"{self.folder}: the study's folder was moved or deleted; find it, and run the "
                f"command again"
            ) from None

    def __call__(self, members: list[Member]) -> "list[Result | FailedRow] | ValueError":
        from pipeline.cache.reader import Cache

        keep_freed_memory()
        # No member may make the study's folder anew after it was moved.
        if self.folder is not None:
            self.watched.check()
        options = self.options
        try:
            outcomes = run_members(
                members,
                Cache(self.cache),
                order_seed=self.order_seed,
                device=options.device,
                precision=options.precision,
                manifest=options.manifest,
                resume=options.resume,
                resident=options.resident,
                say=print_waiting,
            )
        except ValueError as error:
            return error

        # An exception may not survive pickling: send its text.
        rows: list[Result | FailedRow] = []
        for outcome, member in zip(outcomes, members, strict=True):
            if isinstance(outcome, Failure):
                error = _one_line(outcome.error)
                outcome = FailedRow(str(outcome.folder), member.seed, error, outcome.epochs)
            rows.append(outcome)
        return rows


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _say_who_holds_members(members: Sequence[Member], say: PrintLine) -> None:
    """Print one line if other processes hold members' folders that workers will wait for."""
    watch = ClaimWatch()
    held = []
    for member in members:
        path = claim_path(Path(member.folder))
        claim = read_claim(path)
        if claim is not None and not watch.abandoned(path, claim):
            held.append((member.folder, claim))
    if held:
        folder, claim = held[0]
        more = f" and {len(held) - 1} more members" if len(held) > 1 else ""
        say(f"waiting for {folder}{more}, {claimed_until(claim, 0.0, watch.silence)}")
