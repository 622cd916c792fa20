"""Report section on the number of test views, boxes, training views, and kept boxes."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from heads.reporting.cache_facts import KnownCache, boxes_per_clip, cache_of
from heads.reporting.class_sections import predicting
from heads.reporting.document import (
    Block,
    Column,
    Figure,
    Panel,
    Section,
    Spread,
    Table,
    Text,
    long_table,
)
from heads.reporting.groups import RunGroup, series_over, spread_of
from heads.reporting.plots import Series, curves
from heads.reporting.predictions import main_figure
from heads.reporting.result_sections import NAMES, figure_names, label_of, legend_of

# Clips are sorted into so many bins by their number of boxes.
BINS = 8

# Settings that differ with a number. Groups that differ in these alone belong together.
TRAIN_VIEWS = {"recipe.data.train_views", "config.sampling.train_views", "fingerprint"}
BOXES_KEPT = {"config.proposal_options.num_boxes", "dims.N", "fingerprint"}


def conditions(
    groups: Sequence[RunGroup], caches: Sequence[KnownCache], split: str
) -> Section | None:
    """Make the section on views and boxes.

    Args:
        groups: the best first.
        caches: of the runs.
        split: of the predictions.

    Returns:
        The section; None where nothing of it is known.
    """
    blocks = [*_test_views(groups, split), *_boxes(groups, caches, split)]
    names = figure_names(groups, split)
    if names and names[0] != "loss":
        figure = names[0]
        blocks += _series(groups, split, figure, "training views", _train_views, TRAIN_VIEWS)
        blocks += _series(groups, split, figure, "boxes kept per step", _boxes_kept, BOXES_KEPT)
    return Section("Views and boxes", "conditions", tuple(blocks)) if blocks else None


def _test_views(groups: Sequence[RunGroup], split: str) -> list[Block]:
    """The main figure from the first k test views."""
    groups = predicting(groups, split)
    drawn, found = [], {}
    for group in groups:
        by_views = [predictions.by_views for predictions in group.predicted if predictions.by_views]
        if not by_views:
            continue
        spreads = {}
        # Only numbers of views that every run of the group has.
        for k in sorted(set.intersection(*map(set, by_views))):
            spreads[k] = spread_of([100 * figures[k] for figures in by_views])
        drawn.append(group)
        found[group.name] = spreads

    if not groups:
        return []
    if not drawn:
        return [Text(f"Every clip of {split} has one test view, so their number is not compared.")]
    name = f"{split} {NAMES[main_figure(drawn[0].predicted[0].figures)]}"
    caption = (
        f"{name} from the first test views of every clip, their scores aggregated as the recipe "
        "says."
    )
    return _lines(drawn, found, "test views", name, caption, "views")


def _boxes(groups: Sequence[RunGroup], caches: Sequence[KnownCache], split: str) -> list[Block]:
    """Top-1 by how many boxes the clips have, per cache; needs one label per video."""
    blocks: list[Block] = []
    for number, known in enumerate(caches):
        drawn = []
        for group in predicting(groups, split):
            of_cache = cache_of(caches, group.runs[0].about) is known
            if of_cache and group.predicted[0].right is not None:
                drawn.append(group)
        if known.cache is None or not drawn:
            continue
        # The cache may lack a clip, or have a damaged shard.
        try:
            boxes = boxes_per_clip(known.cache, drawn[0].predicted[0].clips)
        except ValueError as error:
            blocks.append(Text(f"Boxes of {known.path} are not known: {error}"))
            continue
        if boxes is not None:
            name = "boxes" if number == 0 else f"boxes-{number}"
            blocks += _by_boxes(drawn, boxes, split, name)
    return blocks


def _by_boxes(groups: Sequence[RunGroup], boxes: np.ndarray, split: str, name: str) -> list[Block]:
    """Top-1 of clips by their number of boxes per step, `boxes` [V]."""
    clips = groups[0].predicted[0].clips
    # `boxes` is in the order of these clips.
    groups = [group for group in groups if group.predicted[0].clips == clips]
    if boxes.max() - boxes.min() < 1e-6:
        return [
            Text(
                f"Boxes per step: {boxes.max():g} in every clip of {split}, so their number is "
                "not compared."
            )
        ]

    edges = np.linspace(boxes.min(), boxes.max(), BINS + 1)
    # digitize puts the largest value beyond the last bin.
    bins = np.clip(np.digitize(boxes, edges) - 1, 0, BINS - 1)
    rows, middles = [], []
    spreads: dict[str, list[Spread]] = {group.name: [] for group in groups}
    for k in np.unique(bins).tolist():
        inside = bins == k
        for group in groups:
            accuracies = []
            for predictions in group.predicted:
                accuracies.append(100 * float(predictions.right[inside].mean()))
            spreads[group.name].append(spread_of(accuracies))
        middles.append(float(boxes[inside].mean()))
        range_text = f"{edges[k]:.1f} to {edges[k + 1]:.1f}"
        rows.append((range_text, int(inside.sum()), *[by[-1] for by in spreads.values()]))

    lines = []
    for group in groups:
        by_middle = dict(zip(middles, spreads[group.name], strict=True))
        lines.append(_line(group, by_middle, groups))
    alt = f"{split} top-1 by the mean number of boxes in a clip"
    drawing = curves(lines, "boxes per step", f"{split} top-1 %", alt, "percent", marks=True)
    caption = f"{split} top-1 by the mean number of boxes per step over a clip's test views."
    figure = Figure(caption, (Panel(name, drawing, alt),), legend_of(groups))

    columns = [Column("boxes per step"), Column("videos", "count")]
    columns += [Column(f"{group.name} %", "percent") for group in groups]
    return [figure, Table(name, "The same in numbers.", tuple(columns), tuple(rows))]


def _train_views(group: RunGroup) -> int:
    """How many cached training views an epoch draws from."""
    cached = int(group.settings.get("config.sampling.train_views") or 0)
    # 0 asks for all of them.
    asked = int(group.settings.get("recipe.data.train_views") or 0)
    if not asked or not cached:
        return asked or cached
    return min(asked, cached)


def _boxes_kept(group: RunGroup) -> int:
    return int(group.settings.get("dims.N") or 0)


def _series(
    groups: Sequence[RunGroup],
    split: str,
    name: str,
    what: str,
    value: Callable[[RunGroup], int],
    ignored: set[str],
) -> list[Block]:
    """The main figure by a number, of groups that differ in this number alone."""
    found, leaders = {}, []
    for members in series_over(groups, value, ignored):
        by_number = {value(group): group.figure(split, name, 100.0) for group in members}
        # Rows of several labels a video have another figure than the first row.
        if None in by_number.values():
            continue
        best = min(members, key=lambda group: group.rank)
        leaders.append(best)
        found[best.name] = by_number
    if not found:
        return []
    figure = f"{split} {NAMES[name]}"
    caption = (
        f"{figure} by {what}: runs that differ in nothing else. Each is named after its best row."
    )
    return _lines(leaders, found, what, figure, caption, what.replace(" ", "-"))


def _lines(
    groups: Sequence[RunGroup],
    found: Mapping[str, Mapping[int, Spread]],
    x_name: str,
    y_name: str,
    caption: str,
    name: str,
) -> list[Block]:
    """A figure of one line per group, and its table. `found`: group -> x -> y."""
    alt = f"{y_name} by {x_name}"
    lines = [_line(group, found[group.name], groups) for group in groups]
    drawing = curves(lines, x_name, y_name, alt, "percent", marks=True)
    figure = Figure(caption, (Panel(name, drawing, alt),), legend_of(groups))

    counts = sorted(set().union(*found.values()))
    columns = (Column("name"), *[Column(f"{k}", "percent") for k in counts])
    rows = []
    for group in groups:
        rows.append((group.name, *[found[group.name].get(k) for k in counts]))
    title = f"The same in numbers; columns are {x_name}."
    return [figure, long_table(name, title, columns, rows)]


def _line(group: RunGroup, by_x: Mapping[float, Spread], drawn: Sequence[RunGroup]) -> Series:
    y = [spread.mean for spread in by_x.values()]
    deviations = [spread.deviation or 0.0 for spread in by_x.values()]
    label = label_of(group, drawn)
    return Series(group.name, group.colour, list(by_x), y, deviations, label)
