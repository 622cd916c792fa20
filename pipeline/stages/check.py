"""Looks at every clip of a manifest before a run: what cannot be decoded, what looks wrong, what is
there twice.

Five frames of each clip are decoded: the first, the last and three between, drawn from the clip's
length alone, so that two copies of one video show the same five and are found by what they show,
whatever their files are called or hold beside it.
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
from pipeline.manifests.manifest import SPLITS, Clip, Manifest
from pipeline.proposals import BoxesError
from pipeline.text.printable import visible_json, write_table
from pipeline.video.frame_reader import DecodeError, beyond_end
from pipeline.video.view_pixels import ClipOpener, step_frames
from pipeline.views.sampling import Sampling, views_of
from pipeline.views.stateless_random import Draws
from pipeline.views.video_info import VideoInfo
from pipeline.workers.decode_pool import WorkerDied, WorkerPool

BETWEEN = 3  # frames drawn between the first and the last
FLAT = 8  # levels of 255 within a frame of one colour: coding leaves a few
# levels by which coding changes an 8x8 block of a picture that stands still; what moves changes it
# by more
ALIKE = 4.0


@dataclass(frozen=True)
class ClipFinding:
    """One thing that is wrong with a clip, or looks so.

    `kind`: unreadable (no frame, cut short, damaged, too slow, missing, outside the root); blank
    (every frame of one colour); still (the five frames are alike); duplicate (shows what an earlier
    clip shows); end (beyond the video's); boxes (none at the frames that are looked at, or outside
    the frame); label (none, or not one of the classes).
    """

    clip: str
    path: str
    kind: str
    message: str


@dataclass
class CheckResult:
    """What `check_clips` found, in the order of the manifest, labels after pictures; `clips` were
    looked at in `seconds`.
    """

    clips: int = 0
    seconds: float = 0.0
    findings: list[ClipFinding] = field(default_factory=list)


@dataclass(frozen=True)
class ClipLook:
    """What five frames of a clip show: a digest of them with the clip's size and length, how they
    look, and its length.
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
    """Decodes five frames of every clip in `workers` processes (0: in this one, without a time
    limit) and reads the labels.

    `classes`: those that labels may be; None accepts all. `boxes`: the source "annotations", whose
    boxes are compared with every clip's size and frames. `announce(clips)` is called once and
    returns `advance(done, found)`. Only what the data causes becomes a finding; anything else is
    raised.
    """
    begun, checked = time.monotonic(), CheckResult()
    advance = announce(len(manifest.clips)) if announce else (lambda done, found: None)
    seen: dict[bytes, int] = {}
    with WorkerPool(
        partial(look_at_clip, opening), workers, time_limit if workers else None, again=1
    ) as pool:
        for clip, result in pool.imap(manifest.clips, ahead=max(1, 4 * workers)):
            found = list(_of_pictures(clip, result, seen, manifest.clips, time_limit))
            if isinstance(result, ClipLook):
                found += _of_units(clip, result.info, boxes)
            checked.findings += found
            checked.clips += 1
            advance(1, len(found))
    checked.findings += _of_labels(manifest, classes)
    checked.seconds = time.monotonic() - begun
    return checked


def look_at_clip(opening: ClipOpener, clip: Clip) -> ClipLook:
    """What five frames of a clip show; DecodeError if one of them cannot be decoded."""
    with opening.open(clip) as reader:
        info = reader.info
        frames = reader.read(frame_numbers(info.frames))
    digest = hashlib.blake2b(f"{info.frames} {info.width} {info.height}".encode(), digest_size=16)
    digest.update(np.ascontiguousarray(frames))
    blank = all(int(np.ptp(frame[..., c])) <= FLAT for frame in frames for c in range(3))
    still = (
        info.frames > 1 and not blank and all(_alike(frames[0], frame) for frame in frames[:0:-1])
    )
    return ClipLook(digest.digest(), blank, still, info)


def _alike(one: np.ndarray, other: np.ndarray) -> bool:
    """Whether two frames [H,W,3] differ by no more than coding does, in any block of 8 by 8
    pixels.
    """
    difference = np.abs(one.astype(np.int16) - other).mean(-1)
    height, width = (max(8, -(-side // 8) * 8) for side in difference.shape)
    padded = np.zeros((height, width))
    padded[: difference.shape[0], : difference.shape[1]] = difference
    return bool(padded.reshape(height // 8, 8, width // 8, 8).mean((1, 3)).max() <= ALIKE)


def frame_numbers(length: int) -> list[int]:
    """The first, the last and three frames between of a clip of `length` frames; fewer, each once,
    of a shorter one.
    """
    draws = Draws("check", length)
    between = [1 + draws.below(length - 2) for _ in range(BETWEEN)] if length > 2 else []
    return sorted({0, length - 1, *between})


def _of_pictures(
    clip: Clip, result: object, seen: dict[bytes, int], clips: Sequence[Clip], limit: float
) -> Iterator[ClipFinding]:
    """Findings about one clip, from what its worker sent; `seen` has the digests of the clips
    before it.
    """
    say = partial(ClipFinding, clip.clip, clip.place)
    if isinstance(result, ClipLook):
        if result.blank:
            yield say("blank", "every frame that was looked at is of one colour")
        if result.still:
            yield say("still", "the first, the last and the frames between look the same")
        first = seen.setdefault(result.digest, clip.position)
        if first != clip.position:
            yield say("duplicate", _of_twins(clip, clips[first]))
    elif isinstance(result, DecodeError):
        yield say("unreadable", f"{type(result).__name__}: {' '.join(result.reason.split())}")
    elif isinstance(result, TimeoutError):
        yield say(
            "unreadable",
            f"DecodeTimeout: five frames took longer than {limit:g} s to decode (--time-limit)",
        )
    elif isinstance(result, WorkerDied):
        yield say("unreadable", f"DecoderDied: {' '.join(str(result).split())}")
    else:
        raise result


def _of_units(clip: Clip, info: VideoInfo, boxes: Any) -> Iterator[ClipFinding]:
    """Findings about times and boxes that seem to have other units than the video's: milliseconds,
    another resolution.
    """
    say = partial(ClipFinding, clip.clip, clip.place)
    if words := beyond_end(clip, info):
        yield say("end", words)
    if boxes is None:
        return
    numbers = [info.first + k for k in _frames_looked_at(info)]
    try:
        boxes.propose(None, clip, info, numbers)
    except BoxesError as error:
        yield say("boxes", error.reason)
    else:
        if words := boxes.remark(clip, info, numbers):
            yield say("boxes", words)


def _frames_looked_at(info: VideoInfo) -> tuple[int, ...]:
    """The frames at which an extraction with default options looks for boxes in a clip's test
    view.
    """
    sampling = Sampling(train_views=0)
    (view,) = views_of(sampling, info, "", (), 0)
    return step_frames(view, sampling.frames // 2)


def _of_twins(clip: Clip, other: Clip) -> str:
    """What a clip has in common with one before it, and what that spoils."""
    text = f"shows the same frames as clip {other.clip}"
    if clip.split != other.split:
        text += f", which is in {other.split} while this one is in {clip.split}"
    if set(clip.labels) != set(other.labels):
        text += f", and is labelled {';'.join(clip.labels) or 'nothing'} where that is {';'.join(other.labels) or 'nothing'}"
    return text


def _of_labels(manifest: Manifest, classes: Sequence[str] | None) -> Iterator[ClipFinding]:
    """Findings about labels: outside the classes, missing beside others, in val or test but never
    learned, numbers from 1.
    """
    known = None if classes is None else set(classes)
    labelled = {
        split: any(clip.labels for clip in manifest.clips if clip.split == split)
        for split in SPLITS
    }
    learned = {label for clip in manifest.clips if clip.split == "train" for label in clip.labels}
    one_each = all(len(clip.labels) < 2 for clip in manifest.clips)
    no_labels = {
        label: clips
        for label, clips in withheld(manifest).items()
        if known is None or label not in known
    }
    told: set[str] = set(no_labels)
    for label, clips in no_labels.items():
        yield ClipFinding(clips[0].clip, clips[0].place, "label", about_withheld(label, clips))
    for clip in manifest.clips:
        say = partial(ClipFinding, clip.clip, clip.place, "label")
        if (
            not clip.labels and labelled[clip.split] and one_each
        ):  # clips with several labels may have none
            yield say(f"no label, while other clips of {clip.split} have one")
        for label in clip.labels:
            if label in no_labels:
                continue
            if known is not None and label not in known:
                yield say(f"label {label!r} is none of the {len(known):,} classes")
            elif learned and label not in learned and label not in told:
                told.add(label)
                yield say(f"class {label!r} is in {clip.split}, but no clip of train has it")
    spelled: dict[str, str] = {}
    for label in sorted({label for clip in manifest.clips for label in clip.labels}):
        other = spelled.setdefault(unicodedata.normalize("NFC", label), label)
        if other != label:
            words = f"labels {other!a} and {label!a} look the same, but are two classes: their accents are encoded in two ways"
            yield ClipFinding("", str(manifest.path), "label", words)
    numbers = {number_of(label) for label in learned - no_labels.keys()}
    if known is None and numbers and None not in numbers and min(numbers) > 0:
        yield ClipFinding(
            "",
            str(manifest.path),
            "label",
            f"labels are numbers from {min(numbers)}; class ids count from 0",
        )


def write_findings(path: str | Path, checked: CheckResult) -> None:
    """The findings as CSV (clip,path,kind,message), or as JSON where the file's name ends so; whole
    or not at all.

    The CSV is for people: an apostrophe precedes names that a spreadsheet would evaluate. JSON has
    names as they are.
    """
    path = Path(path)
    if path.suffix.lower() == ".json":
        text = visible_json(json.dumps(asdict(checked), indent=1, ensure_ascii=False)) + "\n"
    elif path.suffix.lower() == ".csv":
        lines = io.StringIO()
        found = ((f.clip, f.path, f.kind, f.message) for f in checked.findings)
        write_table(lines, [("clip", "path", "kind", "message"), *found])
        text = lines.getvalue()
    else:
        raise ValueError(f"{path}: expected a name that ends in .csv or .json")
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, text)
