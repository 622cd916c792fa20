"""Find the caches and runs below a folder, and say in a few words how far each of them is.

A folder with cache.json is a cache, one with run.json is a run. Only small JSON files are read. A
damaged one is listed as damaged and never ends the search.
"""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from heads.interface.run_records import METRICS, RUN
from pipeline.cache.folder import require_cache_record
from pipeline.cache.parts import count_shards_in
from pipeline.cache.records import require
from pipeline.files.atomic_files import parse_json
from pipeline.files.regular_files import MOST_TEXT, opened, read_small
from pipeline.plugins import display_name
from pipeline.text.counted import counted

MARKS = {"cache.json": "cache", "run.json": "run"}
# Messages of errors may start with the name of one of these files.
READ_FILES = (*MARKS, "metrics.json", "manifest.csv", "log.jsonl")
BLOCK = 1 << 20


@dataclass(frozen=True)
class FolderEntry:
    """One cache or run.

    Attributes:
        kind: "cache" or "run".
        path: its folder.
        what: backbone and clips of a cache, head and seed of a run.
        stage: how far it is.
        bytes: the size of all its files.
        modified: when the newest of them was written, in seconds since 1970.
        fingerprint: of the cache, or of the cache that the run was trained on.
    """

    kind: str
    path: Path
    what: str
    stage: str
    bytes: int
    modified: float
    fingerprint: str


def entries_below(folder: Path) -> list[FolderEntry]:
    """Return the caches and runs in a folder and below it, sorted by path.

    Args:
        folder: where to look. Hidden folders are left out.

    Raises:
        ValueError: the folder does not exist.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder}: no such folder; expected one that holds caches or runs")
    return sorted(_find(folder), key=lambda entry: entry.path)


def epochs_in_log(folder: Path) -> int:
    """Return the epochs that the log of a run has; 0 without a log."""
    log = folder / "log.jsonl"
    return read_small(log, MOST_TEXT).count(b"\n") if log.exists() else 0


def _find(folder: Path) -> Iterator[FolderEntry]:
    for path, below, files in os.walk(folder):
        # os.walk descends into what is left in `below`.
        below[:] = [name for name in sorted(below) if name[0] != "."]
        for mark, kind in MARKS.items():
            if mark not in files:
                continue
            # A run's folder may hold further runs, a cache's folders hold its own files only.
            if kind == "cache":
                below.clear()
            yield _entry(kind, Path(path), mark)


def _entry(kind: str, path: Path, mark: str) -> FolderEntry:
    size, modified = _size(path)
    try:
        record = parse_json(read_small(path / mark), path / mark)
        if kind == "cache":
            require_cache_record(record, path / mark)
            what, stage = _cache_state(path, record)
        else:
            require(record, RUN, path / mark)
            what, stage = _run_state(path, record)
        fingerprint = record.get("fingerprint", "")
    except (OSError, ValueError) as error:
        what, stage, fingerprint = "?", f"damaged: {_reason(error, path, mark)}", ""
    return FolderEntry(kind, path, what, stage, size, modified, fingerprint)


def _reason(error: Exception, path: Path, mark: str) -> str:
    """Return an error as "FILE: what is wrong", with the file's name alone."""
    name = mark
    # Without the path in it, rpartition gives the whole text.
    text = str(error).rpartition(f"{path}{os.sep}")[2]
    if isinstance(error, OSError):
        if error.filename:
            name = Path(error.filename).name
        if error.strerror:
            text = error.strerror
    return text if text.startswith(READ_FILES) else f"{name}: {text}"


def _cache_state(path: Path, record: dict) -> tuple[str, str]:
    # Lines, not rows: a line break in quotes counts twice, which is good enough here.
    lines = 0
    with opened(path / "manifest.csv") as file:
        while block := file.read(BLOCK):
            lines += block.count(b"\n")
    # Without the header.
    clips = lines - 1

    shards = count_shards_in(record, clips)
    extracted = len(list((path / "features").glob("*.json")))
    with_graphs = len(list((path / "graphs").glob("*.json")))
    done = "complete" if extracted == shards else f"{extracted} of {shards} shards"
    if with_graphs == shards:
        graphs = "graphs"
    elif with_graphs == 0:
        graphs = "no graphs"
    else:
        graphs = f"graphs of {counted(with_graphs, 'shard')}"
    return f"{_backbone(record['config'])}, {counted(clips, 'clip')}", f"{done}, {graphs}"


def _backbone(config: dict) -> str:
    """Return the backbone's name; a cache of digit videos has a table in its place."""
    backbone = config.get("backbone", "?")
    if isinstance(backbone, dict):
        backbone = backbone.get("name", "?")
    return display_name(str(backbone))


def _run_state(path: Path, record: dict) -> tuple[str, str]:
    what = display_name(record["recipe"]["head"]["name"])
    if "seed" in record:
        what += f", seed {record['seed']}"
    file = path / "metrics.json"
    if not file.exists():
        return what, f"after epoch {epochs_in_log(path)}, unfinished"

    metrics = require(parse_json(read_small(file), file), METRICS, file)["metrics"]
    for split in ("test", "val"):
        figures = metrics.get(split)
        if not figures:
            continue
        for name in ("top1", "map"):
            if name in figures:
                return what, f"finished, {split} {name} {100 * figures[name]:.1f} %"
        # One figure is enough, of the first split that has any.
        break
    return what, "finished"


def _size(path: Path) -> tuple[int, float]:
    """Return the bytes of all files below a folder, and when the newest was written."""
    total, newest = 0, path.stat().st_mtime
    for parent, _, files in os.walk(path):
        for name in files:
            try:
                status = os.stat(os.path.join(parent, name))
            except OSError:
                # A run at work here has removed it since it was listed.
                continue
            total, newest = total + status.st_size, max(newest, status.st_mtime)
    return total, newest
