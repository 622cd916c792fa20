"""Boxes from a file: annotations, or what a detector or tracker wrote. The content tells the format
(`pipeline.box_files`, and the table in docs/stages.md).

A frame k is frame k of the video file, counted from 0. In a folder whose pictures count from 1 it
is picture k+1. A second s is the frame that begins next to it, by the video's frame rate. A frame
without an entry, or after the end of the list, has no boxes, but for `nearest`. A score that is
not given is 1.

A box may reach beyond the right or lower edge by a tenth of the frame's side (rounding, a
detector's overhang), and is clipped. One that reaches further fails its clip: it was probably
measured in a larger picture, such as the original of a smaller video. Boxes of a larger picture
never reach beyond the left or upper edge. Where one does, boxes of the clip may reach beyond the
right and lower edge by twice as much, up to half the side.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pipeline.box_files.formats import FORMATS, BoxTable, read_boxes
from pipeline.box_files.names import short_name
from pipeline.box_files.table import UNITS, ClipBoxes, ReadOptions
from pipeline.proposals import BoxesError, MissingBoxes
from pipeline.text.counted import counted

# Parts of the frame's side. A corner further outside than this was measured in another frame.
OUTSIDE = 0.5
# The limit to the right and below, if no box of the clip reaches beyond the left or upper edge.
OVERHANG = 0.1
# Boxes may reach beyond the right and lower edge this many times as far as beyond the others.
BOTH_WAYS = 2
KEYS = ("clip", "stem")
CLASSES = ("role", "category")


class Annotations:
    """The first N boxes of each frame, by score where there are scores.

    Args:
        path: the file or folder, for messages.
        table: the boxes of all clips.
        num_boxes, key, unit, annotated_height, annotated_width, allow_missing, overhang, nearest:
            see `build`.
    """

    frame_size = None
    in_view = False

    def __init__(
        self,
        path: Path,
        table: BoxTable,
        num_boxes: int,
        key: str,
        unit: str,
        annotated_height: int,
        annotated_width: int,
        allow_missing: bool,
        overhang: float,
        nearest: float,
    ):
        self.where, self.table, self.clips = path, table, table.clips
        self.num_boxes, self.key, self.unit = num_boxes, key, unit
        self.annotated_height, self.annotated_width = annotated_height, annotated_width
        self.allow_missing, self.overhang, self.nearest = allow_missing, overhang, nearest
        self.weights_sha256, self.slots = table.sha256, table.slots
        self.class_names = table.class_names

        known = [boxes for boxes in self.clips.values() if isinstance(boxes, ClipBoxes)]
        self.labels: tuple[str, ...] = ()
        if any(boxes.classes is not None for boxes in known):
            self.labels += ("box_class",)
        if any(boxes.tracks is not None for boxes in known):
            self.labels += ("track",)
        # Files that list pictures know clips by their folders.
        self.short_names: dict[str, list[str]] = {}
        for name in self.clips:
            self.short_names.setdefault(short_name(name), []).append(name)

    def to(self, device, precision: str = "fp32") -> "Annotations":
        """Return itself: the boxes are read, not computed."""
        return self

    def propose(self, frames, clip, info, numbers) -> tuple[np.ndarray, np.ndarray]:
        """Look up the boxes of some frames; `frames`, their pixels, are not looked at.

        Returns:
            boxes [K,N,4] in [0,1] of the whole frame, and scores [K,N], -1 where a frame has fewer
            than N boxes.

        Raises:
            MissingBoxes: the clip is not listed, and `allow_missing` is not set.
            BoxesError: the clip's entry is malformed.
        """
        boxes, scores, _ = self._look_up(clip, info, numbers, slots=False)
        return boxes, scores

    def propose_labelled(
        self, frames, clip, info, numbers
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        """Look up the boxes of some frames with their classes and tracks.

        Where objects have slots, object k is in row k of every frame, or in none.

        Returns:
            boxes and scores as `propose`, and label -> int32 [K,N], -1 for none.

        Raises:
            MissingBoxes, BoxesError: as `propose`.
        """
        return self._look_up(clip, info, numbers, self.slots)

    def _look_up(
        self, clip, info, numbers, slots: bool
    ) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
        shape = (len(numbers), self.num_boxes)
        boxes = np.zeros((*shape, 4), dtype=np.float32)
        scores = np.full(shape, -1, dtype=np.float32)
        labels = {name: np.full(shape, -1, np.int32) for name in self.labels}
        listed = self._listed(clip)
        if listed is None:
            return boxes, scores, labels

        whole = self._fractions(listed, clip.clip, info)
        known = self._labels_of(listed)
        frames, annotated = self._frame_numbers(listed, clip.clip, info)
        for row, number in enumerate(numbers):
            number = self._nearest_to(number, annotated, info)
            first, end = np.searchsorted(frames, (number, number + 1))
            found = np.arange(first, end)
            if slots:
                found = found[listed.tracks[first:end] < self.num_boxes]
                places = listed.tracks[found]
            else:
                # Stable: boxes of equal score stay in the file's order.
                order = np.argsort(-listed.scores[first:end], kind="stable")
                found = first + order[: self.num_boxes]
                places = np.arange(len(found))
            boxes[row, places], scores[row, places] = whole[found], listed.scores[found]
            for name, values in known.items():
                labels[name][row, places] = values[found]
        return boxes, scores, labels

    def _listed(self, clip) -> ClipBoxes | None:
        """What the file says of a clip; None if that may be nothing."""
        name = self._name_of(clip)
        listed = self.clips.get(name)
        if listed is None:
            if self.allow_missing:
                return None
            # What can be done depends on the command, which says it.
            raise MissingBoxes(clip.clip, self.where, f"the file has no boxes under {name!r}")
        if isinstance(listed, str):
            raise BoxesError(clip.clip, self.where, listed)
        return listed

    def _labels_of(self, listed: ClipBoxes) -> dict[str, np.ndarray]:
        """Label -> [M], as far as the clip's boxes have them."""
        known = {}
        if listed.classes is not None:
            # A class of -1 picks the last entry, which is -1.
            known["box_class"] = np.append(self.table.renumber, -1)[listed.classes]
        if listed.tracks is not None:
            known["track"] = listed.tracks
        return known

    def _frame_numbers(self, listed: ClipBoxes, clip: str, info) -> tuple[np.ndarray, np.ndarray]:
        """The frame of each box, and every frame that was looked at, as numbers in the file."""
        if not listed.seconds:
            return listed.frames, listed.annotated
        if not info.fps > 0:
            raise BoxesError(
                clip,
                self.where,
                "its boxes are told by the second, and the video's frame rate is not known; give "
                "it in the manifest's column fps",
            )
        frames = np.rint(listed.frames * info.fps).astype(np.int64)
        return frames, np.unique(np.rint(listed.annotated * info.fps).astype(np.int64))

    def _nearest_to(self, number: int, annotated: np.ndarray, info) -> int:
        """The frame whose boxes stand for a frame; the earlier one of two that are equally near."""
        if not self.nearest or not len(annotated):
            return number
        at = int(np.searchsorted(annotated, number))
        around = annotated[max(0, at - 1) : at + 1]
        best = int(around[np.argmin(np.abs(around - number))])
        # A rate that is not known makes no frame near.
        limit = self.nearest * info.fps if info.fps > 0 else 0
        return best if abs(best - number) <= limit + 1e-6 else number

    def remark(self, clip, info, numbers) -> str:
        """Say what looks wrong with a clip's boxes although they can be used.

        Args:
            clip: as for `propose`.
            info: as for `propose`.
            numbers: the frames in the file at which boxes are looked for.

        Returns:
            One line; "" if nothing looks wrong.
        """
        listed = self.clips.get(self._name_of(clip))
        if not isinstance(listed, ClipBoxes):
            return ""
        if not len(listed.frames):
            return "no box: it is listed, and none of its frames has a box"
        frames, annotated = self._frame_numbers(listed, clip.clip, info)
        meant = [self._nearest_to(number, annotated, info) for number in numbers]
        with_boxes, asked = np.unique(frames), np.isin(frames, meant)
        if not asked.any():
            some = ", ".join(map(str, with_boxes[:3].tolist())) + ", …" * (len(with_boxes) > 3)
            return (
                f"no box: none of its {counted(len(with_boxes), 'frame')} with boxes ({some}) "
                "is one of the "
                f"{len(numbers):,} that are looked at; give boxes for every frame (interpolate "
                f"them), take those of the nearest frame (--nearest-boxes SECONDS), or count "
                f"frames as the video does, from 0"
            )

        boxes = listed.boxes[asked]
        if not (boxes[:, 2:] > boxes[:, :2]).all(1).any():
            return (
                f"no box with an area at the {counted(len(numbers), 'frame')} looked at, such as "
                f"{boxes[0].round(3).tolist()}; expected corners x1, y1, x2, y2, not width and "
                f"height"
            )
        if self.slots and listed.objects > self.num_boxes:
            return (
                f"has {listed.objects} objects, and {self.num_boxes} slots: the boxes of the last "
                f"ones are left out; pass --boxes {listed.objects}"
            )

        end, last = info.first + info.frames, int(with_boxes[-1])
        # A clip that the manifest cuts short leaves boxes after its end.
        if getattr(clip, "end", None) is None and last >= end + max(2, end // 20):
            return (
                f"has boxes up to frame {last}, the video only frames 0 to {end - 1}: were they "
                f"drawn at another frame rate?"
            )
        return ""

    def _name_of(self, clip) -> str:
        """The name under which the file lists a clip."""
        name = clip.clip if self.key == "clip" else Path(clip.path).stem
        if name not in self.clips:
            # Only one clip can be meant: two of a name in other folders are not told apart.
            alike = self.short_names.get(short_name(name), ())
            if len(alike) == 1:
                return alike[0]
        return name

    def _fractions(self, listed: ClipBoxes, clip: str, info) -> np.ndarray:
        """Boxes [M,4] in [0,1] of the frame, clipped. BoxesError where a corner is far outside:
        another unit was meant.
        """
        unit = self.unit or listed.unit
        whole = listed.boxes.astype(np.float64)
        if unit == "pixels":
            scale = info.height / self.annotated_height if self.annotated_height else 1.0
            across = info.width / self.annotated_width if self.annotated_width else scale
            whole = whole * [across, scale, across, scale]
            whole = whole / [info.width, info.height, info.width, info.height]

        left = max(0.0, -whole.min()) if len(whole) else 0.0
        both_ways = BOTH_WAYS * left * (1 + 1e-6)  # boxes are kept in float32
        most = max(self.overhang, min(OUTSIDE, both_ways))
        far = np.flatnonzero(((whole < -OUTSIDE) | (whole > 1 + most)).any(1))
        if len(far):
            box = [round(value, 3) for value in listed.boxes[far[0]].tolist()]
            scaled = ""
            if self.annotated_height:
                scaled = f", scaled from the height {self.annotated_height},"
            place = "second" if listed.seconds else "frame"
            raise BoxesError(
                clip,
                self.where,
                f"{place} {listed.frames[far[0]]}: box {box} ({unit}){scaled} lies outside a frame "
                f"of {info.width}x{info.height} pixels; give the height of the frames it was "
                "measured in (--set proposal_options.annotated_height=HEIGHT), or say unit, or "
                "overhang if boxes stick out",
            )
        return whole.clip(0, 1)


def build(
    file: str,
    num_boxes: int = 10,
    key: str = "clip",
    unit: str = "",
    annotated_height: int = 0,
    annotated_width: int = 0,
    allow_missing: bool = False,
    overhang: float = OVERHANG,
    nearest: float = 0.0,
    format: str = "",
    count_from: int | None = None,
    class_names: Sequence[str] | str = (),
    classes: str = "role",
    images: str = "",
) -> Annotations:
    """Build the source "annotations".

    Args:
        file: a file of boxes, or a folder of them (Something-Else comes in parts).
        num_boxes: N, the first of each frame.
        key: clips are listed by their id ("clip"), or by the name of their file or folder without
            its ending ("stem").
        unit: "pixels" or "fraction" (of the frame); "" as the file's format says.
        annotated_height: height in pixels of the frames in which pixels were measured, where that
            is not the video's; 0 is the video's. Something-Else: 240, while its frames are often
            extracted at 256.
        annotated_width: their width, where frames were stretched; 0 follows the height.
        allow_missing: a clip that is not listed has no boxes, instead of failing.
        overhang: part of the frame's side by which a box may stick out to the right or below. It
            is clipped; one that sticks out further fails its clip.
        nearest: seconds. A frame that nobody looked at takes the boxes of the nearest frame that
            somebody did, if that is no further away; 0 for none.
        format: the name of the file's format; "" lets the content tell.
        count_from: the number of a clip's first frame in files that number pictures, 0 or 1; None
            is 0 if any clip has a frame 0, else 1 (1 in MOT and Action Genome).
        class_names: names of classes that a file numbers (YOLO, MOT, supervision), in order.
        classes: of Something-Else: "role" (hand or object) or "category" (the objects' names).
        images: the COCO file that lists the images of a file of results.

    Raises:
        ValueError: a bad value, or a file that cannot be read, with the place. A malformed JSON
            entry of one clip of Something-Else or GOS fails that clip only.
    """
    _check_numbers(num_boxes, annotated_height, annotated_width)
    _check_part("overhang", overhang, OUTSIDE)
    _check_part("nearest", nearest, float("inf"))
    for name, value, choices in (
        ("key", key, KEYS),
        ("unit", unit, ("", *UNITS)),
        ("format", format, ("", *FORMATS)),
        ("classes", classes, CLASSES),
        ("count_from", count_from, (None, 0, 1)),
    ):
        if value not in choices or isinstance(value, bool):
            expected = ", ".join(str(choice) for choice in choices if choice not in ("", None))
            raise ValueError(
                f"proposals 'annotations': {name}={value!r}; expected one of {expected}"
            )
    if isinstance(class_names, str):
        class_names = [name.strip() for name in class_names.split(",") if name.strip()]
    options = ReadOptions(
        format,
        count_from,
        tuple(map(str, class_names)),
        classes,
        Path(images) if images else None,
    )
    return Annotations(
        Path(file),
        read_boxes(file, options),
        num_boxes,
        key,
        unit,
        annotated_height,
        annotated_width,
        allow_missing,
        overhang,
        nearest,
    )


def _check_numbers(num_boxes: int, annotated_height: int, annotated_width: int) -> None:
    for name, value, least in (
        ("num_boxes", num_boxes, 1),
        ("annotated_height", annotated_height, 0),
        ("annotated_width", annotated_width, 0),
    ):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ValueError(
                f"proposals 'annotations': {name}={value!r}; expected a whole number from {least}"
            )


def _check_part(name: str, value: float, most: float) -> None:
    is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= most or value == float("inf"):
        upto = "" if most == float("inf") else f" to {most}"
        raise ValueError(
            f"proposals 'annotations': {name}={value!r}; expected a number from 0{upto}"
        )
