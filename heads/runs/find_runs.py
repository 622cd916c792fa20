"""What lies below a folder: caches, by their cache.json, and runs, by their run.json, each with its
state in a few words.

Nothing is opened but small JSON files; a damaged one is listed as such and never ends the listing.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heads.interface.run_records import METRICS, RUN
from pipeline.cache.records import CACHE, require
from pipeline.files.atomic_files import parse_json
from pipeline.files.regular_files import MOST_TEXT, opened, read_small

MARKS = {"cache.json": "cache", "run.json": "run"}
MINE = (*MARKS, "metrics.json", "manifest.csv", "log.jsonl")


@dataclass(frozen=True)
class FolderEntry:
    """One cache or run: `kind` "cache" or "run"; `what` it is; `stage`, how far it is; `bytes` of
    all its files; `modified`, when the last of them was written (seconds since 1970);
    `fingerprint`, of a run: that of the cache it was trained on.
    """

    kind: str
    path: Path
    what: str
    stage: str
    bytes: int
    modified: float
    fingerprint: str


def entries_below(folder: Path) -> list[FolderEntry]:
    """The caches and runs in `folder` and below, by path. ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one that holds caches or runs")
    return sorted(_found(folder), key=lambda entry: entry.path)


def _found(folder: Path) -> Iterator[FolderEntry]:
    for path, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for mark, kind in MARKS.items():
            if mark in files:
                if kind == "cache":
                    below.clear()  # its folders are its own; a run's may hold further runs
                yield _entry(kind, Path(path), mark)


def _entry(kind: str, path: Path, mark: str) -> FolderEntry:
    size, modified = _size(path)
    try:
        record = parse_json(read_small(path / mark), path / mark)
        require(record, CACHE if kind == "cache" else RUN, path / mark)
        what, stage = _cache_state(path, record) if kind == "cache" else _run_state(path, record)
        fingerprint = record.get("fingerprint", "")
    except (OSError, ValueError) as error:
        name = Path(error.filename).name if isinstance(error, OSError) and error.filename else mark
        said = (
            error.strerror
            if isinstance(error, OSError) and error.strerror
            else str(error).rpartition(f"{path}{os.sep}")[2]
        )
        what, stage, fingerprint = (
            "?",
            f"damaged: {said if said.startswith(MINE) else f'{name}: {said}'}",
            "",
        )
    return FolderEntry(kind, path, what, stage, size, modified, fingerprint)


def _cache_state(path: Path, record: dict) -> tuple[str, str]:
    # a quoted line break would count twice: this is for people
    with opened(path / "manifest.csv") as file:
        clips = sum(block.count(b"\n") for block in iter(lambda: file.read(1 << 20), b"")) - 1
    shards = -(-clips // max(1, record["per_shard"]))
    counts = {stage: len(list((path / stage).glob("*.json"))) for stage in ("features", "graphs")}
    done = (
        "complete" if counts["features"] == shards else f"{counts['features']} of {shards} shards"
    )
    graphs = {0: "no graphs", shards: "graphs"}.get(
        counts["graphs"], f"graphs of {counts['graphs']} shards"
    )
    return f"{_backbone(record['config'])}, {clips:,} clips", f"{done}, {graphs}"


def _backbone(config: dict) -> str:
    """Its name: a text, or in caches of digit videos a table."""
    named = config.get("backbone", "?")
    return str(named.get("name", "?") if isinstance(named, dict) else named)


def _run_state(path: Path, record: dict) -> tuple[str, str]:
    what = f"{record['recipe']['head']['name']}, seed {record['seed']}"
    if not (path / "metrics.json").exists():
        log = path / "log.jsonl"
        epochs = read_small(log, MOST_TEXT).count(b"\n") if log.exists() else 0
        return what, f"after epoch {epochs}, unfinished"
    file = path / "metrics.json"
    metrics = require(parse_json(read_small(file), file), METRICS, file)["metrics"]
    split = next((name for name in ("test", "val") if metrics.get(name)), "")
    figure = next((name for name in ("top1", "map") if name in metrics.get(split, {})), "")
    shown = f", {split} {figure} {100 * metrics[split][figure]:.1f} %" if figure else ""
    return what, f"finished{shown}"


def _size(path: Path) -> tuple[int, float]:
    """Bytes of all files below `path`, and when the newest was written."""
    total, newest = 0, path.stat().st_mtime
    for parent, _, files in os.walk(path):
        for name in files:
            try:
                status = os.stat(os.path.join(parent, name))
            except OSError:  # gone since it was listed: a run is at work here
                continue
            total, newest = total + status.st_size, max(newest, status.st_mtime)
    return total, newest
