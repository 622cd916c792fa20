"""Which test views stay the same when a cache gets more test clips."""

from fractions import Fraction

from pipeline.views.sampling import Sampling


def same_test_views(sampling: Sampling, before: int, after: int) -> dict[int, int]:
    """Find the test views that stay the same when the number of test clips changes.

    Where test clips lie depends on how many there are, and on the rule that picks frames. For
    example, one clip of "segments" lies in the middle of each segment, where none of five does.

    Args:
        sampling: the options; its own `test_clips` does not count.
        before: test clips of the views that are there.
        after: test clips of the views that are wanted.

    Returns:
        Number of a view before -> its number after, for views whose frames are the same in every
        video.
    """
    crops = 1 if sampling.test_crops == "full" else sampling.test_crops
    shares = {_test_share(sampling.sampling, clip, after): clip for clip in range(after)}
    same = {}
    for clip in range(before):
        share = _test_share(sampling.sampling, clip, before)
        if share in shares:
            for k in range(crops):
                same[clip * crops + k] = shares[share] * crops + k
    return same


def _test_share(rule: str, clip: int, clips: int) -> tuple[str, Fraction]:
    """Where test clip `clip` of `clips` lies, as `frame_numbers` computes it; equal is the same."""
    if rule == "segments":
        return "share", Fraction(1, 2) if clips == 1 else Fraction(clip, clips)
    if rule != "stride":
        return "share", Fraction(clip, clips)
    # A single one is rounded down to a frame, those of several to the nearest one.
    if clips == 1:
        return "middle", Fraction(1, 2)
    return "share", Fraction(clip, clips - 1)
