"""Reads every byte of a cache and says what is wrong with it, where, and what to do about it."""

import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from shlex import quote

from pipeline.cache.reader import STAGES
from pipeline.cache.shard_check import GRAPHS, REPAIR, ShardChecker, ShardFinding
from pipeline.cache.shards import Shards
from pipeline.files import owners
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import ManifestError
from pipeline.workers.claims import SHARD, NotAClaim, read_claim
from pipeline.workers.decode_pool import WorkerDied, WorkerPool

SUFFIXES = (".h5", ".json")  # of a shard's two files
# What runs leave that were stopped; other files with such endings, such as a downloader's, are none
# of ours.
HALF_WRITTEN = re.compile(
    rf"({SHARD}|cache)\.claim|({SHARD}\.(h5|json|claim)|cache\.(json|claim)|manifest\.csv)\..+\.(part|claiming)"
)


@dataclass
class VerifyReport:
    """What `inspect` found, and how much it read: complete shards per stage, views, bytes,
    seconds.
    """

    findings: list[ShardFinding] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    views: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    seconds: float = 0.0


def verify(path: str | Path, workers: int = 0) -> list[ShardFinding]:
    """Everything that `inspect` finds; empty for a cache that is whole."""
    return inspect(path, workers).findings


def bad_shards(path: str | Path, workers: int = 0) -> dict[str, list[int]]:
    """stage -> its shards that are damaged, missing, stale, or hold failed clips.

    Damaged if the cache's own description is, so that nobody can say which shards there should be.
    """
    report = inspect(path, workers)
    if not any(report.shards.values()) and (
        hopeless := [f for f in report.findings if f.where == str(path) and not f.stage]
    ):
        raise Damaged(f"{hopeless[0].where}: {hopeless[0].what}; {hopeless[0].fix}")
    found: dict[str, set[int]] = {stage: set() for stage in STAGES}
    for finding in report.findings:
        found.get(finding.stage, set()).update(finding.shards)
    return {stage: sorted(shards) for stage, shards in found.items()}


def shards_to_repair(path: str | Path, workers: int = 0) -> list[int]:
    """The shards whose features are damaged, missing, or hold failed clips. Damaged as for
    `bad_shards`.
    """
    return bad_shards(path, workers)["features"]


Advance = Callable[[int, int], None]


def inspect(
    path: str | Path, workers: int = 0, announce: Callable[[int], Advance] | None = None
) -> VerifyReport:
    """Checks hashes, checksums, shapes, row order, NaN, ranges, failed clips, missing shards, stale
    graphs, leftovers.

    `workers` processes; 0: in this one, which a damaged file might then crash. `announce(bytes to
    read)` is called once and returns `advance(bytes, findings)`. CacheError if there is no cache,
    or its FORMAT is another.
    """
    begun, report, folder = time.monotonic(), VerifyReport(), Path(path)
    try:
        checker = ShardChecker(folder)
        plan = checker.plan
    except (Damaged, ManifestError) as error:
        fix = "delete cache.json and run the same `vidgraph extract` again: it writes both anew and keeps the shards"
        return VerifyReport([ShardFinding(str(folder), str(error), fix)])
    jobs = [
        (stage, shard) for stage in STAGES for shard in range(len(plan)) if plan.done(shard, stage)
    ]
    sizes = {job: _size(plan.path(job[1], job[0])) for job in jobs}
    advance = announce(sum(sizes.values())) if announce else lambda done, found: None
    with WorkerPool(checker, min(workers, len(jobs))) as pool:
        for (stage, shard), result in pool.imap(jobs, ahead=2 * max(1, workers)):
            findings, views = _or_died(result, plan, stage, shard)
            report.findings += findings
            report.shards[stage] += 1
            report.views[stage] += views
            report.bytes[stage] += sizes[stage, shard]
            advance(sizes[stage, shard], len(findings))
    report.findings += [*_missing(plan, jobs), *_strangers(plan)]
    report.seconds = time.monotonic() - begun
    return report


def _or_died(
    result: object, plan: Shards, stage: str, shard: int
) -> tuple[list[ShardFinding], int]:
    if isinstance(result, WorkerDied):
        what = f"reading it ended the process ({result})"
        return [
            ShardFinding(
                str(plan.path(shard, stage)),
                what,
                REPAIR.format(cache=quote(str(plan.folder))),
                stage,
                (shard,),
            )
        ], 0
    if isinstance(result, Exception):
        raise result
    return result


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _missing(plan: Shards, jobs: Sequence[tuple[str, int]]) -> Iterator[ShardFinding]:
    """Shards that are not complete; graphs only where some were made."""
    done = {stage: {shard for s, shard in jobs if s == stage} for stage in STAGES}
    expected = {
        "features": set(range(len(plan))),
        "graphs": done["features"] if done["graphs"] else set(),
    }
    for stage, shards in expected.items():
        if lost := sorted(shards - done[stage]):
            what = f"{len(lost):,} of {len(shards):,} shards are missing: {_ranges(lost)}"
            fix = (GRAPHS if stage == "graphs" else REPAIR).format(cache=quote(str(plan.folder)))
            yield ShardFinding(str(plan.folder / stage), what, fix, stage, tuple(lost))


def _strangers(plan: Shards) -> Iterator[ShardFinding]:
    """Files that belong to no complete shard: what a stopped run left, and shards beyond the plan.
    Not those of a live run.
    """
    for path in sorted(p for folder in (".", *STAGES) for p in (plan.folder / folder).glob("*")):
        if HALF_WRITTEN.fullmatch(path.name):
            if not _in_use(path):
                yield ShardFinding(
                    str(path),
                    "left by a run that was stopped",
                    "delete it, if no run is writing to this cache",
                )
        elif path.parent != plan.folder and not _planned(path, len(plan)):
            yield ShardFinding(str(path), "not part of this cache's plan", "move it elsewhere")


def _in_use(path: Path) -> bool:
    """Whether a claim or a part file is, or may be, a live run's."""
    if path.suffix in owners.HALF_WRITTEN:
        return owners.writer_lives(path) is True
    with suppress(NotAClaim, OSError):  # a pipe, for example
        seen = read_claim(path)
        return seen is not None and not seen.dead
    return False


def _planned(path: Path, shards: int) -> bool:
    return (
        path.stem.isdecimal()
        and int(path.stem) < shards
        and path.name in (f"{int(path.stem):05d}{s}" for s in SUFFIXES)
    )


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)
