"""Look at every clip of a manifest before a run: what cannot be decoded, looks wrong, or repeats.

Five frames of each clip are decoded: the first, the last and three between. The three are drawn
from the clip's length alone, so that two copies of a video show the same five. Copies are found by
these frames, whatever their files are called.
"""

import hashlib
import io
import json
import time
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from pipeline.files.atomic_files import write_text
from pipeline.manifests.labels import about_withheld, number_of, withheld
from pipeline.manifests.manifest import Clip, Manifest
from pipeline.proposals import BoxesError
from pipeline.text.counted import counted
from pipeline.text.printable import visible_json, write_table
from pipeline.video.frame_reader import DecodeError, beyond_end
from pipeline.video.view_pixels import ClipOpener, step_frames
from pipeline.views.sampling import Sampling, views_of
from pipeline.views.stateless_random import Draws
from pipeline.views.video_info import VideoInfo
from pipeline.workers.decode_pool import WorkerDied, WorkerPool

# Frames drawn between the first and the last.
BETWEEN = 3

# Levels of 255 within a frame of one colour: coding leaves a few.
FLAT = 8

# Levels of 255. Coding changes the mean of an 8×8 block of a still picture by less, motion by more.
ALIKE = 4.0


@dataclass(frozen=True)
class ClipFinding:
    """Something that is wrong with a clip, or looks wrong.

    Attributes:
        clip: the clip's id; "" for a finding about the manifest.
        path: its file, or the manifest.
        kind: one of the words below.
        message: what is wrong.

    Kinds:
        unreadable: no frame, cut short, damaged, too slow, missing, or outside the root.
        blank: every frame has one colour.
        still: the five frames are alike.
        duplicate: shows what an earlier clip shows.
        end: ends after its video does.
        boxes: none at the frames that are looked at, or outside the frame.
        label: none, or not one of the classes.
    """

    clip: str
    path: str
    kind: str
    message: str


@dataclass
class CheckResult:
    """What `check_clips` found.

    Attributes:
        clips: how many clips were looked at.
        seconds: wall time.
        findings: those about pictures in the order of the manifest, then those about labels.
    """

    clips: int = 0
    seconds: float = 0.0
    findings: list[ClipFinding] = field(default_factory=list)


@dataclass(frozen=True)
class ClipLook:
    """What five frames of a clip show.

    Attributes:
        digest: a hash of the frames, with the clip's size and length.
        blank: whether every frame has one colour.
        still: whether the frames are alike.
        info: the clip's size, length and rate.
    """

    digest: bytes
    blank: bool
    still: bool
    info: VideoInfo


def check_clips(
    manifest: Manifest,
    opening: ClipOpener,
    workers: int = 1,
    time_limit: float = 60.0,
    classes: Sequence[str] | None = None,
    announce: Callable[[int], Callable[[int, int], None]] | None = None,
    boxes: Any = None,
) -> CheckResult:
    """Decode five frames of every clip, and check the labels.

    Only errors that the data causes become findings; others are raised.

    Args:
        manifest: the clips.
        opening: opens their files.
        workers: processes; 0 decodes in this process, without a time limit.
        time_limit: seconds for the five frames of a clip.
        classes: the allowed labels; None allows all.
        announce: called once with the number of clips. It returns a function that is called with
            (1, findings) after every clip.
        boxes: the source of boxes "annotations", to compare its boxes with the size and the
            frames of every clip; None compares nothing.

    Returns:
        The findings.
    """
    begun, result = time.monotonic(), CheckResult()
    advance = announce(len(manifest.clips)) if announce else (lambda done, found: None)
    seen: dict[bytes, int] = {}
    # A limit needs a process that can be ended.
    limit = time_limit if workers else None
    with WorkerPool(partial(look_at_clip, opening), workers, limit, again=1) as pool:
        for clip, look in pool.imap(manifest.clips, ahead=max(1, 4 * workers)):
            findings = list(_about_pictures(clip, look, seen, manifest.clips, time_limit))
            if isinstance(look, ClipLook):
                findings += _about_units(clip, look.info, boxes)
            result.findings += findings
            result.clips += 1
            advance(1, len(findings))
    result.findings += _about_labels(manifest, classes)
    result.seconds = time.monotonic() - begun
    return result


def look_at_clip(opening: ClipOpener, clip: Clip) -> ClipLook:
    """Decode five frames of a clip.

    Args:
        opening: opens the file.
        clip: the clip.

    Returns:
        What they show.

    Raises:
        DecodeError: one of them cannot be decoded.
    """
    # The next clip may be a window of the same video.
    again = clip.start is not None or clip.end is not None
    with opening.open(clip, again) as reader:
        info = reader.info
        frames = reader.read(frame_numbers(info.frames))  # [k,H,W,3]
    # Blank clips of different sizes or lengths are no copies of one another.
    digest = hashlib.blake2b(f"{info.frames} {info.width} {info.height}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(frames))

    blank = all(_has_one_colour(frame) for frame in frames)
    still = info.frames > 1 and not blank and all(_alike(frames[0], f) for f in frames[:0:-1])
    return ClipLook(digest.digest(), blank, still, info)


def _has_one_colour(frame: np.ndarray) -> bool:
    return all(int(np.ptp(frame[..., channel])) <= FLAT for channel in range(3))


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether no 8×8 block of two frames [H,W,3] differs by more than coding explains."""
    difference = np.abs(one.astype(np.int16) - other).mean(-1)
    height, width = (max(8, -(-side // 8) * 8) for side in difference.shape)
    padded = np.zeros((height, width))
    padded[: difference.shape[0], : difference.shape[1]] = difference
    blocks = padded.reshape(height // 8, 8, width // 8, 8).mean((1, 3))
    return bool(blocks.max() <= ALIKE)


def frame_numbers(length: int) -> list[int]:
    """Return the frames of a clip that are looked at.

    Args:
        length: frames of the clip.

    Returns:
        The first, the last and three between, ascending; fewer of a short clip.
    """
    draws = Draws("check", length)
    numbers = {0, length - 1}
    if length > 2:
        numbers.update(1 + draws.below(length - 2) for _ in range(BETWEEN))
    return sorted(numbers)


def _about_pictures(
    clip: Clip, result: object, seen: dict[bytes, int], clips: Sequence[Clip], limit: float
) -> Iterator[ClipFinding]:
    """Findings from what the worker returned; `seen` maps digests to positions of earlier clips."""
    finding = partial(ClipFinding, clip.clip, clip.place)
    if isinstance(result, ClipLook):
        if result.blank:
            yield finding("blank", "every frame that was looked at is of one colour")
        if result.still:
            yield finding("still", "the first, the last and the frames between look the same")
        first = seen.setdefault(result.digest, clip.position)
        if first != clip.position:
            yield finding("duplicate", _about_twins(clip, clips[first]))
    elif isinstance(result, DecodeError):
        yield finding("unreadable", f"{type(result).__name__}: {' '.join(result.reason.split())}")
    elif isinstance(result, TimeoutError):
        reason = f"five frames took longer than {limit:g} s to decode (--time-limit)"
        yield finding("unreadable", f"DecodeTimeout: {reason}")
    elif isinstance(result, WorkerDied):
        yield finding("unreadable", f"DecoderDied: {' '.join(str(result).split())}")
    else:
        raise result


def _about_units(clip: Clip, info: VideoInfo, boxes: Any) -> Iterator[ClipFinding]:
    """Findings about times and boxes that seem to be in other units: milliseconds, other pixels."""
    finding = partial(ClipFinding, clip.clip, clip.place)
    text = beyond_end(clip, info)
    if text:
        yield finding("end", text)
    if boxes is None:
        return

    numbers = [info.first + k for k in _frames_looked_at(info)]
    try:
        boxes.propose(None, clip, info, numbers)
    except BoxesError as error:
        yield finding("boxes", error.reason)
        return
    text = boxes.remark(clip, info, numbers)
    if text:
        yield finding("boxes", text)


def _frames_looked_at(info: VideoInfo) -> tuple[int, ...]:
    """The frames where an extraction with default options looks for boxes of a test view."""
    sampling = Sampling(train_views=0)
    (view,) = views_of(sampling, info, "", (), 0)
    return step_frames(view, sampling.frames // 2)


def _about_twins(clip: Clip, other: Clip) -> str:
    """What a clip shares with an earlier one, and how they differ."""
    text = f"shows the same frames as clip {other.clip}"
    if clip.split != other.split:
        text += f", which is in {other.split} while this one is in {clip.split}"
    if set(clip.labels) != set(other.labels):
        labels, other_labels = ";".join(clip.labels), ";".join(other.labels)
        text += f", and is labelled {labels or 'nothing'} where that is {other_labels or 'nothing'}"
    return text


def _about_labels(manifest: Manifest, classes: Sequence[str] | None) -> Iterator[ClipFinding]:
    """Findings about labels that are missing, unknown, or not in train, and about spellings."""
    known = None if classes is None else set(classes)
    labelled_splits, trained, one_each = set(), set(), True
    for clip in manifest.clips:
        if clip.labels:
            labelled_splits.add(clip.split)
        if clip.split == "train":
            trained.update(clip.labels)
        if len(clip.labels) > 1:
            one_each = False

    # Labels such as "-1" or "?" stand for a missing one.
    no_labels = {}
    for label, clips in withheld(manifest).items():
        if known is None or label not in known:
            no_labels[label] = clips
            yield ClipFinding(clips[0].clip, clips[0].place, "label", about_withheld(label, clips))

    reported: set[str] = set()
    for clip in manifest.clips:
        finding = partial(ClipFinding, clip.clip, clip.place, "label")
        # Where clips may have several labels, they may also have none.
        if not clip.labels and clip.split in labelled_splits and one_each:
            yield finding(f"no label, while other clips of {clip.split} have one")
        for label in clip.labels:
            if label in no_labels:
                continue
            if known is not None and label not in known:
                yield finding(
                    f"label {label!r} is none of the {counted(len(known), 'class', 'classes')}"
                )
            elif trained and label not in trained and label not in reported:
                reported.add(label)
                yield finding(f"class {label!r} is in {clip.split}, but no clip of train has it")

    yield from _about_spellings(manifest)
    numbers = {number_of(label) for label in trained - no_labels.keys()}
    if known is None and numbers and None not in numbers and min(numbers) > 0:
        text = f"labels are numbers from {min(numbers)}; class ids count from 0"
        yield ClipFinding("", str(manifest.path), "label", text)


def _about_spellings(manifest: Manifest) -> Iterator[ClipFinding]:
    """Findings about labels that differ in how their accents are encoded, and in nothing else."""
    labels = set()
    for clip in manifest.clips:
        labels.update(clip.labels)

    spelled: dict[str, str] = {}
    for label in sorted(labels):
        other = spelled.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            text = (
                f"labels {other!a} and {label!a} look the same, but are two classes: their "
                f"accents are encoded in two ways"
            )
            yield ClipFinding("", str(manifest.path), "label", text)


def write_findings(path: str | Path, checked: CheckResult) -> None:
    """Write findings to a file that appears whole or not at all.

    Args:
        path: ".csv" gets the columns clip, path, kind, message, with an apostrophe before names
            that a spreadsheet would evaluate. ".json" has names as they are.
        checked: the findings.

    Raises:
        ValueError: the name ends in neither.
        OSError: the file cannot be written.
    """
    path = Path(path)
    suffix = path.suffix.lower()
    if suffix == ".json":
        text = visible_json(json.dumps(asdict(checked), indent=1, ensure_ascii=False)) + "\n"
    elif suffix == ".csv":
        lines = io.StringIO()
        rows = [("clip", "path", "kind", "message")]
        rows += [(f.clip, f.path, f.kind, f.message) for f in checked.findings]
        write_table(lines, rows)
        text = lines.getvalue()
    else:
        raise ValueError(f"{path}: expected a name that ends in .csv or .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
