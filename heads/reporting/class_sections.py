"""Report sections by class: gains of one row over another, recalls, confusions, structures."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from heads.papers.gos.operations import SPACES
from heads.reporting.document import (
    Block,
    Cell,
    Column,
    Figure,
    Fold,
    Panel,
    Section,
    Table,
    Text,
    long_table,
)
from heads.reporting.groups import RunGroup
from heads.reporting.plots import COLOURS, REST, bars, matrix, shares
from heads.zoo import head_options
from pipeline.plugins import HEAD, own_names
from pipeline.text.counted import agree, counted

# Gains that are drawn, and as many losses.
MOST_BARS = 10
MOST_MATRICES = 6
MOST_COLUMNS = 8
MOST_CONFUSIONS = 30

# Classes whose structures are drawn; the table has all.
MOST_CLASSES = 24


def predicting(groups: Sequence[RunGroup], split: str) -> list[RunGroup]:
    """Return the groups with predictions that can be compared with the first one's.

    They are of the same clips, labels, classes and target.

    Args:
        groups: the best first.
        split: of the predictions.
    """
    with_predictions = [group for group in groups if group.predicted]
    found = []
    for group in with_predictions:
        first = with_predictions[0]
        if group.compared_with(split) == first.compared_with(split):
            found.append(group)
    return found


def by_class(
    groups: Sequence[RunGroup], pair: tuple[RunGroup, RunGroup] | None, split: str
) -> Section | None:
    """Make the section of gains and recalls.

    Args:
        groups: the best first.
        pair: the two groups that are compared.
        split: of the predictions.

    Returns:
        The section; None without predictions.
    """
    drawn = predicting(groups, split)
    if not drawn:
        return None
    first = drawn[0].predicted[0]
    what = "average precision" if first.targets.ndim == 2 else "recall"
    blocks: list[Block] = []
    if pair and all(group in drawn for group in pair):
        blocks.append(_gains(pair, first.classes, what))
    elif len(drawn) < 2:
        blocks.append(
            Text("Gains compare two rows of the study; only one has predictions of these classes.")
        )
    blocks.append(_class_table(drawn, first.classes, what, split))
    return Section("By class", "classes", tuple(blocks))


def _gains(pair: tuple[RunGroup, RunGroup], classes: Sequence[str], what: str) -> Figure:
    """What the first gains over the second by class (EAN Figure 6, GOS supplement Figure 6)."""
    one, other = pair
    gain = 100 * (one.mean_of(lambda p: p.per_class) - other.mean_of(lambda p: p.per_class))
    # The largest gain first; classes without a video have none.
    order = np.argsort(-gain)
    ordered = order[np.isfinite(gain[order])].tolist()
    gaining = [k for k in ordered if gain[k] > 0]
    losing = [k for k in reversed(ordered) if gain[k] < 0]

    panels = []
    for name, verb, drawn in (("gains", "gain", gaining), ("losses", "lose", losing)):
        if drawn:
            alt = f"Classes that {verb} most with {one.name} over {other.name}, in points"
            rows = [(classes[k], float(gain[k])) for k in drawn[:MOST_BARS]]
            panels.append(Panel(name, bars(rows, alt), alt))
    gain, lose = agree(len(gaining), "gains", "gain"), agree(len(losing), "loses", "lose")
    caption = (
        f"{what.capitalize()} of {one.name} minus that of {other.name}, in points: {len(gaining)} "
        f"of {counted(len(ordered), 'class', 'classes')} {gain}, {len(losing)} {lose}. The "
        f"{MOST_BARS} largest of each are drawn."
    )
    return Figure(caption, tuple(panels))


def _class_table(
    groups: Sequence[RunGroup], classes: Sequence[str], what: str, split: str
) -> Table:
    """A row per class, a column per group."""
    best = groups[:MOST_COLUMNS]
    targets = groups[0].predicted[0].targets
    if targets.ndim == 1:
        count = np.bincount(targets, minlength=len(classes))
    else:
        count = targets.sum(0)
    values = [100 * group.mean_of(lambda p: p.per_class) for group in best]

    columns = [Column("class"), Column("videos", "count")]
    columns += [Column(f"{group.name} %", "percent") for group in best]
    rows: list[tuple[Cell, ...]] = []
    for k, name in enumerate(classes):
        rows.append((name, int(count[k]), *[float(column[k]) for column in values]))

    caption = f"{what.capitalize()} on {split}, mean over seeds."
    if len(groups) > MOST_COLUMNS:
        caption += f" The {MOST_COLUMNS} best of {len(groups)} rows of the study."
    return long_table("classes", caption, columns, rows)


def confusions(groups: Sequence[RunGroup], split: str) -> Section | None:
    """Make the section of the confusion matrices.

    Args:
        groups: the best first.
        split: of the predictions.

    Returns:
        The section; None with several labels per video, or without predictions.
    """
    drawn = []
    for group in predicting(groups, split):
        if group.predicted[0].confusion is not None:
            drawn.append(group)
    if not drawn:
        return None

    blocks: list[Block] = []
    for k, group in enumerate(drawn[:MOST_MATRICES]):
        inner = _confusion(group, k)
        blocks += inner if k == 0 else [Fold(group.name, tuple(inner))]
    more = len(drawn) - MOST_MATRICES
    if more > 0:
        blocks.append(
            Text(
                f"Of the {MOST_MATRICES} best rows; confusion_{split}.csv in each run folder has "
                f"those of the {more} others."
            )
        )
    return Section("Confusions", "confusions", tuple(blocks))


def _confusion(group: RunGroup, number: int) -> list[Block]:
    """The matrix of a group, summed over its runs, and its most frequent confusions."""
    counts = np.sum([predictions.confusion for predictions in group.predicted], axis=0)
    classes = group.predicted[0].classes
    alt = f"Confusion matrix of {group.name}"
    panel = Panel(f"confusion-{number}", matrix(counts, classes, alt), alt, wide=True)
    caption = (
        f"{group.name}: rows are labels, columns predictions, counts over {len(group.predicted)} "
        "runs; shade: share of the row."
    )

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
    title = f"What {group.name} confuses most."
    table: Block = long_table(f"confusions-{number}", title, columns, rows)
    # The other groups' blocks are folded as a whole.
    if number == 0:
        table = Fold("The most frequent confusions", (table,))
    return [Figure(caption, (panel,)), table]


def structures(groups: Sequence[RunGroup]) -> Section | None:
    """Make the section of the structures that a searched head chose (GOS Figure 6).

    Args:
        groups: the best first.

    Returns:
        The section; None where no run has stored structures.
    """
    drawn = []
    for group in groups:
        if any(predictions.structures is not None for predictions in group.predicted):
            drawn.append(group)
    if not drawn:
        return None
    blocks: list[Block] = []
    for k, group in enumerate(drawn[:MOST_MATRICES]):
        inner = _structures(group, k)
        blocks += inner if k == 0 else [Fold(group.name, tuple(inner))]
    return Section("Structures", "structures", tuple(blocks))


def _structures(group: RunGroup, number: int) -> list[Block]:
    """How often each class's views chose each structure. A structure is written as one word."""
    words, labels = [], []
    for predictions in group.predicted:
        if predictions.structures is not None:
            # [R,cells,E] -> [R,cells * E], one word per view
            choices = predictions.structures.reshape(len(predictions.structures), -1)
            words += ["-".join(map(str, choice)) for choice in choices.tolist()]
            labels.append(predictions.view_targets)
            classes = predictions.classes

    # The most frequent structures have colours.
    common = [word for word, _ in Counter(words).most_common()]
    index = {word: k for k, word in enumerate(common)}
    counts = np.zeros((len(classes), len(common)))
    np.add.at(counts, (np.concatenate(labels), [index[word] for word in words]), 1)
    total = counts.sum(1)
    share = counts / np.maximum(total, 1)[:, None]
    average = counts.sum(0) / counts.sum()

    # Classes are compared by the structures that have a colour; those far from the average first.
    with_views = np.flatnonzero(total)
    distance = np.abs(share[with_views] - average)[:, :COLOURS].sum(1)
    unusual = with_views[np.argsort(-distance, kind="stable")][:MOST_CLASSES]
    alt = f"Shares of the structures that {group.name} chose, by class"
    drawing = shares([(classes[k], share[k].tolist()) for k in unusual], alt)
    caption = (
        f"{group.name}: each word is a structure, the number of the operation of every superedge "
        f"in order (0-1, 0-2, 1-2, …). {_operations(group)}Share of the views of a class that "
        "chose it; those that differ most from the average come first."
    )
    legend = [(k, f"{word}: {100 * average[k]:.0f} %") for k, word in enumerate(common[:COLOURS])]
    if len(common) > COLOURS:
        legend.append((REST, f"{len(common) - COLOURS} more"))
    figure = Figure(caption, (Panel(f"structures-{number}", drawing, alt),), tuple(legend))

    columns = (
        Column("class"),
        Column("views", "count"),
        Column("structures", "count"),
        Column("most frequent"),
        Column("its share %", "percent"),
    )
    rows = []
    for k in with_views:
        frequent = int(counts[k].argmax())
        different = int((counts[k] > 0).sum())
        largest = 100 * float(share[k].max())
        rows.append((classes[k], int(total[k]), different, common[frequent], largest))
    name = f"structures-{number}"
    return [figure, long_table(name, "Every class.", columns, rows)]


def _operations(group: RunGroup) -> str:
    """What the numbers of GOS's operations stand for; "" for other heads."""
    space = group.settings.get("recipe.head.options.space")
    # A report executes no plug-in, so only heads of our own are asked for their default.
    if not space and group.settings["recipe.head.name"] in own_names(HEAD):
        space = head_options(group.head).get("space")
    names = [f"{k} {name}" for k, name in enumerate(SPACES.get(space, ()))]
    return f"{', '.join(names)}. " if names else ""
