"""What may stand in one ranking, and in which settings its rows differ.

Headings for sets of videos, averages over folds, tables of settings.
"""

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from heads.reporting.document import Block, Column, Spread, Table, Text, long_table
from heads.reporting.groups import MANIFEST, RunGroup, differences, setting_text, spread_of
from heads.reporting.predictions import main_figure
from pipeline.text.counted import counted

# A table with a column for each setting has at most so many; one with a column for each row of the
# study, at most that many.
MOST_SETTINGS, MOST_ROWS = 8, 4


def test_videos(group: RunGroup, split: str) -> int | None:
    """Return how many videos a group's figures of a split are of; None where no run knows."""
    if group.predicted:
        return len(group.predicted[0].clips)
    record = _split_record(group, split)
    return None if record is None else record["clips"]


def _split_record(group: RunGroup, split: str) -> dict | None:
    """What the manifest's record of a group says of a split."""
    return (group.runs[0].about.get("manifest") or {}).get("splits", {}).get(split)


def heading_of(group: RunGroup, split: str) -> str:
    """Return a heading for the groups that are compared with this one.

    Args:
        group: one of them.
        split: whose figures are reported.
    """
    videos = test_videos(group, split)
    if videos is None:
        text = f"Videos of {split} that the runs do not record"
    else:
        record = _split_record(group, split)
        text = counted(videos, "video")
        if record and record["clips"] != videos:
            text = f"{videos:,} of {counted(record['clips'], 'video')}"
        text += f" of {split}"
    if MANIFEST in group.settings:
        text += f" of {setting_text(group.settings[MANIFEST])}"
    text += f", {counted(len(group.runs[0].about['classes']), 'class', 'classes')}"
    if group.settings.get("recipe.data.target") == "multi":
        text += ", several labels a video"
    return text


@dataclass
class FoldedRow:
    """One configuration that was trained on several folds of the same videos.

    Attributes:
        name: what the names of its groups have in common.
        folds: one group for each fold, by manifest.
    """

    name: str
    folds: list[RunGroup]

    def figure(self, split: str, name: str, factor: float = 1.0) -> Spread | None:
        """Return mean and deviation over the folds; each fold counts as the mean of its seeds.

        None unless every fold has the figure.
        """
        found = [fold.figure(split, name, factor) for fold in self.folds]
        if any(spread is None for spread in found):
            return None
        return spread_of([spread.mean for spread in found])

    def sets(self, split: str) -> tuple[tuple[str, ...], ...]:
        """Return what must be the same of rows that are ranked together, for all folds."""
        return tuple(sorted(fold.compared_with(split) for fold in self.folds))


def folded_rows(groups: Sequence[RunGroup], split: str) -> list[list[FoldedRow]]:
    """Find configurations that were trained on folds of one dataset.

    Folds are manifests with the same number of videos of each class in all, other test videos,
    and nothing else that differs.

    Args:
        groups: all groups.
        split: whose figures are reported.

    Returns:
        Sets of rows that can be compared; in each the best row by val (else by `split`) first.
    """
    alike: dict[str, dict[str, RunGroup]] = {}
    for group in groups:
        if MANIFEST not in group.settings:
            continue
        rest = {key: value for key, value in group.settings.items() if key != MANIFEST}
        key = json.dumps([rest, _all_videos(group)], sort_keys=True, default=str)
        # A run that was repeated is no further fold.
        alike.setdefault(key, {}).setdefault(str(group.settings[MANIFEST]), group)

    sets: dict[tuple, list[FoldedRow]] = {}
    for by_manifest in alike.values():
        folds = [by_manifest[name] for name in sorted(by_manifest)]
        test_sets = {fold.test_set(split) for fold in folds}
        if len(folds) > 1 and len(test_sets) == len(folds):
            row = FoldedRow(_common_name(folds), folds)
            sets.setdefault(row.sets(split), []).append(row)
    for rows in sets.values():
        chooser = "val" if all(_main(row, "val") is not None for row in rows) else split
        rows.sort(key=lambda row, of=chooser: -_value(row, of))
    return list(sets.values())


def _all_videos(group: RunGroup) -> dict[str, int]:
    """How many videos each class has, over all splits."""
    total: Counter[str] = Counter()
    for record in (group.runs[0].about.get("manifest") or {}).get("splits", {}).values():
        total.update(record["classes"])
        total["", "clips"] += record["clips"]
    return {str(name): count for name, count in sorted(total.items(), key=str)}


def _main(row: FoldedRow, split: str) -> Spread | None:
    name = main_figure(row.folds[0].runs[0].figures(split))
    return row.figure(split, name) if name else None


def _value(row: FoldedRow, split: str) -> float:
    found = _main(row, split)
    return -1.0 if found is None else found.mean


def _common_name(folds: Sequence[RunGroup]) -> str:
    """The beginning that the groups' names share, without "fold" and numbers at its end."""
    # Character by character: the names are no paths.
    shared = ""
    for characters in zip(*[fold.name for fold in folds], strict=False):
        if len(set(characters)) > 1:
            break
        shared += characters[0]
    ending = "0123456789-_., =("
    shared = shared.rstrip(ending).removesuffix("fold").removesuffix("split")
    # What is left of "manifest=fold1.csv" names nothing.
    shared = shared.rstrip(ending).removesuffix(f", {MANIFEST}")
    recipe = str(folds[0].settings.get("recipe.name") or folds[0].runs[0].recipe.get("name", "?"))
    return shared.rstrip("-_., =(") or recipe


def settings_tables(groups: Sequence[RunGroup]) -> list[Block]:
    """Make tables of the settings in which groups differ; [] where they differ in none.

    Runs from frames have settings that runs on cached features lack, and the other way round. Each
    kind is compared with its own.
    """
    kinds: dict[str, list[RunGroup]] = {}
    for group in groups:
        kind = "from frames" if "frames" in group.runs[0].about else "on cached features"
        kinds.setdefault(kind, []).append(group)

    blocks: list[Block] = []
    for number, members in enumerate(kinds.values()):
        keys = differences(members)
        if len(members) > 1 and keys:
            blocks.append(_settings_table(members, keys, f"settings-{number}" if number else ""))
    if len(kinds) > 1:
        listed = []
        for kind, members in kinds.items():
            listed.append(f"{kind}: {', '.join([group.name for group in members])}")
        blocks.insert(0, Text(f"Trained {'; '.join(listed)}. Settings are compared in each kind."))
    return blocks


def _settings_table(groups: Sequence[RunGroup], keys: Sequence[str], name: str) -> Table:
    """One kind's settings, in the form that stays narrow."""
    caption = "Keys of the recipe and, as config, of the cache's configuration."
    name = name or "settings"
    shown = {key: key.removeprefix("recipe.") for key in keys}
    texts = {key: [setting_text(group.settings.get(key)) for group in groups] for key in keys}

    if len(keys) <= MOST_SETTINGS:
        columns = [Column("name"), *[Column(shown[key]) for key in keys]]
        rows = []
        for k, group in enumerate(groups):
            rows.append((group.name, *[texts[key][k] for key in keys]))
        return long_table(name, caption, columns, rows)

    if len(groups) <= MOST_ROWS:
        columns = [Column("setting"), *[Column(group.name) for group in groups]]
        rows = [(shown[key], *texts[key]) for key in keys]
        return long_table(name, caption, columns, rows)

    # Many rows that differ in many settings: each is told by what it has apart from most rows.
    usual = {key: Counter(texts[key]).most_common(1)[0][0] for key in keys}
    rows = [("most rows", _listed(usual, shown))]
    for k, group in enumerate(groups):
        own = {key: texts[key][k] for key in keys if texts[key][k] != usual[key]}
        rows.append((group.name, _listed(own, shown) or "as most rows"))
    return long_table(name, caption, [Column("name"), Column("settings of its own")], rows)


def _listed(settings: dict[str, str], shown: dict[str, str]) -> str:
    return ", ".join([f"{shown[key]}={text}" for key, text in settings.items()])
