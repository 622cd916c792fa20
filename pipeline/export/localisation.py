"""Export for temporal localisation: NAME.npy [steps,C] for each video, and annotations.json.

ActionFormer and OpenTAD read both. A feature's place in time is offset + k stride: ActionFormer's
configuration takes `feat_stride` and `num_frames`, OpenTAD's `feature_stride` and `offset_frames`;
annotations.json has them under "features".
"""

import json
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from pipeline.export.export_rows import SplitRows
from pipeline.manifests.manifest import Clip

# How the two programs call the splits, as ActivityNet's annotations do.
SUBSETS = {"train": "training", "val": "validation", "test": "testing"}
FIELDS = ("pooled", "nodes")

# Strides of videos that differ by less than this fraction count as one.
SAME = 0.01

# clip -> (frames per second, seconds of the whole file; 0 where it is not known).
FindRate = Callable[[Clip], tuple[float, float]]


@dataclass
class _Steps:
    """The steps of one video, of all its windows.

    Attributes:
        clips: the windows.
        subset: of the annotations.
        seconds: of each step.
        values: [C] of each step.
        strides: between steps that follow one another in a window.
        fps, length: of the file; seconds.
    """

    subset: str
    fps: float
    length: float
    clips: list[Clip] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)
    values: list[np.ndarray] = field(default_factory=list)
    strides: list[float] = field(default_factory=list)


def write_localisation(
    splits: Sequence[SplitRows], folder: Path, rate_of: FindRate, say: Callable[[str], None]
) -> int:
    """Write the arrays, annotations.json and category_idx.txt.

    Windows of one video are joined in order. Where they overlap, features of one place in time are
    averaged; where there is a gap, they are interpolated.

    Args:
        splits: the rows of every split; their fields are "pooled", "nodes", or both (channels one
            after the other; nodes as the mean of a step's boxes).
        folder: exists.
        rate_of: gives frame rate and length of a clip's file.
        say: prints a line.

    Returns:
        How many videos were written.

    Raises:
        ValueError: other fields, or no frame rate is known.
    """
    videos: dict[str, _Steps] = {}
    for split in splits:
        _collect(split, videos, rate_of, say)

    names = _names(videos)
    labels: set[str] = set()
    for steps in videos.values():
        for clip in steps.clips:
            labels.update(clip.labels)
    ids = {label: number for number, label in enumerate(sorted(labels))}

    database, strides, offsets, channels = {}, [], [], 0
    for place, steps in videos.items():
        features, offset, stride = _on_grid(steps)
        np.save(folder / f"{names[place]}.npy", features)
        length = steps.length or offset + stride * (len(features) - 0.5)
        database[names[place]] = {
            "subset": steps.subset,
            "duration": round(length, 4),
            "fps": round(steps.fps, 6),
            "frame": round(length * steps.fps),
            "steps": len(features),
            "stride_seconds": round(stride, 6),
            "offset_seconds": round(offset, 6),
            "annotations": _annotations(steps.clips, length, ids),
        }
        strides.append(stride * steps.fps)
        offsets.append(offset * steps.fps)
        channels = features.shape[1]

    about = _configuration(strides, offsets, channels, [one.fps for one in videos.values()], say)
    text = json.dumps({"features": about, "database": database}, indent=1, ensure_ascii=False)
    # Labels may hold bytes that are not UTF-8.
    how = {"encoding": "utf-8", "errors": "surrogateescape"}
    (folder / "annotations.json").write_text(text + "\n", **how)
    (folder / "category_idx.txt").write_text("".join([f"{label}\n" for label in ids]), **how)
    return len(videos)


def _collect(
    split: SplitRows, videos: dict[str, _Steps], rate_of: FindRate, say: Callable[[str], None]
) -> None:
    """Add the first view of each clip of a split to its video."""
    unknown = sorted(set(split.fields) - set(FIELDS))
    if unknown:
        raise ValueError(
            f"--fields {unknown[0]}: expected pooled or nodes, since the format has one vector per "
            f"step"
        )
    extra = ["time"] if "time" in split.group.fields else ["frames"]
    if extra == ["frames"] and "frames" not in split.group.fields:
        raise ValueError("the cache holds neither `time` nor `frames`: expected one of them")
    if "nodes" in split.fields:
        extra.append("valid")
    # Of several test views, the first is the clip's.
    first = [int(view) == 0 for view in split.group.views[list(split.rows)]]
    if not all(first):
        say(f"split {split.split}: of several views of a clip, the first is exported")

    for part, arrays in split.blocks((*split.fields, *extra)):
        for k, clip in enumerate(split.clips[part]):
            if not first[part.start + k]:
                continue
            if clip.place not in videos:
                fps, length = rate_of(clip)
                videos[clip.place] = _Steps(SUBSETS.get(split.split, split.split), fps, length)
            steps = videos[clip.place]
            vectors = _vectors(arrays, k, split.fields)
            if "time" in arrays:
                seconds = arrays["time"][k].astype(np.float64)
            else:
                seconds = _seconds_of_frames(arrays["frames"][k], len(vectors), steps.fps)
            steps.clips.append(clip)
            steps.seconds += seconds.tolist()
            steps.values += list(vectors)
            steps.strides += np.diff(seconds).tolist()


def _vectors(arrays: dict[str, np.ndarray], k: int, fields: Sequence[str]) -> np.ndarray:
    """[T,C] of one view, float32."""
    found = []
    for name in fields:
        values = arrays[name][k].astype(np.float32)
        if name == "nodes":
            valid = arrays["valid"][k][..., None]
            values = (values * valid).sum(1) / np.maximum(valid.sum(1), 1)
        found.append(values)
    return np.concatenate(found, axis=1)


def _seconds_of_frames(frames: np.ndarray, steps: int, fps: float) -> np.ndarray:
    """The middle of the frames that each of `steps` was computed from, in seconds."""
    parts = np.array_split(frames.astype(np.float64), steps)
    return np.array([(part.mean() + 0.5) / fps for part in parts])


def _on_grid(steps: _Steps) -> tuple[np.ndarray, float, float]:
    """The features at even distances [n,C] float32, the second of the first, and the distance."""
    order = np.argsort(steps.seconds, kind="stable")
    seconds = np.array(steps.seconds)[order]
    values = np.stack([steps.values[k] for k in order])
    positive = [stride for stride in steps.strides if stride > 1e-6]
    stride = float(np.median(positive)) if positive else 1.0 / steps.fps
    place = np.rint((seconds - seconds[0]) / stride).astype(int)

    count = np.bincount(place)
    total = np.zeros((len(count), values.shape[1]), np.float64)
    np.add.at(total, place, values)
    known = np.flatnonzero(count)
    total[known] /= count[known, None]
    missing = np.flatnonzero(count == 0)
    for channel in range(total.shape[1] if len(missing) else 0):
        total[missing, channel] = np.interp(missing, known, total[known, channel])
    return total.astype(np.float32), float(seconds[0]), stride


def _annotations(clips: Sequence[Clip], length: float, ids: dict[str, int]) -> list[dict]:
    """A segment for each label of each window; windows that touch and agree are one segment."""
    segments: dict[str, list[list[float]]] = {}
    for clip in sorted(clips, key=lambda clip: (clip.start or 0.0, clip.position)):
        start, end = clip.start or 0.0, length if clip.end is None else clip.end
        for label in clip.labels:
            own = segments.setdefault(label, [])
            if own and start <= own[-1][1] + 1e-6:
                own[-1][1] = max(own[-1][1], end)
            else:
                own.append([start, end])
    found = []
    for label, spans in segments.items():
        for start, end in spans:
            segment = [round(start, 4), round(end, 4)]
            found.append({"segment": segment, "label": label, "label_id": ids[label]})
    return sorted(found, key=lambda one: (one["segment"], one["label_id"]))


def _names(videos: dict[str, _Steps]) -> dict[str, str]:
    """A file name for each video: its own without ending, with a number where two are equal."""
    names, taken = {}, set()
    for place in videos:
        stem = re.sub(r"[^\w.-]+", "_", Path(place).stem) or "video"
        name, number = stem, 2
        while name in taken:
            name, number = f"{stem}-{number}", number + 1
        taken.add(name)
        names[place] = name
    return names


def _configuration(
    strides: Sequence[float],
    offsets: Sequence[float],
    channels: int,
    rates: Sequence[float],
    say: Callable[[str], None],
) -> dict:
    """What a configuration of ActionFormer or OpenTAD takes, in frames; None where they differ."""

    def common(values: Sequence[float]) -> float | None:
        middle = float(np.median(values)) if values else 0.0
        alike = all(abs(value - middle) <= SAME * max(abs(middle), 1.0) for value in values)
        return round(middle, 4) if alike else None

    stride, offset, fps = common(strides), common(offsets), common(rates)
    if stride is None:
        say(
            "videos differ in the distance of their steps: each has its own in annotations.json; "
            "extract with --sampling stride for one distance"
        )
    return {
        "input_dim": channels,
        "feat_stride": stride,
        "num_frames": None if offset is None else round(2 * offset, 4),
        "default_fps": fps,
        "feature_stride": stride,
        "offset_frames": offset,
    }
