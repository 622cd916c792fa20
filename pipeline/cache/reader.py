"""Open a cache, join the files of its stages, and read single views and batches.

What exists, and in which shape, comes from the statistics of the shards. A shard's HDF5 file is
opened when a row of it is read, once per process. `group` reads the rows.
"""

import os
import threading
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from shlex import quote

from pipeline.cache.creation import create_cache
from pipeline.cache.fields import GROUPS
from pipeline.cache.folder import (
    CacheError,
    open_folder,
    read_cache_json,
    read_folder,
    relabelled_clips,
)
from pipeline.cache.group import Group, in_order
from pipeline.cache.shard_reader import ShardFile
from pipeline.cache.shards import Shards, made_from
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import Manifest

__all__ = [
    "Cache",
    "CacheError",
    "Damaged",
    "Group",
    "create_cache",
    "read_cache_json",
    "relabelled_clips",
]

STAGES = ("features", "graphs")


class _Files:
    """The shard files that this process has read; none after a fork, or in a pickled copy.

    `pipeline.cache.open_files` decides how many of them stay open.
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
        """Yield the files that are open."""
        return (file for file in list(self._known.values()) if file.is_open)


class Cache:
    """A cache folder, read-only.

    A cache is cheap to open, can be pickled, and works in forked and spawned workers.
    `cache["train"]` and `cache["test"]` are its groups. A cache object knows the shards that were
    complete when it first looked for them: open it anew to see later ones.

    Attributes:
        path: the folder.
        record: cache.json.
        config: all that determined the stored values.
        fingerprint: the sha256 of format and config, in hexadecimal digits; of a cache of format 1
            also of the clips.
    """

    def __init__(self, path: str | Path):
        """Open a cache.

        Args:
            path: a folder that `vidgraph extract --cache` or `create_cache` made.

        Raises:
            CacheError: there is no cache, its format is another, or its manifest is missing.
            Damaged: cache.json or the copy of the manifest has changed.
        """
        self.path = Path(path)
        self.record, _ = open_folder(self.path)
        self.config: dict = self.record["config"]
        self.fingerprint: str = self.record["fingerprint"]
        self.files = _Files()
        self._groups: dict[str, Group] = {}

    @cached_property
    def stored(self) -> Manifest:
        """All clips that have rows, in the cache's order: those that were removed later, too."""
        record, copy = read_folder(self.path)
        if record != self.record:
            raise CacheError(f"{self.path}: it has grown since it was opened; open it anew")
        return copy

    @cached_property
    def manifest(self) -> Manifest:
        """The newest manifest that the cache was extracted from, in the cache's order.

        Labels and splits of another manifest may be newer (`relabelled_clips`). The position of a
        clip is that in `stored`.
        """
        removed = set(self.record.get("removed", ()))
        if not removed:
            return self.stored
        kept = tuple(clip for clip in self.stored.clips if clip.clip not in removed)
        return replace(self.stored, clips=kept)

    @property
    def box_classes(self) -> tuple[str, ...]:
        """The names of the boxes' classes by their numbers in `box_class`; () without classes."""
        return tuple(self.config.get("box_classes", ()))

    @cached_property
    def shards(self) -> Shards:
        """Which shard holds which clips, and where its files are."""
        return Shards(self.path, self.record, self.stored)

    @cached_property
    def records(self) -> dict[str, dict[int, dict]]:
        """Stage -> shard -> statistics, of the complete shards.

        Graphs and added fields whose features were written again later are left out: they are
        stale.
        """
        found = {}
        for stage in (*self.shards.stages, "graphs"):
            found[stage] = self._read_records(stage)
            if stage == "features":
                continue
            for shard, record in list(found[stage].items()):
                features = {name: of[shard] for name, of in found.items() if shard in of}
                if not made_from(record, features):
                    del found[stage][shard]
        return found

    def _read_records(self, stage: str) -> dict[int, dict]:
        records = {}
        for shard in range(len(self.shards)):
            if self.shards.has_stage(shard, stage) and self.shards.done(shard, stage):
                records[shard] = self.shards.record(shard, stage)
        return records

    @property
    def missing(self) -> list[int]:
        """The numbers of the shards whose features are not complete."""
        return [shard for shard in range(len(self.shards)) if shard not in self.records["features"]]

    @property
    def failures(self) -> list[dict]:
        """The records (clip, error, message, seconds) of all failed clips in complete shards."""
        failures = []
        for stage in self.shards.stages:
            for record in self.records[stage].values():
                failures += record.get("failures", ())
        return failures

    @property
    def groups(self) -> tuple[str, ...]:
        """The groups that the complete shards hold: "train", "test", or both."""
        stored = set()
        for record in self.records["features"].values():
            stored.update(record["groups"])
        return tuple(group for group in GROUPS if group in stored)

    @property
    def stages(self) -> dict[str, tuple[str, ...]]:
        """Stage -> the fields that any group of any shard holds."""
        fields = {}
        for stage, records in self.records.items():
            names = set()
            for record in records.values():
                for group in record["groups"].values():
                    names.update(group["fields"])
            fields[stage] = in_order(names)
        return fields

    @property
    def can_grow(self) -> bool:
        """Whether `vidgraph extract` can add fields, views and clips."""
        return self.record["format"] > 1 and "keep" in self.config

    def how_to_add(self, fields: Sequence[str]) -> str:
        """Return the command that adds fields of stage one to this cache.

        Args:
            fields: their names.
        """
        if not self.can_grow:
            return f"vidgraph extract --cache NEW --keep {','.join(fields)}"
        return f"vidgraph extract --cache {quote(str(self.path))} --add {','.join(fields)}"

    def __getitem__(self, group: str) -> Group:
        """Return a group.

        Args:
            group: "train" or "test".

        Returns:
            The group; the same object each time.

        Raises:
            CacheError: no complete shard has this group.
        """
        if group not in self.groups:
            stored = ", ".join(self.groups) or "nothing yet"
            raise CacheError(
                f"{self.path}: no group {group!r} (it holds {stored}); run `vidgraph extract "
                f"--cache {quote(str(self.path))} --add views --views-for-all`, with --train-views "
                f"or --test-clips from 1"
            )
        if group not in self._groups:
            self._groups[group] = Group(self, group)
        return self._groups[group]
