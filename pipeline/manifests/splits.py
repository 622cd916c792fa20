"""Divide clips into parts (splits, folds) in which every class has its share.

    parts = draw_parts(classes, groups, {"train": 0.8, "test": 0.1, "val": 0.1}, seed=0)

Each class gets a whole number of clips in each part (`_quotas`). Groups of clips are then given
out one by one, large ones and rare classes first, each to the part that lacks most of its classes.
This is iterative stratification (Sechidis et al., "On the stratification of multi-label data",
ECML PKDD 2011, algorithm 1), with groups in place of single examples. A clip may have several
classes.
"""

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from math import floor

from pipeline.manifests.manifest import SPLITS, Manifest
from pipeline.views.stateless_random import Draws

# Products such as 0.1 * 30 fall short of whole numbers by less than this.
ROUNDING = 1e-9


def draw_parts(
    classes: Sequence[Sequence[str]],
    groups: Sequence[str],
    shares: Mapping[str, float],
    seed: int = 0,
) -> list[str]:
    """Give every clip to a part, stratified by class.

    A class with as many clips as there are parts, or more, is in every part, however small its
    share, as far as the groups allow it. One with fewer clips is in the first parts.

    Args:
        classes: the classes of each clip. Clips without any are stratified as a class of their own.
        groups: the group of each clip. Clips of one group go to one part.
        shares: part -> its share of the clips, above 0, together 1. Order matters for small
            classes.
        seed: another seed gives another division.

    Returns:
        The part of each clip.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for k, group in enumerate(groups):
        members[group].append(k)
    counts: dict[str, Counter[str]] = {}
    total: Counter[str] = Counter()
    for group, clips in members.items():
        found: Counter[str] = Counter()
        for k in clips:
            found.update(classes[k] or ("",))
        counts[group] = found
        total += found

    lacking = _lacking(total, shares)
    lacking_clips = {part: share * len(classes) for part, share in shares.items()}

    def turn(group: str) -> tuple[int, int, float]:
        rarest = min(total[name] for name in counts[group])
        return -len(members[group]), rarest, Draws(seed, group, "part").uniform()

    chosen = [""] * len(classes)
    for group in sorted(members, key=turn):
        # The part that lacks the largest fraction of the group's classes; then of all clips.
        def need(part: str, group: str = group) -> tuple[float, float]:
            fractions = 0.0
            for name, count in counts[group].items():
                fractions += count * lacking[part][name] / total[name]
            return round(fractions, 9), lacking_clips[part]

        part = max(shares, key=need)
        lacking[part].subtract(counts[group])
        lacking_clips[part] -= len(members[group])
        for k in members[group]:
            chosen[k] = part
    return chosen


def _lacking(total: Mapping[str, int], shares: Mapping[str, float]) -> dict[str, Counter[str]]:
    """Return part -> class -> how many clips it shall get."""
    lacking: dict[str, Counter[str]] = {part: Counter() for part in shares}
    filled = dict.fromkeys(shares, 0)
    for name in sorted(total):
        for part, count in _quotas(total[name], shares, filled).items():
            lacking[part][name] = count
            filled[part] += count
    return lacking


def _quotas(clips: int, shares: Mapping[str, float], filled: Mapping[str, int]) -> dict[str, int]:
    """Divide the clips of one class into whole numbers by the largest remainders.

    Args:
        clips: how many clips the class has.
        shares: part -> its share.
        filled: part -> clips of other classes that it gets; decides between equal remainders.

    Returns:
        Part -> number of clips.
    """
    quotas = {part: floor(share * clips + ROUNDING) for part, share in shares.items()}

    def turn(part: str) -> tuple[float, float]:
        remainder = shares[part] * clips - quotas[part]
        return -round(remainder, 9), filled[part] / shares[part]

    left = clips - sum(quotas.values())
    for part in sorted(shares, key=turn)[:left]:
        quotas[part] += 1

    # A class that a part lacks can be neither learned nor tested there.
    for part in list(shares)[:clips]:
        giver = max(quotas, key=quotas.get)
        if not quotas[part] and quotas[giver] > 1:
            quotas[giver] -= 1
            quotas[part] += 1
    return quotas


def absent_classes(manifest: Manifest) -> list[str]:
    """Say which classes have no clip in a split.

    Args:
        manifest: the manifest. A split without any labelled clip is not mentioned.

    Returns:
        One line for each split that lacks classes.
    """
    found: dict[str, set[str]] = {split: set() for split in SPLITS}
    for clip in manifest.clips:
        found[clip.split].update(clip.labels)
    every = set().union(*found.values())
    lines = []
    for split, names in found.items():
        absent = sorted(every - names)
        if names and absent:
            what = "class has" if len(absent) == 1 else "classes have"
            lines.append(f"{len(absent):,} {what} no clip in {split}: {_some(absent)}")
    return lines


def _some(names: Iterable[str], shown: int = 5) -> str:
    names = list(names)
    more = f" and {len(names) - shown:,} more" if len(names) > shown else ""
    return ", ".join(names[:shown]) + more
