"""Reads every byte of a cache and says what is wrong with it, where, and what to do about it."""

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache import STAGES, made_from
from pipeline.claims import look
from pipeline.folder import Shards, read_cache_json, read_manifest_copy
from pipeline.manifest import ManifestError
from pipeline.pool import Pool, WorkerDied
from pipeline.sealed import Damaged, done_marker, read_json, sha256_of, writer_lives
from pipeline.shardfile import UNREADABLE, ShardFile, Stored
from pipeline.tensors import FORMAT, ROW_KEYS
from pipeline.values import wrong_values

REPAIR, GRAPHS = "run `vidgraph repair --cache {cache}`", "run `vidgraph graphs --cache {cache}`"
SUFFIXES = (".h5", ".json")  # of a shard's two files


@dataclass(frozen=True)
class Finding:
    """Something that is wrong: where (a file, or a row of it), what, what to do; the `stage` and `shards` it concerns."""

    where: str
    what: str
    fix: str
    stage: str = ""
    shards: tuple[int, ...] = ()


@dataclass
class Report:
    """What `inspect` found, and how much it read: complete shards per stage, views, bytes, seconds."""

    findings: list[Finding] = field(default_factory=list)
    shards: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    views: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    bytes: dict[str, int] = field(default_factory=lambda: dict.fromkeys(STAGES, 0))
    seconds: float = 0.0


def verify(path: str | Path, workers: int = 0) -> list[Finding]:
    """Everything that `inspect` finds; empty for a cache that is whole."""
    return inspect(path, workers).findings


def bad_shards(path: str | Path, workers: int = 0) -> dict[str, list[int]]:
    """stage -> its shards that are damaged, missing, stale, or hold failed clips.

    Damaged if the cache's own description is, so that nobody can say which shards there should be.
    """
    report = inspect(path, workers)
    if not any(report.shards.values()) and (hopeless := [f for f in report.findings if f.where == str(path) and not f.stage]):
        raise Damaged(f"{hopeless[0].where}: {hopeless[0].what}; {hopeless[0].fix}")
    found: dict[str, set[int]] = {stage: set() for stage in STAGES}
    for finding in report.findings:
        found.get(finding.stage, set()).update(finding.shards)
    return {stage: sorted(shards) for stage, shards in found.items()}


def shards_to_repair(path: str | Path, workers: int = 0) -> list[int]:
    """The shards whose features are damaged, missing, or hold failed clips. Damaged as for `bad_shards`."""
    return bad_shards(path, workers)["features"]


Advance = Callable[[int, int], None]


def inspect(path: str | Path, workers: int = 0, announce: Callable[[int], Advance] | None = None) -> Report:
    """Checks hashes, checksums, shapes, row order, NaN, ranges, failed clips, missing shards, stale graphs, leftovers.

    `workers` processes; 0: in this one, which a damaged file might then crash. `announce(bytes to read)` is called once and
    returns `advance(bytes, findings)`. CacheError if there is no cache, or its FORMAT is another.
    """
    begun, report, folder = time.monotonic(), Report(), Path(path)
    try:
        checker = ShardChecker(folder)
        plan = checker.plan
    except (Damaged, ManifestError) as error:
        fix = "delete cache.json and run the same `vidgraph extract` again: it writes both anew and keeps the shards"
        return Report([Finding(str(folder), str(error), fix)])
    jobs = [(stage, shard) for stage in STAGES for shard in range(len(plan)) if plan.done(shard, stage)]
    sizes = {job: _size(plan.path(job[1], job[0])) for job in jobs}
    advance = announce(sum(sizes.values())) if announce else lambda done, found: None
    with Pool(checker, min(workers, len(jobs))) as pool:
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


def _or_died(result: object, plan: Shards, stage: str, shard: int) -> tuple[list[Finding], int]:
    if isinstance(result, WorkerDied):
        what = f"reading it ended the process ({result})"
        return [Finding(str(plan.path(shard, stage)), what, REPAIR.format(cache=plan.folder), stage, (shard,))], 0
    if isinstance(result, Exception):
        raise result
    return result


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _missing(plan: Shards, jobs: Sequence[tuple[str, int]]) -> Iterator[Finding]:
    """Shards that are not complete; graphs only where some were made."""
    done = {stage: {shard for s, shard in jobs if s == stage} for stage in STAGES}
    expected = {"features": set(range(len(plan))), "graphs": done["features"] if done["graphs"] else set()}
    for stage, shards in expected.items():
        if lost := sorted(shards - done[stage]):
            what = f"{len(lost):,} of {len(shards):,} shards are missing: {_ranges(lost)}"
            fix = (GRAPHS if stage == "graphs" else REPAIR).format(cache=plan.folder)
            yield Finding(str(plan.folder / stage), what, fix, stage, tuple(lost))


def _strangers(plan: Shards) -> Iterator[Finding]:
    """Files that belong to no complete shard: what a stopped run left, and shards beyond the plan. Not those of a live run."""
    for path in sorted(p for folder in (".", *STAGES) for p in (plan.folder / folder).glob("*")):
        if path.suffix in (".part", ".claim"):
            if not _in_use(path):
                yield Finding(str(path), "left by a run that was stopped", "delete it, if no run is writing to this cache")
        elif path.parent != plan.folder and not _planned(path, len(plan)):
            yield Finding(str(path), "not part of this cache's plan", "move it elsewhere")


def _in_use(path: Path) -> bool:
    """Whether a claim or a part file is, or may be, a live run's."""
    if path.suffix == ".part":
        return writer_lives(path) is True
    seen = look(path)
    return seen is not None and not seen.dead


def _planned(path: Path, shards: int) -> bool:
    return path.stem.isdecimal() and int(path.stem) < shards and path.name in (f"{int(path.stem):05d}{s}" for s in SUFFIXES)


def _ranges(numbers: Sequence[int]) -> str:
    """[1, 2, 3, 7] -> "1-3, 7"."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][1] + 1:
            runs[-1][1] = number
        else:
            runs.append([number, number])
    return ", ".join(str(a) if a == b else f"{a}-{b}" for a, b in runs)


class ShardChecker:
    """Checks one shard of one stage: called with (stage, shard), returns (findings, views read)."""

    def __init__(self, folder: Path):
        self.folder = folder

    def __getstate__(self) -> dict:
        return {"folder": self.folder}

    @cached_property
    def plan(self) -> Shards:
        """The cache's plan, read once per process."""
        record = read_cache_json(self.folder)
        return Shards(self.folder, record["fingerprint"], read_manifest_copy(self.folder, record), record["per_shard"])

    def __call__(self, job: tuple[str, int]) -> tuple[list[Finding], int]:
        check = _Check(self.plan, *job)
        try:
            check.run()
        except _Hopeless:
            pass
        except (KeyError, TypeError, IndexError, AttributeError) as error:  # sealed, yet not by our writer
            check.say(f"its statistics are not what they should be ({type(error).__name__}: {error})")
        return check.findings, check.views


class _Hopeless(Exception):
    """What is left of a shard cannot be looked at."""


class _Check:
    """One shard of one stage being checked."""

    def __init__(self, plan: Shards, stage: str, shard: int):
        self.plan, self.stage, self.shard, self.path = plan, stage, shard, plan.path(shard, stage)
        self.findings: list[Finding] = []
        self.views = 0

    def say(self, what: str, where: str = "", path: Path | None = None, fix: str = REPAIR) -> None:
        fix = fix.format(cache=self.plan.folder)
        self.findings.append(Finding(f"{path or self.path}{where}", what, fix, self.stage, (self.shard,)))

    def run(self) -> None:
        """Statistics, then the file as a whole, and at the same time what is in it: each reads what the other has read."""
        record = self._record()
        self._size(record)
        before = len(self.findings)
        with ThreadPoolExecutor(1) as other:
            digest = other.submit(sha256_of, self.path)
            file = ShardFile(self.path, record)
            try:
                with file.kept_open():
                    self._contents(file, record)
            except UNREADABLE as error:
                self.say(f"HDF5 cannot read all of it ({' '.join(str(error).split())})")
            inside = self.findings[before:]
            del self.findings[before:]
            self._digest(digest, record)
            self.findings += inside

    def _contents(self, file: ShardFile, record: dict) -> None:
        described, attrs = file.describe(), file.attrs()
        if attrs != record["attrs"]:
            self.say(f"its attributes are {attrs}, its statistics say {record['attrs']}")
        if set(described) != set(record["groups"]):
            self.say(f"holds the groups {', '.join(described)}, its statistics say {', '.join(record['groups'])}")
            return
        keys = {group: file.keys(group) for group in record["groups"]}
        for group, table in record["groups"].items():
            self._keys(group, table, *keys[group])
            if self._tables(group, table, described[group]):
                self._rows(file, group, table, keys[group][0])
        if self.stage == "features":
            self._failures(record, keys)

    def _record(self) -> dict:
        marker = done_marker(self.path)
        try:
            if not marker.is_file():
                raise OSError(0, "not a file")
            record = read_json(marker)
        except Damaged:
            self.say("changed since it was written", path=marker)
            raise _Hopeless from None
        except OSError as error:
            self.say(f"cannot be read ({error.strerror})", path=marker)
            raise _Hopeless from None
        want = {"format": FORMAT, **self.plan.attrs(self.shard)}
        for key in (key for key in want if record["attrs"].get(key) != want[key]):
            self.say(f"{key} is {record['attrs'].get(key, 'missing')}, this cache's is {want[key]}")
        if self.stage == "graphs":
            self._freshness(record)
        return record

    def _freshness(self, record: dict) -> None:
        try:
            features = read_json(done_marker(self.plan.path(self.shard)))
        except (Damaged, OSError):
            return  # said of the features
        if not made_from(record, features):
            self.say("stale: its features were written again since", fix=GRAPHS)

    def _size(self, record: dict) -> None:
        if not self.path.is_file():
            self.say("missing, although its statistics are there")
            raise _Hopeless
        if (size := self.path.stat().st_size) != record["bytes"]:
            self.say(f"has {size:,} bytes, was written with {record['bytes']:,}")
            raise _Hopeless

    def _digest(self, digest: Future, record: dict) -> None:
        try:
            if digest.result() != record["sha256"]:
                self.say("changed since it was written (its sha256 differs)")
        except OSError as error:
            self.say(f"cannot be read ({error.strerror})")

    def _keys(self, group: str, table: dict, clips: list[str], views: list[int], ok: np.ndarray) -> None:
        planned = [clip.clip for clip in self.plan.clips(self.shard)]
        count = table["rows"] // len(planned)
        want = [(clip, view) for clip in planned for view in range(count)]
        came = list(zip(clips, views, strict=True))
        if want != came:
            row = next((k for k, (a, b) in enumerate(zip(want, came, strict=False)) if a != b), min(len(want), len(came)))
            said = [f"clip {rows[row][0]} view {rows[row][1]}" if row < len(rows) else "no row" for rows in (came, want)]
            self.say(f"row order: {said[0]}, the manifest says {said[1]}", f" {group} row {row}")
        if np.flatnonzero(~ok).tolist() != table["absent"]:
            self.say("`ok` differs from what its statistics say", f" {group}")

    def _tables(self, group: str, table: dict, described: Mapping[str, Stored]) -> bool:
        """Whether every dataset is as its statistics say, so that its rows can be read."""
        before = len(self.findings)
        if set(described) != {*table["fields"], *ROW_KEYS}:
            self.say(
                f"holds {', '.join(sorted(described))}; expected {', '.join(sorted({*table['fields'], *ROW_KEYS}))}",
                f" {group}",
            )
        for name, came in described.items():
            if not came.checked:
                self.say(f"{name} has no checksums", f" {group}")
            if name in table["fields"]:
                field = table["fields"][name]
                want = Stored(tuple(field["shape"]), field["dtype"], table["rows"], 1, came.checked)
                if came != want:
                    self.say(f"{name} is {came}, expected {want}", f" {group}")
        return len(self.findings) == before

    def _rows(self, file: ShardFile, group: str, table: dict, clips: list[str]) -> None:
        """Reads every view that should be there; what is wrong in the same way is said once, with the number of views."""
        wrong: dict[str, list[int]] = {}
        absent = set(table["absent"])
        space = {name: file.space(group, name) for name in table["fields"]}  # memory that every row uses again
        for row in (row for row in range(table["rows"]) if row not in absent):
            for said in _wrong_in_row(file, group, space, row):
                wrong.setdefault(said, []).append(row)
            self.views += 1
        for said, rows in wrong.items():
            more = f" and {len(rows) - 1:,} more views" if len(rows) > 1 else ""
            self.say(said, f" {group} row {rows[0]} (clip {clips[rows[0]]}){more}")

    def _failures(self, record: dict, keys: Mapping[str, tuple]) -> None:
        """Clips with rows that are not ok, and why."""
        reasons = {failure["clip"]: f"{failure['error']}: {failure['message']}" for failure in record.get("failures", ())}
        failed = {
            clips[row]: None
            for group, (clips, _, _) in keys.items()
            for row in record["groups"][group]["absent"]
            if row < len(clips)
        }
        for clip in failed | dict.fromkeys(reasons):
            self.say(f"failed: {reasons.get(clip, 'no reason recorded')}", f" clip {clip}")


def _wrong_in_row(file: ShardFile, group: str, space: Mapping[str, np.ndarray], row: int) -> Iterator[str]:
    tensors = {}
    for name, memory in space.items():
        try:
            tensors[name] = file.read_checked(group, name, row, memory)
        except Damaged as error:
            yield f"{name} is {error}"
    yield from wrong_values(tensors)
