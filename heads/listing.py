"""What lies below a folder: caches, by their cache.json, and runs, by their run.json, each with its state in a few words.

Nothing is opened but small JSON files; a damaged one is listed as such and never ends the listing.
"""

import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

MARKS = {"cache.json": "cache", "run.json": "run"}


@dataclass(frozen=True)
class Entry:
    """One cache or run: `kind` "cache" or "run"; `what` it is; `stage`, how far it is; `bytes` of all its files; `modified`,
    when the last of them was written (seconds since 1970); `fingerprint`, of a run: that of the cache it was trained on."""

    kind: str
    path: Path
    what: str
    stage: str
    bytes: int
    modified: float
    fingerprint: str


def entries_below(folder: Path) -> list[Entry]:
    """The caches and runs in `folder` and below, by path. ValueError if there is no such folder."""
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one that holds caches or runs")
    return sorted(_found(folder), key=lambda entry: entry.path)


def _found(folder: Path) -> Iterator[Entry]:
    for path, below, files in os.walk(folder):
        below[:] = sorted(name for name in below if not name.startswith("."))
        for mark, kind in MARKS.items():
            if mark in files:
                if kind == "cache":
                    below.clear()  # its folders are its own; a run's may hold further runs
                yield _entry(kind, Path(path), mark)


def _entry(kind: str, path: Path, mark: str) -> Entry:
    size, modified = _size(path)
    try:
        record = json.loads((path / mark).read_text(encoding="utf-8"))
        what, stage = _cache_state(path, record) if kind == "cache" else _run_state(path, record)
        fingerprint = str(record["fingerprint"])
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        what, stage, fingerprint = "?", f"damaged: {mark}: {type(error).__name__}", ""
    return Entry(kind, path, what, stage, size, modified, fingerprint)


def _cache_state(path: Path, record: dict) -> tuple[str, str]:
    config = record["config"]
    with open(path / "manifest.csv", encoding="utf-8", newline="") as file:
        clips = sum(1 for line in file if line.strip()) - 1  # a quoted line break would count twice: this is for people
    shards = -(-clips // record["per_shard"])
    counts = {stage: len(list((path / stage).glob("*.json"))) for stage in ("features", "graphs")}
    done = "complete" if counts["features"] == shards else f"{counts['features']} of {shards} shards"
    graphs = {0: "no graphs", shards: "graphs"}.get(counts["graphs"], f"graphs of {counts['graphs']} shards")
    return f"{config['backbone']}, {clips:,} clips", f"{done}, {graphs}"


def _run_state(path: Path, record: dict) -> tuple[str, str]:
    what = f"{record['recipe']['head']['name']}, seed {record['seed']}"
    if not (path / "metrics.json").exists():
        log = path / "log.jsonl"
        epochs = len(log.read_text(encoding="utf-8").splitlines()) if log.exists() else 0
        return what, f"after epoch {epochs}, unfinished"
    metrics = json.loads((path / "metrics.json").read_text(encoding="utf-8"))["metrics"]
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
