"""Report section of clips that one row gets right and another wrong, with their pictures."""

from collections.abc import Sequence

import numpy as np

from heads.reporting.cache_facts import KnownCache, cache_of
from heads.reporting.clip_pictures import frames_of
from heads.reporting.document import (
    Block,
    Card,
    Cards,
    Column,
    Fold,
    Section,
    Table,
    Text,
    long_table,
)
from heads.reporting.groups import RunGroup
from heads.reporting.predictions import VideoPredictions

# Rows of the table.
MOST_ROWS = 500


class _Side:
    """One of the two rows: its name, and its runs' predictions of the shared videos."""

    def __init__(self, group: RunGroup, predictions: Sequence[VideoPredictions]):
        self.name, self.predictions = group.name, predictions
        first = predictions[0]
        self.clips, self.classes, self.targets = first.clips, first.classes, first.targets
        # Means over the runs: how often each video is right, and the score of its label.
        self.right = np.mean([one.right for one in predictions], 0)
        self.sure = np.mean([one.sure for one in predictions], 0)

    def label(self, k: int) -> str:
        """The class of video k."""
        return self.classes[int(self.targets[k])]

    def guess(self, k: int) -> str:
        """The class that most runs predict for video k."""
        return self.classes[self._guess(k)]

    def _guess(self, k: int) -> int:
        votes = np.bincount([int(one.guess[k]) for one in self.predictions])
        return int(votes.argmax())

    def says(self, k: int) -> str:
        """What the group says of video k: its class and score, and the score of the label."""
        guess = self._guess(k)
        scores = []
        for one in self.predictions:
            if int(one.guess[k]) == guess:
                scores.append(float(one.best[k]))
        text = f"{self.name}: {self.classes[guess]}, score {np.mean(scores):.2f}"
        if guess != int(self.targets[k]):
            text += f" (the label has {self.sure[k]:.2f})"
        return text


def examples(
    pair: tuple[RunGroup, RunGroup] | None, caches: Sequence[KnownCache], pictures: int
) -> Section | None:
    """Make the section of examples.

    Args:
        pair: the two groups that are compared.
        caches: of the runs.
        pictures: how many clips have a picture, each way.

    Returns:
        The section; None without two groups that have predicted the same videos, of one label
        each.
    """
    sides = _sides(pair)
    if sides is None:
        return None
    one, other = sides
    # Pictures come from the cache of the first group.
    known = cache_of(caches, pair[0].runs[0].about)

    blocks: list[Block] = []
    for name, good, bad in (("better", one, other), ("worse", other, one)):
        chosen = _chosen(good, bad)
        blocks.append(
            Text(
                f"{good.name} right, {bad.name} wrong: {len(chosen):,} of {len(one.clips):,} "
                "videos. Majority of the seeds; the clearest first, one class after the other. "
                "Scores are means over the seeds that say so."
            )
        )
        if chosen and known is not None and pictures:
            cards = [_card(k, good, bad, known) for k in chosen[:pictures]]
            blocks.append(Cards(name, tuple(cards)))
        if chosen:
            title = f"All {len(chosen):,} as a table" if len(chosen) > 1 else "As a table"
            blocks.append(Fold(title, (_table(name, chosen, good, bad),)))
    return Section("Examples", "examples", tuple(blocks))


def _sides(pair: tuple[RunGroup, RunGroup] | None) -> tuple[_Side, _Side] | None:
    """Both groups, with the runs that have the videos and classes of the first run."""
    if pair is None:
        return None
    for group in pair:
        if not group.predicted or group.predicted[0].right is None:
            return None
    # A run may have left out clips that it could not decode.
    first = pair[0].predicted[0]
    sides = []
    for group in pair:
        shared = []
        for predictions in group.predicted:
            if predictions.clips == first.clips and predictions.classes == first.classes:
                shared.append(predictions)
        if not shared:
            return None
        sides.append(_Side(group, shared))
    return sides[0], sides[1]


def _chosen(good: _Side, bad: _Side) -> list[int]:
    """Videos that most runs of `good` and less than half of `bad` get right.

    The clearest of every class come first, then the second of every class, and so on.
    """
    found = np.flatnonzero((good.right > 0.5) & (bad.right < 0.5))
    gap = good.sure - bad.sure
    ordered = found[np.argsort(-gap[found], kind="stable")]
    count: dict[int, int] = {}
    keyed = []
    for position, k in enumerate(ordered.tolist()):
        label = int(good.targets[k])
        count[label] = count.get(label, 0) + 1
        keyed.append((count[label], position, k))
    return [k for _, _, k in sorted(keyed)]


def _card(k: int, good: _Side, bad: _Side, known: KnownCache) -> Card:
    pictures, alt = frames_of(known, good.clips[k])
    lines = (f"label: {good.label(k)}", good.says(k), bad.says(k))
    return Card(good.clips[k], lines, pictures, alt)


def _table(name: str, chosen: list[int], good: _Side, bad: _Side) -> Table:
    columns = (
        Column("clip"),
        Column("label"),
        Column(f"{bad.name} says"),
        Column("score of the label", "fixed"),
        Column("there", "fixed"),
    )
    rows = []
    for k in chosen[:MOST_ROWS]:
        scores = (float(good.sure[k]), float(bad.sure[k]))
        rows.append((good.clips[k], good.label(k), bad.guess(k), *scores))
    caption = (
        "Mean score of the label with the head that is right, and there with the one that is wrong."
    )
    if len(chosen) > MOST_ROWS:
        caption += f" The first {MOST_ROWS} of them."
    return long_table(f"examples-{name}", caption, columns, rows)
