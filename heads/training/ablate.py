"""Trains all members of a study, in as few passes over the cache as they allow, and gathers what
came out.

    plan = read_study("demo")
    outcome = ablate(plan, Cache("demo/cache"), "runs/demo")
    print(outcome.table.text())

What a member computes does not depend on the others, nor on how they are spread over processes, as
long as these compute with the same number of threads: it is what `train(recipe, cache, folder,
seed=seed, order_seed=plan.order_seed)` computes.
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
from heads.evaluation.evaluate import print_excluded
from heads.interface.loss import device_for
from heads.interface.run_records import RUN
from heads.runs import run_files as runs
from heads.runs.folder_lock import claim_path, print_waiting
from heads.runs.manifest_record import manifest_record
from heads.training.study import Failure, Result, Study
from heads.training.training_run import TrainingRun
from heads.training.study_table import FailedRow, StudyTable, TableRow
from heads.training.train import run_members, stores_for
from pipeline.files.atomic_files import make_folder
from pipeline.files.owners import remove_abandoned
from pipeline.files.regular_files import MOST_TEXT, read_small
from pipeline.files.watched_folder import FolderGone, WatchedFolder
from pipeline.workers.claims import ClaimWatch
from pipeline.workers.claims import read_claim as claim_on
from pipeline.workers.engines import Engine, LocalEngine, run_jobs
from pipeline.workers.memory import keep_freed_memory
from pipeline.workers.waiting import PrintLine, claimed_until

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest


@dataclass(frozen=True)
class AblateOptions:
    """How members are trained, the same for all; picklable. See `heads.training.train.train` for
    each.
    """

    device: str = "auto"
    precision: str = "fp32"
    manifest: "Manifest | None" = None
    resume: bool = True
    resident: str = "auto"


@dataclass(frozen=True)
class MemberEstimate:
    """A member before its training: `macs` of its head for one view, its `result` if it was
    finished before, else `epochs` at most, of so many `clips`; `order`: members with the same one
    share a pass; `reads`: the fields of its training views. Of one that cannot be built on this
    machine (no memory for its head) nothing is known but `why`, the error.
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
        """What its training takes, in units that only members of one study share."""
        return (
            self.epochs * self.clips * ((self.macs or 0) + 1e6)
        )  # a step costs something whatever its head


@dataclass(frozen=True)
class AblateOutcome:
    """What a study came to: its table, the members that failed, how many were trained before, and
    the seconds of this call.
    """

    table: StudyTable
    failed: tuple[FailedRow, ...]
    before: int
    seconds: float


def estimate_members(
    plan: StudyPlan,
    cache: "Cache",
    folder: Path,
    how: AblateOptions = AblateOptions(),
    say: PrintLine = print,
    read_claim: bool = True,
) -> list[MemberEstimate]:
    """Every member of a study, in its order, each as it will be trained in `folder`; says which
    clips are left out. `read_claim`: at the features that they will read too, up to a sample of a large
    cache.

    ValueError, with the first of them, if there are members that cannot be trained: a head that
    reads what the cache lacks, labels that are not there, a folder that holds another run; and for
    features that are not finite. Any other error is that member's own: training it is tried, and
    records it.
    """
    study = Study(
        cache,
        how.manifest or cache.manifest,
        cache_dims(cache),
        torch.device("cpu"),
        how.precision,
        plan.order_seed,
    )
    found, wrong, live = [], [], []
    macs: dict[str, int] = {}
    members = plan.members(folder)
    for member in members:
        try:
            run = TrainingRun(member, study, say)
            found.append(_prospect(run, how.resume, macs))
            live += [] if found[-1].result else [run]
        except ValueError as error:
            wrong.append(f"member {member.folder.name}: {error}")
        except Exception as error:
            found.append(MemberEstimate(member, why=_one_line(error)))
    if wrong:
        more = (
            f" ({len(wrong) - 1} more of {len(members)} members cannot be trained)"
            if len(wrong) > 1
            else ""
        )
        raise ValueError(wrong[0] + more)
    if read_claim:
        stores_for(live, study, "disk")
    said = set()
    for part in (part for run in live for part in run.parts.values()):
        if (key := (part.split, part.failed, part.absent, part.others)) not in said:
            said.add(key)
            print_excluded(part, say)
    return found


def _prospect(run: TrainingRun, resume: bool, macs: dict[str, int]) -> MemberEstimate:
    """`macs` remembers what heads cost."""
    head = run.recipe.of(run.phases[-1]).head
    key = repr((head, len(run.classes)))
    result = run.finished() if resume else None
    if result is None:
        run.prepare()
    if key not in macs:  # after prepare, which has the better error for a head that lacks something
        macs[key] = count_head(head.name, run.study.dims, len(run.classes), head.options).total.macs
    if result is not None:
        return MemberEstimate(run.member, macs[key], result, order=repr(run.order))
    if resume and (run.folder / "last.pt").exists():
        runs.require_same_run(run.folder, runs.read_json(run.folder / "run.json", RUN), run.about)
    clips = len(run.parts["train"])
    epochs = sum(phase.train.total_epochs(-(-clips // phase.train.batch)) for phase in run.phases)
    return MemberEstimate(
        run.member, macs[key], None, epochs, clips, repr(run.order), run.fields["train"]
    )


def count_passes(some: Sequence[MemberEstimate]) -> int:
    """How many times an epoch of these members reads the cache."""
    return len({one.order for one in some if not one.why})


def count_epochs(some: Sequence[MemberEstimate]) -> int:
    """Epochs that are over, of all members' together; those that an early stop saved count too."""
    done = 0
    for one in some:
        folder = one.member.folder
        if (folder / "metrics.json").exists():
            done += one.epochs
        elif (log := folder / "log.jsonl").exists():
            done += min(one.epochs, read_small(log, MOST_TEXT).count(b"\n"))
    return done


def ablate(
    plan: StudyPlan,
    cache: "Cache",
    folder: Path | str,
    how: AblateOptions = AblateOptions(),
    *,
    engine: Engine | None = None,
    jobs: int = 1,
    at_once: int = 0,
    say: PrintLine = print,
    before: Callable[[list[MemberEstimate]], None] = lambda some: None,
) -> AblateOutcome:
    """Trains what of a study is not finished in `folder`, and writes results.txt, .csv and .json
    there.

    Members go in `jobs` groups of about equal cost to `engine`, by default one after the other to
    this process; those of a group share their passes, at most `at_once` of them (0: all). One that
    fails leaves the others going, one whose process ends is tried again alone; the next call tries
    both again. `before` gets all members when they are known to be right.

    ValueError, before the first step, for whatever is wrong with a member (see `estimate_members`).
    """
    begun, folder = time.monotonic(), Path(folder).resolve()
    if engine is None:
        device_for(how.device, how.precision)
    some = estimate_members(
        plan, cache, folder, how, say, look=jobs > 1 or at_once > 0
    )  # a single group looks before it trains
    before(some)
    todo = [one for one in some if one.result is None]
    make_folder(folder)
    remove_abandoned(folder)  # of results that a killed study was writing
    home = WatchedFolder(folder)
    if engine is not None:  # lines of members that are trained elsewhere stay there
        _say_who_holds_members([one.member for one in todo], say)
    found: dict[Path, Result | FailedRow] = {
        one.member.folder: one.result for one in some if one.result
    }
    with home.guarded():
        group = _Group(cache.path.resolve(), plan.order_seed, how, folder)
        found |= _train(group, groups_of(todo, jobs, at_once), engine or LocalEngine())
    macs = {one.member.folder: one.macs for one in some}
    rows = [_row(row, plan.seeds, folder, macs, found) for row in plan.rows]
    about = {
        "study": plan.name,
        "source": plan.source,
        "order_seed": plan.order_seed,
        "settings": plan.settings,
        "cache": str(cache.path.resolve()),
        "fingerprint": cache.fingerprint,
        "manifest": manifest_record(how.manifest or cache.manifest),
        "precision": how.precision,
        "passes": count_passes(some),
        "versions": runs.versions(),
    }
    table = StudyTable(plan.name, plan.columns, tuple(rows), about)
    with home.guarded():
        table.write(folder)
    failed = tuple(one for row in rows for one in row.failed)
    return AblateOutcome(table, failed, len(some) - len(todo), time.monotonic() - begun)


def _row(
    row: StudyRow,
    seeds: Sequence[int],
    folder: Path,
    macs: dict[Path, int | None],
    found: dict[Path, "Result | FailedRow"],
) -> TableRow:
    folders = {seed: folder / f"{row.name}-seed{seed}" for seed in seeds}
    outcomes = {seed: found[path] for seed, path in folders.items()}
    results = {seed: one for seed, one in outcomes.items() if isinstance(one, Result)}
    failed = tuple(one for one in outcomes.values() if isinstance(one, FailedRow))
    return TableRow(row.name, row.cells, results, failed, macs[folders[seeds[0]]])


def groups_of(some: Sequence[MemberEstimate], jobs: int, at_once: int = 0) -> list[list[Member]]:
    """Members in at most `jobs` groups of about equal cost, or more, of at most `at_once` (0: any
    number) each; members that see the same views, and of these such as read the same fields, are
    neighbours.
    """
    ordered = sorted(some, key=lambda one: (one.order, one.reads))
    total, before = sum(one.cost for one in ordered), 0.0
    groups: list[list[Member]] = [[] for _ in range(jobs)]
    for one in ordered:
        groups[int(jobs * (before + one.cost / 2) / max(total, 1.0))].append(one.member)
        before += one.cost
    size = at_once or max(1, len(ordered))
    return [group[start : start + size] for group in groups for start in range(0, len(group), size)]


def _train(
    function: "_Group", groups: list[list[Member]], engine: Engine
) -> dict[Path, "Result | FailedRow"]:
    """What came of each member, by its folder. A group whose process was lost is tried again,
    member by member.
    """
    found: dict[Path, Result | FailedRow] = {}
    alone: list[list[Member]] = []
    for group, outcomes in run_jobs(function, groups, engine):
        if isinstance(outcomes, RuntimeError) and len(group) > 1:
            alone += [[member] for member in group]
        else:
            found |= _outcomes(group, outcomes)
    again = replace(
        function, how=replace(function.how, resume=True)
    )  # what the lost process left is continued
    for group, outcomes in run_jobs(again, alone, engine) if alone else ():
        found |= _outcomes(group, outcomes)
    return found


def _outcomes(
    group: list[Member], outcomes: "list[Result | FailedRow] | Exception"
) -> dict[Path, "Result | FailedRow"]:
    """By folder; raises what is wrong with all members."""
    if isinstance(outcomes, RuntimeError):
        log = group[0].folder / "log.jsonl"
        epochs = read_small(log, MOST_TEXT).count(b"\n") if log.exists() else 0
        return {
            group[0].folder: FailedRow(
                str(group[0].folder), group[0].seed, _one_line(outcomes), epochs
            )
        }
    if isinstance(outcomes, Exception):
        raise outcomes
    return {Path(one.folder): one for one in outcomes}


@dataclass(frozen=True)
class _Group:
    """Trains a group of members in the process that it is called in; returns the ValueError for
    what is wrong with all of them, of which a Dask worker would print a traceback if it was
    raised.
    """

    cache: Path
    order_seed: int
    how: AblateOptions
    folder: Path | None = None  # the study's

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in vars(self).items() if key != "home"}

    @cached_property
    def home(self) -> WatchedFolder:
        """The study's folder, identified when this process got its first members. Gone if it does
        not exist.
        """
        try:
            return WatchedFolder(self.folder)
        except (FileNotFoundError, NotADirectoryError):
            raise FolderGone(
                f"{self.folder}: the study's folder was moved or deleted: look where it is, and "
                f"run again"
            ) from None

    def __call__(self, members: list[Member]) -> "list[Result | FailedRow] | ValueError":
        from pipeline.cache.reader import Cache

        keep_freed_memory()
        how = self.how
        if self.folder is not None:  # no member makes the study's folder anew
            self.home.check()
        try:
            outcomes = run_members(
                members,
                Cache(self.cache),
                order_seed=self.order_seed,
                device=how.device,
                precision=how.precision,
                manifest=how.manifest,
                resume=how.resume,
                resident=how.resident,
                say=print_waiting,
            )
        except ValueError as error:
            return error
        return [_plain(one, member) for one, member in zip(outcomes, members, strict=True)]


def _plain(outcome: Result | Failure, member: Member) -> "Result | FailedRow":
    """What can be sent from process to process: an error as its text."""
    if isinstance(outcome, Failure):
        return FailedRow(str(outcome.folder), member.seed, _one_line(outcome.error), outcome.epochs)
    return outcome


def _one_line(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"


def _say_who_holds_members(members: Sequence[Member], say: PrintLine) -> None:
    """Prints one line if other processes, which may be at work, hold folders of members that
    workers will wait for.
    """
    watch, found = ClaimWatch(), []
    for member in members:
        path = claim_path(Path(member.folder))
        if (seen := claim_on(path)) is not None and not watch.abandoned(path, seen):
            found.append((member.folder, seen))
    if found:
        folder, seen = found[0]
        more = f" and {len(found) - 1} more members" if len(found) > 1 else ""
        say(f"waiting for {folder}{more}, {claimed_until(seen, 0.0, watch.silence)}")
