"""Checks one shard of one stage: every byte of its HDF5 file and of the statistics beside it."""

import sys
import threading
from collections.abc import Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from shlex import quote

import numpy as np

from pipeline.cache.fields import FORMAT, ROW_KEYS
from pipeline.cache.folder import Shards, read_cache_json, read_manifest_copy
from pipeline.cache.reader import made_from
from pipeline.cache.records import check_sizes, read_statistics
from pipeline.cache.shard_layout import StoredDataset, Unreadable
from pipeline.cache.shard_reader import UNREADABLE, ShardFile
from pipeline.cache.value_checks import wrong_values
from pipeline.files.atomic_files import Damaged, done_marker, sha256_of

REPAIR, GRAPHS = "run `vidgraph repair --cache {cache}`", "run `vidgraph graphs --cache {cache}`"
VERIFY = "; run `vidgraph verify`"  # how errors end where nobody has run it


@dataclass(frozen=True)
class ShardFinding:
    """Something that is wrong: where (a file, or a row of it), what, what to do; the `stage` and
    `shards` it concerns.
    """

    where: str
    what: str
    fix: str
    stage: str = ""
    shards: tuple[int, ...] = ()


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
        return Shards(
            self.folder,
            record["fingerprint"],
            read_manifest_copy(self.folder, record),
            record["per_shard"],
        )

    def __call__(self, job: tuple[str, int]) -> tuple[list[ShardFinding], int]:
        check = _Check(self.plan, *job)
        try:
            check.run()
        except _Hopeless:
            pass
        except Exception as error:  # one shard never ends the check of the others
            check.say(
                f"cannot be checked ({type(error).__name__}: {' '.join(str(error).split())[:200]})"
            )
        return check.findings, check.views


class _Hopeless(Exception):
    """What is left of a shard cannot be looked at."""


class _Place:
    """How far the hash of a file has come. Who waits for it reads from memory, and leaves the disk
    to one reader in order.
    """

    def __init__(self):
        self._place, self._moved = 0, threading.Condition()

    def come_to(self, place: int) -> None:
        with self._moved:
            self._place = place
            self._moved.notify_all()

    def wait_for(self, place: int) -> None:
        with self._moved:
            self._moved.wait_for(lambda: self._place >= place)


class _Check:
    """One shard of one stage being checked."""

    def __init__(self, plan: Shards, stage: str, shard: int):
        self.plan, self.stage, self.shard, self.path = plan, stage, shard, plan.path(shard, stage)
        self.findings: list[ShardFinding] = []
        self.views, self.hashed = 0, _Place()

    def say(self, what: str, where: str = "", path: Path | None = None, fix: str = REPAIR) -> None:
        fix = fix.format(cache=quote(str(self.plan.folder)))
        self.findings.append(
            ShardFinding(f"{path or self.path}{where}", what, fix, self.stage, (self.shard,))
        )

    def run(self) -> None:
        """Statistics, then the file as a whole, and at the same time what is in it: each reads what
        the other has read.
        """
        record = self._record()
        self._size(record)
        before = len(self.findings)
        with ThreadPoolExecutor(1) as other:
            digest = other.submit(self._hash)
            file = ShardFile(self.path, record)
            try:
                with file.kept_open():
                    self._contents(file, record)
            except Unreadable as error:
                self.say(error.why)
            except UNREADABLE as error:
                self.say(f"cannot be read ({' '.join(str(error).split())})")
            inside = self.findings[before:]
            del self.findings[before:]
            self._digest(digest, record)
            self.findings += inside

    def _hash(self) -> str:
        try:
            return sha256_of(self.path, self.hashed.come_to)
        finally:
            self.hashed.come_to(sys.maxsize)

    def _contents(self, file: ShardFile, record: dict) -> None:
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
            record = read_statistics(self.path)
        except Damaged as error:
            self.say(str(error).removeprefix(f"{marker}: ").removesuffix(VERIFY), path=marker)
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
            features = read_statistics(self.plan.path(self.shard))
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
        try:
            check_sizes(record, size, self.path, "")
        except Damaged as error:
            self.say(str(error).removeprefix(f"{self.path}: ").removesuffix("; "))
            raise _Hopeless from None

    def _digest(self, digest: Future, record: dict) -> None:
        try:
            if digest.result() != record["sha256"]:
                self.say("changed since it was written (its sha256 differs)")
        except OSError as error:
            self.say(f"cannot be read ({error.strerror})")

    def _keys(
        self, group: str, table: dict, clips: list[str], views: list[int], ok: np.ndarray
    ) -> None:
        planned = [clip.clip for clip in self.plan.clips(self.shard)]
        count = table["rows"] // len(planned)
        want = [(clip, view) for clip in planned for view in range(count)]
        came = list(zip(clips, views, strict=True))
        if want != came:
            row = next(
                (k for k, (a, b) in enumerate(zip(want, came, strict=False)) if a != b),
                min(len(want), len(came)),
            )
            said = [
                f"clip {rows[row][0]} view {rows[row][1]}" if row < len(rows) else "no row"
                for rows in (came, want)
            ]
            self.say(f"row order: {said[0]}, the manifest says {said[1]}", f" {group} row {row}")
        if np.flatnonzero(~ok).tolist() != table["absent"]:
            self.say("`ok` differs from what its statistics say", f" {group}")

    def _tables(self, group: str, table: dict, described: Mapping[str, StoredDataset]) -> bool:
        """Whether every dataset is as its statistics say, so that its rows can be read."""
        before = len(self.findings)
        if set(described) != {*table["fields"], *ROW_KEYS}:
            self.say(
                f"holds {', '.join(sorted(described))}; expected "
                f"{', '.join(sorted({*table['fields'], *ROW_KEYS}))}",
                f" {group}",
            )
        for name, came in described.items():
            if not came.checked:
                self.say(f"{name} has no checksums", f" {group}")
            if name in table["fields"]:
                field = table["fields"][name]
                want = StoredDataset(
                    tuple(field["shape"]), field["dtype"], table["rows"], 1, came.checked
                )
                if came != want:
                    self.say(f"{name} is {came}, expected {want}", f" {group}")
        return len(self.findings) == before

    def _rows(self, file: ShardFile, group: str, table: dict, clips: list[str]) -> None:
        """Reads every view that should be there; what is wrong in the same way is said once, with
        the number of views.
        """
        wrong: dict[str, list[int]] = {}
        absent = set(table["absent"])
        space = {
            name: file.space(group, name) for name in table["fields"]
        }  # memory that every row uses again
        layouts = [file.layout(group, name) for name in space]
        ends = np.max([layout.offsets + layout.size for layout in layouts], axis=0)
        for row in (row for row in range(table["rows"]) if row not in absent):
            self.hashed.wait_for(int(ends[row]))
            for said in _wrong_in_row(file, group, space, row):
                wrong.setdefault(said, []).append(row)
            self.views += 1
        for said, rows in wrong.items():
            more = f" and {len(rows) - 1:,} more views" if len(rows) > 1 else ""
            self.say(said, f" {group} row {rows[0]} (clip {clips[rows[0]]}){more}")

    def _failures(self, record: dict, keys: Mapping[str, tuple]) -> None:
        """Clips with rows that are not ok, and why."""
        reasons = {
            failure["clip"]: f"{failure['error']}: {failure['message']}"
            for failure in record.get("failures", ())
        }
        failed = {
            clips[row]: None
            for group, (clips, _, _) in keys.items()
            for row in record["groups"][group]["absent"]
            if row < len(clips)
        }
        for clip in failed | dict.fromkeys(reasons):
            self.say(f"failed: {reasons.get(clip, 'no reason recorded')}", f" clip {clip}")


def _wrong_in_row(
    file: ShardFile, group: str, space: Mapping[str, np.ndarray], row: int
) -> Iterator[str]:
    tensors = {}
    for name, memory in space.items():
        try:
            tensors[name] = file.read_checked(group, name, row, memory)
        except Damaged as error:
            yield f"{name} is {error}"
    yield from wrong_values(tensors)
