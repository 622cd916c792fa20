"""The good views of a damaged shard: they are copied bit by bit when the shard is written again.

A view is good if it was extracted, each of its tensors fits its checksum, and its values pass
`wrong_values`. The HDF5 file alone decides, because the statistics beside it may be what is
damaged, and all metadata of the file has checksums.
"""

from collections.abc import Iterator, Mapping
from contextlib import suppress
from pathlib import Path

import numpy as np

from pipeline.cache.fields import LABELS, is_cut
from pipeline.cache.records import read_statistics
from pipeline.cache.shard_reader import UNREADABLE, ShardFile, record_from_file
from pipeline.cache.shard_writer import GroupPlan, all_finite
from pipeline.files.atomic_files import Damaged


class GoodViews:
    """The good views of a shard's file; none where there is no file, or it belongs elsewhere.

    Attributes:
        rows: group -> the numbers of its good rows.
    """

    def __init__(self, path: Path, attrs: Mapping[str, str | int], plans: Mapping[str, GroupPlan]):
        """Read every view of a file and remember which are good.

        Args:
            path: the shard's HDF5 file.
            attrs: what identifies the shard (`Shards.attrs`).
            plans: group -> the plan of the shard that will be written. Maps in the file may have
                another height and width.
        """
        self.rows: dict[str, set[int]] = {group: set() for group in plans}
        with suppress(*UNREADABLE):
            self._file = ShardFile(path, record_from_file(path))
            with self._file.kept_open():
                self._find_good_rows(attrs, plans, _absent_rows(path))
            self._file.release()

    def _find_good_rows(
        self, attrs: Mapping, plans: Mapping[str, GroupPlan], absent: Mapping[str, set[int]]
    ) -> None:
        # A file that was copied here from another cache has other views.
        if self._file.attrs() != dict(attrs):
            return
        for group, plan in plans.items():
            # One group may be damaged and the other not.
            with suppress(*UNREADABLE):
                self.rows[group] = self._good_rows(group, plan) - absent.get(group, set())

    def _good_rows(self, group: str, plan: GroupPlan) -> set[int]:
        clips, views, ok = self._file.keys(group)
        if clips != list(plan.clips) or views != list(plan.views):
            return set()

        stored = self._file.record["groups"][group]["fields"]
        if stored.keys() != plan.fields.keys():
            return set()
        if not all(_fits(name, stored[name], *plan.fields[name]) for name in stored):
            return set()

        good = set()
        for row in np.flatnonzero(ok).tolist():
            if self._is_good(group, row):
                good.add(row)
        return good

    def _is_good(self, group: str, row: int) -> bool:
        try:
            names = self._file.record["groups"][group]["fields"]
            tensors = {name: self._file.read_checked(group, name, row) for name in names}
        except (Damaged, OSError):
            return False
        return not any(wrong_values(tensors))

    def forget(self, rows: Mapping[str, range]) -> None:
        """Treat rows as bad from now on.

        Args:
            rows: group -> rows.
        """
        for group, numbers in rows.items():
            self.rows[group].difference_update(numbers)

    def has_all(self, rows: Mapping[str, range]) -> bool:
        """Return whether all of some rows are good.

        Args:
            rows: group -> rows.

        Returns:
            True if every one of them is good.
        """
        return all(self.rows[group].issuperset(numbers) for group, numbers in rows.items())

    def read(
        self, group: str, row: int, fields: Mapping[str, tuple[tuple[int, ...], str]]
    ) -> dict[str, np.ndarray]:
        """Read a good view.

        Args:
            group: "train" or "test".
            row: a row of `self.rows[group]`.
            fields: name -> (shape, dtype) of the fields to read.

        Returns:
            name -> array. Maps are padded with zeros, or lose padding, to have `shape`.

        Raises:
            Damaged: the view was damaged since.
            OSError: the file cannot be read.
        """
        tensors = {}
        for name, (shape, _) in fields.items():
            tensors[name] = _pad_or_crop(self._file.read_checked(group, name, row), shape)
        return tensors

    def source_size(self, group: str, row: int) -> tuple[int, int]:
        """Return the size of the upright video that a good view was cropped from.

        Args:
            group: "train" or "test".
            row: a row of `self.rows[group]`.

        Returns:
            (width, height) in pixels.

        Raises:
            Damaged: the view was damaged since.
            OSError: the file cannot be read.
        """
        width, height = self._file.read_checked(group, "crop", row)[4:].tolist()
        return round(width), round(height)


def _absent_rows(path: Path) -> dict[str, set[int]]:
    """Rows that were never extracted, by the statistics; empty if these cannot be read."""
    try:
        groups = read_statistics(path)["groups"]
    except (OSError, Damaged):
        return {}
    return {group: set(table["absent"]) for group, table in groups.items()}


def _fits(name: str, stored: Mapping, shape: tuple[int, ...], dtype: str) -> bool:
    """Whether a stored field has the planned dtype and shape; a map may differ in h and w."""
    found, planned = tuple(stored["shape"]), tuple(shape)
    if is_cut(name):
        if len(found) != len(planned):
            return False
        found, planned = found[:-2], planned[:-2]
    return stored["dtype"] == dtype and found == planned


def _pad_or_crop(array: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """The array with zeros added, or values cut off, at the end of each axis to have `shape`."""
    if array.shape == shape:
        return array
    inner = tuple(slice(min(a, b)) for a, b in zip(array.shape, shape, strict=True))
    result = np.zeros(shape, array.dtype)
    result[inner] = array[inner]
    return result


def wrong_values(tensors: Mapping[str, np.ndarray]) -> Iterator[str]:
    """Yield what is wrong with a view's tensors, judging by their values alone.

    Args:
        tensors: field -> array without the axis R; fields may be missing.

    Yields:
        One text per fault, such as "boxes has values outside 0 to 1".
    """
    for name, values in tensors.items():
        if values.dtype.kind == "f" and not all_finite(values):
            yield f"{name} has NaN or infinite values"

    for name, largest in _limits(tensors).items():
        values = tensors[name]
        if values.size and not (values.min() >= 0 and values.max() <= largest):
            yield f"{name} has values outside 0 to {largest:.0f}"

    if "boxes" in tensors:
        boxes = tensors["boxes"]
        if (boxes[..., :2] > boxes[..., 2:]).any():
            yield "boxes has x1 > x2 or y1 > y2"
    if "crop" in tensors and not (tensors["crop"][2:] > 0).all():
        yield "crop has a width or height that is not positive"

    if "valid" in tensors:
        valid = tensors["valid"]
        # Objects with tracks may keep their slots: an absent one leaves a gap.
        if "track" not in tensors and (valid[..., 1:] & ~valid[..., :-1]).any():
            yield "valid has a box after a row that is none"
        for name in ("boxes", "scores", "nodes"):
            if name in tensors and tensors[name][~valid].any():
                yield f"{name} is not 0 where there is no box"
        for name in LABELS:
            if name in tensors and (tensors[name][~valid] != -1).any():
                yield f"{name} is not -1 where there is no box"
    for name in LABELS:
        if name in tensors and (tensors[name] < -1).any():
            yield f"{name} has values below -1"


def _limits(tensors: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The largest allowed value of each field that has one; the smallest is 0."""
    limits: dict[str, float] = {
        "boxes": 1,
        # Rounding may lift the IoU of a box with itself above 1.
        "iou": 1 + 1e-6,
        "scores": np.inf,
        "frames": np.inf,
        "grid": np.inf,
    }
    # Indices count the nodes of a frame in `nearest`, those of the whole view in `similar`.
    if "nearest" in tensors:
        limits["nearest"] = tensors["nearest"].shape[1] - 1
    if "similar" in tensors:
        limits["similar"] = tensors["similar"].shape[0] * tensors["similar"].shape[1] - 1
    return {name: largest for name, largest in limits.items() if name in tensors}
