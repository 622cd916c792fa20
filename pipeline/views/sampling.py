"""The options of sampling, and the views of a clip that follow from them.

A view is one (frame numbers, crop, flip) of a clip; `views_of` decides all of it, by arithmetic
that looks at no pixel. `frame_numbers` and `crops` hold the rules.

Frame numbers count from the clip's first frame. Crops are whole pixels of the upright source, so
the stored crop is exactly what was cut out.

A training view is a function of the seed, the clip id, the view number, the options and the clip's
`VideoInfo` (length, frame rate, size). Its flip also depends on the clip's labels. Nothing else
counts: no other view or clip, no order, no machine, no version of numpy. Test views draw no random
numbers; they are a fixed grid of clips in time by crops in space.
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

from pipeline.text import suggestions
from pipeline.views.crops import (
    Crop,
    even_crops,
    floored_square_crop,
    full_size,
    multiscale_crop,
    round_quotient,
    square_crop,
)
from pipeline.views.frame_numbers import (
    gos_frames,
    linspace_frames,
    segment_frames,
    stride_frames,
)
from pipeline.views.stateless_random import Draws
from pipeline.views.video_info import VideoInfo

SAMPLINGS = ("segments", "stride", "linspace", "gos")
OFFSETS = ("equal", "tsn")
TRAIN_CROPS = ("gos", "gos_floor", "short_side", "multiscale", "centre")
TEST_CROPS = (1, 3, 11, "full")

# Default scales of each training crop, as fractions of the short side.
SCALES = {
    "gos": (1.0, 0.9),
    "gos_floor": (1.0, 0.9),
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

    Attributes:
        group: "train" or "test".
        number: counts from 0 within the group.
        frames: F frame numbers, from the clip's first frame.
        crop: x, y, width, height in pixels of the upright source.
        size: height and width of the output, in pixels.
        flip: whether the view is mirrored left to right.
    """

    group: str
    number: int
    frames: tuple[int, ...]
    crop: tuple[float, float, float, float]
    size: tuple[int, int]
    flip: bool


@dataclass(frozen=True)
class Sampling:
    """Options that say how views are chosen.

    Lists become tuples, so options may come from JSON or TOML.

    Test views of the papers, as test_short_side, test_size, test_crops:

        GOS        224, 224, 1
        DyReg-GNN  256, 224, 1, or 256, 256, 3
        EAN        256, 224, 1, or 256, 256, 3 (Kinetics)
        RSTG       256, 256, 11
        STRG       256, none, full

    Attributes:
        frames: F, all frames that the backbone receives.
        sampling: how frame numbers are found (see `frame_numbers`). "segments": `consecutive`
            frames from one moment of each of F/`consecutive` equal segments (EAN: frames=40,
            consecutive=5). "stride": `fps` frames a second. "linspace": F numbers from the first
            frame to the last (RSTG). "gos": linspace plus the jitter of GOS's released code.
        consecutive: neighbouring frames per segment; 1 unless sampling is "segments".
        offsets: how training draws the moment of a segment: "equal", or "tsn" as TSN, DyReg-GNN
            and EAN did.
        fps: frames per second of "stride" (STRG: 6).
        source_fps: frames per second of a clip whose own rate is unknown. A clip's own rate is
            the manifest's column `fps`, else that of its file.
        size: pixels of a training view's side; views are square.
        stretch: (height, width) in pixels to which whole frames are resized before anything is
            cut, whatever their aspect; None keeps the aspect. EAN's release has 240, 320 on
            Something-Something, and a test_short_side of 240.
        train_views: training views per clip.
        train_crop: how training views are cut. "gos": a square of one of `scales` times the short
            side, anywhere (GOS: 1 and 0.9). "gos_floor": the same, with sides rounded down to whole
            pixels as in GOS's released code, not to the nearest. "short_side": the short side
            becomes a random whole number in `short_side`, then a square of `size`, anywhere
            (STRG). "multiscale": TSN's; width and height are `scales` times the short side, at 13
            positions. "centre": the centred square of the one scale; nothing is drawn.
        scales: fractions of the short side; None for those of `SCALES`.
        max_distort: for "multiscale", how many places of `scales` width and height may differ.
        short_side: for "short_side", the lowest and highest pixels. Default: 256 and 320 at size
            224, in proportion at other sizes.
        flip: probability that a training view is mirrored.
        flip_protect: labels whose clips are never mirrored. EAN mirrors them and swaps the labels
            (left-to-right becomes right-to-left): protect nothing then, and training swaps them
            by the cache's `flip`.
        test_clips: test clips in time; each gives all crops. Test views are never mirrored.
        test_crops: 1, 3 or 11 squares of `test_size` (see `even_crops`), or "full": all of the
            frame, both sides rounded to a multiple of `test_multiple`.
        test_short_side: pixels of the short side at test. Default: that of the one crop, and for
            3, 11 and "full" 256 at size 224, in proportion at other sizes.
        test_size: pixels of a test crop's side. Default: `size` for one crop, the short side for
            3 and 11.
        test_multiple: pixels that divide both sides of a "full" view, so that every stage's grid
            is whole (32: res5 at stride 2).

    Raises:
        ValueError: a value is out of its range, or two options do not fit together. The message
            names the option and what it may be.
    """

    frames: int = 32
    sampling: str = "segments"
    consecutive: int = 1
    offsets: str = "equal"
    fps: float = 6.0
    source_fps: float | None = None
    size: int = 224
    stretch: tuple[int, int] | None = None
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
        # JSON and TOML have no tuples.
        for name in ("scales", "short_side", "stretch", "flip_protect"):
            value = getattr(self, name)
            if isinstance(value, list):
                object.__setattr__(self, name, tuple(value))

        self._check_each()
        self._check_together()

        # 6 and 6.0 are one configuration: its fingerprint must not tell them apart.
        for name in ("fps", "source_fps", "flip"):
            value = getattr(self, name)
            if isinstance(value, int):
                object.__setattr__(self, name, float(value))
        if self.scales:
            object.__setattr__(self, "scales", tuple(map(float, self.scales)))

    def _check_each(self) -> None:
        """Check every option on its own."""
        for name, low in _LOWEST.items():
            self._check(name, _is_whole(getattr(self, name), low), f"a whole number from {low}")

        for name, choices in _CHOICES.items():
            value = getattr(self, name)
            # True equals 1, which is a choice of test_crops.
            ok = value in choices and not isinstance(value, bool)
            self._check(name, ok, f"one of {', '.join(map(str, choices))}")

        for name in ("test_short_side", "test_size"):
            value = getattr(self, name)
            ok = value is None or _is_whole(value, 1)
            self._check(name, ok, "pixels, a whole number from 1")

        self._check("fps", _is_positive(self.fps), "frames a second, above 0")
        ok = self.source_fps is None or _is_positive(self.source_fps)
        self._check("source_fps", ok, "frames a second, above 0")

        ok = self.flip == 0 or _is_positive(self.flip, most=1.0)
        self._check("flip", ok, "a probability from 0 to 1")
        ok = isinstance(self.flip_protect, tuple)
        ok = ok and all(isinstance(label, str) for label in self.flip_protect)
        self._check("flip_protect", ok, "a list of label names")

    def _check_together(self) -> None:
        """Check the options that must fit together."""
        ok = self.frames % self.consecutive == 0
        ok = ok and (self.consecutive == 1 or self.sampling == "segments")
        expected = f"1, or with sampling=segments a divisor of frames={self.frames}"
        self._check("consecutive", ok, expected)

        ok = self.train_views + self.test_clips > 0
        self._check("train_views", ok, "at least one training view, or test_clips from 1")

        scales = self.scales
        if scales is not None:
            ok = isinstance(scales, tuple) and len(scales) > 0
            ok = ok and all(_is_positive(scale, most=1.0) for scale in scales)
            self._check("scales", ok, "a list of shares of the short side, above 0 and at most 1")
            one = self.train_crop == "centre" and len(scales) == 1
            ok = one or self.train_crop in ("gos", "gos_floor", "multiscale")
            self._check("scales", ok, "one share for train_crop=centre, none for short_side")

        sides = self.short_side
        if sides is not None:
            ok = isinstance(sides, tuple) and len(sides) == 2
            ok = ok and all(_is_whole(side, self.size) for side in sides)
            ok = ok and sides[0] <= sides[1]
            expected = f"lowest and highest, pixels, from size={self.size}"
            self._check("short_side", ok, expected)

        if self.stretch is not None:
            ok = isinstance(self.stretch, tuple) and len(self.stretch) == 2
            ok = ok and all(_is_whole(side, 1) for side in self.stretch)
            self._check("stretch", ok, "height and width, pixels")

        ok = self.test_crops == "full" or self.size_of("test")[0] <= self.resized
        name = "test_size" if self.test_size else "test_short_side"
        expected = f"crops no larger than the short side of {self.resized} they are taken from"
        self._check(name, ok, expected)

    def _check(self, name: str, ok: bool, expected: str) -> None:
        if not ok:
            raise ValueError(f"sampling.{name}: expected {expected}; got {getattr(self, name)!r}")

    @classmethod
    def from_dict(cls, options: Mapping[str, Any]) -> "Sampling":
        """Build from a table of options.

        Args:
            options: option name -> value, as JSON or TOML gives them.

        Raises:
            ValueError: an option does not exist (the message names the nearest), or as the class.
        """
        # The TypeError of the class itself would not name the nearest option.
        known = [f.name for f in fields(cls)]
        for name in options:
            if name not in known:
                advice = suggestions.nearest(name, known)
                raise ValueError(f"sampling.{name}: no such option; {advice}")
        return cls(**options)

    @property
    def resized(self) -> int:
        """Pixels of the short side of a frame at test."""
        if self.test_short_side:
            return self.test_short_side
        if self.test_crops == 1:
            return self.test_size or self.size
        # 256 at size 224.
        return round_quotient(self.size * 8, 7)

    def size_of(self, group: str) -> tuple[int, int] | None:
        """Return the (height, width) of a group's views.

        Args:
            group: "train" or "test".

        Returns:
            Pixels, or None for the full views of test, whose size follows from each clip's shape.
        """
        if group == "train":
            return self.size, self.size
        if self.test_crops == "full":
            return None
        if self.test_size:
            side = self.test_size
        elif self.test_crops == 1:
            side = self.size
        else:
            side = self.resized
        return side, side


def count_views(sampling: Sampling) -> dict[str, int]:
    """Return how many views of each group a clip has.

    Args:
        sampling: the options; the counts depend on nothing else.

    Returns:
        {"train": count, "test": count}.
    """
    crops = 1 if sampling.test_crops == "full" else sampling.test_crops
    return {"train": sampling.train_views, "test": sampling.test_clips * crops}


def views_of(
    sampling: Sampling, info: VideoInfo, clip_id: str, labels: tuple[str, ...], seed: int
) -> list[View]:
    """Decide frames, crop and flip of all views of a clip.

    Args:
        sampling: the options.
        info: length, frame rate and size of the clip.
        clip_id: the clip's id, a part of the key of its random numbers.
        labels: the clip's labels; one of `sampling.flip_protect` prevents mirroring.
        seed: the run's seed, a part of the key too.

    Returns:
        The training views, then the test views: the crops of test clip 0, those of clip 1, ….

    Raises:
        ValueError: the clip has no frame or no pixel, or "stride" knows no frame rate.
    """
    if min(info.frames, info.width, info.height) < 1:
        got = f"{info.frames} frames of {info.width}x{info.height}"
        raise ValueError(
            f"clip {clip_id}: expected at least one frame of at least one pixel, got {got}; "
            "leave it out of the manifest"
        )
    if sampling.sampling == "stride" and not (_is_known(info.fps) or sampling.source_fps):
        raise ValueError(
            f"clip {clip_id}: stride needs a frame rate, and the clip has none; pass --source-fps "
            "(sampling.source_fps), or add a column fps to the manifest"
        )

    # Crops are drawn in the stretched frame, then put back into the frame as it is.
    height, width = sampling.stretch or (info.height, info.width)
    is_protected = not set(labels).isdisjoint(sampling.flip_protect)
    views = []
    for number in range(sampling.train_views):
        # One stream of draws per purpose: another crop or probability leaves the frames alone.
        key = (seed, clip_id, "train", number)
        frames = _frames(sampling, info, Draws(*key, "frames"), clip=0, clips=1)
        crop = _train_crop(sampling, width, height, Draws(*key, "crop"))
        crop = _unstretched(crop, (width, height), info)
        flip = Draws(*key, "flip").uniform() < sampling.flip and not is_protected
        views.append(View("train", number, frames, crop, (sampling.size, sampling.size), flip))

    crops, size = _test_crops(sampling, width, height)
    crops = [_unstretched(crop, (width, height), info) for crop in crops]
    for clip in range(sampling.test_clips):
        frames = _frames(sampling, info, None, clip, sampling.test_clips)
        for k, crop in enumerate(crops):
            views.append(View("test", clip * len(crops) + k, frames, crop, size, flip=False))
    return views


def _frames(
    sampling: Sampling, info: VideoInfo, draws: Draws | None, clip: int, clips: int
) -> tuple[int, ...]:
    """Return the frame numbers of a view by the rule that `sampling` names."""
    length, count = info.frames, sampling.frames
    if sampling.sampling == "segments":
        consecutive, offsets = sampling.consecutive, sampling.offsets
        numbers = segment_frames(length, count, consecutive, offsets, draws, clip, clips)
    elif sampling.sampling == "stride":
        rate = info.fps if _is_known(info.fps) else sampling.source_fps
        numbers = stride_frames(length, count, rate / sampling.fps, draws, clip, clips)
    elif sampling.sampling == "linspace":
        numbers = linspace_frames(length, count, clip, clips)
    else:
        numbers = gos_frames(length, count, draws, clip, clips)
    return tuple(numbers)


def _train_crop(sampling: Sampling, width: int, height: int, draws: Draws) -> Crop:
    scales = sampling.scales or SCALES[sampling.train_crop]
    if sampling.train_crop in ("gos", "gos_floor"):
        scale = scales[draws.below(len(scales))]
        crop = square_crop if sampling.train_crop == "gos" else floored_square_crop
        return crop(width, height, scale, draws)
    if sampling.train_crop == "short_side":
        if sampling.short_side:
            low, high = sampling.short_side
        else:
            # 256 and 320 at size 224.
            low = round_quotient(sampling.size * 8, 7)
            high = round_quotient(sampling.size * 10, 7)
        short_side = low + draws.below(high - low + 1)
        return square_crop(width, height, sampling.size / short_side, draws)
    if sampling.train_crop == "multiscale":
        return multiscale_crop(width, height, scales, sampling.max_distort, draws)
    return even_crops(width, height, scales[0], 1)[0]


def _test_crops(sampling: Sampling, width: int, height: int) -> tuple[list[Crop], tuple[int, int]]:
    """Return the crops of a test clip, and their common output size (height, width)."""
    size = sampling.size_of("test")
    if size is None:
        size = full_size(width, height, sampling.resized, sampling.test_multiple)
        return [(0, 0, width, height)], size
    scale = size[0] / sampling.resized
    return even_crops(width, height, scale, sampling.test_crops), size


def _unstretched(
    crop: Crop, size: tuple[int, int], info: VideoInfo
) -> tuple[float, float, float, float]:
    """Return a crop of a frame of (width, height) as the same part of the clip's own frame."""
    if size == (info.width, info.height):
        return crop
    across, down = info.width / size[0], info.height / size[1]
    x, y, width, height = crop
    return x * across, y * down, width * across, height * down


def _is_whole(value: object, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low


def _is_positive(value: object, most: float = math.inf) -> bool:
    if not isinstance(value, (int, float)) or isinstance(value, bool):
        return False
    return 0 < value <= most and math.isfinite(value)


def _is_known(fps: float | None) -> bool:
    return fps is not None and math.isfinite(fps) and fps > 0
