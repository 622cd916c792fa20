"""Export for FiftyOne: its FiftyOneVideoLabelsDataset, with boxes, classes and tracks by frame.

    fiftyone.Dataset.from_dir(OUT, fiftyone.types.FiftyOneVideoLabelsDataset)

The folder has manifest.json, data/ with a link to each video, and labels/ with a JSON file each.
"""

import json
import os
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from pipeline.export.export_rows import SplitRows
from pipeline.manifests.manifest import Clip
from pipeline.text.counted import counted

NEEDS = ("frames", "crop", "flip")
BOXES = ("boxes", "valid", "scores", "box_class", "track")


def write_video_labels(
    splits: Sequence[SplitRows],
    folder: Path,
    class_names: Sequence[str],
    say: Callable[[str], None],
) -> int:
    """Write the dataset.

    Args:
        splits: the rows of every split; the first view of each clip is written.
        folder: exists.
        class_names: of the boxes, by `box_class`.
        say: prints a line.

    Returns:
        How many videos were written.

    Raises:
        ValueError: the cache does not say which frames its views are of.
    """
    (folder / "data").mkdir()
    (folder / "labels").mkdir()
    index, taken, folders = [], set(), []
    for split in splits:
        names = [name for name in (*NEEDS, *BOXES) if name in split.group.fields]
        missing = [name for name in NEEDS if name not in names]
        if missing:
            raise ValueError(
                f"the cache lacks {', '.join(missing)}, so its boxes cannot be put into the videos"
            )
        for part, arrays in split.blocks(names):
            for k, clip in enumerate(split.clips[part]):
                if int(split.group.views[split.rows[part.start + k]]) != 0:
                    continue
                if clip.path.is_dir():
                    folders.append(clip.clip)
                    continue
                name = _free_name(clip.clip, taken)
                video = f"data/{name}{clip.path.suffix}"
                os.symlink(clip.path, folder / video)
                labels = f"labels/{name}.json"
                view = {key: values[k] for key, values in arrays.items()}
                record = _labels_of(clip, view, class_names)
                text = json.dumps(record, ensure_ascii=False)
                (folder / labels).write_text(text, encoding="utf-8", errors="surrogateescape")
                index.append({"data": video, "labels": labels})
    if folders:
        say(
            f"{counted(len(folders), 'clip')} left out (folders of frames: no video files): "
            f"{', '.join(folders[:5])}{', …' if len(folders) > 5 else ''}"
        )
    manifest = {
        "type": "eta.core.datasets.LabeledVideoDataset",
        "description": "boxes and labels of a vidgraph cache",
        "index": index,
    }
    (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return len(index)


def _free_name(clip: str, taken: set[str]) -> str:
    """A file name for a clip that no other has."""
    stem = re.sub(r"[^\w.-]+", "_", clip).strip(".") or "clip"
    name, number = stem, 2
    while name in taken:
        name, number = f"{stem}-{number}", number + 1
    taken.add(name)
    return name


def _labels_of(clip: Clip, view: dict[str, np.ndarray], class_names: Sequence[str]) -> dict:
    """The labels of one video, as ETA's VideoLabels writes them; frames count from 1."""
    attributes = [_attribute("split", clip.split), _attribute("clip", clip.clip)]
    attributes += [_attribute("label", label) for label in clip.labels]
    frames: dict[str, dict] = {}
    if {"boxes", "valid"} <= view.keys():
        numbers = view["frames"].tolist()
        steps = len(view["valid"])
        for t in range(steps):
            # The boxes of a step are those of its first frame.
            number = int(numbers[t * len(numbers) // steps]) + 1
            objects = []
            for i in np.flatnonzero(view["valid"][t]).tolist():
                objects.append(_object(view, t, i, number, class_names))
            frames[str(number)] = {"frame_number": number, "objects": {"objects": objects}}
    return {"attrs": {"attrs": attributes}, "frames": frames}


def _attribute(name: str, value: str) -> dict:
    return {"type": "eta.core.data.CategoricalAttribute", "name": name, "value": value}


def _object(
    view: dict[str, np.ndarray], t: int, i: int, frame: int, class_names: Sequence[str]
) -> dict:
    """Box i of step t, in fractions of the whole frame."""
    x, y, width, height, full_width, full_height = view["crop"].tolist()
    x1, y1, x2, y2 = map(float, view["boxes"][t, i])
    if bool(view["flip"]):
        x1, x2 = 1 - x2, 1 - x1
    label, known = "box", -1
    if "box_class" in view:
        known = int(view["box_class"][t, i])
    if 0 <= known < len(class_names):
        label = class_names[known]
    record = {
        "type": "eta.core.objects.DetectedObject",
        "label": label,
        "bounding_box": {
            "top_left": {"x": (x + x1 * width) / full_width, "y": (y + y1 * height) / full_height},
            "bottom_right": {
                "x": (x + x2 * width) / full_width,
                "y": (y + y2 * height) / full_height,
            },
        },
        "frame_number": frame,
    }
    if "scores" in view:
        record["confidence"] = float(view["scores"][t, i])
    if "track" in view and int(view["track"][t, i]) >= 0:
        record["index"] = int(view["track"][t, i])
    return record
