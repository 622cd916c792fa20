"""Decide which frame numbers a view reads: the papers' four sampling rules.

Each rule takes L = `length`, the frames of a clip, and returns F = `frames` numbers in 0 .. L-1,
in rising order. Numbers count from the clip's first frame; a short clip repeats frames.

With `draws`, a rule samples a training view. Without, it returns test clip `clip` of `clips`,
which is the same every time.

Quotients that select a frame are computed in whole numbers where they can be: the rounding of a
float must not decide between two frames.
"""

from pipeline.views.crops import round_quotient
from pipeline.views.stateless_random import Draws


def segment_frames(
    length: int,
    frames: int,
    consecutive: int = 1,
    offsets: str = "equal",
    draws: Draws | None = None,
    clip: int = 0,
    clips: int = 1,
) -> list[int]:
    """Return K consecutive frames from one start in each of S = F/K segments.

    A start is one of the R = L-K+1 frames that K frames can follow. Let tick = R/S.

        training, equal   a random moment of each segment of length tick, rounded down
                          (GOS: 32 equal segments, one random frame each)
        training, tsn     k·q + U{0 .. q-1} with q = ⌊tick⌋. If q = 0: S sorted random starts
                          where L > S, else the first frame (released code of TSN, DyReg, EAN)
        test, one clip    ⌊k·tick + tick/2⌋
        test, clip c of C ⌊k·tick + c·tick/C⌋ (DyReg, EAN: two clips at 0 and tick/2)

    Args:
        length: L, the clip's frames.
        frames: F, a multiple of `consecutive`.
        consecutive: K; frames beyond the clip's last one repeat it.
        offsets: how training draws starts, "equal" or "tsn".
        draws: random numbers of a training view; None for a test view.
        clip: c, the number of the test clip.
        clips: C, how many test clips there are.

    Returns:
        F frame numbers.
    """
    count = frames // consecutive
    # A clip shorter than K frames has one start, its first frame.
    room = max(length - consecutive + 1, 1)

    if draws is None:
        # The share part/parts of a tick is the offset of this test clip.
        part, parts = (1, 2) if clips == 1 else (clip, clips)
        starts = [(k * parts + part) * room // (count * parts) for k in range(count)]
    elif offsets == "equal":
        starts = []
        for k in range(count):
            moment = (k + draws.uniform()) * room / count
            # The sum k + u can round up to k + 1, so the segment's end is a whole-number bound.
            last = -(-(k + 1) * room // count) - 1
            starts.append(min(int(moment), last))
    elif room >= count:
        whole = room // count
        starts = [k * whole + draws.below(whole) for k in range(count)]
    elif length > count:
        starts = sorted(draws.below(room) for _ in range(count))
    else:
        starts = [0] * count

    numbers = []
    for start in starts:
        numbers += [min(start + j, length - 1) for j in range(consecutive)]
    return numbers


def stride_frames(
    length: int, frames: int, step: float, draws: Draws | None = None, clip: int = 0, clips: int = 1
) -> list[int]:
    """Return F frames at a constant distance (STRG: 32 frames at 6 fps).

    Training starts at a random frame. Test clips start at even distances from the first possible
    frame to the last; a single one lies in the middle.

    Args:
        length: L, the clip's frames.
        frames: F.
        step: distance in source frames; it need not be whole.
        draws: random numbers of a training view; None for a test view.
        clip: number of the test clip.
        clips: how many test clips there are.

    Returns:
        F frame numbers. A clip shorter than (F-1)·step starts at 0 and repeats its last frame;
        the paper does not say what to do. Looping would show a jump that nobody filmed.
    """
    # Each offset is rounded on its own, so that rounding errors never add up.
    offsets = [int(k * step + 0.5) for k in range(frames)]
    room = length - 1 - offsets[-1]

    if room <= 0:
        start = 0
    elif draws is not None:
        start = draws.below(room + 1)
    elif clips == 1:
        start = room // 2
    else:
        start = round_quotient(clip * room, clips - 1)
    return [min(start + offset, length - 1) for offset in offsets]


def linspace_frames(length: int, frames: int, clip: int = 0, clips: int = 1) -> list[int]:
    """Return F frames from the first to the last: ⌊k·(L-1)/(F-1)⌋ (released code of RSTG).

    Args:
        length: L, the clip's frames.
        frames: F.
        clip: number of the test clip; clip c of C is shifted by round(c/C · L/F) frames, and
            stops at the last frame.
        clips: C, how many test clips there are.

    Returns:
        F frame numbers; the same for training and test.
    """
    shift = round_quotient(clip * length, clips * frames)
    # A single frame has no gap, and is the first.
    gaps = max(frames - 1, 1)
    return [min(k * (length - 1) // gaps + shift, length - 1) for k in range(frames)]


def gos_frames(
    length: int, frames: int, draws: Draws | None = None, clip: int = 0, clips: int = 1
) -> list[int]:
    """Return the frames of GOS's released code: linspace plus a jitter of half a step.

    Number 0 is the first frame, number k is ⌊k·step + U{0 .. ⌊step/2⌋}⌋ with step = (L-1)/(F-1).
    Below L = 2F-1 there is no jitter.

    Args:
        length: L, the clip's frames.
        frames: F.
        draws: random numbers of a training view; None for a test view.
        clip: number of the test clip. The release draws for test clips too; here clip c of C
            takes the share c/C of the jitter in every step.
        clips: C, how many test clips there are.

    Returns:
        F frame numbers.
    """
    # The largest jitter, ⌊step/2⌋, without a float.
    most = (length - 1) // (2 * max(frames - 1, 1))
    numbers = [0]
    for k in range(1, frames):
        jitter = clip * (most + 1) // clips
        if draws is not None:
            jitter = draws.below(most + 1)
        numbers.append(min(k * (length - 1) // (frames - 1) + jitter, length - 1))
    return numbers
