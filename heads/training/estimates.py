"""Check the members of a study before training, estimate their cost, and group them."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from heads.config.member import Member
from heads.config.study_file import StudyPlan
from heads.data.splits import cache_dims
from heads.evaluation.counting import count_head
from heads.interface.run_records import RUN
from heads.runs import run_files
from heads.runs.find_runs import epochs_in_log
from heads.training.cache_conditions import require_cached_phases, require_same_extraction
from heads.training.study import Result, Study, one_line
from heads.training.train import print_excluded_clips, stores_for
from heads.training.training_run import TrainingRun
from pipeline.text.counted import counted
from pipeline.workers.waiting import PrintLine

if TYPE_CHECKING:
    from pipeline.cache.reader import Cache
    from pipeline.manifests.manifest import Manifest

# What a training step costs besides the MACs of its head, in MACs per clip. Rough: it only keeps
# a head of no MACs from counting as free.
STEP_MACS = 1e6


@dataclass(frozen=True)
class AblateOptions:
    """How members are trained, the same for all; can be pickled.

    Attributes:
        device, precision, manifest, resume, resident: as for `heads.training.train.train`.
        batch_members: as for `heads.training.train.run_members`.
    """

    device: str = "auto"
    precision: str = "fp32"
    manifest: "Manifest | None" = None
    resume: bool = True
    resident: str = "auto"
    batch_members: bool | None = None


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
        ValueError: a member cannot be trained, because its head reads what the cache lacks, a
            label is missing, or its folder holds another run. The study varies what a cache fixes.
            A feature is not finite.
    """
    require_same_extraction(plan, cache)
    require_cached_phases(plan)
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
            # For example no memory for this head; training it will fail and record the error.
            estimates.append(MemberEstimate(member, why=one_line(error)))
            continue
        estimates.append(estimate)
        if estimate.result is None:
            runs.append(run)

    if problems:
        message = problems[0]
        if len(problems) > 1:
            rest = len(problems) - 1
            message += f" ({rest} more of {counted(len(members), 'member')} cannot be trained)"
        raise ValueError(message)

    if check_features:
        # Opening a store checks its features; "disk" keeps none of them in memory.
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
        # Rounded up: the last mini-batch of an epoch may be smaller.
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
            done += min(one.epochs, epochs_in_log(folder))
    return done


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
