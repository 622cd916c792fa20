"""Check one shard of one stage: every byte of its HDF5 file, and the statistics beside it."""

import sys
import threading
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote

import numpy as np

from pipeline.cache.fields import ROW_KEYS
from pipeline.cache.folder import read_folder
from pipeline.cache.good_rows import wrong_values
from pipeline.cache.records import check_sizes, read_statistics
from pipeline.cache.shard_layout import StoredDataset, Unreadable
from pipeline.cache.shard_reader import UNREADABLE, ShardFile
from pipeline.cache.shards import Shards, made_from
from pipeline.files.atomic_files import Damaged, done_marker, sha256_of
from pipeline.text.counted import counted

# What to do about a finding; `{cache}` is the cache's path.
REPAIR = "run `vidgraph repair --cache {cache}`"
GRAPHS = "run `vidgraph graphs --cache {cache}`"

# The end of errors that others than `verify` raise. `verify` itself leaves it out.
VERIFY = "; run `vidgraph verify`"


@dataclass(frozen=True)
class ShardFinding:
    """Something that is wrong with a shard.

    Attributes:
        where: a file, or a row of it.
        what: what is wrong.
        fix: what to do.
        stage: "features", "graphs", or "" for the cache as a whole.
        shards: the numbers of the shards that it concerns.
    """

    where: str
    what: str
    fix: str
    stage: str = ""
    shards: tuple[int, ...] = ()


class ShardChecker:
    """Checks shards of a cache. It can be pickled and sent to another process.

    Attributes:
        folder: the cache.
        accepted: the failed clips that are no finding.
    """

    def __init__(self, folder: Path, accepted: Collection[str] = ()):
        """Remember the cache; it is opened in the process that checks.

        Args:
            folder: the cache.
            accepted: ids of failed clips that a person has accepted.
        """
        self.folder, self.accepted = folder, frozenset(accepted)

    def __getstate__(self) -> dict:
        return {"folder": self.folder, "accepted": self.accepted}

    @cached_property
    def plan(self) -> Shards:
        """The shards of the cache, read once per process."""
        return Shards(self.folder, *read_folder(self.folder))

    def __call__(self, job: tuple[str, int]) -> tuple[list[ShardFinding], int]:
        """Check one shard.

        Args:
            job: (stage, shard).

        Returns:
            The findings, and how many views were read.
        """
        check = _Check(self.plan, *job, self.accepted)
        try:
            check.run()
        except _Stop:
            pass
        # An error in one shard must not end the check of the others.
        except Exception as error:
            text = " ".join(str(error).split())[:200]
            check.say(f"cannot be checked ({type(error).__name__}: {text})")
        return check.findings, check.views


class _Stop(Exception):
    """The rest of the shard cannot be checked; the findings say why."""


class _HashProgress:
    """How many bytes of a file have been hashed.

    The check reads a view once the hash has passed it. So the disk is read once, in order, and
    the views come from the system's cache.
    """

    def __init__(self):
        self._offset, self._changed = 0, threading.Condition()

    def advance_to(self, offset: int) -> None:
        with self._changed:
            self._offset = offset
            self._changed.notify_all()

    def wait_for(self, offset: int) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._offset >= offset)


class _Check:
    """The check of one shard of one stage."""

    def __init__(self, plan: Shards, stage: str, shard: int, accepted: Collection[str] = ()):
        self.accepted = accepted
        self.plan, self.stage, self.shard, self.path = plan, stage, shard, plan.path(shard, stage)
        self.findings: list[ShardFinding] = []
        self.views, self.hashed = 0, _HashProgress()

    def say(self, what: str, where: str = "", path: Path | None = None, fix: str = REPAIR) -> None:
        """Add a finding. `where` is the part of the file, `path` another file than the HDF5 one."""
        fix = fix.format(cache=quote(str(self.plan.folder)))
        place = f"{path or self.path}{where}"
        self.findings.append(ShardFinding(place, what, fix, self.stage, (self.shard,)))

    def run(self) -> None:
        """Check the statistics, then hash the file and read its views at the same time."""
        record = self._check_record()
        self._check_size(record)
        before = len(self.findings)
        with ThreadPoolExecutor(1) as other:
            digest = other.submit(self._hash)
            file = ShardFile(self.path, record)
            try:
                with file.kept_open():
                    self._check_contents(file, record)
            except Unreadable as error:
                self.say(error.why)
            except UNREADABLE as error:
                self.say(f"cannot be read ({' '.join(str(error).split())})")

            # The finding on the whole file comes before those on its parts.
            inside = self.findings[before:]
            del self.findings[before:]
            self._check_digest(digest, record)
            self.findings += inside

    def _hash(self) -> str:
        try:
            return sha256_of(self.path, self.hashed.advance_to)
        finally:
            # After an error too, nobody may wait for ever.
            self.hashed.advance_to(sys.maxsize)

    def _check_record(self) -> dict:
        marker = done_marker(self.path)
        try:
            if not marker.is_file():
                raise OSError(0, "not a file")
            record = read_statistics(self.path)
        except Damaged as error:
            self.say(str(error).removeprefix(f"{marker}: ").removesuffix(VERIFY), path=marker)
            raise _Stop from None
        except OSError as error:
            self.say(f"cannot be read ({error.strerror})", path=marker)
            raise _Stop from None

        for key, expected in self.plan.attrs(self.shard, self.stage).items():
            found = record["attrs"].get(key, "missing")
            if found != expected:
                self.say(f"{key} is {found}, this cache's is {expected}")
        if self.stage != "features":
            self._check_freshness(record)
        return record

    def _check_freshness(self, record: dict) -> None:
        features = {}
        for stage in record.get("sources", ["features"]):
            try:
                features[stage] = read_statistics(self.plan.path(self.shard, stage))
            except (Damaged, OSError):
                # The check of the features reports this.
                return
        if not made_from(record, features):
            fix = GRAPHS if self.stage == "graphs" else REPAIR
            self.say("stale: its features were written again since", fix=fix)

    def _check_size(self, record: dict) -> None:
        if not self.path.is_file():
            self.say("missing, although its statistics are there")
            raise _Stop
        size = self.path.stat().st_size
        if size != record["bytes"]:
            self.say(f"has {size:,} bytes, was written with {record['bytes']:,}")
            raise _Stop
        try:
            check_sizes(record, size, self.path, "")
        except Damaged as error:
            self.say(str(error).removeprefix(f"{self.path}: ").removesuffix("; "))
            raise _Stop from None

    def _check_digest(self, digest: Future, record: dict) -> None:
        try:
            if digest.result() != record["sha256"]:
                self.say("changed since it was written (its sha256 differs)")
        except OSError as error:
            self.say(f"cannot be read ({error.strerror})")

    def _check_contents(self, file: ShardFile, record: dict) -> None:
        described, attrs = file.describe(), file.attrs()
        if attrs != record["attrs"]:
            self.say(f"its attributes are {attrs}, its statistics say {record['attrs']}")
        if set(described) != set(record["groups"]):
            self.say(
                f"holds the groups {', '.join(described)}, its statistics say "
                f"{', '.join(record['groups'])}"
            )
            return

        keys = {group: file.keys(group) for group in record["groups"]}
        for group, table in record["groups"].items():
            self._check_keys(group, table, *keys[group])
            if self._check_datasets(group, table, described[group]):
                self._check_rows(file, group, table, keys[group][0])
        if self.stage == "features":
            self._report_failures(record, keys)
        elif self.stage != "graphs":
            # The rows that the features lack are missing here too. That is no failure of its own.
            self._report_failures(record | {"groups": self._own_failures(record)}, keys)

    def _check_keys(
        self, group: str, table: dict, clips: list[str], views: list[int], ok: np.ndarray
    ) -> None:
        planned = self.plan.clips(self.shard)
        numbers, views_of_rows = self.plan.rows(self.shard, group, table["rows"])
        expected = []
        for number, view in zip(numbers, views_of_rows, strict=True):
            expected.append((planned[number].clip, view))

        found = list(zip(clips, views, strict=True))
        if found != expected:
            row = 0
            while row < min(len(found), len(expected)) and found[row] == expected[row]:
                row += 1
            self.say(
                f"row order: {_row_in_words(found, row)}, the manifest says "
                f"{_row_in_words(expected, row)}",
                f" {group} row {row}",
            )
        if np.flatnonzero(~ok).tolist() != table["absent"]:
            self.say("`ok` differs from what its statistics say", f" {group}")

    def _check_datasets(
        self, group: str, table: dict, described: Mapping[str, StoredDataset]
    ) -> bool:
        """Whether every dataset is as the statistics say, so that its rows can be read."""
        before = len(self.findings)
        expected_names = {*table["fields"], *ROW_KEYS}
        if set(described) != expected_names:
            self.say(
                f"holds {', '.join(sorted(described))}; expected "
                f"{', '.join(sorted(expected_names))}",
                f" {group}",
            )
        for name, found in described.items():
            if not found.checked:
                self.say(f"{name} has no checksums", f" {group}")
            if name in table["fields"]:
                field = table["fields"][name]
                # Missing checksums have a finding of their own already.
                expected = StoredDataset(
                    tuple(field["shape"]), field["dtype"], table["rows"], 1, found.checked
                )
                if found != expected:
                    self.say(f"{name} is {found}, expected {expected}", f" {group}")
        return len(self.findings) == before

    def _check_rows(self, file: ShardFile, group: str, table: dict, clips: list[str]) -> None:
        """Read every view that was extracted. Views with the same fault share one finding."""
        wrong: dict[str, list[int]] = {}
        absent = set(table["absent"])
        # Memory that all rows use in turn.
        space = {name: file.space(group, name) for name in table["fields"]}
        layouts = [file.layout(group, name) for name in space]
        ends = np.max([layout.offsets + layout.size for layout in layouts], axis=0)

        for row in range(table["rows"]):
            if row in absent:
                continue
            self.hashed.wait_for(int(ends[row]))
            for fault in _faults_of_row(file, group, space, row):
                wrong.setdefault(fault, []).append(row)
            self.views += 1

        for fault, rows in wrong.items():
            more = f" and {counted(len(rows) - 1, 'more view')}" if len(rows) > 1 else ""
            self.say(fault, f" {group} row {rows[0]} (clip {clips[rows[0]]}){more}")

    def _own_failures(self, record: dict) -> dict:
        """The groups of added fields; absent are only rows that the features hold."""
        features = self.plan.record(self.shard)["groups"]
        groups = {}
        for group, table in record["groups"].items():
            absent = set(table["absent"]) - set(features[group]["absent"])
            groups[group] = {**table, "absent": sorted(absent)}
        return groups

    def _report_failures(self, record: dict, keys: Mapping[str, tuple]) -> None:
        """Report the clips with rows that were not extracted, and why."""
        reasons = {}
        for failure in record.get("failures", ()):
            reasons[failure["clip"]] = f"{failure['error']}: {failure['message']}"

        # A dictionary, because it keeps the order and names each clip once.
        failed: dict[str, None] = {}
        for group, (clips, _, _) in keys.items():
            for row in record["groups"][group]["absent"]:
                if row < len(clips):
                    failed[clips[row]] = None
        for clip in failed | dict.fromkeys(reasons):
            if clip in self.accepted:
                continue
            self.say(f"failed: {reasons.get(clip, 'no reason recorded')}", f" clip {clip}")


def _row_in_words(rows: Sequence[tuple[str, int]], row: int) -> str:
    if row >= len(rows):
        return "no row"
    clip, view = rows[row]
    return f"clip {clip} view {view}"


def _faults_of_row(
    file: ShardFile, group: str, space: Mapping[str, np.ndarray], row: int
) -> Iterator[str]:
    tensors = {}
    for name, memory in space.items():
        try:
            tensors[name] = file.read_checked(group, name, row, memory)
        except Damaged as error:
            yield f"{name} is {error}"
    yield from wrong_values(tensors)
