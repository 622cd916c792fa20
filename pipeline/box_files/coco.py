"""COCO's JSON: annotations, results of a detector, and the kinds of COCO that know videos.

{"images": [{"id": 7, "file_name": "clip/000012.jpg", "width": 320, "height": 240}, ..],
 "categories": [{"id": 1, "name": "person"}, ..],
 "annotations": [{"image_id": 7, "category_id": 1, "bbox": [x, y, width, height]}, ..]}

A box may have a `score` and a `track_id` (or `instance_id`). With `videos` and `video_id`, an
image's frame is its `frame_id`, `frame_index` or `frame_number`, else the number in its name
(COCO-VID). YouTube-VIS has a list `bboxes` with an entry for each picture of `file_names`.

Results are a list of such boxes with scores. Their images are in another file (`images`), or their
`image_id` is a picture's name.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pipeline.box_files.file_text import text_of
from pipeline.box_files.names import clip_and_frame
from pipeline.box_files.table import (
    BoxCollector,
    ClassNames,
    ClipBoxes,
    ReadOptions,
    from_size,
    in_parts,
)

NUMBERED = ("frame_id", "frame_index", "frame_number")
TRACKED = ("track_id", "instance_id")
# Keys that a file of annotations begins with.
KEYS = ("info", "licenses", "images", "annotations", "categories", "videos", "type")


def read(
    path: Path, text: str, names: ClassNames, options: ReadOptions
) -> Iterator[tuple[str, ClipBoxes]]:
    """Yield every clip of a file with its boxes.

    Args:
        path: the file, for messages.
        text: its text.
        names: numbers the classes, in the order of the categories' ids.
        options: `images` and `count_from`.

    Raises:
        ValueError: an entry lacks what it needs; with its place in the file.
    """
    content = parsed(path, text)
    found = content if isinstance(content, list) else content.get("annotations", [])
    about = content if isinstance(content, dict) else {}
    if options.images is not None:
        about = {**about, **_about(options.images)}
    categories = {}
    for category in sorted(about.get("categories", ()), key=lambda one: one["id"]):
        categories[category["id"]] = str(category["name"])
    names.add_listed(tuple(dict.fromkeys(categories.values())))

    frames, sized = _frames(path, about)
    # The unit is the file's: some images without a size leave pixels of the video.
    collector = BoxCollector(names, "fraction" if sized else "pixels")
    for clip, frame, _ in frames.values():
        collector.see(clip, frame)
    for k, one in enumerate(found):
        try:
            _add(collector, one, frames, categories)
        except (ValueError, TypeError, KeyError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: annotations[{k}]: {reason}") from error
    yield from collector.finish(collector.first_number(options))


def parsed(path: Path, text: str) -> Any:
    """Return the content of a JSON file; ValueError with the place where it is none."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        place = f"line {error.lineno}, column {error.colno}"
        raise ValueError(f"{path}: {place}: {error.msg}; expected JSON") from error
    except RecursionError as error:
        raise ValueError(f"{path}: nested too deeply; expected JSON") from error


def _about(path: Path) -> dict:
    """Images and categories of another file."""
    content = parsed(path, text_of(path))
    if not isinstance(content, dict) or "images" not in content:
        raise ValueError(f"{path}: expected a JSON object with images, as COCO's annotations have")
    return {key: content[key] for key in ("images", "categories", "videos") if key in content}


# The clip, the frame's number, and the frame's size in pixels.
Frame = tuple[str, int, tuple[float, float] | None]


def _frames(path: Path, about: Mapping) -> tuple[dict[Any, Frame], bool]:
    """The frame of each image by its id, and whether all of them have sizes."""
    clips = {video["id"]: video for video in about.get("videos", ())}
    frames: dict[Any, Frame] = {}
    for k, image in enumerate(about.get("images", ())):
        try:
            size = (image["width"], image["height"]) if image.get("width") else None
            frames[image["id"]] = *_place_of(image, clips), size
        except (ValueError, KeyError, TypeError) as error:
            reason = f"no {error}" if isinstance(error, KeyError) else error
            raise ValueError(f"{path}: images[{k}]: {reason}") from error
    if not about.get("images"):
        # YouTube-VIS lists pictures within its videos.
        for video in clips.values():
            size = (video["width"], video["height"]) if video.get("width") else None
            for k, name in enumerate(video.get("file_names", ())):
                frames[video["id"], k] = clip_and_frame(name)[0], k, size
    sized = bool(frames) and all(size for _, _, size in frames.values())
    return frames, sized


def _place_of(image: Mapping, clips: Mapping) -> tuple[str, int]:
    """The clip and the number of an image's frame."""
    numbered = [key for key in NUMBERED if key in image]
    if "video_id" in image and image["video_id"] in clips:
        video = clips[image["video_id"]]
        clip = str(video.get("name", video.get("file_name", image["video_id"])))
        if numbered:
            return clip, int(image[numbered[0]])
        return clip, clip_and_frame(image["file_name"])[1]
    return clip_and_frame(image["file_name"])


def _add(collector: BoxCollector, one: Mapping, frames: Mapping, categories: Mapping) -> None:
    """Add the box, or the boxes, of an annotation."""
    name = one.get("category_id")
    class_name = categories.get(name, str(name)) if name is not None else None
    tracked = [key for key in TRACKED if one.get(key) is not None]
    track = one[tracked[0]] if tracked else None
    score = float(one.get("score", 1.0))
    boxes = [(one.get("image_id"), one.get("bbox"))]
    if "bboxes" in one:
        boxes = [((one["video_id"], k), box) for k, box in enumerate(one["bboxes"]) if box]
        track = one.get("id") if track is None else track
    for image, box in boxes:
        if box is None:
            raise KeyError("bbox")
        if image in frames:
            clip, frame, size = frames[image]
        elif isinstance(image, str):
            clip, frame, size = *clip_and_frame(image), None
        else:
            raise ValueError(
                f"image_id {image!r} is none of the images; name the file that lists them "
                f"(--set proposal_options.images=FILE)"
            )
        corners = from_size(box)
        if collector.unit == "fraction" and size:
            corners = in_parts(corners, size)
        collector.add(clip, frame, corners, score, class_name, track)
