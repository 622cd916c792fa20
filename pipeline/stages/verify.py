"""Read every byte of a cache, and say what is wrong, where, and what to do about it."""

import re
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from pipeline.cache.accepted import accepted_clips
from pipeline.cache.reader import STAGES
from pipeline.cache.shard_check import GRAPHS, REPAIR, ShardChecker, ShardFinding
from pipeline.cache.shards import Shards
from pipeline.files import owners
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import ManifestError
from pipeline.text.counted import agree, counted
from pipeline.workers.claims import SHARD, NotAClaim, read_claim
from pipeline.workers.decode_pool import WorkerDied, WorkerPool

# The endings of a shard's two files.
SUFFIXES = (".h5", ".json")

# Files that stopped runs of vidgraph leave. Other files with these endings, such as a downloader's,
# are not ours.
HALF_WRITTEN = re.compile(
    rf"({SHARD}|cache)\.claim"
    rf"|({SHARD}\.(h5|json|claim)|cache\.(json|claim)|manifest(\.next)?\.csv|accepted\.json)"
    r"\..+\.(part|claiming)"
)

Advance = Callable[[int, int], None]


@dataclass
class VerifyReport:
    """What `inspect` found, and how much it read.

    Attributes:
        findings: what is wrong.
        shards: stage -> complete shards.
        views: stage -> views that were read.
        bytes: stage -> bytes that were read.
        seconds: wall time.
    """

    findings: list[ShardFinding] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    views: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    seconds: float = 0.0


def verify(path: str | Path, workers: int = 0) -> list[ShardFinding]:
    """Return everything that `inspect` finds.

    Args:
        path: the cache.
        workers: as for `inspect`.

    Returns:
        The findings; none for an undamaged cache.
    """
    return inspect(path, workers).findings


def bad_shards(
    path: str | Path, workers: int = 0, with_accepted: bool = False
) -> dict[str, list[int]]:
    """Find the shards that are damaged, missing, stale, or hold failed clips.

    Args:
        path: the cache.
        workers: as for `inspect`.
        with_accepted: as for `inspect`.

    Returns:
        Stage -> numbers of shards, of every stage of the cache.

    Raises:
        Damaged: cache.json or the manifest's copy is damaged, so that the shards are unknown.
    """
    report = inspect(path, workers, with_accepted=with_accepted)
    # A finding about the folder itself says that nothing else could be read.
    if not any(report.shards.values()):
        for finding in report.findings:
            if finding.where == str(path) and not finding.stage:
                raise Damaged(f"{finding.where}: {finding.what}; {finding.fix}")

    bad: dict[str, set[int]] = {stage: set() for stage in report.shards}
    for finding in report.findings:
        if finding.stage in bad:
            bad[finding.stage].update(finding.shards)
    return {stage: sorted(shards) for stage, shards in bad.items()}


def shards_to_repair(path: str | Path, workers: int = 0) -> list[int]:
    """Find the shards whose features are damaged, missing, or hold failed clips.

    Args:
        path: the cache.
        workers: as for `inspect`.

    Returns:
        Numbers of shards.

    Raises:
        Damaged: as for `bad_shards`.
    """
    return bad_shards(path, workers)["features"]


def inspect(
    path: str | Path,
    workers: int = 0,
    announce: Callable[[int], Advance] | None = None,
    with_accepted: bool = False,
) -> VerifyReport:
    """Check a cache: hashes, checksums, shapes, row order, values, failed clips, missing files.

    It also finds stale graphs, and files that stopped runs have left.

    Args:
        path: the cache.
        workers: processes. 0 reads in this process, which a damaged file might crash.
        announce: called once with the bytes to read. It returns a function that is called with
            (bytes read, findings) after every shard.
        with_accepted: whether failed clips that a person has accepted are findings, too.

    Returns:
        The findings, and how much was read.

    Raises:
        CacheError: there is no cache, or its format number is another one.
    """
    begun, report, folder = time.monotonic(), VerifyReport(), Path(path)
    try:
        accepted, damaged = _accepted_clips(folder)
        checker = ShardChecker(folder, () if with_accepted else accepted)
        plan = checker.plan
    except (Damaged, ManifestError) as error:
        fix = (
            "delete cache.json and run the same `vidgraph extract` again: it writes both anew and "
            "keeps the shards"
        )
        return VerifyReport([ShardFinding(str(folder), str(error), fix)])

    sizes: dict[tuple[str, int], int] = {}
    for name in ("shards", "views", "bytes"):
        setattr(report, name, dict.fromkeys(stages_of(plan), 0))
    for stage in stages_of(plan):
        for shard in range(len(plan)):
            if plan.done(shard, stage):
                sizes[stage, shard] = _size(plan.path(shard, stage))

    jobs = list(sizes)
    advance = announce(sum(sizes.values())) if announce else lambda done, found: None
    with WorkerPool(checker, min(workers, len(jobs))) as pool:
        # Twice as many as workers, so that none waits while findings are taken in.
        for (stage, shard), result in pool.imap(jobs, ahead=2 * max(1, workers)):
            findings, views = _findings_of(result, plan, stage, shard)
            report.findings += findings
            report.shards[stage] += 1
            report.views[stage] += views
            report.bytes[stage] += sizes[stage, shard]
            advance(sizes[stage, shard], len(findings))
    report.findings += [*damaged, *_missing_shards(plan, jobs), *_foreign_files(plan)]
    report.seconds = time.monotonic() - begun
    return report


def stages_of(plan: Shards) -> tuple[str, ...]:
    """Return the stages of a cache: features, fields that were added, graphs.

    Args:
        plan: its shards.
    """
    return (*plan.stages, "graphs")


def _accepted_clips(folder: Path) -> tuple[Collection[str], list[ShardFinding]]:
    """The failed clips that were accepted; a finding if their file is damaged."""
    try:
        return accepted_clips(folder), []
    except Damaged as error:
        # The message ends with what to do, after its only semicolon.
        what, _, fix = str(error).rpartition("; ")
        where, _, what = what.partition(": ")
        return (), [ShardFinding(where, what, fix)]


def _findings_of(
    result: object, plan: Shards, stage: str, shard: int
) -> tuple[list[ShardFinding], int]:
    """A worker's findings; if it died, that is the finding."""
    if isinstance(result, WorkerDied):
        what = f"reading it ended the process ({result})"
        path, fix = str(plan.path(shard, stage)), REPAIR.format(cache=quote(str(plan.folder)))
        return [ShardFinding(path, what, fix, stage, (shard,))], 0
    if isinstance(result, Exception):
        raise result
    return result


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _missing_shards(plan: Shards, jobs: Sequence[tuple[str, int]]) -> Iterator[ShardFinding]:
    """Shards that are not complete. Graphs count only if some were made."""
    done: dict[str, set[int]] = {stage: set() for stage in stages_of(plan)}
    for stage, shard in jobs:
        done[stage].add(shard)
    expected: dict[str, set[int]] = {}
    for stage in plan.stages:
        expected[stage] = {n for n in range(len(plan)) if plan.has_stage(n, stage)}
    expected["graphs"] = set()
    if done["graphs"]:
        expected["graphs"] = done["features"]

    for stage, shards in expected.items():
        missing = sorted(shards - done[stage])
        if missing:
            what = (
                f"{len(missing):,} of {counted(len(shards), 'shard')} "
                f"{agree(len(missing), 'is', 'are')} missing: {_ranges(missing)}"
            )
            fix = GRAPHS if stage == "graphs" else REPAIR
            fix = fix.format(cache=quote(str(plan.folder)))
            yield ShardFinding(str(plan.folder / stage), what, fix, stage, tuple(missing))


def _foreign_files(plan: Shards) -> Iterator[ShardFinding]:
    """Files that belong to no complete shard: leftovers, and shards beyond the plan.

    Files of a run that is alive are not reported.
    """
    paths: list[Path] = []
    folders = [plan.folder / stage for stage in stages_of(plan)]
    for folder in (plan.folder, *folders):
        paths += [path for path in folder.glob("*") if path not in folders]
    for path in sorted(paths):
        if HALF_WRITTEN.fullmatch(path.name):
            if not _in_use(path):
                fix = "delete it, if no run is writing to this cache"
                yield ShardFinding(str(path), "left by a run that was stopped", fix)
        elif path.parent != plan.folder and not _planned(path, len(plan)):
            yield ShardFinding(str(path), "not part of this cache's plan", "move it elsewhere")


def _in_use(path: Path) -> bool:
    """Whether a claim or part file belongs, or may belong, to a run that is alive."""
    if path.suffix in owners.HALF_WRITTEN:
        return owners.writer_lives(path) is True
    # The name may be that of a pipe, for example.
    with suppress(NotAClaim, OSError):
        claim = read_claim(path)
        return claim is not None and not claim.dead
    return False


def _planned(path: Path, shards: int) -> bool:
    """Whether a name is that of one of the shards' two files."""
    if not path.stem.isdecimal() or int(path.stem) >= shards:
        return False
    return path.name in [f"{int(path.stem):05d}{suffix}" for suffix in SUFFIXES]


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])

    texts = []
    for first, last in runs:
        texts.append(f"{first}" if first == last else f"{first}-{last}")
    return ", ".join(texts)
