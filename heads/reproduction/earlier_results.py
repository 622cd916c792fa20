"""Figures of finished runs from earlier records, where the run folders are gone.

A record (TABLE-SIZE.json, see heads/reproduction/report.py) says for every row how its runs were
made: recipe, task, videos, start and versions. So a later command adds seeds to a table without
training again what the record has.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from heads.config.recipe import recipe_from
from pipeline.files.atomic_files import parse_json
from pipeline.files.regular_files import read_small_text

# (task, name of the row) -> (how the runs were made, the runs) of each record.
Found = dict[tuple[str, str], list[tuple[dict[str, Any], list[dict[str, Any]]]]]


@dataclass(frozen=True)
class EarlierResults:
    """Runs of earlier records.

    Attributes:
        found: (task, row) -> how runs were made, and the runs, of each record that has the row.
    """

    found: Found = field(default_factory=dict)

    def runs(self, task: str, row: str, made: Mapping[str, Any]) -> list[dict[str, Any]]:
        """Return the runs of a row that were made in the same way, one for a seed.

        Args:
            task: name of the task.
            row: name of the row.
            made: how a run of the row is made, see `Reproduction.made`.
        """
        by_seed: dict[int, dict[str, Any]] = {}
        for recorded, runs in self.found.get((task, row), []):
            if same_making(recorded, made):
                for run in runs:
                    by_seed.setdefault(run["seed"], {**run, "earlier": True})
        return list(by_seed.values())


def read_results(paths: Iterable[Path]) -> EarlierResults:
    """Read the runs of records.

    Args:
        paths: files that `write_report` wrote. Where they have the same seed, the first counts.
            Records of versions that did not say how runs were made are left out.

    Raises:
        ValueError: a file is no such record.
    """
    found: Found = {}
    for path in paths:
        record = parse_json(read_small_text(path), path)
        try:
            for task, about in record["tasks"].items():
                for row in about["rows"]:
                    if "made" in row:
                        found.setdefault((task, row["name"]), []).append((row["made"], row["runs"]))
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a record that `vidgraph reproduce` wrote ({error!r})"
            ) from None
    return EarlierResults(found)


def same_making(recorded: Mapping[str, Any], made: Mapping[str, Any]) -> bool:
    """Return whether two runs were made in the same way.

    Options that recipes have got since count with their defaults.

    Args:
        recorded: from a record.
        made: of a run of this version.
    """
    if recorded.keys() != made.keys():
        return False
    for name, value in made.items():
        other = recorded[name]
        if name == "recipe":
            same = recipe_from(other, "record") == recipe_from(value, "record")
        elif name == "start" and value is not None and other is not None:
            same = same_making(other, value)
        else:
            same = other == value
        if not same:
            return False
    return True
