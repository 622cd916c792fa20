"""Opens a cache, joins the files of its stages, and serves single views and batches.

What exists, and in which shape, is read from the shards' statistics files; an HDF5 file is opened
when a row of it is asked for, once per process.
"""

import os
import threading
from collections.abc import Iterable, Iterator, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from pipeline.cache.fields import FIELDS, GROUPS
from pipeline.cache.folder import (
    CacheError,
    Shards,
    check_manifest_copy,
    create_cache,
    read_cache_json,
    relabelled_clips,
)
from pipeline.cache.shard_reader import ShardFile
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import Manifest, read_manifest

__all__ = [
    "Cache",
    "CacheError",
    "Damaged",
    "Group",
    "complete_shard",
    "create_cache",
    "made_from",
    "relabelled_clips",
]

STAGES = ("features", "graphs")


class _Files:
    """The files that this process has read; none after a fork, or in a copy.
    `pipeline.cache.open_files` says how many are open.
    """

    def __init__(self) -> None:
        self._pid, self._lock = os.getpid(), threading.Lock()
        self._known: dict[Path, ShardFile] = {}

    def __getstate__(self) -> dict:
        return {}

    def __setstate__(self, state: dict) -> None:
        self.__init__()

    def get(self, path: Path, record: dict) -> ShardFile:
        if self._pid != os.getpid():
            self.__init__()
        with self._lock:
            if path not in self._known:
                self._known[path] = ShardFile(path, record)
            return self._known[path]

    def __iter__(self) -> Iterator[ShardFile]:
        """Those that are open."""
        return (file for file in list(self._known.values()) if file.is_open)


class Cache:
    """A cache folder, read-only; cheap to open, picklable, and usable in forked and spawned
    workers.

    `config` and `fingerprint` say what was extracted, `shards` is the plan; `cache["train"]` is a
    Group. It knows the shards that were complete when it was first asked about them. CacheError if
    there is no cache, or its FORMAT is another; Damaged if cache.json or the copy of the manifest
    has changed.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.record = read_cache_json(self.path)
        check_manifest_copy(self.path, self.record)
        self.config: dict = self.record["config"]
        self.fingerprint: str = self.record["fingerprint"]
        self.files = _Files()
        self._groups: dict[str, Group] = {}

    @cached_property
    def manifest(self) -> Manifest:
        """The manifest as it was when the cache was made; the labels of another one may be
        newer.
        """
        return read_manifest(self.path / "manifest.csv", self.record["manifest"]["root"])

    @cached_property
    def shards(self) -> Shards:
        """Which shard holds which clips, and where its files lie."""
        return Shards(self.path, self.fingerprint, self.manifest, self.record["per_shard"])

    @cached_property
    def records(self) -> dict[str, dict[int, dict]]:
        """stage -> shard -> statistics, of complete shards; without graphs whose features were
        written again since.
        """
        features, graphs = (self._read_records(stage) for stage in STAGES)
        fresh = {
            shard: graph
            for shard, graph in graphs.items()
            if shard in features and made_from(graph, features[shard])
        }
        return {"features": features, "graphs": fresh}

    def _read_records(self, stage: str) -> dict[int, dict]:
        done = (shard for shard in range(len(self.shards)) if self.shards.done(shard, stage))
        return {shard: self.shards.record(shard, stage) for shard in done}

    @property
    def missing(self) -> list[int]:
        """The shards whose features are not complete."""
        return [shard for shard in range(len(self.shards)) if shard not in self.records["features"]]

    @property
    def failures(self) -> list[dict]:
        """The failed clips' records (clip, error, message, seconds) of every complete shard."""
        return [
            failure
            for record in self.records["features"].values()
            for failure in record.get("failures", ())
        ]

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the complete shards hold: train, test, or both."""
        return tuple(
            g
            for g in GROUPS
            if any(g in record["groups"] for record in self.records["features"].values())
        )

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Which stage holds which fields, in any group of any shard."""
        held = {}
        for stage, records in self.records.items():
            groups = [group for record in records.values() for group in record["groups"].values()]
            held[stage] = _in_order({name for group in groups for name in group["fields"]})
        return held

    def __getitem__(self, group: str) -> "Group":
        if group not in self.groups:
            there = ", ".join(self.groups) or "nothing yet"
            raise CacheError(
                f"{self.path}: no group {group!r} (it holds {there}); extract with --train-views "
                f"or --test-clips from 1"
            )
        if group not in self._groups:
            self._groups[group] = Group(self, group)
        return self._groups[group]


class Group:
    """The views of one group, over all shards; row r is the same view in every stage, and a clip's
    views are neighbours.

    `clips` (ids) and `views` (numbers) by row; `present` bool [R]: its shard is complete; `ok` bool
    [R]: it was extracted; `fields`: the names that every complete shard holds.
    """

    def __init__(self, cache: Cache, name: str):
        self.cache, self.name = cache, name
        self.per_clip = self._views_per_clip()
        clips = cache.manifest.clips
        self.clips = [clip.clip for clip in clips for _ in range(self.per_clip)]
        self.views = np.tile(np.arange(self.per_clip, dtype=np.int32), len(clips))
        self._starts = np.array([r.start * self.per_clip for r in cache.shards.ranges], np.int64)
        self.present, self.ok = np.zeros(len(self), bool), np.zeros(len(self), bool)
        for shard, record in cache.records["features"].items():
            here = np.array(self.rows_in(shard))
            self.present[here] = self.ok[here] = True
            self.ok[here[record["groups"][name]["absent"]]] = False
        self._described = self._describe()
        self.fields = _in_order(self._described)

    def _views_per_clip(self) -> int:
        counts = set()
        for shard, record in self.cache.records["features"].items():
            rows = record["groups"][self.name]["rows"] if self.name in record["groups"] else 0
            counts.add(rows / len(self.cache.shards.ranges[shard]))
        if len(counts) != 1 or not (count := counts.pop()).is_integer():
            raise Damaged(
                f"{self.cache.path} {self.name}: shards differ in views per clip; run `vidgraph "
                f"verify`"
            )
        return int(count)

    def _describe(self) -> dict[str, tuple[str, tuple[int, ...], np.dtype]]:
        """field -> (stage, shape of a view padded to the widest shard, dtype), of what every
        complete shard holds.
        """
        described = {}
        for stage, records in self.cache.records.items():
            tables = [record["groups"][self.name]["fields"] for record in records.values()]
            if len(tables) < len(self.cache.records["features"]):
                continue
            for name in set(tables[0]).intersection(*tables[1:]):
                shapes = {tuple(table[name]["shape"]) for table in tables}
                dtypes = {table[name]["dtype"] for table in tables}
                fixed = {
                    shape[:2] if len(shape) == 4 else shape for shape in shapes
                }  # only a map's h and w may vary
                if len(dtypes) > 1 or len(fixed) > 1:
                    if stage == "graphs":  # a run with other options was stopped half way
                        continue
                    raise Damaged(
                        f"{self.cache.path} {self.name}: shards differ in the size of {name}; run "
                        f"`vidgraph verify`"
                    )
                widest = tuple(map(max, zip(*shapes, strict=True)))
                described[name] = stage, widest, np.dtype(dtypes.pop()).newbyteorder("<")
        return described

    def __len__(self) -> int:
        return len(self.clips)

    def shape(self, field: str) -> tuple[int, ...]:
        """The shape of a view's tensor, without R. Maps are padded to the widest shard with zeros;
        `grid` has the true size.
        """
        return self._field(field)[1]

    def dtype(self, field: str) -> np.dtype:
        """The dtype, as stored."""
        return self._field(field)[2]

    def rows_of(self, clip: str) -> range:
        """The rows of a clip's views. CacheError for an id that the manifest does not have."""
        if clip not in self._positions:
            raise CacheError(f"{self.cache.path}: no clip {clip!r} in its manifest")
        first = self._positions[clip] * self.per_clip
        return range(first, first + self.per_clip)

    def rows_in(self, shard: int) -> range:
        """The rows of a shard."""
        first = int(self._starts[shard])
        return range(first, first + len(self.cache.shards.ranges[shard]) * self.per_clip)

    @cached_property
    def _positions(self) -> dict[str, int]:
        return {clip.clip: clip.position for clip in self.cache.manifest.clips}

    def _field(self, name: str) -> tuple[str, tuple[int, ...], np.dtype]:
        if name not in self._described:
            where = f"{self.cache.path} {self.name}: no {name} (it holds {', '.join(self.fields)})"
            if name in FIELDS and FIELDS[name].stage == "graphs":
                raise CacheError(
                    f"{where} for all its shards as they are now; run `vidgraph graphs --cache "
                    f"{self.cache.path}`"
                )
            raise CacheError(f"{where}; extract into another folder with --keep {name}")
        return self._described[name]

    def view(self, row: int) -> dict[str, np.ndarray]:
        """Every field of one view, in the shape that `shape` gives. Errors as for `batch`."""
        return {name: values[0] for name, values in self.batch([row]).items()}

    def batch(
        self, rows: Sequence[int], fields: Sequence[str] | None = None
    ) -> dict[str, np.ndarray]:
        """field -> [B, *shape(field)] of the rows, in the order asked; a row may be asked for more
        than once.

        Reads in the order of the files. IndexError for a row out of range; CacheError for a field
        that is not there, or a row that was not extracted.
        """
        rows = np.asarray(rows, np.int64).reshape(-1)
        self._require_ok(rows)
        names = self.fields if fields is None else fields
        out = {name: np.empty((len(rows), *self.shape(name)), self.dtype(name)) for name in names}
        distinct, places, again = np.unique(rows, return_index=True, return_inverse=True)
        shards = np.searchsorted(self._starts, distinct, side="right") - 1
        for shard in dict.fromkeys(shards.tolist()):
            start, stop = np.searchsorted(shards, (shard, shard + 1))
            for name, values in out.items():
                self._read(
                    shard,
                    name,
                    distinct[start:stop] - self._starts[shard],
                    places[start:stop],
                    values,
                )
        repeated = np.flatnonzero(places[again] != np.arange(len(rows)))
        for values in out.values():
            values[repeated] = values[places[again[repeated]]]
        return out

    def _read(
        self, shard: int, name: str, rows: np.ndarray, places: np.ndarray, out: np.ndarray
    ) -> None:
        """Rows of a shard, counted in it, each once and ascending, into out[places]."""
        stage = self._described[name][0]
        record = self.cache.records[stage][shard]
        file = self.cache.files.get(self.cache.shards.path(shard, stage), record)
        stored = tuple(record["groups"][self.name]["fields"][name]["shape"])
        if stored == out.shape[1:]:
            file.read(self.name, name, rows, [out[place : place + 1] for place in places.tolist()])
        else:
            narrow = np.empty((len(rows), *stored), out.dtype)
            file.read(self.name, name, rows, narrow)
            out[places] = 0
            out[(places, *map(slice, stored))] = narrow

    def _require_ok(self, rows: np.ndarray) -> None:
        if rows.size and not 0 <= rows.min() <= rows.max() < len(self):
            raise IndexError(
                f"{self.cache.path} {self.name}: rows {rows.min()} to {rows.max()}, expected 0 to "
                f"{len(self) - 1}"
            )
        if self.ok[rows].all():
            return
        row = rows[~self.ok[rows]][0]
        verb, why = (
            ("repair", "failed in extraction")
            if self.present[row]
            else ("extract", "lies in a shard that is not there")
        )
        clip = f"{self.cache.path} {self.name}: row {row} (clip {self.clips[row]}, view {self.views[row]})"
        raise CacheError(
            f"{clip} {why}; ask for rows where `ok`, or run `vidgraph {verb} --cache "
            f"{self.cache.path}`"
        )


def complete_shard(plan: Shards, shard: int) -> dict:
    """The statistics of a shard that is there. Damaged if they, or its HDF5 file, were made for
    another shard or cache.
    """
    record = plan.record(shard)
    file = ShardFile(plan.path(shard), record)
    file.opened()  # which compares what the file says with the statistics
    file.release()
    return record


def made_from(graphs: dict, features: dict) -> bool:
    """Whether a shard's graphs were computed from its features as they are now, by the two
    statistics.
    """
    return graphs["attrs"].get("source_sha256") == features["sha256"]


def _in_order(names: Iterable[str]) -> tuple[str, ...]:
    known = list(FIELDS)
    return tuple(
        sorted(names, key=lambda name: (known.index(name) if name in known else len(known), name))
    )
