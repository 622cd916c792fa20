"""What can be kept of a shard that is written again: its good views, copied bit by bit from the
file that is there.

A view is good if it was extracted, every tensor of it fits its checksum, and no value is one that
`verify` would complain of. The HDF5 file says so itself, all of whose tables have checksums; the
statistics beside it may be what is damaged.
"""

from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.cache.fields import FORMAT, is_cut
from pipeline.cache.records import read_statistics
from pipeline.cache.shard_reader import UNREADABLE, ShardFile, record_from_file
from pipeline.cache.shard_writer import GroupPlan
from pipeline.cache.value_checks import wrong_values
from pipeline.files.atomic_files import Damaged


class GoodViews:
    """The good views of the shard in the file `path`; none where there is no file, or it belongs
    elsewhere.

    attrs: what identifies the shard (`Shards.attrs`). plans: group -> GroupPlan of the shard that
    will be written; the height and width of maps may turn out to be others. `rows` has the numbers
    of the good rows of each group.
    """

    def __init__(self, path: Path, attrs: Mapping[str, str | int], plans: Mapping[str, GroupPlan]):
        self.rows: dict[str, set[int]] = {group: set() for group in plans}
        with suppress(*UNREADABLE):
            self._file = ShardFile(path, record_from_file(path))
            with self._file.kept_open():
                self._look(attrs, plans, _absent(path))
            self._file.release()

    def _look(
        self, attrs: Mapping, plans: Mapping[str, GroupPlan], absent: Mapping[str, set[int]]
    ) -> None:
        if self._file.attrs() == {"format": FORMAT, **attrs}:
            for group, plan in plans.items():
                with suppress(
                    *UNREADABLE
                ):  # what is wrong with one group says nothing of the other
                    self.rows[group] = self._good_rows(group, plan) - absent.get(group, set())

    def _good_rows(self, group: str, plan: GroupPlan) -> set[int]:
        clips, views, ok = self._file.keys(group)
        held = self._file.record["groups"][group]["fields"]
        same = (clips, views) == (
            list(plan.clips),
            list(plan.views),
        ) and held.keys() == plan.fields.keys()
        if not same or not all(_fits(name, held[name], *plan.fields[name]) for name in held):
            return set()
        return {row for row in np.flatnonzero(ok).tolist() if self._is_good(group, row)}

    def _is_good(self, group: str, row: int) -> bool:
        try:
            names = self._file.record["groups"][group]["fields"]
            return not any(
                wrong_values({name: self._file.read_checked(group, name, row) for name in names})
            )
        except (Damaged, OSError):
            return False

    def forget(self, rows: Mapping[str, range]) -> None:
        """Takes these rows (group -> range) for bad."""
        for group, numbers in rows.items():
            self.rows[group].difference_update(numbers)

    def has_all(self, rows: Mapping[str, range]) -> bool:
        """Whether every one of the rows (group -> range) is good."""
        return all(self.rows[group].issuperset(numbers) for group, numbers in rows.items())

    def read(
        self, group: str, row: int, fields: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> dict[str, np.ndarray]:
        """A good view's tensors, maps with as much padding as `fields` (name -> shape, dtype) asks
        for.
        """
        return {
            name: _refit(self._file.read_checked(group, name, row), shape)
            for name, (shape, _) in fields.items()
        }

    def source_size(self, group: str, row: int) -> tuple[int, int]:
        """(width, height) in pixels of the upright video that a good view was cut from."""
        width, height = self._file.read_checked(group, "crop", row)[4:].tolist()
        return round(width), round(height)


def _absent(path: Path) -> dict[str, set[int]]:
    """Rows that the statistics say were never extracted, where they can be read."""
    try:
        groups = read_statistics(path)["groups"]
    except (OSError, Damaged):
        return {}
    return {group: set(table["absent"]) for group, table in groups.items()}


def _fits(name: str, held: Mapping, shape: tuple[int, ...], dtype: str) -> bool:
    came = tuple(held["shape"])
    if is_cut(name):
        came, shape = (came[:-2], len(came)), (tuple(shape)[:-2], len(shape))
    return held["dtype"] == dtype and came == tuple(shape)


def _refit(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """A tensor with its padding at the ends of its axes, zeros, cut off or added up to `shape`."""
    if array.shape == shape:
        return array
    inner = tuple(slice(min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    fitted = np.zeros(shape, array.dtype)
    fitted[inner] = array[inner]
    return fitted
