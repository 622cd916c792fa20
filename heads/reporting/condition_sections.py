"""What accuracy depends on beside the head: test views, boxes found in a clip, training views
cached, boxes kept.
"""

from collections.abc import Callable, Sequence

import numpy as np

from heads.reporting.cache_facts import KnownCache, boxes_per_clip
from heads.reporting.class_sections import predicting
from heads.reporting.document import Block, Column, Figure, Panel, Section, Spread, Table, Text
from heads.reporting.groups import RunGroup, series_over, spread_of
from heads.reporting.plots import Series, curves
from heads.reporting.predictions import main_figure
from heads.reporting.result_sections import LONG, NAMES, figure_names, legend_of

BINS = 8


def conditions(
    groups: Sequence[RunGroup], caches: Sequence[KnownCache], split: str
) -> Section | None:
    """The section; None where nothing of it is known."""
    blocks = [*_views(groups, split), *_boxes(groups, caches, split)]
    names = figure_names(groups, split)
    if names and names[0] != "loss":
        blocks += _series(groups, split, names[0], "training views", _train_views, TRAIN_VIEWS)
        blocks += _series(groups, split, names[0], "boxes kept per step", _boxes_kept, BOXES_KEPT)
    return Section("Views and boxes", "conditions", tuple(blocks)) if blocks else None


def _views(groups: Sequence[RunGroup], split: str) -> list[Block]:
    """Accuracy from the first k test views."""
    groups = predicting(groups, split)
    drawn = [group for group in groups if any(one.by_views for one in group.predicted)]
    if not drawn:
        one = [Text(f"Every clip of {split} has one test view: nothing to tell of their number.")]
        return one if groups else []
    found: dict[str, dict[int, Spread]] = {}
    for group in drawn:
        some = [one.by_views for one in group.predicted if one.by_views]
        counts = sorted(set.intersection(*(set(by) for by in some)))
        found[group.name] = {k: spread_of([100 * by[k] for by in some]) for k in counts}
    name = NAMES[main_figure(drawn[0].predicted[0].figures)]
    caption = f"{split} {name} from the first test views of every clip, their scores aggregated as the recipe says."
    return _lines(drawn, found, "test views", f"{split} {name}", caption, "views")


def _boxes(groups: Sequence[RunGroup], caches: Sequence[KnownCache], split: str) -> list[Block]:
    """Accuracy by how many boxes the clips have, of the caches that are there; needs one label per
    video.
    """
    blocks: list[Block] = []
    for number, known in enumerate(caches):
        mine = [
            group
            for group in predicting(groups, split)
            if group.runs[0].about["fingerprint"] == known.fingerprint
        ]
        mine = [group for group in mine if group.predicted[0].right is not None]
        if known.cache is None or not mine:
            continue
        try:
            boxes = boxes_per_clip(known.cache, mine[0].predicted[0].clips)
        except ValueError as error:  # a clip that the cache does not have, or a damaged shard
            blocks.append(Text(f"Boxes of {known.path} are not known: {error}"))
            continue
        if boxes is None:
            continue
        stem = "boxes" if number == 0 else f"boxes-{number}"
        blocks += _by_boxes(mine, boxes, split, stem)
    return blocks


def _by_boxes(groups: Sequence[RunGroup], boxes: np.ndarray, split: str, stem: str) -> list[Block]:
    clips = groups[0].predicted[0].clips
    groups = [group for group in groups if group.predicted[0].clips == clips]
    if boxes.max() - boxes.min() < 1e-6:
        return [
            Text(
                f"Boxes per step: {boxes.max():g} in every clip of {split}, so there is nothing "
                f"to tell of their number."
            )
        ]
    edges = np.linspace(boxes.min(), boxes.max(), BINS + 1)
    bins = np.clip(np.digitize(boxes, edges) - 1, 0, BINS - 1)
    there = [k for k in range(BINS) if (bins == k).any()]
    found = {}
    for group in groups:
        by = {}
        for k in there:
            by[k] = spread_of([100 * float(one.right[bins == k].mean()) for one in group.predicted])
        found[group.name] = by
    middle = {k: float(boxes[bins == k].mean()) for k in there}
    lines = [
        _line(group, {middle[k]: spread for k, spread in found[group.name].items()})
        for group in groups
    ]
    alt = f"{split} top-1 by the mean number of boxes in a clip"
    panel = Panel(
        stem, curves(lines, "boxes per step", f"{split} top-1 %", alt, "percent", marks=True), alt
    )
    columns = (
        Column("boxes per step"),
        Column("videos", "count"),
        *(Column(f"{g.name} %", "percent") for g in groups),
    )
    rows = tuple(
        (
            f"{edges[k]:.1f} to {edges[k + 1]:.1f}",
            int((bins == k).sum()),
            *(found[g.name][k] for g in groups),
        )
        for k in there
    )
    caption = f"{split} top-1 by the mean number of boxes per step over a clip's test views."
    return [
        Figure(caption, (panel,), legend_of(groups)),
        Table(stem, "The same in numbers.", columns, rows),
    ]


# Settings that differ with the number alone, so that groups with other values still belong
# together.
TRAIN_VIEWS = {"recipe.data.train_views", "config.sampling.train_views", "fingerprint"}
BOXES_KEPT = {"config.proposal_options.num_boxes", "dims.N", "fingerprint"}


def _train_views(group: RunGroup) -> int:
    """How many cached training views an epoch draws from."""
    most = int(group.settings.get("config.sampling.train_views") or 0)
    asked = int(group.settings.get("recipe.data.train_views") or 0)
    return min(asked, most) if asked and most else asked or most


def _boxes_kept(group: RunGroup) -> int:
    return int(group.settings.get("dims.N") or 0)


def _series(
    groups: Sequence[RunGroup],
    split: str,
    name: str,
    what: str,
    value: Callable[[RunGroup], int],
    ignoring: set[str],
) -> list[Block]:
    """What more of something buys: groups that differ in its number alone."""
    series = series_over(groups, value, ignoring)
    if not series:
        return []
    found, leaders = {}, []
    for members in series:
        best = min(members, key=lambda group: group.rank)
        leaders.append(best)
        found[best.name] = {value(group): group.figure(split, name, 100.0) for group in members}
    caption = f"{split} {NAMES[name]} by {what}: runs that differ in nothing else. Each is named after its best row."
    return _lines(leaders, found, what, f"{split} {NAMES[name]}", caption, what.replace(" ", "-"))


def _lines(
    groups: Sequence[RunGroup],
    found: dict[str, dict[int, Spread]],
    x_name: str,
    y_name: str,
    caption: str,
    stem: str,
) -> list[Block]:
    """A figure of one line per group, and its table."""
    alt = f"{y_name} by {x_name}"
    lines = [_line(group, found[group.name]) for group in groups]
    panel = Panel(stem, curves(lines, x_name, y_name, alt, "percent", marks=True), alt)
    counts = sorted({k for by in found.values() for k in by})
    columns = (Column("name"), *(Column(f"{k}", "percent") for k in counts))
    rows = tuple((group.name, *(found[group.name].get(k) for k in counts)) for group in groups)
    table = Table(
        stem, f"The same in numbers; columns are {x_name}.", columns, rows, long=len(rows) >= LONG
    )
    return [Figure(caption, (panel,), legend_of(groups)), table]


def _line(group: RunGroup, by: dict[float, Spread]) -> Series:
    spreads = list(by.values())
    return Series(
        group.name,
        group.colour,
        list(by),
        [s.mean for s in spreads],
        [s.deviation or 0.0 for s in spreads],
    )
