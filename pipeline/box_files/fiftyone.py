"""FiftyOne's exports: boxes are [x, y, width, height] in [0,1], frames of videos count from 1.

FiftyOneDataset                a folder with samples.json and, for videos, frames.json, whose
                               samples have one field of detections
FiftyOneImageDetectionDataset  labels.json: {"classes": [..], "labels": {picture: [{"label": ..,
                               "bounding_box": [..]}]}}
FiftyOneVideoLabelsDataset     a file per video: {"frames": {"1": {"objects": {"objects": [..]}}}}
"""

from collections.abc import Iterator, Mapping
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.box_files.coco import parsed
from pipeline.box_files.file_text import text_of
from pipeline.box_files.names import clip_and_frame
from pipeline.box_files.table import BoxCollector, ClassNames, ClipBoxes, ReadOptions, from_size

# Beside samples.json: the boxes of videos.
FRAMES = "frames.json"
# Keys that the files begin with.
KEYS = ("classes", "labels", "samples", "frames")


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of a file with its boxes.

    Args:
        path: the file. Beside samples.json, frames.json is read.
        text: its text.
        names: numbers the classes.
        options: `count_from`.

    Raises:
        ValueError: an entry lacks what it needs; with its place.
    """
    content = parsed(path, text)
    collector = BoxCollector(names, "fraction")
    try:
        if "samples" in content:
            _add_dataset(collector, path, content["samples"])
        elif "labels" in content:
            _add_pictures(collector, content, names)
        else:
            _add_video(collector, path.stem, content["frames"])
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        reason = f"no {error}" if isinstance(error, KeyError) else error
        raise ValueError(f"{path}: {reason}; expected an export of FiftyOne") from error
    yield from collector.finish(collector.first_number(options))


def _add_dataset(collector: BoxCollector, path: Path, samples: list[dict]) -> None:
    """samples.json: videos with their frames beside it, or pictures."""
    clips = {}
    for sample in samples:
        if str(sample.get("_media_type", "")) == "video" or "frames" in sample:
            clips[_id_of(sample["_id"])] = PurePosixPath(sample["filepath"]).stem
        else:
            clip, frame = clip_and_frame(sample["filepath"])
            collector.see(clip, frame)
            _add_fields(collector, clip, frame, sample)
    frames_file = path.parent / FRAMES
    if not clips:
        return
    if not frames_file.is_file():
        raise ValueError("no frames.json beside it, which has the boxes of videos")
    frames = parsed(frames_file, text_of(frames_file))["frames"]
    for frame in frames:
        clip, number = clips[_id_of(frame["_sample_id"])], int(frame["frame_number"])
        collector.see(clip, number)
        _add_fields(collector, clip, number, frame)


def _id_of(value: Any) -> str:
    """An id, plain or as {"$oid": ..}."""
    return str(value["$oid"] if isinstance(value, Mapping) else value)


def _add_fields(collector: BoxCollector, clip: str, frame: int, holder: Mapping) -> None:
    """Add the detections of a sample or frame; ValueError where several fields have some."""
    fields = {}
    for name, field in holder.items():
        if isinstance(field, Mapping) and isinstance(field.get("detections"), list):
            fields[name] = field["detections"]
        elif isinstance(field, Mapping) and "bounding_box" in field:
            fields[name] = [field]
    if len(fields) > 1:
        raise ValueError(
            f"clip {clip!r}, frame {frame}: detections in the fields {', '.join(sorted(fields))}: "
            f"export one of them alone"
        )
    for found in fields.values():
        for one in found:
            _add(collector, clip, frame, one["label"], from_size(one["bounding_box"]), one)


def _add_pictures(collector: BoxCollector, content: Mapping, names: ClassNames) -> None:
    """labels.json of pictures."""
    classes = content.get("classes") or []
    names.add_listed(tuple(map(str, classes)))
    for picture, found in content["labels"].items():
        clip, frame = clip_and_frame(picture)
        collector.see(clip, frame)
        for one in found or ():
            label = one["label"]
            name = classes[label] if isinstance(label, int) and label < len(classes) else label
            _add(collector, clip, frame, name, from_size(one["bounding_box"]), one)


def _add_video(collector: BoxCollector, clip: str, frames: Mapping) -> None:
    """A file of one video."""
    for number, frame in frames.items():
        collector.see(clip, int(number))
        for one in frame.get("objects", {}).get("objects", ()):
            box = one["bounding_box"]
            low, high = box["top_left"], box["bottom_right"]
            corners = low["x"], low["y"], high["x"], high["y"]
            _add(collector, clip, int(number), one.get("label"), corners, one)


def _add(collector: BoxCollector, clip: str, frame: int, name: Any, corners, one: Mapping) -> None:
    score = one.get("confidence")
    collector.add(
        clip,
        frame,
        corners,
        1.0 if score is None else float(score),
        None if name is None else str(name),
        one.get("index"),
    )
