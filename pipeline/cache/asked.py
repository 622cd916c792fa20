"""What a cache was asked for: options of its extraction and of its graphs, with paths of files.

cache.json names weights by their checksums. The statistics of every shard also have the paths. A
run keeps a copy of this record, so that it can be asked about new videos when its cache is gone.
"""

from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from pipeline.cache.records import read_statistics
from pipeline.files.atomic_files import Damaged

# The shape of the record in run.json, for `pipeline.cache.records.require`.
EXTRACTION = {
    "asked": dict,
    "batch?": int,
    "compression?": str,
    "graphs?": {"which": [str], "neighbours": int, "tracks?": bool},
}


def extraction_record(folder: Path) -> dict[str, Any] | None:
    """Return what a cache was asked for.

    Args:
        folder: the cache.

    Returns:
        `asked`, the options of the extraction as `dataclasses.asdict` makes them, with absolute
        paths; `batch` and `compression`; and `graphs`, the options of its graphs, if it has any.
        None if no shard that can be read has such a record.
    """
    for statistics in readable_statistics(folder, "features"):
        if "asked" not in statistics:
            continue
        record = {
            "asked": statistics["asked"],
            "batch": statistics["batch"],
            "compression": statistics["compression"],
        }
        for graphs in readable_statistics(folder, "graphs"):
            if "options" in graphs:
                record["graphs"] = graphs["options"]
                break
        return record
    return None


def readable_statistics(folder: Path, stage: str) -> Iterator[dict]:
    """Yield the statistics of a stage's shards, in the order of their numbers.

    Args:
        folder: the cache.
        stage: "features" or "graphs".

    Yields:
        Statistics. Damaged ones are left out: those of another shard say the same.
    """
    for path in sorted((folder / stage).glob("*.json")):
        with suppress(Damaged, OSError):
            yield read_statistics(path.with_suffix(".h5"))
