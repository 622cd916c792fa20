"""The classes that a recipe trains: their names, their ids, and which ones a flip exchanges."""

from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from heads.config.recipe_tables import DataOptions
from pipeline.manifests.labels import about_withheld, label_ids, withheld
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.text import text_files
from pipeline.text.counted import counted
from pipeline.text.suggestions import nearest

# Larger numbers are no class ids: listing the classes up to them would fill the memory.
MOST_CLASSES = 1_000_000


def find_classes(manifest: Manifest, data: DataOptions) -> tuple[str, ...]:
    """Return the class names in the order of their ids.

    They are the lines of `data.class_list`, else the labels of all splits of the manifest. Labels
    that are whole numbers keep these as ids, and the classes reach to the largest one, or to
    `data.num_classes`. With `data.labels` or `data.first_labels`, only those are kept and numbered
    from 0.

    Args:
        manifest: labels and splits.
        data: the recipe's table `data`.

    Raises:
        ValueError: a label is none of the classes or reads like a missing one (such as -1), no
            clip has a label, or there are fewer than 2 classes.
    """
    labels: set[str] = set()
    for clip in manifest.clips:
        labels.update(clip.labels)
    labels -= set(data.no_label)

    doubtful = {}
    for label, clips in withheld(manifest).items():
        if label in labels:
            doubtful[label] = clips

    if data.class_list:
        classes = _read_classes(Path(data.class_list))
        refuse_withheld(manifest, doubtful, classes)
        unknown = sorted(labels - set(classes))
        if unknown:
            raise ValueError(
                f"{manifest.path}: label {unknown[0]!r} is not in {data.class_list}; "
                f"{nearest(unknown[0], classes)}"
            )
    elif labels:
        refuse_withheld(manifest, doubtful)
        classes = _classes_of_labels(labels, manifest, data)
    else:
        raise ValueError(
            f"{manifest.path}: no clip has a label; training needs them in the column `label`"
        )

    for pair in data.swap_on_flip:
        for name in pair:
            if name not in classes:
                raise ValueError(
                    f"data.swap_on_flip: {name!r} is no class; {nearest(name, classes)}"
                )
    classes = _subset(classes, data)
    for pair in data.swap_on_flip:
        if len(set(pair) & set(classes)) == 1:
            raise ValueError(
                f"data.labels: {pair[0]!r} and {pair[1]!r} are exchanged by a flip: keep both, or "
                f"none of them"
            )
    if len(classes) < 2:
        raise ValueError(f"{manifest.path}: expected at least 2 classes, got {list(classes)}")
    return classes


def _classes_of_labels(
    labels: Collection[str], manifest: Manifest, data: DataOptions
) -> tuple[str, ...]:
    """Return the classes that the labels of a manifest make, where no file lists the classes."""
    ids = label_ids(labels)
    highest = max(ids, key=lambda name: ids[name])
    if data.num_classes and ids[highest] >= data.num_classes:
        raise ValueError(
            f"{manifest.path}: label {highest!r} is class {ids[highest]}, expected classes 0 to "
            f"{data.num_classes - 1} (data.num_classes = {data.num_classes})"
        )
    if max(ids[highest], data.num_classes) > MOST_CLASSES:
        if data.num_classes > ids[highest]:
            cause = f"data.num_classes = {data.num_classes}"
        else:
            cause = f"label {highest!r}"
        raise ValueError(
            f"{manifest.path}: {cause}: expected class ids up to {MOST_CLASSES:,}; count the "
            f"classes from 0"
        )
    names = {number: name for name, number in ids.items()}
    count = max(ids[highest] + 1, data.num_classes)
    return tuple(names.get(number, str(number)) for number in range(count))


def refuse_withheld(
    manifest: Manifest, doubtful: Mapping[str, Sequence[Clip]], classes: Collection[str] = ()
) -> None:
    """Refuse labels that read like a missing one (such as -1), unless they are classes.

    Args:
        manifest: the manifest, for the message.
        doubtful: label -> its clips, from `pipeline.manifests.labels.withheld`.
        classes: the class names.

    Raises:
        ValueError: a label is none of the classes.
    """
    for label, clips in doubtful.items():
        if label not in classes:
            raise ValueError(f"{manifest.path}: {about_withheld(label, clips)}")


def _subset(classes: tuple[str, ...], data: DataOptions) -> tuple[str, ...]:
    """Return the classes that `data` keeps, in the order of their ids."""
    if data.first_labels > len(classes):
        raise ValueError(
            f"data.first_labels: expected at most the {counted(len(classes), 'class', 'classes')}, "
            f"got {data.first_labels}"
        )
    for name in data.labels:
        if name not in classes:
            raise ValueError(f"data.labels: {name!r} is no class; {nearest(name, classes)}")
    if data.labels:
        return tuple(name for name in classes if name in data.labels)
    return classes[: data.first_labels or None]


def _read_classes(path: Path) -> tuple[str, ...]:
    try:
        return text_files.read_names(path, "a text file with one class name per line")
    except ValueError as error:
        raise ValueError(f"data.class_list: {error}") from None


def swap_table(classes: Sequence[str], data: DataOptions) -> np.ndarray:
    """Return the class that a mirrored view of each class shows.

    Args:
        classes: the K class names.
        data: the recipe's table `data`; `swap_on_flip` lists pairs such as ("left", "right").

    Returns:
        [K] class ids; a class outside the pairs keeps its own.
    """
    table = np.arange(len(classes))
    for one, other in data.swap_on_flip:
        # A subset of the labels may lack the pair.
        if one not in classes:
            continue
        a, b = classes.index(one), classes.index(other)
        table[a], table[b] = b, a
    return table


def mirrored(target: Tensor, flip: Tensor, swap: Tensor) -> Tensor:
    """Exchange the classes of mirrored views, such as "left" and "right".

    Args:
        target: class ids [B], or 0 and 1 [B,K].
        flip: [B] bool, whether the view is mirrored.
        swap: [K], the class that a mirrored view of each class shows.

    Returns:
        The targets, in the shape of `target`.
    """
    if target.dim() == 1:
        return torch.where(flip, swap[target], target)
    return torch.where(flip[:, None], target[:, swap], target)
