"""Figures of finished runs from earlier records, where the run folders are gone.

A record (TABLE-SIZE.json, see heads/reproduction/report.py) holds the figures of every run with
its `key`, a hash of all that decides them: recipe, task, videos, start and versions. So a later
command adds seeds to a table without training again what the record has.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from pipeline.files.atomic_files import parse_json

# (task, name of the row, key) -> the record's runs.
Found = dict[tuple[str, str, str], list[dict[str, Any]]]


@dataclass(frozen=True)
class EarlierResults:
    """Runs of earlier records.

    Attributes:
        found: (task, row, key) -> runs; the first record that has a seed counts.
    """

    found: Found = field(default_factory=dict)

    def runs(self, task: str, row: str, key: str) -> list[dict[str, Any]]:
        """Return the runs of a row that were made in the same way.

        Args:
            task: name of the task.
            row: name of the row.
            key: see `key_of`.
        """
        return self.found.get((task, row, key), [])


def read_results(paths: Iterable[Path]) -> EarlierResults:
    """Read the runs of records.

    Args:
        paths: files that `write_report` wrote. Runs without a key, of earlier versions, are left
            out.

    Raises:
        ValueError: a file is no such record.
    """
    found: Found = {}
    for path in paths:
        record = parse_json(path.read_text(encoding="utf-8"), path)
        try:
            for task, about in record["tasks"].items():
                for row in about["rows"]:
                    _add(found, task, row)
        except (AttributeError, KeyError, TypeError) as error:
            raise ValueError(
                f"{path}: expected a record that `vidgraph reproduce` wrote ({error!r})"
            ) from None
    return EarlierResults(found)


def _add(found: Found, task: str, row: Mapping[str, Any]) -> None:
    for run in row["runs"]:
        if "key" not in run:
            continue
        known = found.setdefault((task, row["name"], run["key"]), [])
        if run["seed"] not in [other["seed"] for other in known]:
            known.append({**run, "earlier": True})


def key_of(facts: Mapping[str, Any]) -> str:
    """Return the hash of what decides a run's figures.

    Args:
        facts: what JSON can hold.
    """
    text = json.dumps(facts, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]
