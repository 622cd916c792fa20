"""The cached views of a split as a torch Dataset.

data = dataset("caches/mine", split="train", fields=["nodes", "valid"])
loader = DataLoader(data, batch_size=32, shuffle=True, num_workers=2)
"""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor
from torch.utils.data import Dataset

from heads.config.recipe_tables import DataOptions
from heads.data.classes import find_classes
from heads.data.splits import cache_dims, require_split_views
from pipeline.cache.joined import JoinedCache, open_caches
from pipeline.cache.reader import Cache
from pipeline.manifests.manifest import Manifest, read_manifest

Item = dict[str, Tensor]


class ViewDataset(Dataset):
    """Every cached view of a split, with its label.

    An item is a dictionary: the fields that were asked for, as float32 where the cache stores
    floats, and `target`, where the split has labels. Views whose extraction failed are left out;
    `failed` names their clips. Works in the worker processes of a DataLoader.

    Args:
        cache: a cache, the path of one, or several paths of caches that are read as one.
        split: "train", "val" or "test".
        fields: what to read, such as `["nodes", "valid"]`; None for all fields of the cache.
        views: "train" or "test", the group of views; None for training views of the train split
            and test views of the others.
        manifest: labels and splits, or the path of their file; None for the cache's own copy.
        target: "single" for one class id per video, "multi" for a vector of 0 and 1.

    Attributes:
        classes: names of the classes, in the order of their ids.
        clips: ids of the videos that have at least one view.
        failed: ids of the videos that have none, because their extraction failed.
        dims: the sizes that `build_head` needs.

    Raises:
        ValueError: the split has no views in the cache, or its labels do not fit `target`.
        CacheError: a field is not in the cache.
    """

    def __init__(
        self,
        cache: Cache | JoinedCache | str | Path | Sequence[str | Path],
        split: str = "train",
        fields: Sequence[str] | None = None,
        *,
        views: str | None = None,
        manifest: Manifest | str | Path | None = None,
        target: str = "single",
    ):
        self.cache = open_caches(cache)
        if isinstance(manifest, (str, Path)):
            manifest = read_manifest(manifest)
        manifest = manifest or self.cache.manifest
        options = DataOptions(target=target)
        self.classes = find_classes(manifest, options)
        self.dims = cache_dims(self.cache)

        group = views or ("train" if split == "train" else "test")
        found = require_split_views(self.cache, group, split, manifest, self.classes, options)
        self.clips, self.failed = found.clips, found.failed
        self.group = found.group
        self.rows, self.video = found.all_rows()
        self.targets = None if found.targets is None else torch.from_numpy(found.targets)

        self.fields = tuple(self.group.fields if fields is None else fields)
        for name in self.fields:
            # Raises CacheError for a field that is not there.
            self.group.shape(name)

    def __len__(self) -> int:
        return len(self.rows)

    def where(self, index: int) -> tuple[str, int]:
        """Return which view an index is: the clip's id, and the view's number."""
        row = int(self.rows[index])
        return self.group.clips[row], int(self.group.views[row])

    def __getitem__(self, index: int) -> Item:
        """Return one view; see the class."""
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[Item]:
        """Return several views with one pass over the files; DataLoader calls this."""
        count = len(self)
        for index in indices:
            if not -count <= index < count:
                raise IndexError(f"index {index}: expected 0 to {count - 1}")

        arrays = self.group.batch([int(self.rows[index]) for index in indices], self.fields)
        tensors = {name: torch.from_numpy(values) for name, values in arrays.items()}
        for name, values in tensors.items():
            if values.is_floating_point():
                tensors[name] = values.float()

        items = []
        for place, index in enumerate(indices):
            item = {name: values[place] for name, values in tensors.items()}
            if self.targets is not None:
                item["target"] = self.targets[self.video[index]]
            items.append(item)
        return items


def dataset(
    cache: Cache | JoinedCache | str | Path | Sequence[str | Path],
    split: str = "train",
    fields: Sequence[str] | None = None,
    *,
    views: str | None = None,
    manifest: Manifest | str | Path | None = None,
    target: str = "single",
) -> ViewDataset:
    """Return the cached views of a split as a torch Dataset with labels.

    Args:
        cache: a cache, the path of one, or several paths of caches that are read as one.
        split: "train", "val" or "test".
        fields: what to read, such as `["nodes", "valid"]`; None for all fields of the cache.
        views, manifest, target: as for `ViewDataset`.

    Returns:
        The dataset; `len()` is its number of views. An item is a dictionary of the fields and
        `target`. Views of clips that failed are left out.

    Raises:
        ValueError, CacheError: as for `ViewDataset`.
    """
    return ViewDataset(cache, split, fields, views=views, manifest=manifest, target=target)
