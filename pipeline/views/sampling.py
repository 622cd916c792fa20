"""Which frames, which crop and whether mirrored, for view v of clip c: pure arithmetic that looks
at no pixel.

Frame numbers count from the clip's first frame. Crops are whole pixels of the upright source, so
that what is stored is what was cut out. A training view depends only on (seed, clip id, view
number), not on other views, the order, the machine or the version of numpy. Test views draw
nothing; they are a fixed grid of clips in time by crops in space.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.text import suggestions as names
from pipeline.views.crops import Crop, even_crops, full_size, multiscale_crop, nearest, square_crop
from pipeline.views.stateless_random import Draws
from pipeline.views.video_info import VideoInfo

SAMPLINGS = ("segments", "stride", "linspace", "gos")
OFFSETS = ("equal", "tsn")
TRAIN_CROPS = ("gos", "short_side", "multiscale", "centre")
TEST_CROPS = (1, 3, 11, "full")
SCALES = {
    "gos": (1.0, 0.9),
    "multiscale": (1.0, 0.875, 0.75, 0.66),
    "centre": (1.0,),
    "short_side": (),
}
_CHOICES = {
    "sampling": SAMPLINGS,
    "offsets": OFFSETS,
    "train_crop": TRAIN_CROPS,
    "test_crops": TEST_CROPS,
}
_LOWEST = {
    "frames": 1,
    "consecutive": 1,
    "size": 1,
    "train_views": 0,
    "max_distort": 0,
    "test_clips": 0,
    "test_multiple": 1,
}


@dataclass(frozen=True)
class View:
    """One view of a clip.

    `frames`: F numbers, relative to the clip's first frame. `crop`: x, y, width, height in upright
    source pixels. `size`: height and width of the output. `flip`: whether it is mirrored left to
    right. `number` counts from 0 within its group.
    """

    group: str
    number: int
    frames: tuple[int, ...]
    crop: tuple[float, float, float, float]
    size: tuple[int, int]
    flip: bool


@dataclass(frozen=True)
class Sampling:
    """How views are chosen. ValueError names the option and what it may be; lists become tuples.

    Frames: `frames` is F, all that the backbone is fed. `sampling` is how they are found:
      segments  F/`consecutive` equal segments, a random (train) or the middle (test) moment of
                each, `consecutive` frames from there (EAN: frames=40, consecutive=5). `offsets` tsn
                draws as TSN, DyReg and EAN did, see `segment_frames`.
      stride    `fps` frames a second (STRG: 32 at 6) of a clip at its own rate: the manifest's
                column `fps`, else `source_fps`, else the file's, by the times at which its frames
                are shown.
      linspace  F numbers from the first frame to the last (RSTG).
      gos       linspace plus the jitter of GOS's released code.

    Training: `train_views` views, `size` pixels square, cut by `train_crop`:
      gos         a square of one of `scales` times the short side, anywhere (GOS: 1, 0.9)
      short_side  the short side becomes a random whole number in `short_side`, then a square of
                  `size`, anywhere (STRG; default 256 to 320 at size 224, in proportion at other
                  sizes)
      multiscale  TSN's: width and height of `scales` times the short side, at most `max_distort`
                  scales apart, at 13 positions
      centre      the centred square of the one scale times the short side; nothing is drawn
    `flip` is the probability of mirroring; a clip with a label in `flip_protect` is never mirrored.
    Where labels are swapped instead (EAN's left-to-right becomes right-to-left), protect nothing
    here: training swaps them by the cache's `flip`.

    Test: `test_clips` in time by `test_crops` in space, never mirrored. Of the frame at short side
    `test_short_side`, 1, 3 or 11 squares of `test_size` are taken, see `even_crops`; "full" is all
    of it, both sides rounded to a multiple of `test_multiple` so that every stage's grid divides
    them (32: res5 at stride 2). By default one crop is the whole short side, at `size`; 3, 11 and
    full have short side 256 at size 224, in proportion at other sizes. In the papers (short side,
    size, crops):
      GOS 224, 224, 1 · DyReg 256, 224, 1 or 256, 256, 3 · EAN 240, 224, 1 · RSTG 256, 256, 11 ·
      STRG 256, full
    """

    frames: int = 32
    sampling: str = "segments"
    consecutive: int = 1
    offsets: str = "equal"
    fps: float = 6.0
    source_fps: float | None = None
    size: int = 224
    train_views: int = 1
    train_crop: str = "gos"
    scales: tuple[float, ...] | None = None
    max_distort: int = 1
    short_side: tuple[int, int] | None = None
    flip: float = 0.5
    flip_protect: tuple[str, ...] = ()
    test_clips: int = 1
    test_crops: int | str = 1
    test_short_side: int | None = None
    test_size: int | None = None
    test_multiple: int = 32

    def __post_init__(self) -> None:
        for name in ("scales", "short_side", "flip_protect"):
            if isinstance(value := getattr(self, name), list):  # JSON and TOML have no tuples
                object.__setattr__(self, name, tuple(value))
        for name, low in _LOWEST.items():
            self._check(name, _whole(getattr(self, name), low), f"a whole number from {low}")
        for name, known in _CHOICES.items():
            value = getattr(self, name)
            self._check(
                name,
                value in known and not isinstance(value, bool),
                f"one of {', '.join(map(str, known))}",
            )
        for name in ("test_short_side", "test_size"):
            self._check(
                name,
                getattr(self, name) is None or _whole(getattr(self, name), 1),
                "pixels, a whole number from 1",
            )
        for name in ("fps", "source_fps"):
            value = getattr(self, name)
            self._check(
                name,
                (name == "source_fps" and value is None) or _positive(value),
                "frames a second, above 0",
            )
        self._check(
            "flip", _positive(self.flip, 1.0) or self.flip == 0, "a probability from 0 to 1"
        )
        labels = isinstance(self.flip_protect, tuple) and all(
            isinstance(label, str) for label in self.flip_protect
        )
        self._check("flip_protect", labels, "a list of label names")
        self._check_together()
        for name in (
            "fps",
            "source_fps",
            "flip",
        ):  # 6 and 6.0 are one configuration: its fingerprint must not tell them apart
            if isinstance(value := getattr(self, name), int):
                object.__setattr__(self, name, float(value))
        if self.scales:
            object.__setattr__(self, "scales", tuple(map(float, self.scales)))

    def _check_together(self) -> None:
        """The options that have to fit one another."""
        ok = self.frames % self.consecutive == 0 and (
            self.consecutive == 1 or self.sampling == "segments"
        )
        self._check(
            "consecutive", ok, f"1, or with sampling=segments a divisor of frames={self.frames}"
        )
        self._check(
            "train_views",
            self.train_views + self.test_clips > 0,
            "at least one training view, or test_clips from 1",
        )
        if (scales := self.scales) is not None:
            ok = (
                isinstance(scales, tuple)
                and len(scales) > 0
                and all(_positive(scale, 1.0) for scale in scales)
            )
            self._check("scales", ok, "a list of shares of the short side, above 0 and at most 1")
            ok = self.train_crop in ("gos", "multiscale") or (
                self.train_crop == "centre" and len(scales) == 1
            )
            self._check("scales", ok, "one share for train_crop=centre, none for short_side")
        if (sides := self.short_side) is not None:
            ok = (
                isinstance(sides, tuple)
                and len(sides) == 2
                and all(_whole(side, self.size) for side in sides)
            )
            self._check(
                "short_side",
                ok and sides[0] <= sides[1],
                f"lowest and highest, pixels, from size={self.size}",
            )
        ok = self.test_crops == "full" or self.size_of("test")[0] <= self.resized
        name = "test_size" if self.test_size else "test_short_side"
        self._check(
            name,
            ok,
            f"crops no larger than the short side of {self.resized} that they are taken from",
        )

    def _check(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise ValueError(f"sampling.{name}: expected {expected}; got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "Sampling":
        """Sampling(**options), but ValueError with the nearest names for one that does not
        exist.
        """
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                raise ValueError(f"sampling.{name}: no such option; {names.nearest(name, known)}")
        return cls(**options)

    @property
    def resized(self) -> int:
        """Pixels of the short side at test."""
        whole = self.test_size or self.size
        return self.test_short_side or (
            whole if self.test_crops == 1 else nearest(self.size * 8, 7)
        )

    def size_of(self, group: str) -> tuple[int, int] | None:
        """(height, width) of a group's views, None where it follows from each clip's shape (the
        full views of test).
        """
        if group == "train":
            return self.size, self.size
        if self.test_crops == "full":
            return None
        side = self.test_size or (self.size if self.test_crops == 1 else self.resized)
        return side, side


def count_views(sampling: Sampling) -> dict[str, int]:
    """How many views each group of a clip has: a property of the options, never of the clip."""
    crops = 1 if sampling.test_crops == "full" else sampling.test_crops
    return {"train": sampling.train_views, "test": sampling.test_clips * crops}


def views_of(
    sampling: Sampling, info: VideoInfo, clip_id: str, labels: tuple[str, ...], seed: int
) -> list[View]:
    """The training views of a clip, then its test views (crops of clip 0, crops of clip 1, …).

    `info` has frames, fps, width, height of the upright clip. ValueError if it has none, or stride
    knows no frame rate.
    """
    if min(info.frames, info.width, info.height) < 1:
        got = f"{info.frames} frames of {info.width}x{info.height}"
        raise ValueError(
            f"clip {clip_id}: expected at least one frame of at least one pixel, got {got}; leave "
            f"it out of the manifest"
        )
    if sampling.sampling == "stride" and not (_known(info.fps) or sampling.source_fps):
        raise ValueError(
            f"clip {clip_id}: stride needs a frame rate and the clip tells none; pass "
            f"--source-fps (sampling.source_fps), "
            f"or add a column fps to the manifest"
        )
    protected = not set(labels).isdisjoint(sampling.flip_protect)
    views = []
    for number in range(sampling.train_views):
        # One stream of draws per purpose: another crop or another probability leaves the frames as
        # they were, and so on.
        draws = {
            what: Draws(seed, clip_id, "train", number, what) for what in ("frames", "crop", "flip")
        }
        frames = _frames(sampling, info, draws["frames"], 0, 1)
        crop = _train_crop(sampling, info.width, info.height, draws["crop"])
        flip = draws["flip"].uniform() < sampling.flip and not protected
        views.append(View("train", number, frames, crop, (sampling.size, sampling.size), flip))
    crops, size = _test_crops(sampling, info.width, info.height)
    for clip in range(sampling.test_clips):
        frames = _frames(sampling, info, None, clip, sampling.test_clips)
        views += [
            View("test", clip * len(crops) + k, frames, crop, size, False)
            for k, crop in enumerate(crops)
        ]
    return views


# Frame numbers: F = `frames` whole numbers in 0 .. L-1, where L = `length`. `draws` None asks for
# test clip `clip` of `clips`.
# Exact quotients are taken in whole numbers: a float's rounding must not decide between two frames.


def segment_frames(
    length: int,
    frames: int,
    consecutive: int = 1,
    offsets: str = "equal",
    draws: Draws | None = None,
    clip: int = 0,
    clips: int = 1,
) -> list[int]:
    """K = `consecutive` frames from one start in each of S = F/K equal segments of the L-K+1
    starts; the last frame repeats.

    Training, equal: a random moment of the segment, rounded down (GOS: 32 equal segments, a random
    frame each); a short video's segments are shorter than a frame, so frames repeat. Training, tsn:
    segments of whole length q = ⌊(L-K+1)/S⌋ from 0, so that the remainder at the end is never seen;
    if q = 0, S sorted random starts where L > S, else the first frame (spec 3.5, 5.5). Test:
    ⌊k·tick + tick/2⌋, tick = (L-K+1)/S; of C > 1 clips, clip c is at ⌊k·tick + c·tick/C⌋ (spec 3.5,
    5.5: 0 and tick/2).
    """
    count, room = frames // consecutive, max(length - consecutive + 1, 1)
    if draws is None:
        part, parts = (1, 2) if clips == 1 else (clip, clips)
        starts = [(k * parts + part) * room // (count * parts) for k in range(count)]
    elif offsets == "equal":
        moments = [(k + draws.uniform()) * room / count for k in range(count)]
        # The sum k + u can round up to k + 1: the bounds of the segment are whole-number
        # arithmetic.
        starts = [
            min(int(moment), -(-(k + 1) * room // count) - 1) for k, moment in enumerate(moments)
        ]
    elif room >= count:
        starts = [k * (room // count) + draws.below(room // count) for k in range(count)]
    elif length > count:
        starts = sorted(draws.below(room) for _ in range(count))
    else:
        starts = [0] * count
    return [min(start + j, length - 1) for start in starts for j in range(consecutive)]


def stride_frames(
    length: int, frames: int, step: float, draws: Draws | None = None, clip: int = 0, clips: int = 1
) -> list[int]:
    """F frames `step` source frames apart; the start is random (training), or even from the first
    to the last possible (test).

    A single test clip lies in the middle. A video shorter than (F-1)·step starts at 0 and repeats
    its last frame: looping would show a jump that nobody filmed (not stated in the paper; spec 2.1
    has only 32 frames at 6 fps).
    """
    offsets = [int(k * step + 0.5) for k in range(frames)]
    room = length - 1 - offsets[-1]
    if room <= 0:
        start = 0
    elif draws is not None:
        start = draws.below(room + 1)
    else:
        start = room // 2 if clips == 1 else nearest(clip * room, clips - 1)
    return [min(start + offset, length - 1) for offset in offsets]


def linspace_frames(length: int, frames: int, clip: int = 0, clips: int = 1) -> list[int]:
    """⌊k·(L-1)/(F-1)⌋; clip c of C is shifted by c/C of L/F, rounded, up to the end (C = 2:
    round(0.5·L/F), spec 4.5).
    """
    shift = nearest(clip * length, clips * frames)
    return [min(k * (length - 1) // max(frames - 1, 1) + shift, length - 1) for k in range(frames)]


def gos_frames(
    length: int, frames: int, draws: Draws | None = None, clip: int = 0, clips: int = 1
) -> list[int]:
    """GOS's released code (spec 1.8): 0, then ⌊k·step + U{0..⌊step/2⌋}⌋ with step = (L-1)/(F-1); no
    jitter below L = 2F-1.

    The release draws for its test clips too; here clip c of C takes the same share c/C of the
    jitter in every step.
    """
    most = (length - 1) // (2 * max(frames - 1, 1))
    numbers = [0]
    for k in range(1, frames):
        jitter = draws.below(most + 1) if draws is not None else clip * (most + 1) // clips
        numbers.append(min(k * (length - 1) // (frames - 1) + jitter, length - 1))
    return numbers


def _frames(
    sampling: Sampling, info: VideoInfo, draws: Draws | None, clip: int, clips: int
) -> tuple[int, ...]:
    length, frames = info.frames, sampling.frames
    if sampling.sampling == "segments":
        return tuple(
            segment_frames(
                length, frames, sampling.consecutive, sampling.offsets, draws, clip, clips
            )
        )
    if sampling.sampling == "stride":
        rate = info.fps if _known(info.fps) else sampling.source_fps
        return tuple(stride_frames(length, frames, rate / sampling.fps, draws, clip, clips))
    if sampling.sampling == "linspace":
        return tuple(linspace_frames(length, frames, clip, clips))
    return tuple(gos_frames(length, frames, draws, clip, clips))


def _train_crop(sampling: Sampling, width: int, height: int, draws: Draws) -> Crop:
    scales = sampling.scales or SCALES[sampling.train_crop]
    if sampling.train_crop == "gos":
        return square_crop(width, height, scales[draws.below(len(scales))], draws)
    if sampling.train_crop == "short_side":
        low, high = sampling.short_side or (
            nearest(sampling.size * 8, 7),
            nearest(sampling.size * 10, 7),
        )
        return square_crop(
            width, height, sampling.size / (low + draws.below(high - low + 1)), draws
        )
    if sampling.train_crop == "multiscale":
        return multiscale_crop(width, height, scales, sampling.max_distort, draws)
    return even_crops(width, height, scales[0], 1)[0]


def _test_crops(sampling: Sampling, width: int, height: int) -> tuple[list[Crop], tuple[int, int]]:
    """The crops of a test clip and their common output size (height, width)."""
    size = sampling.size_of("test")
    if size is None:
        return [(0, 0, width, height)], full_size(
            width, height, sampling.resized, sampling.test_multiple
        )
    return even_crops(width, height, size[0] / sampling.resized, sampling.test_crops), size


def _whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _positive(value: object, most: float = math.inf) -> bool:
    return (
        isinstance(value, (int, float))
        and not isinstance(value, bool)
        and 0 < value <= most
        and math.isfinite(value)
    )


def _known(fps: float | None) -> bool:
    return fps is not None and math.isfinite(fps) and fps > 0
