"""Group runs that differ only in their seed into rows of the study."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heads.config.recipe import PLAIN
from heads.reporting.document import Spread
from heads.reporting.predictions import VideoPredictions, main_figure
from heads.reporting.run_folders import FoundRun
from heads.runs.manifest_record import TAG
from pipeline.plugins import display_name

# Parts of run.json that tell one group from another. `start` is not among them: it is the weights
# of one run, and seeds start from different ones.
PARTS = ("recipe", "config", "dims", "fingerprint", "precision", "frames")

# Settings that never name a difference.
IGNORED = {"recipe.name", "recipe.source", "recipe.ours"}

# The setting that holds whose labels and splits a run has.
MANIFEST = "manifest"

# A name shows at most this many settings.
MOST_SETTINGS = 4


@dataclass
class RunGroup:
    """Finished runs of one configuration: a row of the study.

    Attributes:
        name: unique in the report.
        runs: by seed.
        settings: by dotted key.
        rank: its place in the report: sets of videos one after the other, the best of each first.
        macs: of the head on one view; None where they could not be counted.
    """

    name: str
    runs: list[FoundRun]
    settings: dict[str, Any]
    rank: int = 0
    macs: int | None = None

    @property
    def predicted(self) -> list[VideoPredictions]:
        """The predictions of each run that has them."""
        return [run.predicted for run in self.runs if run.predicted is not None]

    @property
    def colour(self) -> int:
        """The style number of its curves and points (see plots.py)."""
        return self.rank

    @property
    def head(self) -> str:
        """The name of its head."""
        return display_name(str(self.settings["recipe.head.name"]))

    def test_set(self, split: str) -> str:
        """Return the checksum of the clips and labels that its figures of a split are of.

        "" where no run knows.
        """
        for run in self.runs:
            checksum = run.test_set(split)
            if checksum:
                return checksum
        return ""

    def compared_with(self, split: str) -> tuple[str, ...]:
        """Return what must be the same of groups that are ranked together.

        These are the videos and labels of a split, the target, and the classes.
        """
        target = str(self.settings.get("recipe.data.target", ""))
        return (self.test_set(split), target, *map(str, self.runs[0].about["classes"]))

    def spread(
        self, value: Callable[[FoundRun], float | None], factor: float = 1.0
    ) -> Spread | None:
        """Return the mean and deviation of a value over the runs that have it.

        Args:
            value: run -> its value, or None.
            factor: multiplies each value.

        Returns:
            The spread; None where no run has the value.
        """
        values = []
        for run in self.runs:
            found = value(run)
            if found is not None:
                values.append(found * factor)
        return spread_of(values)

    def figure(self, split: str, name: str, factor: float = 1.0) -> Spread | None:
        """Return the spread of a figure of a split, multiplied by `factor`."""
        return self.spread(lambda run: run.figures(split).get(name), factor)

    def mean_of(self, value: Callable[[VideoPredictions], np.ndarray]) -> np.ndarray:
        """Return the mean of an array over the runs with predictions."""
        return np.mean([value(predictions) for predictions in self.predicted], axis=0)


def spread_of(values: Sequence[float]) -> Spread | None:
    """Return the mean and sample deviation of values; None for no value."""
    if not values:
        return None
    # One value has no deviation.
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def groups_of(found: Iterable[FoundRun], split: str) -> list[RunGroup]:
    """Group finished runs by their configuration.

    Args:
        found: runs; those that are not finished are left out.
        split: whose figures are reported.

    Returns:
        The groups, with unique names. Those that can be compared follow one another, the largest
        set first, and each set is sorted as `sorting_split` says.
    """
    finished = [run for run in found if run.finished]
    manifests = _manifest_names(finished)
    by_key: dict[str, list[FoundRun]] = {}
    for run in finished:
        key = json.dumps(settings_of(run, manifests), sort_keys=True, default=str)
        by_key.setdefault(key, []).append(run)

    parts = []
    for members in by_key.values():
        for same_clips in _split_by_test_set(members, split):
            parts += _split_repeated_seeds(same_clips)

    groups = []
    for members in parts:
        members.sort(key=lambda run: (run.about["seed"], str(run.folder)))
        groups.append(RunGroup(_name(members), members, settings_of(members[0], manifests)))
    for name in {group.name for group in groups}:
        _make_names_unique([group for group in groups if group.name == name])

    groups = _in_order(groups, split)
    for rank, group in enumerate(groups):
        group.rank = rank
    return groups


def _in_order(groups: Sequence[RunGroup], split: str) -> list[RunGroup]:
    """The groups set by set, the best of each first."""
    sets = by_test_set(groups, split)
    for members in sets:
        chooser = sorting_split(members, split)
        # A row without figures of it comes last, wherever the other split would put it.
        members.sort(key=lambda group: (-_main_value(group, chooser), -_main_value(group, split)))
    sets.sort(key=lambda members: (-len(members), -_main_value(members[0], split)))
    ordered: list[RunGroup] = []
    for members in sets:
        ordered += members
    return ordered


def sorting_split(members: Sequence[RunGroup], split: str) -> str:
    """Return the split whose main figure sorts groups.

    It is val, since a choice by test would make the best row's figure too high. Where no group has
    figures of val, it is the split that is reported.
    """
    has_val = any(_main_value(group, "val") >= 0 for group in members)
    return "val" if has_val else split


def _split_by_test_set(members: list[FoundRun], split: str) -> list[list[FoundRun]]:
    """Split runs of one configuration by the clips that their figures are of.

    They differ where clips of the cache failed, or were repaired, between two runs. Runs that do
    not know their clips stay with the first.
    """
    sets: dict[str, list[FoundRun]] = {}
    for run in members:
        sets.setdefault(run.test_set(split), []).append(run)
    unknown = sets.pop("", [])
    if not sets:
        return [unknown]
    sets[next(iter(sets))] += unknown
    return list(sets.values())


def _split_repeated_seeds(members: list[FoundRun]) -> list[list[FoundRun]]:
    """Split runs of one configuration until no part has a seed twice.

    A run that was repeated, perhaps with other code, is no further seed. Runs are told apart by
    the names of their folders, then by the folders that hold them, then one by one.
    """
    keys: tuple[Callable[[FoundRun], Any], ...] = (
        lambda run: "",
        _stem,
        lambda run: (run.folder.resolve().parent, _stem(run)),
        lambda run: run.folder,
    )
    for key in keys:
        parts: dict[Any, list[FoundRun]] = {}
        for run in members:
            parts.setdefault(key(run), []).append(run)
        seeds = [{run.about["seed"] for run in part} for part in parts.values()]
        # As many seeds as runs: no part has a seed twice.
        if sum(map(len, seeds)) == len(members):
            break
    return list(parts.values())


def _stem(run: FoundRun) -> str:
    """The name of its folder without the seed."""
    return run.folder.resolve().name.removesuffix(f"-seed{run.about['seed']}")


def _name(members: Sequence[FoundRun]) -> str:
    """The name that their folders share, without the seed; else the recipe's name."""
    # A user knows runs by their folders.
    names = {_stem(run) for run in members}
    return names.pop() if len(names) == 1 else str(members[0].recipe.get("name", "?"))


def _main_value(group: RunGroup, split: str) -> float:
    """The main figure; -1 where there is none, which is below any."""
    name = main_figure(group.runs[0].figures(split))
    found = group.figure(split, name) if name else None
    return found.mean if found else -1.0


def settings_of(run: FoundRun, manifests: Mapping[str, str]) -> dict[str, Any]:
    """Return every setting of a finished run, and its last phase.

    Args:
        run: the run.
        manifests: a manifest's name by the checksum of its labels and splits.

    Returns:
        Values by dotted key: recipe.train.lr, config.sampling.frames, ...
    """
    record = {part: run.about[part] for part in PARTS if part in run.about}
    checksum = _manifest_of(run).get("sha256")
    if checksum:
        record[MANIFEST] = manifests[checksum]
    return flatten({**record, "phase": run.result.get("phase", PLAIN)})


def _manifest_of(run: FoundRun) -> Mapping[str, Any]:
    """What the run records of its manifest; {} for a run of an earlier version."""
    return run.about.get("manifest") or {}


def _manifest_names(found: Iterable[FoundRun]) -> dict[str, str]:
    """Checksum of labels and splits -> the first file's name with a part of the checksum."""
    names: dict[str, str] = {}
    for run in found:
        record = _manifest_of(run)
        if record:
            path = Path(record["path"])
            # Every cache has a manifest.csv, so its folder is named, too.
            name = f"{path.parent.name}/{path.name}" if path.name == "manifest.csv" else path.name
            names.setdefault(record["sha256"], f"{name} ({record['sha256'][:TAG]})")
    return names


def by_test_set(groups: Sequence[RunGroup], split: str) -> list[list[RunGroup]]:
    """Put groups together whose figures of a split can be compared.

    They are of the same clips with the same labels, classes and target. Groups that do not know
    their clips are taken to share one set of these.

    Args:
        groups: in any order, which is kept.
        split: the split.

    Returns:
        The sets, in the order of their first group.
    """
    sets: dict[tuple[str, ...], list[RunGroup]] = {}
    for group in groups:
        sets.setdefault(group.compared_with(split), []).append(group)
    return list(sets.values())


def flatten(record: dict, prefix: str = "") -> dict[str, Any]:
    """Flatten nested tables: {"a": {"b": 1}} -> {"a.b": 1}; a recipe's phases by their names."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if _is_list_of_named(value):
            value = {row["name"]: row for row in value}
        if isinstance(value, dict):
            found |= flatten(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _is_list_of_named(value: Any) -> bool:
    """Whether a value is a list of tables with names, such as a recipe's phases."""
    if not isinstance(value, list) or not value:
        return False
    return all(isinstance(row, dict) and "name" in row for row in value)


def _make_names_unique(groups: Sequence[RunGroup]) -> None:
    """Add what groups of one name differ in: settings, else their parent folders, else a number."""
    if len(groups) < 2:
        return
    keys = differences(groups)
    # Fields of a cache beside those that a head reads change nothing, and make long names.
    keys = [key for key in keys if key != "config.keep"][:MOST_SETTINGS] or keys[:MOST_SETTINGS]
    parents = [group.runs[0].folder.resolve().parent.name for group in groups]
    for number, group in enumerate(groups, 1):
        parts = []
        for key in keys:
            parts.append(f"{key.rsplit('.', 1)[-1]}={setting_text(group.settings.get(key))}")
        if not parts and len(set(parents)) == len(groups):
            parts = [f"in {parents[number - 1]}"]
        suffix = f", {', '.join(parts)}" if parts else f" ({number})"
        group.name += suffix

    # Names are still equal where groups differ in more settings than a name shows.
    names = [group.name for group in groups]
    for number, group in enumerate(groups, 1):
        if names.count(group.name) > 1:
            group.name = f"{group.name} ({number})"


def differences(groups: Sequence[RunGroup]) -> list[str]:
    """Return the dotted keys in which groups differ, the recipe's first.

    The fingerprint is among them only where nothing else differs.
    """
    # A dictionary keeps the order in which keys occur.
    keys: dict[str, None] = {}
    for group in groups:
        keys.update(dict.fromkeys(group.settings))

    found = []
    for key in keys:
        values = {setting_text(group.settings.get(key)) for group in groups}
        if key not in IGNORED and len(values) > 1:
            found.append(key)
    return [key for key in found if key != "fingerprint"] or found


def setting_text(value: Any) -> str:
    """Format a setting for people."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def series_over(
    groups: Sequence[RunGroup], value: Callable[[RunGroup], float], ignored: set[str]
) -> list[list[RunGroup]]:
    """Find groups that differ in one number alone.

    Args:
        groups: all groups.
        value: group -> the number.
        ignored: settings that differ with the number.

    Returns:
        Series of two or more groups, each sorted by the number.
    """
    together: dict[str, list[RunGroup]] = {}
    for group in groups:
        kept = group.settings.keys() - ignored - IGNORED
        rest = {key: group.settings[key] for key in kept}
        key = json.dumps(rest, sort_keys=True, default=str)
        together.setdefault(key, []).append(group)

    # A group alone shows nothing of the number.
    series = []
    for members in together.values():
        if len({value(group) for group in members}) > 1:
            series.append(sorted(members, key=value))
    return series
