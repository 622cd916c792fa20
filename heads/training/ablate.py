"""Train all members of a study in as few passes over the cache as possible, and tabulate them.

    plan = read_study("demo")
    outcome = ablate(plan, Cache("demo/cache"), "runs/demo")
    print(outcome.table.text())

A member computes what `train(recipe, cache, folder, seed=seed, order_seed=plan.order_seed)`
computes, to rounding where members are trained as one (`heads.training.stacked_runs`). Elsewhere it
depends neither on the other members nor on how members are spread over processes, as long as every
process uses the same number of threads.
"""

import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from heads.config.member import Member
from heads.config.study_file import StudyPlan
from heads.interface.loss import device_for
from heads.runs import run_files
from heads.runs.find_runs import epochs_in_log
from heads.runs.folder_lock import claim_path, print_waiting
from heads.runs.manifest_record import manifest_record
from heads.training.estimates import (
    AblateOptions,
    MemberEstimate,
    count_passes,
    estimate_members,
    groups_of,
)
from heads.training.run_description import cache_record
from heads.training.study import Failure, Result, one_line
from heads.training.study_table import FailedRow, Outcomes, StudyTable, row_of
from heads.training.train import run_members
from pipeline.cache.joined import paths_of
from pipeline.files.atomic_files import make_folder
from pipeline.files.owners import remove_abandoned
from pipeline.files.watched_folder import FolderGone, WatchedFolder
from pipeline.plugins import given_files, take_over
from pipeline.text.counted import counted
from pipeline.text.printable import visible
from pipeline.workers.claims import ClaimWatch, read_claim
from pipeline.workers.engines import Engine, LocalEngine, run_jobs
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.waiting import PrintLine, claimed_until

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache


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


def ablate(
    plan: StudyPlan,
    cache: "Cache",
    folder: Path | str,
    options: AblateOptions = AblateOptions(),  # noqa: B008 (it is frozen)
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
    # With an engine the device is that of its workers, which may be on other machines.
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
        function = _TrainGroup(tuple(paths_of(cache)), plan.order_seed, options, folder)
        groups = groups_of(todo, jobs, at_once)
        outcomes |= _train_groups(function, groups, engine or LocalEngine())

    macs = {one.member.folder: one.macs for one in estimates}
    rows = []
    for row in plan.rows:
        first = plan.folder_of(row, plan.seeds[0], folder)
        rows.append(row_of(plan, row, folder, outcomes, macs[first]))
    about = {
        "study": plan.name,
        "source": plan.source,
        "order_seed": plan.order_seed,
        "settings": plan.settings,
        **cache_record(cache),
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
        error, epochs = one_line(found), epochs_in_log(folder)
        return {folder: FailedRow(str(folder), group[0].seed, error, epochs)}
    if isinstance(found, Exception):
        raise found
    return {Path(one.folder): one for one in found}


@dataclass(frozen=True)
class _TrainGroup:
    """Train a group of members in the process that calls it.

    A ValueError about all members is returned and not raised: a Dask worker would print a
    traceback of it.
    """

    caches: tuple[Path, ...]
    order_seed: int
    options: AblateOptions
    # The study's folder; None: not watched.
    folder: Path | None = None

    def __getstate__(self) -> dict[str, Any]:
        # `watched` belongs to one process: another one looks at the folder for itself.
        state = {key: value for key, value in vars(self).items() if key != "watched"}
        return {**state, "plugins": given_files()}

    def __setstate__(self, state: dict[str, Any]) -> None:
        # Assigning attributes would raise, because the class is frozen.
        self.__dict__.update(state)

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
        from pipeline.cache.joined import open_caches

        keep_freed_memory()
        # In another process, the plug-ins that this study was given may be executed, too.
        try:
            take_over(vars(self).get("plugins", {}))
        except ValueError as error:
            return error

        # No member may make the study's folder anew after it was moved.
        if self.folder is not None:
            self.watched.check()
        options = self.options
        try:
            outcomes = run_members(
                members,
                open_caches(self.caches),
                order_seed=self.order_seed,
                device=options.device,
                precision=options.precision,
                manifest=options.manifest,
                resume=options.resume,
                resident=options.resident,
                say=print_waiting,
                batch_members=options.batch_members,
                announce=_print_to_stderr,
            )
        except ValueError as error:
            return error

        # An exception may not survive pickling: send its text.
        rows: list[Result | FailedRow] = []
        for outcome, member in zip(outcomes, members, strict=True):
            if isinstance(outcome, Failure):
                error = one_line(outcome.error)
                outcome = FailedRow(str(outcome.folder), member.seed, error, outcome.epochs)
            rows.append(outcome)
        return rows


def _print_to_stderr(line: str) -> None:
    sys.stderr.write(f"{visible(line)}\n")


def _say_who_holds_members(members: Sequence[Member], say: PrintLine) -> None:
    """Print one line if other processes hold members' folders that workers will wait for."""
    watch = ClaimWatch()
    busy = []
    for member in members:
        path = claim_path(Path(member.folder))
        claim = read_claim(path)
        if claim is not None and not watch.abandoned(path, claim):
            busy.append((member.folder, claim))
    if busy:
        folder, claim = busy[0]
        more = f" and {counted(len(busy) - 1, 'more member')}" if len(busy) > 1 else ""
        say(f"waiting for {folder}{more}, {claimed_until(claim, 0.0, watch.silence)}")
