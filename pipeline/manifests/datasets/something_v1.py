"""Something-Something V1: lists "id;template", and folders of frames ID/%05d.jpg counted from 1.

Files: something-something-v1-labels.csv (a class per line, in the order of GOS's ids),
-train.csv, -validation.csv, and -test.csv (ids alone: its labels are withheld).
"""

from pathlib import Path

from pipeline.manifests.datasets.annotation_files import find, read_lines, require
from pipeline.manifests.datasets.dataset import Dataset, DatasetClip
from pipeline.manifests.manifest import ManifestError

OFFICIAL = {"train": 86_017, "val": 11_522, "test": 10_960}
CLASSES = 174
FPS = 12.0
_PREFIX = r"(something-something-v1-)?"
_LISTS = {"train": "train", "val": "validation", "test": "test"}


def read(folder: str | Path) -> Dataset:
    """Read the official files.

    Args:
        folder: their folder. A list that is missing is left out, but one must be there.

    Raises:
        ManifestError: no list, or one has another form.
    """
    labels = require(folder, _PREFIX + r"labels\.csv", "something-something-v1-labels.csv")
    classes = tuple(line for _, line in read_lines(labels))
    # Clips share their tuples of labels.
    known = {name: (name,) for name in classes}

    entries = []
    for split, word in _LISTS.items():
        path = find(folder, _PREFIX + word + r"\.csv", f"something-something-v1-{word}.csv")
        if path is None:
            continue
        for number, line in read_lines(path):
            clip, _, label = (part.strip() for part in line.partition(";"))
            if split != "test" and label not in known:
                expected = f"expected id;class with a class of {labels.name}"
                raise ManifestError(f"{path}, line {number}: {expected}, got {line[:80]!r}")
            entries.append(DatasetClip(clip, split, known.get(label, ()), (clip,)))
    if not entries:
        raise ManifestError(
            f"{folder}: no list of clips such as something-something-v1-train.csv; download it "
            "into the folder"
        )

    return Dataset(
        name="something-something-v1",
        classes=classes,
        entries=entries,
        official=OFFICIAL,
        num_classes=CLASSES,
        layout="a folder of frames called like the id (1/00001.jpg)",
        fps=FPS,
    )
