"""The shards of a cache: which clips each holds, where its files are, whether it is complete."""

import hashlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.cache.identity import clips_sha256
from pipeline.cache.parts import Part, ViewKey, parts_of
from pipeline.cache.records import read_statistics
from pipeline.cache.shard_reader import ShardFile
from pipeline.files.atomic_files import Damaged, done_marker
from pipeline.manifests.manifest import Clip, Manifest


class Shards:
    """The shards of a cache: which clips each holds, and where its files are.

    `len(shards)` is their number. A shard holds clips at ascending positions of the manifest.

    Attributes:
        folder: the cache.
        fingerprint: the cache's fingerprint.
        manifest: the clips of the cache, in its order, removed ones included.
        parts: what was planned, part by part.
        ranges: for each shard, the positions of its clips in `manifest.clips`.
        part_of: for each shard, its part.
        stages: the folders of stage one: "features", then those of fields that were added later.
        keep: stage of `stages` -> the fields that it was made for; of added stages only.
    """

    def __init__(
        self,
        folder: Path,
        record: Mapping[str, Any],
        manifest: Manifest,
        clips: Sequence[Clip] | None = None,
    ):
        """Divide a manifest into shards.

        Args:
            folder: the cache.
            record: its cache.json.
            manifest: the cache's copy of the manifest.
            clips: what `clips` returns in place of the copy's clips, at the same positions: a
                newer manifest may have other paths and labels.
        """
        self.folder, self.manifest = folder, manifest
        self.fingerprint: str = record["fingerprint"]
        self.parts = parts_of(record, len(manifest.clips), folder / "cache.json")
        self.ranges: list[Sequence[int]] = []
        self.part_of: list[Part] = []
        for part in self.parts:
            self.ranges += part.ranges()
            self.part_of += [part] * part.shards

        self.added: list[Mapping[str, Any]] = list(record.get("added", ()))
        self.stages = ("features", *(added["stage"] for added in self.added))
        self.keep = {added["stage"]: tuple(added["keep"]) for added in self.added}
        self._clips = manifest.clips if clips is None else tuple(clips)
        # Clips whose split was another one when their rows were planned.
        self._splits: Mapping[str, str] = record.get("splits", {})
        self._hashes: dict[int, str] = {}

    def __len__(self) -> int:
        return len(self.ranges)

    def clips(self, shard: int) -> tuple[Clip, ...]:
        """Return the clips of a shard.

        Args:
            shard: a number from 0 to `len(self) - 1`.

        Returns:
            The clips in the order of the shard's rows.
        """
        return _at(self._clips, self.ranges[shard])

    def path(self, shard: int, stage: str = "features") -> Path:
        """Return the path of a shard's HDF5 file, whether it exists or not.

        Args:
            shard: the shard's number.
            stage: one of `stages`, or "graphs".

        Returns:
            `CACHE/STAGE/NNNNN.h5`.
        """
        return self.folder / stage / f"{shard:05d}.h5"

    def has_stage(self, shard: int, stage: str) -> bool:
        """Return whether a shard has a file in a stage, once it is complete.

        A field that was added to a cache lies beside the shards of before. Later shards hold it in
        their own file.

        Args:
            shard: the shard's number.
            stage: one of `stages`, or "graphs".
        """
        if stage not in self.keep:
            return True
        return not set(self.keep[stage]) <= set(self.part_of[shard].keep or ())

    def done(self, shard: int, stage: str = "features") -> bool:
        """Return whether a shard is complete.

        Args:
            shard: the shard's number.
            stage: one of `stages`, or "graphs".

        Returns:
            Whether the statistics file is there, which is written after the HDF5 file.
        """
        return done_marker(self.path(shard, stage)).exists()

    def record(self, shard: int, stage: str = "features") -> dict:
        """Read the statistics of a complete shard.

        Args:
            shard: the shard's number.
            stage: one of `stages`, or "graphs".

        Returns:
            The statistics (`pipeline.cache.records.STATISTICS`).

        Raises:
            Damaged: they are damaged, or belong to another shard, other clips or another cache.
            OSError: there are none, or they cannot be read.
        """
        return read_statistics(self.path(shard, stage), self.attrs(shard, stage))

    def attrs(self, shard: int, stage: str = "features") -> dict[str, str | int]:
        """Return what every file of a shard repeats to say where it belongs.

        Args:
            shard: the shard's number.
            stage: one of `stages`, or "graphs".

        Returns:
            "format", "fingerprint", "shard" and, from format 2 on, "clips_sha256": attributes of
            the HDF5 file and of its statistics.
        """
        part = self.part_of[shard]
        fingerprint = part.fingerprint
        for added in self.added:
            if added["stage"] == stage:
                fingerprint = added["fingerprint"]
        attrs = {"format": part.format, "fingerprint": fingerprint, "shard": shard}
        if part.format > 1:
            if shard not in self._hashes:
                self._hashes[shard] = clips_sha256(_at(self.manifest.clips, self.ranges[shard]))
            attrs["clips_sha256"] = self._hashes[shard]
        return attrs

    def split_at(self, position: int) -> str:
        """Return the split that a clip had when its rows were planned.

        Args:
            position: the clip's position in the manifest.
        """
        clip = self.manifest.clips[position]
        return self._splits.get(clip.clip, clip.split)

    def views(self, shard: int) -> tuple[tuple[ViewKey, ...], ...] | None:
        """Return the views of a shard's clips.

        Args:
            shard: the shard's number.

        Returns:
            For each clip the (group, number) of its views; None if the cache does not say.
        """
        part = self.part_of[shard]
        if part.views is None:
            return None
        # Clips of one split share a tuple.
        of_split: dict[str, tuple[ViewKey, ...]] = {}
        found = []
        for position in self.ranges[shard]:
            split = self.split_at(position)
            if split not in of_split:
                of_split[split] = part.views_of(split)
            found.append(of_split[split])
        return tuple(found)

    def rows(self, shard: int, group: str, count: int) -> tuple[list[int], list[int]]:
        """Return what the rows of a shard's group are.

        Args:
            shard: the shard's number.
            group: "train" or "test".
            count: the number of rows that its statistics tell, for a cache that does not say which
                views its clips have.

        Returns:
            For each row, the number of its clip in the shard and the number of its view.
        """
        views = self.views(shard)
        if views is None:
            clips = len(self.ranges[shard])
            per_clip = count // clips
            numbers = np.repeat(np.arange(clips), per_clip).tolist()
            return numbers, list(range(per_clip)) * clips
        return rows_of(views, group)


def rows_of(views: Sequence[Sequence[ViewKey]], group: str) -> tuple[list[int], list[int]]:
    """Return what the rows of a group are, for clips with these views.

    Args:
        views: for each clip the (group, number) of its views.
        group: "train" or "test".

    Returns:
        For each row, the number of its clip and the number of its view.
    """
    clips: list[int] = []
    numbers: list[int] = []
    for clip, keys in enumerate(views):
        for name, number in keys:
            if name == group:
                clips.append(clip)
                numbers.append(number)
    return clips, numbers


def _at(clips: Sequence[Clip], positions: Sequence[int]) -> tuple[Clip, ...]:
    if isinstance(positions, range):
        return tuple(clips[positions.start : positions.stop])
    return tuple(clips[position] for position in positions)


def complete_shard(shards: Shards, shard: int, stage: str = "features") -> dict:
    """Read the statistics of a complete shard, and check that its HDF5 file belongs to them.

    Args:
        shards: the shards of the cache.
        shard: the shard's number.
        stage: one of `shards.stages`.

    Returns:
        The statistics.

    Raises:
        Damaged: the statistics or the HDF5 file are damaged, or belong to another shard or cache.
        OSError: there are none, or a file cannot be read.
    """
    record = shards.record(shard, stage)
    file = ShardFile(shards.path(shard, stage), record)
    # Opening compares the file's attributes with the statistics.
    file.opened()
    file.release()
    return record


def source_of(records: Mapping[str, dict], stages: Sequence[str] = ("features",)) -> str:
    """Return what tells the features of a shard as they are now from earlier ones.

    Args:
        records: stage -> statistics of the shard.
        stages: the stages that hold what something was computed from.

    Returns:
        The sha256 of the one file, or of the texts of several sha256.
    """
    hashes = [records[stage]["sha256"] for stage in stages]
    if len(hashes) == 1:
        return hashes[0]
    return hashlib.sha256(" ".join(hashes).encode()).hexdigest()


def made_from(made: dict, records: Mapping[str, dict]) -> bool:
    """Return whether graphs, or added fields, were computed from a shard as it is now.

    Args:
        made: the statistics of the graphs or of the added fields.
        records: stage -> statistics of the shard's features.

    Returns:
        Whether they name the sha256 of the files that they were computed from.
    """
    stages = made.get("sources", ["features"])
    if not all(stage in records for stage in stages):
        return False
    return made["attrs"].get("source_sha256") == source_of(records, stages)


def read_if_there(shards: Shards, shard: int, stage: str) -> dict | None:
    """Return the statistics of a shard; None if it is not complete, or they are damaged.

    Args:
        shards: the shards of the cache.
        shard: the shard's number.
        stage: one of `shards.stages`, or "graphs".
    """
    try:
        return shards.record(shard, stage)
    except (OSError, Damaged):
        return None
