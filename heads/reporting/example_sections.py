"""Clips that one head gets right and another wrong, with their pictures."""

from collections.abc import Sequence

import numpy as np

from heads.reporting.cache_facts import KnownCache
from heads.reporting.clip_pictures import strip
from heads.reporting.document import Block, Card, Cards, Column, Fold, Section, Table, Text
from heads.reporting.groups import RunGroup
from heads.reporting.predictions import VideoPredictions
from heads.reporting.result_sections import LONG

MOST_ROWS = 500  # of the table; there are as many pictures as asked for


def examples(
    pair: tuple[RunGroup, RunGroup] | None, caches: Sequence[KnownCache], pictures: int
) -> Section | None:
    """The section; None without two groups that have predicted the same videos, of one label
    each.
    """
    if pair is None or any(
        not group.predicted or group.predicted[0].right is None for group in pair
    ):
        return None
    shared = _shared(pair)
    if shared is None:
        return None
    known = next(
        (one for one in caches if one.fingerprint == pair[0].runs[0].about["fingerprint"]), None
    )
    blocks: list[Block] = []
    for stem, (good, bad) in {"better": (0, 1), "worse": (1, 0)}.items():
        chosen = _chosen(shared[good], shared[bad])
        title = f"{pair[good].name} right, {pair[bad].name} wrong: {len(chosen):,} of {len(shared[0][0].clips):,} videos."
        blocks.append(
            Text(f"{title} Majority of the seeds; the clearest first, one class after the other.")
        )
        if chosen and known is not None and pictures:
            cards = tuple(
                _card(k, pair[good], pair[bad], shared[good], shared[bad], known)
                for k in chosen[:pictures]
            )
            blocks.append(Cards(stem, cards))
        if chosen:
            table = _table(stem, chosen, pair[bad], shared[good], shared[bad])
            blocks.append(
                Fold(
                    f"All {len(chosen):,} as a table" if len(chosen) > 1 else "As a table", (table,)
                )
            )
    return Section("Examples", "examples", tuple(blocks))


def _shared(
    pair: tuple[RunGroup, RunGroup],
) -> tuple[list[VideoPredictions], list[VideoPredictions]] | None:
    """The predictions of both, of the runs that have the videos and classes of the first."""
    first = pair[0].predicted[0]
    mine = tuple(
        [p for p in group.predicted if p.clips == first.clips and p.classes == first.classes]
        for group in pair
    )
    return mine if all(mine) else None


def _right(some: Sequence[VideoPredictions]) -> np.ndarray:
    return np.mean([one.right for one in some], 0)


def _chosen(good: Sequence[VideoPredictions], bad: Sequence[VideoPredictions]) -> list[int]:
    """Videos that most of `good` and less than half of `bad` get right: the clearest of every
    class, then the second.
    """
    found = np.flatnonzero((_right(good) > 0.5) & (_right(bad) < 0.5))
    gap = np.mean([one.sure for one in good], 0) - np.mean([one.sure for one in bad], 0)
    ordered = found[np.argsort(-gap[found], kind="stable")]
    turn: dict[int, int] = {}
    keyed = []
    for place, k in enumerate(ordered.tolist()):
        label = int(good[0].targets[k])
        turn[label] = turn.get(label, -1) + 1
        keyed.append((turn[label], place, k))
    return [k for _, _, k in sorted(keyed)]


def _guess(some: Sequence[VideoPredictions], k: int) -> str:
    """What most of the runs take video k for."""
    votes = np.bincount([int(one.guess[k]) for one in some])
    return some[0].classes[int(votes.argmax())]


def _card(
    k: int,
    good: RunGroup,
    bad: RunGroup,
    goods: Sequence[VideoPredictions],
    bads: Sequence[VideoPredictions],
    known: KnownCache,
) -> Card:
    clip, label = goods[0].clips[k], goods[0].classes[int(goods[0].targets[k])]
    picture, alt = strip(known, clip)
    wrong = f"{bad.name}: {_guess(bads, k)}"
    return Card(clip, (f"{label}, as {good.name} says", wrong), picture, alt)


def _table(
    stem: str,
    chosen: list[int],
    bad: RunGroup,
    goods: Sequence[VideoPredictions],
    bads: Sequence[VideoPredictions],
) -> Table:
    columns = (
        Column("clip"),
        Column("label"),
        Column(f"{bad.name} says"),
        Column("score of the label", "fixed"),
        Column("there", "fixed"),
    )
    sure, unsure = (np.mean([one.sure for one in some], 0) for some in (goods, bads))
    rows = []
    for k in chosen[:MOST_ROWS]:
        label = goods[0].classes[int(goods[0].targets[k])]
        rows.append((goods[0].clips[k], label, _guess(bads, k), float(sure[k]), float(unsure[k])))
    more = f" The first {MOST_ROWS} of them." if len(chosen) > MOST_ROWS else ""
    caption = f"Mean score of the label with the head that is right, and there with the one that is wrong.{more}"
    return Table(f"examples-{stem}", caption, columns, tuple(rows), long=len(rows) >= LONG)
