"""What happens by class: gains of one head over another, recall of every class, confusions,
structures.
"""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from heads.papers.gos.operations import SPACES
from heads.reporting.document import Block, Cell, Column, Figure, Fold, Panel, Section, Table, Text
from heads.reporting.groups import RunGroup
from heads.reporting.plots import COLOURS, REST, bars, matrix, shares
from heads.reporting.result_sections import LONG
from heads.zoo import head_options
from pipeline.plugins import HEAD, own_names

MOST_BARS = 10  # largest gains, and as many losses
MOST_MATRICES = 6
MOST_COLUMNS = 8
MOST_CONFUSIONS = 30
MOST_CLASSES = 24  # with a bar of structures; the table has all


def predicting(groups: Sequence[RunGroup], split: str) -> list[RunGroup]:
    """The groups whose predictions are there, with the classes and clips of the first: others
    cannot be put beside them.
    """
    with_some = [group for group in groups if group.predicted]
    return [group for group in with_some if comparable(group, with_some[0], split)]


def comparable(one: RunGroup, other: RunGroup, split: str) -> bool:
    """Whether the predictions of two groups have the same classes, and are of the same clips and
    labels.
    """
    same_classes = one.predicted[0].classes == other.predicted[0].classes
    return same_classes and one.test_set(split) == other.test_set(split)


def by_class(
    groups: Sequence[RunGroup], pair: tuple[RunGroup, RunGroup] | None, split: str
) -> Section | None:
    """The section of gains and recalls; None without predictions."""
    drawn = predicting(groups, split)
    if not drawn:
        return None
    classes = drawn[0].predicted[0].classes
    several = drawn[0].predicted[0].targets.ndim == 2
    what = "average precision" if several else "recall"
    blocks: list[Block] = []
    if pair and all(one in drawn for one in pair):
        blocks += _gains(pair, classes, what)
    elif len(drawn) < 2:
        blocks.append(
            Text(
                "Gains compare two rows of the study; there is one with predictions of these "
                "classes."
            )
        )
    blocks.append(_class_table(drawn, classes, what, split))
    return Section("By class", "classes", tuple(blocks))


def _gains(pair: tuple[RunGroup, RunGroup], classes: Sequence[str], what: str) -> list[Block]:
    """What the first gains over the second in each class, in points (EAN Figure 6, GOS supplement
    Figure 6).
    """
    one, other = pair
    gain = 100 * (one.mean_of(lambda p: p.per_class) - other.mean_of(lambda p: p.per_class))
    ordered = [int(k) for k in np.argsort(-gain) if np.isfinite(gain[k])]
    up = [(classes[k], float(gain[k])) for k in ordered[:MOST_BARS] if gain[k] > 0]
    down = [(classes[k], float(gain[k])) for k in ordered[::-1][:MOST_BARS] if gain[k] < 0]
    panels = []
    for stem, title, rows in (("gains", "gain most", up), ("losses", "lose most", down)):
        if rows:
            alt = f"Classes that {title} with {one.name} over {other.name}, in points"
            panels.append(Panel(stem, bars(rows, alt), alt))
    count = sum(gain[k] > 0 for k in ordered), sum(gain[k] < 0 for k in ordered)
    caption = (
        f"{what.capitalize()} of {one.name} minus that of {other.name}, in points: {count[0]} of "
        f"{len(ordered)} classes gain, "
        f"{count[1]} lose. The {MOST_BARS} largest of each are drawn."
    )
    return [Figure(caption, tuple(panels))]


def _class_table(
    groups: Sequence[RunGroup], classes: Sequence[str], what: str, split: str
) -> Table:
    shown = groups[:MOST_COLUMNS]
    targets = groups[0].predicted[0].targets
    count = np.bincount(targets, minlength=len(classes)) if targets.ndim == 1 else targets.sum(0)
    values = [100 * group.mean_of(lambda p: p.per_class) for group in shown]
    columns = (
        Column("class"),
        Column("videos", "count"),
        *(Column(f"{group.name} %", "percent") for group in shown),
    )
    rows: list[tuple[Cell, ...]] = [
        (name, int(count[k]), *(float(column[k]) for column in values))
        for k, name in enumerate(classes)
    ]
    best = (
        f" The {MOST_COLUMNS} best of {len(groups)} rows of the study."
        if len(groups) > MOST_COLUMNS
        else ""
    )
    caption = f"{what.capitalize()} on {split}, mean over seeds.{best}"
    return Table("classes", caption, columns, tuple(rows), long=len(rows) >= LONG)


def confusions(groups: Sequence[RunGroup], split: str) -> Section | None:
    """The section of the confusion matrices; None with several labels per video, or without
    predictions.
    """
    drawn = [
        group for group in predicting(groups, split) if group.predicted[0].confusion is not None
    ]
    if not drawn:
        return None
    blocks: list[Block] = []
    for k, group in enumerate(drawn[:MOST_MATRICES]):
        counts = np.sum([one.confusion for one in group.predicted], axis=0)
        inside = _confusion(group, counts, k)
        blocks += inside if k == 0 else [Fold(group.name, tuple(inside))]
    if len(drawn) > MOST_MATRICES:
        left = len(drawn) - MOST_MATRICES
        blocks.append(
            Text(
                f"Of the {MOST_MATRICES} best rows; confusion_{split}.csv in each run folder has "
                f"those of the {left} others."
            )
        )
    return Section("Confusions", "confusions", tuple(blocks))


def _confusion(group: RunGroup, counts: np.ndarray, number: int) -> list[Block]:
    classes = group.predicted[0].classes
    alt = f"Confusion matrix of {group.name}"
    caption = f"{group.name}: rows are labels, columns predictions, counts over {len(group.predicted)} runs; shade: share of the row."
    panel = Panel(f"confusion-{number}", matrix(counts, classes, alt), alt, wide=True)
    wrong = counts.astype(float)
    np.fill_diagonal(wrong, 0)
    worst = np.argsort(-wrong, axis=None, kind="stable")[:MOST_CONFUSIONS]
    rows = []
    for label, guess in zip(*np.unravel_index(worst, counts.shape), strict=True):
        if wrong[label, guess] > 0:
            share = 100 * wrong[label, guess] / counts[label].sum()
            rows.append((classes[label], classes[guess], int(wrong[label, guess]), float(share)))
    columns = (
        Column("label"),
        Column("predicted"),
        Column("count", "count"),
        Column("of the label %", "percent"),
    )
    table = Table(
        f"confusions-{number}",
        f"What {group.name} confuses most.",
        columns,
        tuple(rows),
        long=len(rows) >= LONG,
    )
    return [
        Figure(caption, (panel,)),
        table if number else Fold("The most frequent confusions", (table,)),
    ]


def structures(groups: Sequence[RunGroup]) -> Section | None:
    """The section of the structures that a searched head chose by class (GOS Figure 6); None
    without any stored.
    """
    drawn = [
        group for group in groups if any(one.structures is not None for one in group.predicted)
    ]
    if not drawn:
        return None
    blocks: list[Block] = []
    for k, group in enumerate(drawn[:MOST_MATRICES]):
        inside = _structures(group, k)
        blocks += inside if k == 0 else [Fold(group.name, tuple(inside))]
    return Section("Structures", "structures", tuple(blocks))


def _structures(group: RunGroup, number: int) -> list[Block]:
    """Of every view of the runs with structures: the operation of each superedge, as one word."""
    some = [one for one in group.predicted if one.structures is not None]
    words = [
        word for one in some for word in map(_word, one.structures.reshape(len(one.structures), -1))
    ]
    labels = np.concatenate([one.view_targets for one in some])
    classes, common = some[0].classes, [word for word, _ in Counter(words).most_common()]
    place = {word: k for k, word in enumerate(common)}
    table = np.zeros((len(classes), len(common)))
    np.add.at(table, (labels, [place[word] for word in words]), 1)
    total = table.sum(1)
    share = table / np.maximum(total, 1)[:, None]
    there = np.flatnonzero(total)
    average = table.sum(0) / table.sum()
    distance = np.abs(share[there] - average)[:, :COLOURS].sum(
        1
    )  # of the structures that have a colour
    unlike = there[np.argsort(-distance, kind="stable")][:MOST_CLASSES]
    drawn = [(classes[k], share[k].tolist()) for k in unlike]
    alt = f"Shares of the structures that {group.name} chose, by class"
    caption = (
        f"{group.name}: each word is a structure, the number of the operation of every superedge "
        f"in order (0-1, 0-2, 1-2, …). "
        f"{_operations(group)}Share of the views of a class that chose it; those that differ most "
        f"from the average come first."
    )
    legend = [(k, f"{word}: {100 * average[k]:.0f} %") for k, word in enumerate(common[:COLOURS])]
    if len(common) > COLOURS:
        legend.append((REST, f"{len(common) - COLOURS} more"))
    columns = (
        Column("class"),
        Column("views", "count"),
        Column("structures", "count"),
        Column("most frequent"),
        Column("its share %", "percent"),
    )
    rows = [
        (
            classes[k],
            int(total[k]),
            int((table[k] > 0).sum()),
            common[int(table[k].argmax())],
            100 * float(share[k].max()),
        )
        for k in there
    ]
    figure = Figure(
        caption, (Panel(f"structures-{number}", shares(drawn, alt), alt),), tuple(legend)
    )
    return [
        figure,
        Table(f"structures-{number}", "Every class.", columns, tuple(rows), long=len(rows) >= LONG),
    ]


def _operations(group: RunGroup) -> str:
    """What the numbers of GOS's operations stand for."""
    space = group.settings.get("recipe.head.options.space")
    if not space and group.settings["recipe.head.name"] in own_names(HEAD):  # a report executes no plug-in
        space = head_options(group.head).get("space")
    names = SPACES.get(space, ())
    return f"{', '.join(f'{k} {name}' for k, name in enumerate(names))}. " if names else ""


def _word(choice: np.ndarray) -> str:
    return "-".join(map(str, choice.tolist()))
