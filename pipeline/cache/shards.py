"""The shards of a cache: which clips each holds, where its files are, whether it is complete."""

from pathlib import Path

from pipeline.cache.records import read_statistics
from pipeline.cache.shard_reader import ShardFile
from pipeline.files.atomic_files import done_marker
from pipeline.manifests.manifest import Clip, Manifest, shard_ranges


class Shards:
    """The shards of a cache: which clips each holds, and where its files are.

    `len(shards)` is their number. A shard is a range of consecutive clips of the manifest.

    Attributes:
        folder: the cache.
        fingerprint: the cache's fingerprint, which every file of a shard repeats.
        manifest: the clips of the cache.
        ranges: for each shard, the positions of its clips in `manifest.clips`.
    """

    def __init__(self, folder: Path, fingerprint: str, manifest: Manifest, per_shard: int):
        """Divide a manifest into shards.

        Args:
            folder: the cache.
            fingerprint: the cache's fingerprint.
            manifest: the clips of the cache.
            per_shard: clips per shard; the last shard may have fewer.
        """
        self.folder, self.fingerprint, self.manifest = folder, fingerprint, manifest
        self.ranges = shard_ranges(len(manifest.clips), per_shard)

    def __len__(self) -> int:
        return len(self.ranges)

    def clips(self, shard: int) -> tuple[Clip, ...]:
        """Return the clips of a shard.

        Args:
            shard: a number from 0 to `len(self) - 1`.

        Returns:
            The clips in the order of the shard's rows.
        """
        return self.manifest.clips[self.ranges[shard].start : self.ranges[shard].stop]

    def path(self, shard: int, stage: str = "features") -> Path:
        """Return the path of a shard's HDF5 file, whether it exists or not.

        Args:
            shard: the shard's number.
            stage: "features" or "graphs".

        Returns:
            `CACHE/STAGE/NNNNN.h5`.
        """
        return self.folder / stage / f"{shard:05d}.h5"

    def done(self, shard: int, stage: str = "features") -> bool:
        """Return whether a shard is complete.

        Args:
            shard: the shard's number.
            stage: "features" or "graphs".

        Returns:
            Whether the statistics file is there, which is written after the HDF5 file.
        """
        return done_marker(self.path(shard, stage)).exists()

    def record(self, shard: int, stage: str = "features") -> dict:
        """Read the statistics of a complete shard.

        Args:
            shard: the shard's number.
            stage: "features" or "graphs".

        Returns:
            The statistics (`pipeline.cache.records.STATISTICS`).

        Raises:
            Damaged: they are damaged, or belong to another shard or cache.
            OSError: there are none, or they cannot be read.
        """
        return read_statistics(self.path(shard, stage), self.attrs(shard))

    def attrs(self, shard: int) -> dict[str, str | int]:
        """Return what every file of a shard repeats to say where it belongs.

        Args:
            shard: the shard's number.

        Returns:
            "fingerprint" and "shard": the attributes of the HDF5 file and of its statistics.
        """
        return {"fingerprint": self.fingerprint, "shard": shard}


def complete_shard(shards: Shards, shard: int) -> dict:
    """Read the statistics of a complete shard, and check that its HDF5 file belongs to them.

    Args:
        shards: the shards of the cache.
        shard: the shard's number.

    Returns:
        The statistics.

    Raises:
        Damaged: the statistics or the HDF5 file are damaged, or belong to another shard or cache.
        OSError: there are none, or a file cannot be read.
    """
    record = shards.record(shard)
    file = ShardFile(shards.path(shard), record)
    # Opening compares the file's attributes with the statistics.
    file.opened()
    file.release()
    return record


def made_from(graphs: dict, features: dict) -> bool:
    """Return whether a shard's graphs were computed from its features as they are now.

    Args:
        graphs: the statistics of the graphs.
        features: the statistics of the features.

    Returns:
        Whether the graphs name the sha256 of the features' file.
    """
    return graphs["attrs"].get("source_sha256") == features["sha256"]
