"""The parts of a cache: what its shards were planned to hold, each time it was made or grew.

A part is a run of consecutive shard numbers. The first part is planned when the cache is made. New
clips, and more views of clips that are there, are further parts. So no row of a shard ever moves.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from pathlib import Path
from typing import Any

from pipeline.cache.fields import FORMAT, GROUPS
from pipeline.files.atomic_files import Damaged
from pipeline.manifests.manifest import shard_ranges

# One view of a clip: its group and its number there.
ViewKey = tuple[str, int]

# No clip has more views than this; a larger number in cache.json is damage.
MOST_VIEWS = 1 << 20


@dataclass(frozen=True)
class Part:
    """Shards that were planned together.

    Attributes:
        clips: positions in the cache's manifest, as ranges (first, end). They ascend.
        lengths: (clips of a shard, how many such shards follow each other).
        fingerprint: what the files of its shards repeat.
        format: the format of these files.
        views: group -> the numbers of the views that a clip has there; None if whoever made the
            cache did not say. Then every clip has the same views, which the shards tell.
        by_split: whether a clip has rows in one group only: `train` for the split train, `test`
            for the others.
        keep: the fields of the shards of stage one; None if nobody said.
        test_clips: how many test clips in time the numbers of test views belong to.
        read_as: group -> the number by which each of `views` is read now, -1 for a view that is
            no longer read; groups that are not named keep their numbers.
    """

    clips: tuple[tuple[int, int], ...]
    lengths: tuple[tuple[int, int], ...]
    fingerprint: str
    format: int = FORMAT
    views: Mapping[str, tuple[int, ...]] | None = None
    by_split: bool = False
    keep: tuple[str, ...] | None = None
    test_clips: int = 0
    read_as: Mapping[str, tuple[int, ...]] = field(default_factory=dict)

    @property
    def shards(self) -> int:
        """The number of its shards."""
        return sum(times for _, times in self.lengths)

    def positions(self) -> list[int]:
        """Return the positions of its clips, in the order of its rows."""
        found: list[int] = []
        for first, end in self.clips:
            found += range(first, end)
        return found

    def ranges(self) -> Iterator[Sequence[int]]:
        """Yield the positions of each shard's clips: a range where they follow each other."""
        if len(self.clips) == 1:
            first = self.clips[0][0]
            for length, times in self.lengths:
                for _ in range(times):
                    yield range(first, first + length)
                    first += length
            return
        positions, first = self.positions(), 0
        for length, times in self.lengths:
            for _ in range(times):
                yield tuple(positions[first : first + length])
                first += length

    def views_of(self, split: str) -> tuple[ViewKey, ...] | None:
        """Return the stored views of a clip, in the order of the rows.

        Args:
            split: the split that the clip had when it was planned.

        Returns:
            (group, number) of each; None if `views` is None.
        """
        if self.views is None:
            return None
        groups = [group for group in GROUPS if self.views.get(group)]
        if self.by_split and len(groups) > 1:
            groups = ["train" if split == "train" else "test"]
        keys: list[ViewKey] = []
        for group in groups:
            keys += [(group, number) for number in self.views[group]]
        return tuple(keys)

    def read_number(self, group: str, number: int) -> int:
        """Return the number by which a stored view is read now.

        Args:
            group: "train" or "test".
            number: the view's number in the shard.

        Returns:
            The number; -1 if the view is no longer read.
        """
        if group not in self.read_as:
            return number
        return self.read_as[group][self.views[group].index(number)]

    def as_json(self) -> dict[str, Any]:
        """Return the part as `cache.json` records it."""
        record: dict[str, Any] = {
            "clips": [list(pair) for pair in self.clips],
            "lengths": [list(pair) for pair in self.lengths],
            "fingerprint": self.fingerprint,
            "format": self.format,
        }
        if self.views is not None:
            record["views"] = {group: list(numbers) for group, numbers in self.views.items()}
            record["by_split"] = self.by_split
            record["test_clips"] = self.test_clips
        if self.keep is not None:
            record["keep"] = list(self.keep)
        if self.read_as:
            record["read_as"] = {group: list(numbers) for group, numbers in self.read_as.items()}
        return record


def part_of_json(record: Mapping[str, Any], where: Path) -> Part:
    """Read a part as `Part.as_json` wrote it.

    Args:
        record: with the types that `pipeline.cache.records.PART` names.
        where: cache.json, for messages.

    Returns:
        The part.

    Raises:
        Damaged: the numbers make no sense.
    """
    views = record.get("views")
    if views is not None:
        views = {group: tuple(numbers) for group, numbers in views.items()}
    keep = record.get("keep")
    part = Part(
        clips=tuple(map(tuple, record["clips"])),
        lengths=tuple(map(tuple, record["lengths"])),
        fingerprint=record["fingerprint"],
        format=record["format"],
        views=views,
        by_split=record.get("by_split", False),
        keep=None if keep is None else tuple(keep),
        test_clips=record.get("test_clips", 0),
        read_as={group: tuple(n) for group, n in record.get("read_as", {}).items()},
    )
    wrong = _wrong_ranges(part) or _wrong_views(part)
    if wrong:
        raise Damaged(f"{where}: parts: {wrong}; written by another version, or by hand")
    return part


def _wrong_ranges(part: Part) -> str:
    """Say what is wrong with the clips and shards of a part; "" if nothing is."""
    if not all(len(pair) == 2 for pair in (*part.clips, *part.lengths)):
        return "expected pairs of numbers in clips and lengths"
    last = 0
    for first, end in part.clips:
        if not last <= first < end:
            return f"clips {first} to {end} do not ascend"
        last = end
    if not all(length >= 1 and times >= 1 for length, times in part.lengths):
        return "expected at least 1 clip per shard"
    clips = sum(end - first for first, end in part.clips)
    planned = sum(length * times for length, times in part.lengths)
    if clips != planned:
        return f"{clips:,} clips, and shards for {planned:,}"
    return ""


def _wrong_views(part: Part) -> str:
    """Say what is wrong with the views of a part; "" if nothing is."""
    if part.views is None:
        return ""
    if not any(part.views.values()) or not set(part.views) <= set(GROUPS):
        return f"expected views in {' and/or '.join(GROUPS)}"
    for group, numbers in part.views.items():
        good = all(0 <= number < MOST_VIEWS for number in numbers)
        if not good or list(numbers) != sorted(set(numbers)):
            return f"{group} has views {list(numbers)[:8]}, expected numbers that ascend from 0"
    for group, numbers in part.read_as.items():
        if len(numbers) != len(part.views.get(group, ())):
            return f"read_as of {group} has {len(numbers)} numbers, one for each view expected"
        if not all(-1 <= number < MOST_VIEWS for number in numbers):
            return f"read_as of {group} is {list(numbers)[:8]}, expected numbers from -1"
    return ""


def parts_of(record: Mapping[str, Any], clips: int, where: Path) -> list[Part]:
    """Return the parts of a cache.

    Args:
        record: cache.json, of any format.
        clips: how many clips its manifest has.
        where: cache.json, for messages.

    Returns:
        The parts. A cache of format 1 is one part, in which every clip has the same views.

    Raises:
        Damaged: the parts make no sense, or do not fit the manifest.
    """
    if record["format"] == 1:
        lengths = run_lengths([len(r) for r in shard_ranges(clips, record["per_shard"])])
        return [Part(((0, clips),), lengths, record["fingerprint"], format=1)]
    parts = [part_of_json(part, where) for part in record["parts"]]
    for part in parts:
        if part.clips[-1][1] > clips:
            raise Damaged(
                f"{where}: parts name {part.clips[-1][1]:,} clips, the manifest has {clips:,}"
            )
    return parts


def count_shards_in(record: Mapping[str, Any], clips: int) -> int:
    """Return how many shards a cache has.

    Args:
        record: cache.json, of any format.
        clips: how many clips its manifest has.
    """
    if record["format"] == 1:
        return -(-clips // max(1, record["per_shard"]))
    return sum(times for part in record["parts"] for _, times in part["lengths"])


def run_lengths(lengths: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """[4, 4, 4, 2] -> ((4, 3), (2, 1)).

    Args:
        lengths: clips of each shard.
    """
    return tuple((length, len(list(same))) for length, same in groupby(lengths))


def as_ranges(positions: Sequence[int]) -> tuple[tuple[int, int], ...]:
    """[0, 1, 2, 7] -> ((0, 3), (7, 8)).

    Args:
        positions: numbers that ascend.
    """
    ranges: list[list[int]] = []
    for position in positions:
        if ranges and position == ranges[-1][1]:
            ranges[-1][1] += 1
        else:
            ranges.append([position, position + 1])
    return tuple((first, end) for first, end in ranges)
