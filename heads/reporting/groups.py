"""Runs that differ in nothing but the seed are one row of the study: a `RunGroup`, with the spread
over its runs.
"""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from heads.config.recipe import PLAIN
from heads.reporting.document import Spread
from heads.reporting.plots import COLOURS, REST
from heads.reporting.predictions import VideoPredictions, main_figure
from heads.reporting.run_folders import FoundRun
from heads.runs.manifest_record import TAG
from pipeline.plugins import display_name

# What of run.json tells one group from another. A start is the weights of one run, and seeds start
# from different ones.
PARTS = ("recipe", "config", "dims", "fingerprint", "precision", "frames")
UNSAID = {"recipe.name", "recipe.source", "recipe.ours"}
MANIFEST = "manifest"  # the setting that says whose labels and splits a run has


@dataclass
class RunGroup:
    """Finished runs of one configuration, by seed; `name` is its own in the report; `rank`: 0 for
    the best main figure.

    `macs`: of the head on one view, None where they could not be counted.
    """

    name: str
    runs: list[FoundRun]
    settings: dict[str, Any]
    rank: int = 0
    macs: int | None = None

    @property
    def predicted(self) -> list[VideoPredictions]:
        """Of each run that has them."""
        return [run.predicted for run in self.runs if run.predicted is not None]

    @property
    def colour(self) -> int:
        """Of its curves and points."""
        return self.rank if self.rank < COLOURS else REST

    @property
    def head(self) -> str:
        return display_name(str(self.settings["recipe.head.name"]))

    def test_set(self, split: str) -> str:
        """The checksum of the clips and labels that its figures of a split are of; "" where no run
        tells.
        """
        return next((known for run in self.runs if (known := run.test_set(split))), "")

    def spread(
        self, value: Callable[[FoundRun], float | None], times: float = 1.0
    ) -> Spread | None:
        """Mean and deviation of a value over the runs that have it."""
        return spread_of([found * times for run in self.runs if (found := value(run)) is not None])

    def figure(self, split: str, name: str, times: float = 1.0) -> Spread | None:
        """Of a figure of a split."""
        return self.spread(lambda run: run.figures(split).get(name), times)

    def mean_of(self, value: Callable[[VideoPredictions], np.ndarray]) -> np.ndarray:
        """The mean of an array over the runs with predictions."""
        return np.mean([value(one) for one in self.predicted], axis=0)


def spread_of(values: Sequence[float]) -> Spread | None:
    """Mean and sample deviation; None of nothing."""
    if not values:
        return None
    deviation = float(np.std(values, ddof=1)) if len(values) > 1 else None
    return Spread(float(np.mean(values)), deviation, len(values))


def groups_of(found: Iterable[FoundRun], split: str) -> list[RunGroup]:
    """The finished runs by configuration, the best first; names are unique."""
    by_key: dict[str, list[FoundRun]] = {}
    finished = [run for run in found if run.finished]
    manifests = _manifest_names(finished)
    for run in finished:
        by_key.setdefault(
            json.dumps(settings_of(run, manifests), sort_keys=True, default=str), []
        ).append(run)
    groups = []
    for members in (
        part
        for some in by_key.values()
        for one in _by_test_set(some, split)
        for part in _once_per_seed(one)
    ):
        members.sort(key=lambda run: (run.about["seed"], str(run.folder)))
        groups.append(RunGroup(_name(members), members, settings_of(members[0], manifests)))
    for name in {group.name for group in groups}:
        _tell_apart([group for group in groups if group.name == name])
    groups.sort(key=lambda group: -_main(group, split))
    for rank, group in enumerate(groups):
        group.rank = rank
    return groups


def _by_test_set(members: list[FoundRun], split: str) -> list[list[FoundRun]]:
    """Runs of one configuration apart by the clips that their figures are of: the cache may have
    lost or found some since.

    Those that do not tell are with the first.
    """
    sets: dict[str, list[FoundRun]] = {}
    for run in members:
        sets.setdefault(run.test_set(split), []).append(run)
    unknown = sets.pop("", [])
    if not sets:
        return [unknown]
    sets[next(iter(sets))] += unknown
    return list(sets.values())


def _once_per_seed(members: list[FoundRun]) -> list[list[FoundRun]]:
    """Runs of one configuration: together if every seed is there once; else apart by the names of
    their folders, and of the folders that hold them: a run that was repeated, perhaps with other
    code, is no further seed.
    """
    for key in (
        lambda run: "",
        _stem,
        lambda run: (run.folder.resolve().parent, _stem(run)),
        lambda run: run.folder,
    ):
        parts: dict[Any, list[FoundRun]] = {}
        for run in members:
            parts.setdefault(key(run), []).append(run)
        if all(len({run.about["seed"] for run in part}) == len(part) for part in parts.values()):
            break
    return list(parts.values())


def _stem(run: FoundRun) -> str:
    """The name of its folder but for the seed."""
    return run.folder.resolve().name.removesuffix(f"-seed{run.about['seed']}")


def _name(members: Sequence[FoundRun]) -> str:
    """What their folders are called but for the seed, where they agree; else the recipe's name."""
    names = {_stem(run) for run in members}
    return names.pop() if len(names) == 1 else str(members[0].recipe.get("name", "?"))


def _main(group: RunGroup, split: str) -> float:
    """The main figure, lower than any where there is none."""
    name = main_figure(group.runs[0].figures(split))
    found = group.figure(split, name) if name else None
    return found.mean if found else -1.0


def settings_of(run: FoundRun, manifests: Mapping[str, str]) -> dict[str, Any]:
    """Every setting of a finished run by its dotted key: recipe.train.lr, config.sampling.frames,
    …; and its last phase.

    manifests: what each manifest is called, by the checksum of its labels and splits.
    """
    record = {part: run.about[part] for part in PARTS if part in run.about}
    if checksum := _manifest_of(run).get("sha256"):
        record[MANIFEST] = manifests[checksum]
    return flat({**record, "phase": run.result.get("phase", PLAIN)})


def _manifest_of(run: FoundRun) -> Mapping[str, Any]:
    """What the run records of its manifest; {} of a run of an earlier version."""
    return run.about.get("manifest") or {}


def _manifest_names(found: Iterable[FoundRun]) -> dict[str, str]:
    """Checksum of labels and splits -> the first file's name that has them, and as much of the
    checksum as tells it apart.
    """
    names: dict[str, str] = {}
    for run in found:
        record = _manifest_of(run)
        if record:
            path = Path(record["path"])
            name = f"{path.parent.name}/{path.name}" if path.name == "manifest.csv" else path.name
            names.setdefault(record["sha256"], f"{name} ({record['sha256'][:TAG]})")
    return names


def by_test_set(groups: Sequence[RunGroup], split: str) -> list[list[RunGroup]]:
    """Groups whose figures of a split can be compared, as they are of the same clips with the same
    labels, together.

    The sets in the order of their first group. Groups that do not tell are taken to have one set.
    """
    sets: dict[str, list[RunGroup]] = {}
    for group in groups:
        sets.setdefault(group.test_set(split), []).append(group)
    return list(sets.values())


def flat(record: dict, prefix: str = "") -> dict[str, Any]:
    """{"a": {"b": 1}} -> {"a.b": 1}; the phases of a recipe by their names."""
    found: dict[str, Any] = {}
    for key, value in record.items():
        if (
            isinstance(value, list)
            and value
            and all(isinstance(row, dict) and "name" in row for row in value)
        ):
            value = {row["name"]: row for row in value}
        if isinstance(value, dict):
            found |= flat(value, f"{prefix}{key}.")
        else:
            found[f"{prefix}{key}"] = value
    return found


def _tell_apart(groups: Sequence[RunGroup]) -> None:
    """Adds to names that are alike what the groups differ in."""
    if len(groups) < 2:
        return
    differing, parents = (
        differences(groups),
        [group.runs[0].folder.resolve().parent.name for group in groups],
    )
    for number, group in enumerate(groups, 1):
        told = [
            f"{key.rsplit('.', 1)[-1]}={text(group.settings.get(key))}" for key in differing[:4]
        ]
        if not told and len(set(parents)) == len(groups):
            told = [f"in {parents[number - 1]}"]
        group.name = f"{group.name}, {', '.join(told)}" if told else f"{group.name} ({number})"
    names = [group.name for group in groups]
    for number, group in enumerate(groups, 1):
        if names.count(group.name) > 1:  # more keys differ than are written
            group.name = f"{group.name} ({number})"


def differences(groups: Sequence[RunGroup]) -> list[str]:
    """The dotted keys in which groups differ, the recipe's first; fingerprints only where nothing
    else tells.
    """
    keys = dict.fromkeys(key for group in groups for key in group.settings)
    found = [
        key
        for key in keys
        if key not in UNSAID and len({text(group.settings.get(key)) for group in groups}) > 1
    ]
    return [key for key in found if key != "fingerprint"] or found


def text(value: Any) -> str:
    """A setting for a person."""
    if value is None:
        return "-"
    return value if isinstance(value, str) else json.dumps(value)


def series_over(
    groups: Sequence[RunGroup], value: Callable[[RunGroup], float], ignoring: set[str]
) -> list[list[RunGroup]]:
    """Groups that differ in `value` and in the settings `ignoring` alone, together and by value;
    what stands alone is left out."""
    together: dict[str, list[RunGroup]] = {}
    for group in groups:
        rest = {
            key: setting for key, setting in group.settings.items() if key not in ignoring | UNSAID
        }
        together.setdefault(json.dumps(rest, sort_keys=True, default=str), []).append(group)
    found = [sorted(members, key=value) for members in together.values()]
    return [members for members in found if len({value(group) for group in members}) > 1]
